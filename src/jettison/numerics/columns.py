"""Column by column: what one column loses, the columns that are left make up for, by the inverse Hessian."""

from collections.abc import Callable, Iterator

import torch

from jettison.core.errors import JettisonError

DAMPINGS = 7  # how often a matrix is damped, tenfold each time, before it counts as unusable
LEAST = 1e-30  # of the mean squared input: below, the text says nothing that float32 could hold


def spread_errors(
    weight: torch.Tensor, factor: torch.Tensor, step: int, replace: Callable[[int, torch.Tensor], torch.Tensor]
) -> None:
    """Replace the columns of ``weight`` one after the other, spreading each one's error over the ones left.

    weight: (out, in) float32, changed in place; while a block of ``step`` columns is at work it holds the errors of the
    blocks before. factor: of ``inverse_factor``. replace: from a column's number and what is left of its block, errors
    so far included, (out, columns left), to the column's new values, (out,). The loop of GPTQ (arXiv:2210.17323,
    algorithm 1) and of SparseGPT (arXiv:2301.00774, algorithm 1).
    """
    columns = weight.shape[1]
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        block, block_factor = weight[:, start:stop].clone(), factor[start:stop, start:stop]
        errors, found = torch.empty_like(block), torch.empty_like(block)
        for column in range(stop - start):
            value = replace(start + column, block[:, column:])
            error = (block[:, column] - value) / block_factor[column, column]
            block[:, column:] -= error.unsqueeze(1) * block_factor[column, column:].unsqueeze(0)
            found[:, column], errors[:, column] = value, error
        weight[:, start:stop] = found
        weight[:, stop:] -= errors @ factor[start:stop, stop:]


def inverse_factor(hessian: torch.Tensor, damp: float) -> torch.Tensor:
    """The upper Cholesky factor of (hessian + damp · mean diagonal)⁻¹, with more damping if that is not definite.

    Raises JettisonError if no damping helps.
    """
    mean = float(hessian.diagonal().mean())
    for share in dampings(damp):
        damped = hessian.clone()
        damped.diagonal().add_(share * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            continue
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            break
    return upper


def dampings(damp: float) -> Iterator[float]:
    """What to add to a second moment's diagonal, as a share of its mean, until it can be factored: ``damp``, then ten
    times as much each time. Raises JettisonError when it has grown to nothing that would still help."""
    yield from (damp * 10**attempt for attempt in range(DAMPINGS))
    raise JettisonError(
        f"the Hessian is not positive definite even with damp = {damp * 10 ** (DAMPINGS - 1):g}: calibrate on more text"
    )


def never_active(hessian: torch.Tensor) -> bool:
    """Whether every input was zero on the calibration text, or as good as that: nothing can be learned from it."""
    return float(hessian.diagonal().mean()) < LEAST
