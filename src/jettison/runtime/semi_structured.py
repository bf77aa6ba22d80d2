"""Run 2:4 sparse 16-bit models on a GPU with PyTorch's semi-structured tensors (half of the weights and an index)."""

import torch
from torch import nn

from jettison.core.errors import UsageError
from jettison.core.progress import say
from jettison.encodings.pattern import Pattern

TWO_OF_FOUR = Pattern.parse("2:4")
TYPES = (torch.float16, torch.bfloat16)
ROWS, COLUMNS = 32, 64  # a matrix of these types must have multiples of them
CAPABILITY = (8, 0)  # Ampere


def use_semi_structured(model: nn.Module, *, fallback: bool = True) -> dict[str, str]:
    """Convert every plain linear whose weight is 2:4 sparse to PyTorch's semi-structured form, in place.

    A weight then takes 9 bits instead of 16, with up to twice the arithmetic per second. The model must be on an NVIDIA
    GPU of compute capability 8.0 (Ampere) or later, in float16 or bfloat16. On an H200 some products with 512 rows are
    faster than dense ones, and those with 16 or fewer take 2 to 4 times as long (``benchmarks/kernels/gpu.py``).

    fallback: where the device does not support the form, print a note and leave the model dense.
    Returns the linears that stay dense: name -> reason.
    Raises UsageError if the device does not support it and ``fallback`` is false.
    """
    if reason := _unable(model):
        if not fallback:
            raise UsageError(f"semi-structured tensors cannot be used here: {reason}")
        say(f"note: 2:4 weights stay dense: {reason}")
        return {name: reason for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    dense = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if reason := _unfit(module.weight):
                dense[name] = reason
            else:
                sparse = torch.sparse.to_sparse_semi_structured(module.weight.detach())
                module.weight = nn.Parameter(sparse, requires_grad=False)
    return dense


def _unable(model: nn.Module) -> str:
    """Return why no weight of this model can be converted, or '' if the device supports it."""
    weight = next(model.parameters())
    if not weight.is_cuda or torch.version.hip:
        return f"the model is on {weight.device.type}; an NVIDIA GPU is needed (compute capability 8.0 or later)"
    capability = torch.cuda.get_device_capability(weight.device)
    if capability < CAPABILITY:
        return f"{torch.cuda.get_device_name(weight.device)} has compute capability {'.'.join(map(str, capability))}"
    return ""


def _unfit(weight: torch.Tensor) -> str:
    """Return why this weight cannot be converted, or '' if it can."""
    if weight.dtype not in TYPES:
        return f"it is {str(weight.dtype).removeprefix('torch.')}; float16 or bfloat16 is needed"
    rows, columns = weight.shape
    if rows % ROWS or columns % COLUMNS:
        return f"it is {rows} x {columns}; multiples of {ROWS} x {COLUMNS} are needed"
    nonzero = (weight.detach().unflatten(1, (-1, TWO_OF_FOUR.of)) != 0).sum(-1).amax()  # most in a group of four
    return "" if int(nonzero) <= TWO_OF_FOUR.kept else "it is not 2:4"
