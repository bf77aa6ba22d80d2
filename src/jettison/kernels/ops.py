"""Operators on packed weights, each with its PyTorch reference."""

import torch

from jettison.grid import Grid, unpack


def dequantize(
    packed: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, grid: Grid, columns: int
) -> torch.Tensor:
    """Packed weight -> float32 (rows, columns), differentiable in ``scale``.

    packed: int32 (rows, ceil(columns·bits/32)). scale: (rows, groups). zero_point: int32
    (ceil(rows·bits/32), groups), packed along the rows, None when symmetric.
    """
    steps = grid.grouped(unpack(packed, grid.bits, columns)).float()
    if zero_point is None:
        steps = steps - grid.middle
    else:
        steps = steps - unpack(zero_point.T, grid.bits, packed.shape[0]).T.unsqueeze(-1)
    return (steps * scale.float().unsqueeze(-1)).reshape(packed.shape[0], columns)


def quant_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    grid: Grid,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """x Wᵀ + bias for a packed W: (..., columns) -> (..., rows), in the type of ``x``. See ``dequantize``."""
    weight = dequantize(packed, scale, zero_point, grid, x.shape[-1]).to(x.dtype)
    rows = torch.nn.functional.linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows.unflatten(0, x.shape[:-1])
