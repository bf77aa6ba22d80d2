"""Check a model before any work: all tensors are stored, have the right shape, and all values are finite."""

from collections.abc import Iterable

import torch

from jettison.core.errors import JettisonError
from jettison.core.progress import bar
from jettison.graph.anatomy import Linear
from jettison.graph.folder import ModelFolder

AT_ONCE = 1 << 24  # the number of values that are read at once
FULL_PRECISION = ("F64", "F32", "F16", "BF16")
SHOWN = 1 << 30  # bytes; smaller checkpoints are read too fast to need a progress bar


def check_source(source: ModelFolder, linears: Iterable[Linear] = ()) -> None:
    """Read the whole checkpoint once and check the tensors that the model needs, and those of ``linears``.

    Raises JettisonError, which names the tensor,
    - if a parameter is not stored, is not in floating point, has another shape than the config asks for, or has a value
      that is NaN or infinite;
    - if a persistent buffer is stored and has another shape or such a value.
    """
    needed = _needed(source) | {source.locate(f"{linear.name}.weight")[0] for linear in linears}
    with bar("check", len(needed), shown=source.checkpoint.file_bytes > SHOWN) as progress:
        for tensor in sorted(needed):
            _check_finite(source, tensor)
            progress.advance()
    source.checkpoint.release()


def _needed(source: ModelFolder) -> set[str]:
    """Return the tensors that the model's parameters and buffers are read from, once their shapes are checked."""
    needed: set[str] = set()
    for name, value in source.skeleton.named_parameters():
        stored, shape = source.stored_shape(name)
        if shape != tuple(value.shape):
            raise JettisonError(
                f"{stored} of {source.folder} has shape {source.checkpoint.shape(stored)}, the config asks for "
                f"{tuple(value.shape)} at {name}"
            )
        if source.checkpoint.dtype(stored) not in FULL_PRECISION:
            raise JettisonError(
                f"{stored} of {source.folder} is stored as {source.checkpoint.dtype(stored)}: full-precision weights "
                "are needed"
            )
        needed.add(stored)
    parameters = {name for name, _ in source.skeleton.named_parameters(remove_duplicate=False)}
    for name, value in source.skeleton.state_dict().items():
        if name in parameters or not source.has(name):
            continue
        stored, shape = source.stored_shape(name)
        if shape != tuple(value.shape):
            raise JettisonError(
                f"{source.folder}: {stored} has shape {shape}; {tuple(value.shape)} is needed at {name}"
            )
        needed.add(stored)
    return needed


def _check_finite(source: ModelFolder, tensor: str) -> None:
    """Raise JettisonError if a floating-point tensor has a value that is NaN or infinite."""
    shape = source.checkpoint.shape(tensor)
    # Read slices along the first dimension, of at most AT_ONCE values where a row is not larger.
    rows = max(1, AT_ONCE * shape[0] // max(1, torch.Size(shape).numel())) if shape else 1
    for first in range(0, shape[0] if shape else 1, rows):
        value = source.checkpoint.read(tensor, slice(first, first + rows) if shape else None)
        if not value.is_floating_point():
            return
        finite = torch.isfinite(value if value.element_size() > 1 else value.float())  # no isfinite for 8-bit floats
        if not finite.all():
            raise JettisonError(
                f"{tensor} of {source.folder} has {int((~finite).sum())} values that are NaN or infinite: "
                "fetch the model again"
            )
