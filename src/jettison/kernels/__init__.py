"""The only door to fast code: operators, each with its PyTorch reference."""

from jettison.kernels.ops import quant_linear

__all__ = ["quant_linear"]
