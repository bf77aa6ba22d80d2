"""Linear layers on packed weights, and the low-rank LoRA adapter that recovers what they lost."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from jettison.encodings.grid import Grid
from jettison.encodings.quantized import QuantizedWeight, unpack
from jettison.graph.anatomy import Linear
from jettison.kernels import native, ops
from jettison.kernels.tiles import Tiling, dense, to_checkpoint, two_of_four

PARTS = ("weight_packed", "weight_scale", "weight_zero_point")
SETTINGS = ("stride", "padding", "dilation", "groups")  # of a convolution


class PackedLinear(nn.Module):
    """y = x Wᵀ + b with W packed, under the names that compressed-tensors gives its parts.

    weight_packed: int32 (out, words). weight_scale: (out, groups). weight_zero_point: int32 (words, groups) or None.
    ``tiled`` makes of it what the CPU kernels read.
    """

    def __init__(
        self,
        grid: Grid,
        columns: int,
        weight_packed: torch.Tensor,
        weight_scale: torch.Tensor,
        weight_zero_point: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ):
        super().__init__()
        self.grid, self.in_features, self.out_features = grid, columns, len(weight_packed)
        parts = zip((*PARTS, "bias"), (weight_packed, weight_scale, weight_zero_point, bias), strict=True)
        _hold(self, dict(parts))

    @classmethod
    def of(cls, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> "PackedLinear":
        return cls(weight.grid, weight.codes.shape[1], **weight.parts(), bias=bias)

    @property
    def scale(self) -> torch.Tensor:
        return self.weight_scale

    def weight(self) -> torch.Tensor:
        """(out, in) float32."""
        return ops.dequantize(self.weight_packed, self.scale, self.weight_zero_point, self.grid, self.in_features)

    def tiled(self) -> "TiledLinear | None":
        """The weight in the order in which the CPU kernels read it, where it meets activations as int8.

        None where the kernels do not serve (another device, scales that were turned to another type, a grid that they
        do not know) or are missing.
        """
        if not self.weight_packed.is_cpu or self.weight_scale.dtype != self.grid.scale_dtype:
            return None
        tiling = Tiling.of(self.grid, self.out_features, self.in_features, self._two_of_four())
        if tiling is None or native.library() is None:
            return None
        parts = (self.weight_packed, self.weight_scale, self.weight_zero_point)
        return TiledLinear(self.grid, tiling, *ops.pack_tiles(*parts, self.grid, tiling), bias=self.bias)

    def _two_of_four(self) -> bool:
        """Whether two of each four columns are zero, and left out of tiles. For most weights the first rows already
        show that they are not 2:4."""
        if Tiling.of(self.grid, 1, self.in_features, True) is None:
            return False
        codes = lambda packed: unpack(packed, self.grid.bits, self.in_features)
        return all(two_of_four(codes(part), self.grid) for part in (self.weight_packed[:8], self.weight_packed))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ops.quant_linear(x, self.weight_packed, self.scale, self.weight_zero_point, self.grid, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features} → {self.out_features}, {self.grid}"


class TiledLinear(nn.Module):
    """y = x Wᵀ + b with W in the order in which the CPU kernels read it; see ``Tiling`` for the shapes of tiles and
    zeros. ``packed`` makes of it what a checkpoint holds, which is also what its state dict has."""

    def __init__(
        self,
        grid: Grid,
        tiling: Tiling,
        tiles: torch.Tensor,
        tile_zero: torch.Tensor | None,
        bias: torch.Tensor | None = None,
    ):
        super().__init__()
        self.grid, self.tiling, self.in_features, self.out_features = grid, tiling, tiling.columns, tiling.rows
        _hold(self, {"tiles": tiles, "tile_zero": tile_zero}, persistent=False)
        _hold(self, {"bias": bias})
        self.float_bias = None if bias is None else bias.detach().float()  # whatever type the module is turned to

    def _parts(self) -> dict[str, torch.Tensor | None]:
        return dict(zip(PARTS, to_checkpoint(self.tiles, self.tile_zero, self.tiling, self.grid), strict=True))

    def packed(self) -> PackedLinear:
        """Back to the layout of checkpoints, bit for bit, on whatever device the tiles are."""
        return PackedLinear(self.grid, self.in_features, **self._parts(), bias=self.bias)

    def weight(self) -> torch.Tensor:
        """(out, in) float32."""
        return dense(self.tiles, self.tile_zero, self.tiling)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_cpu and not (x.requires_grad and torch.is_grad_enabled()):
            return ops.tiled_linear(x, self.tiles, self.tile_zero, self.float_bias, self.tiling)
        return ops.dense_linear(x, self.weight(), self.bias)  # exact: for gradients, and for devices without tiles

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update((prefix + name, part) for name, part in self._parts().items() if part is not None)

    def extra_repr(self) -> str:
        return f"{self.in_features} → {self.out_features}, {self.grid}"


QuantizedLinear = PackedLinear | TiledLinear


class PackedConv2d(nn.Module):
    """A convolution whose weight is packed as a matrix of (out, in / groups · height · width).

    No kernel of ours multiplies it: ``unpacked`` makes of it an ordinary convolution, which is what runs after loading.
    """

    def __init__(
        self,
        grid: Grid,
        like: "nn.Conv2d | PackedConv2d",
        weight_packed: torch.Tensor,
        weight_scale: torch.Tensor,
        weight_zero_point: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ):
        """like: the convolution in whose place it stands."""
        super().__init__()
        self.grid = grid
        for name in (*SETTINGS, "kernel_size", "in_channels", "out_channels"):  # models read them
            setattr(self, name, getattr(like, name))
        self.kernel = (self.in_channels // self.groups, *self.kernel_size)
        parts = zip((*PARTS, "bias"), (weight_packed, weight_scale, weight_zero_point, bias), strict=True)
        _hold(self, dict(parts))

    @property
    def scale(self) -> torch.Tensor:
        return self.weight_scale

    @property
    def weight(self) -> torch.Tensor:
        """(out, in / groups, height, width) float32. Some models read its type."""
        return self.matrix().view(-1, *self.kernel)

    def matrix(self) -> torch.Tensor:
        """(out, in / groups · height · width) float32."""
        columns = math.prod(self.kernel)
        return ops.dequantize(self.weight_packed, self.scale, self.weight_zero_point, self.grid, columns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (batch, in, height, width)."""
        return nn.functional.conv2d(x, self.weight.to(x.dtype), self.bias, **self._settings)

    @property
    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SETTINGS}

    def unpacked(self, dtype: torch.dtype) -> nn.Conv2d:
        channels, biased = (self.in_channels, self.out_channels), self.bias is not None
        conv = nn.Conv2d(*channels, self.kernel_size, bias=biased, device="meta", **self._settings)
        conv.weight = nn.Parameter(self.weight.to(dtype), requires_grad=False)
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias, requires_grad=False)
        return conv

    def extra_repr(self) -> str:
        return f"{self.kernel} → {len(self.weight_packed)}, {self.grid}"


Quantized = QuantizedLinear | PackedConv2d


def _hold(module: nn.Module, tensors: Mapping[str, torch.Tensor | None], persistent: bool = True) -> None:
    """A buffer where there is a tensor, else a plain None: torch.export miscounts buffers that are None."""
    for name, value in tensors.items():
        if value is None:
            setattr(module, name, None)
        else:
            module.register_buffer(name, value, persistent)


class Adapted(nn.Module):
    """base(x) + scaling · B(A(x)), in float32 as PEFT does by default. A: (rank, in), B: (out, rank)."""

    def __init__(self, base: nn.Module, a: torch.Tensor, b: torch.Tensor, scaling: float):
        super().__init__()
        self.base, self.scaling = base, scaling
        self.lora_a, self.lora_b = nn.Parameter(a, requires_grad=False), nn.Parameter(b, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.base(x)
        low = nn.functional.linear(x.float(), self.lora_a.float())
        return (result + nn.functional.linear(low, self.lora_b.float()) * self.scaling).to(result.dtype)


def tile_linears(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Tile every packed linear inside a model, where the CPU kernels serve (see ``PackedLinear.tiled``), and unpack
    convolutions, in ``dtype``."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is PackedLinear:
                setattr(parent, name, child.tiled() or child)
            elif type(child) is PackedConv2d:
                setattr(parent, name, child.unpacked(dtype))


def dense_weight(module: nn.Module, linear: Linear) -> torch.Tensor:
    """(out, in) float32 on the CPU, of a packed or a plain linear."""
    if isinstance(module, PackedConv2d):
        return module.matrix().cpu()
    if isinstance(module, QuantizedLinear):
        return module.weight().cpu()
    return as_matrix(module.weight.detach().float().cpu(), linear.layout)


def as_matrix(weight: torch.Tensor, layout: str) -> torch.Tensor:
    """The weight of a module as (out, in): of a conv1d it is stored transposed, of a convolution (out, in / groups,
    height, width), whose last three become one."""
    if layout == "conv1d":
        return weight.T.contiguous()
    return weight.flatten(1) if layout == "conv2d" else weight


def of_matrix(matrix: torch.Tensor, layout: str, shape: torch.Size) -> torch.Tensor:
    """The inverse of ``as_matrix``. shape: of the module's weight."""
    return matrix.T.contiguous() if layout == "conv1d" else matrix.view(shape)
