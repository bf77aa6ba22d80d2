"""2:4 in 16 bits on a GPU: PyTorch's semi-structured tensors, which hold half of the weights and where they lie."""

import torch
from torch import nn

from jettison.core.errors import UsageError
from jettison.core.progress import say
from jettison.encodings.pattern import Pattern

TWO_OF_FOUR = Pattern.parse("2:4")
TYPES = (torch.float16, torch.bfloat16)
ROWS, COLUMNS = 32, 64  # of which a matrix must be a multiple, in these types
CAPABILITY = (8, 0)


def use_semi_structured(model: nn.Module, *, fallback: bool = True) -> dict[str, str]:
    """Turn every plain linear of a model that is 2:4 into PyTorch's semi-structured form, in place: 9 bits a weight
    in place of 16, and up to twice the arithmetic per second. Returns the linears that stay dense, with the reasons.

    The model must be on an NVIDIA GPU of compute capability 8.0 (Ampere) or later, in float16 or bfloat16. Elsewhere it
    stays dense, which is said, or with ``fallback`` false UsageError is raised. On an H200 some products with 512 rows
    are faster than dense ones, and those with 16 or fewer take 2 to 4 times as long (``benchmarks/kernels/gpu.py``).
    """
    if reason := _unable(model):
        if not fallback:
            raise UsageError(f"semi-structured tensors cannot be used here: {reason}")
        say(f"note: 2:4 weights stay dense: {reason}")
        return {name: reason for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    left = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if reason := _unfit(module.weight):
                left[name] = reason
            else:
                sparse = torch.sparse.to_sparse_semi_structured(module.weight.detach())
                module.weight = nn.Parameter(sparse, requires_grad=False)
    return left


def _unable(model: nn.Module) -> str:
    """Why no weight of this model can be so; '' if one can."""
    weight = next(model.parameters())
    if not weight.is_cuda or torch.version.hip:
        return f"the model is on {weight.device.type}; an NVIDIA GPU is needed (compute capability 8.0 or later)"
    capability = torch.cuda.get_device_capability(weight.device)
    if capability < CAPABILITY:
        return f"{torch.cuda.get_device_name(weight.device)} has compute capability {'.'.join(map(str, capability))}"
    return ""


def _unfit(weight: torch.Tensor) -> str:
    if weight.dtype not in TYPES:
        return f"it is {str(weight.dtype).removeprefix('torch.')}; float16 or bfloat16 is needed"
    rows, columns = weight.shape
    if rows % ROWS or columns % COLUMNS:
        return f"it is {rows} x {columns}; multiples of {ROWS} x {COLUMNS} are needed"
    left = (weight.detach().unflatten(1, (-1, TWO_OF_FOUR.of)) != 0).sum(-1).amax()
    return "" if int(left) <= TWO_OF_FOUR.kept else "it is not 2:4"
