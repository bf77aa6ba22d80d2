"""Triton kernels for GPUs: on CUDA and ROCm, and in Triton's interpreter on the CPU (slow, for tests)."""

import os
from functools import cache

import torch


@cache
def recent() -> bool:
    """Return whether Triton is 3.5 (of PyTorch 2.9) or later. Earlier versions refuse products of 8 rows."""
    try:
        from triton import __version__
    except ImportError:
        return False
    return tuple(int(part) for part in __version__.split(".")[:2]) >= (3, 5)


def available(x: torch.Tensor) -> bool:
    """Return whether ``quant_linear`` works on tensors like ``x`` on this machine.

    Note: the interpreter of Triton up to 3.9 multiplies the raw bits of bfloat16 tiles; the tests patch it.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (x.is_cuda or (interpreted and x.device.type == "cpu")) and recent()


def quant_linear(*arguments) -> torch.Tensor:
    """Call ``linear.quant_linear``, which is imported at the first call because the import needs Triton."""
    from jettison.kernels.gpu import linear

    return linear.quant_linear(*arguments)


__all__ = ["available", "quant_linear"]
