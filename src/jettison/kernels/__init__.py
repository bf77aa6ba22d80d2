"""The only door to fast code. Today each operator is its PyTorch reference."""

from jettison.kernels.ops import quant_linear

__all__ = ["quant_linear"]
