"""Operators on packed weights, as ``torch.ops.jettison``, so that torch.compile and torch.export see them.

- ``quant_linear``: on the layout of checkpoints. A Triton kernel on a GPU, PyTorch elsewhere.
- ``tiled_linear``: on tiles, by the C++ kernels on the CPU, with activations as int8; PyTorch if they are missing.

Neither operator has a gradient: for training use ``dequantize``, which has one.
"""

from functools import lru_cache

import torch

from jettison.encodings.grid import Grid
from jettison.encodings.quantized import unpack, zero_points
from jettison.encodings.uniform import UniformGrid
from jettison.kernels import gpu, native
from jettison.kernels.tiles import SCALE_TYPES, SPARSE, Tiling, dense, pack_codes, pack_zero, spread

GPU_TYPES = (torch.float32, torch.float16, torch.bfloat16)
SCALE_DTYPES = {number: dtype for dtype, number in SCALE_TYPES.items()}


def dequantize(
    packed: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, grid: Grid, columns: int
) -> torch.Tensor:
    """Unpack a weight. The result is differentiable in ``scale``.

    packed: (rows, ceil(columns·bits/32)) int32.
    scale: (rows, groups).
    zero_point: (ceil(rows·bits/32), groups) int32, packed along the rows; None for symmetric grids; (rows, groups) of
        the scale's type for grids with a minimum.
    Returns (rows, columns) float32.
    """
    codes = grid.grouped(unpack(packed, grid.bits, columns)).float()  # (rows, groups, width)
    zero = grid.zero_code if zero_point is None else zero_points(zero_point, grid, packed.shape[0]).unsqueeze(-1)
    return grid.decode(codes, scale.float().unsqueeze(-1), zero).reshape(packed.shape[0], columns)


def look_up(
    rows: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    grid: Grid,
    columns: int,
) -> torch.Tensor:
    """Unpack rows of a weight (see ``dequantize``), without unpacking the others.

    rows: (n,) int64. Returns (n, columns) float32.
    """
    codes = grid.grouped(unpack(packed[rows], grid.bits, columns)).float()  # (n, groups, width)
    if zero_point is None:
        zero = grid.zero_code
    elif grid.minimum:
        zero = zero_point[rows].float().unsqueeze(-1)
    else:  # zero points are packed along the rows, and one may lie in two words
        bit = rows * grid.bits
        low = zero_point[bit // 32].long() & 0xFFFFFFFF  # (n, groups)
        high = zero_point[(bit // 32 + 1).clamp(max=len(zero_point) - 1)].long() << 32
        zero = ((low | high) >> (bit % 32).unsqueeze(1) & 2**grid.bits - 1).float().unsqueeze(-1)
    return grid.decode(codes, scale[rows].float().unsqueeze(-1), zero).reshape(len(rows), columns)


def quant_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    grid: Grid,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute x Wᵀ + bias for a packed weight W (see ``dequantize``), with gradients if ``x`` or ``scale`` needs them.

    x: (..., columns). Returns (..., rows) in the type of ``x``.
    """
    trains = torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad)
    if trains or not isinstance(grid, UniformGrid):  # the kernels support uniform grids only
        return dense_linear(x, dequantize(packed, scale, zero_point, grid, x.shape[-1]), bias)
    return torch.ops.jettison.quant_linear.default(x, packed, scale, zero_point, bias, grid.bits, grid.group_size)


def tiled_linear(
    x: torch.Tensor, tiles: torch.Tensor, zero: torch.Tensor | None, bias: torch.Tensor | None, tiling: Tiling
) -> torch.Tensor:
    """Compute x Wᵀ + bias for a weight W in tiles (see ``pack_tiles``).

    x: (..., columns). bias: (rows,) float32. Returns (..., rows) in the type of ``x``.

    The C++ kernels round activations to int8 in every span of the weight: x ≈ s·q with s = max|x| / 127.
    """
    return torch.ops.jettison.tiled_linear.default(
        x, tiles, zero, bias, tiling.rows, tiling.packing, tiling.span, tiling.middle, SCALE_TYPES[tiling.scale_dtype]
    )


def pack_tiles(
    packed: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, grid: Grid, tiling: Tiling
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pack a weight in the layout of checkpoints (see ``dequantize``), on the CPU.

    Returns tiles ``tiling.tiles_shape`` uint8, and zero points or minima ``tiling.zero_shape``, None for symmetric
    grids.
    """
    if tiling.sparse:
        return pack_codes(unpack(packed, grid.bits, tiling.columns), spread(scale, grid, tiling), tiling), None
    tiles = native.pack(packed, grid.bits, spread(scale, grid, tiling), tiling)
    if zero_point is None:
        return tiles, None
    return tiles, pack_zero(spread(zero_points(zero_point, grid, tiling.rows), grid, tiling), tiling)


def dense_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute x Wᵀ + bias in the type of ``x``, whatever types the others have.

    x: (..., columns). weight: (rows, columns). bias: (rows,). Returns (..., rows).
    """
    bias = None if bias is None else bias.to(x.dtype)
    rows = torch.nn.functional.linear(x.reshape(-1, x.shape[-1]), weight.to(x.dtype), bias)  # (count, rows of W)
    return rows.unflatten(0, x.shape[:-1])


# --- registration of the operators -----------------------------------------------------------------------------------

_library = torch.library.Library("jettison", "DEF")
_library.define(
    "quant_linear(Tensor x, Tensor packed, Tensor scale, Tensor? zero_point, Tensor? bias, int bits, int group_size)"
    " -> Tensor"
)
_library.define(
    "tiled_linear(Tensor x, Tensor tiles, Tensor? zero, Tensor? bias, int rows, int bits, int span, int middle,"
    " int scale_type) -> Tensor"
)


def _quant_linear(x, packed, scale, zero_point, bias, bits, group_size):
    grid = UniformGrid(bits, group_size, zero_point is None, str(scale.dtype).removeprefix("torch."))
    return dense_linear(x, dequantize(packed, scale, zero_point, grid, x.shape[-1]), bias)


_tiling = lru_cache(1024)(Tiling)  # making one takes longer than everything else in an operator's call


def _quant_linear_on_a_gpu(x, packed, scale, zero_point, bias, bits, group_size):
    if gpu.available(x) and x.dtype in GPU_TYPES:
        return gpu.quant_linear(x, packed, scale, zero_point, bits, group_size, bias)
    return _quant_linear(x, packed, scale, zero_point, bias, bits, group_size)


def _tiled_linear(x, tiles, zero, bias, rows, bits, span, middle, scale_type):
    # bits above SPARSE stand for 2:4 weights
    tiling = _tiling(rows, x.shape[-1], bits % SPARSE, span, middle, SCALE_DTYPES[scale_type], bits > SPARSE)
    if native.library() is None:
        return dense_linear(x, dense(tiles, zero, tiling), bias)
    if x.dtype not in native.TYPES:
        return native.linear(x.float(), tiles, zero, bias, tiling).to(x.dtype)
    return native.linear(x, tiles, zero, bias, tiling)


_library.impl("quant_linear", _quant_linear, "CompositeExplicitAutograd")
_library.impl("quant_linear", _quant_linear_on_a_gpu, "CUDA")  # for ROCm too, which PyTorch calls CUDA
_library.impl("tiled_linear", _tiled_linear, "CPU")


@torch.library.register_fake("jettison::quant_linear")
def _(x, packed, scale, zero_point, bias, bits, group_size):
    return x.new_empty((*x.shape[:-1], packed.shape[0]))


@torch.library.register_fake("jettison::tiled_linear")
def _(x, tiles, zero, bias, rows, bits, span, middle, scale_type):
    return x.new_empty((*x.shape[:-1], rows))
