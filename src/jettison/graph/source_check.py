"""Check a model before any work: all tensors are stored, have the right shape, and all values are finite."""

import torch

from jettison.core.errors import JettisonError
from jettison.core.progress import bar
from jettison.graph.folder import ModelFolder

AT_ONCE = 1 << 24  # the number of values that are read at once
FULL_PRECISION = ("F64", "F32", "F16", "BF16")
SHOWN = 1 << 30  # bytes; smaller checkpoints are read too fast to need a progress bar

SHOWN_NAMES = 3  # in an error


def check_source(source: ModelFolder) -> None:
    """Read the whole checkpoint once and check the tensors that the model needs.

    Raises JettisonError, which names the tensor,
    - if a parameter is not stored, is not in floating point, has another shape than the config asks for, or has a value
      that is NaN or infinite;
    - if a persistent buffer is stored and has another shape or such a value.
    """
    needed = _needed(source)
    with bar("check", len(needed), shown=source.checkpoint.file_bytes > SHOWN) as progress:
        for tensor in sorted(needed):
            _check_finite(source, tensor)
            progress.advance()
    source.checkpoint.release()


def _needed(source: ModelFolder) -> set[str]:
    """Return the tensors that the model's parameters and buffers are read from, once their shapes are checked."""
    needed: set[str] = set()
    _check_names(source)
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


def _check_names(source: ModelFolder) -> None:
    """Raise JettisonError if parameters are not stored; it names three of them, and three tensors that fit none."""
    missing, used = [], set()
    for name, _ in source.skeleton.named_parameters():
        try:
            used.add(source.locate(name)[0])
        except JettisonError:
            missing.append(name)
    if missing:
        others = [tensor for tensor in source.checkpoint if tensor not in used]
        raise JettisonError(
            f"{source.folder}: the checkpoint has no tensor for {_first(missing)}"
            + (f"; it has {_first(others)}, which the model does not have" if others else "")
        )


def _first(names: list[str]) -> str:
    """Return the first three names, and how many more there are."""
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {len(names) - SHOWN_NAMES} more" if names[SHOWN_NAMES:] else "")


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
