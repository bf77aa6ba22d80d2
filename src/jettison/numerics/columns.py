"""Column-by-column updates: later columns compensate for the error of each column, by the inverse Hessian."""

from collections.abc import Callable, Iterator

import torch

from jettison.core.errors import JettisonError

DAMPINGS = 7  # attempts with ten times more damping each, before a matrix counts as unusable
LEAST = 1e-30  # mean squared input; below it, the statistics are too small for float32


def spread_errors(
    weight: torch.Tensor, factor: torch.Tensor, step: int, replace: Callable[[int, torch.Tensor], torch.Tensor]
) -> None:
    """Replace the columns of ``weight`` one after the other, spreading the error of each over the columns left.

    weight: (out, in) float32, changed in place. While a block of columns is processed, ``weight`` holds the errors of
    the blocks before it, but not yet those of the block itself.
    factor: (in, in), upper triangular, of ``inverse_factor``.
    step: columns per block. Columns behind the block are updated once per block, with one matrix product.
    replace: called with the number of a column and the rest of its block from that column on, errors so far included
    (out, columns left); returns the column's new values (out,).

    Source: the loop of GPTQ (arXiv:2210.17323, algorithm 1) and of SparseGPT (arXiv:2301.00774, algorithm 1).
    """
    columns = weight.shape[1]
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        block, block_factor = weight[:, start:stop].clone(), factor[start:stop, start:stop]
        errors, values = torch.empty_like(block), torch.empty_like(block)
        for column in range(stop - start):
            value = replace(start + column, block[:, column:])
            error = (block[:, column] - value) / block_factor[column, column]
            block[:, column:] -= error.unsqueeze(1) * block_factor[column, column:].unsqueeze(0)
            values[:, column], errors[:, column] = value, error
        weight[:, start:stop] = values
        weight[:, stop:] -= errors @ factor[start:stop, stop:]


def inverse_factor(hessian: torch.Tensor, damp: float) -> torch.Tensor:
    """Return the upper Cholesky factor (in, in) of (hessian + damp · mean diagonal)⁻¹.

    hessian: (in, in). damp: a share; if the matrix is not positive definite, more damping is tried, see ``dampings``.
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
    """Yield the dampings to try until a matrix can be factored: ``damp``, then ten times as much each time.

    A damping is added to the diagonal of a second moment, as a share of the diagonal's mean.
    Raises JettisonError after DAMPINGS attempts.
    """
    yield from (damp * 10**attempt for attempt in range(DAMPINGS))
    raise JettisonError(
        f"the Hessian is not positive definite even with damp = {damp * 10 ** (DAMPINGS - 1):g}: calibrate on more text"
    )


def never_active(hessian: torch.Tensor) -> bool:
    """Return whether all inputs were (nearly) zero on the calibration text, so that the Hessian says nothing."""
    return float(hessian.diagonal().mean()) < LEAST
