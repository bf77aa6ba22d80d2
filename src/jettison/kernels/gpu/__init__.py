"""Kernels for GPUs, in Triton: for CUDA and ROCm, and on the CPU (slowly, for tests) in Triton's interpreter."""

import os
from functools import cache

import torch


@cache
def recent() -> bool:
    """Triton 3.5, of PyTorch 2.9, or later: before, products of 8 rows are refused."""
    try:
        from triton import __version__
    except ImportError:
        return False
    return tuple(int(part) for part in __version__.split(".")[:2]) >= (3, 5)


def available(x: torch.Tensor) -> bool:
    """Whether ``quant_linear`` works here on tensors like ``x``.

    The interpreter of Triton 3.9 and before multiplies the bits of bfloat16 tiles, unless mended as the tests do.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (x.is_cuda or (interpreted and x.device.type == "cpu")) and recent()


def quant_linear(*arguments) -> torch.Tensor:
    """``linear.quant_linear``, imported at the first call: that takes Triton."""
    from jettison.kernels.gpu import linear

    return linear.quant_linear(*arguments)


__all__ = ["available", "quant_linear"]
