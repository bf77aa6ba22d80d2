"""Linear layers on packed weights, and the low-rank LoRA adapter that recovers what they lost."""

from collections.abc import Mapping

import torch
from torch import nn

from jettison.encodings.grid import Grid
from jettison.encodings.uniform import QuantizedWeight, pack, unpack
from jettison.graph.anatomy import Linear
from jettison.kernels import native, ops
from jettison.kernels.tiles import Tiling, dense, to_checkpoint, two_of_four

PARTS = ("weight_packed", "weight_scale", "weight_zero_point")


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
        return cls(weight.grid, weight.codes.shape[1], **packed_parts(weight), bias=bias)

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


def _hold(module: nn.Module, tensors: Mapping[str, torch.Tensor | None], persistent: bool = True) -> None:
    """A buffer where there is a tensor, else a plain None: torch.export miscounts buffers that are None."""
    for name, value in tensors.items():
        if value is None:
            setattr(module, name, None)
        else:
            module.register_buffer(name, value, persistent)


def empty_parts(rows: int, columns: int, grid: Grid) -> dict[str, torch.Tensor]:
    """The parts of a PackedLinear on the meta device: their types and shapes."""
    empty = lambda *shape, dtype: torch.empty(*shape, dtype=dtype, device="meta")
    words, groups = -(-columns * grid.bits // 32), grid.groups(columns)
    parts = {
        "weight_packed": empty(rows, words, dtype=torch.int32),
        "weight_scale": empty(rows, groups, dtype=grid.scale_dtype),
    }
    zero = {"weight_zero_point": empty(-(-rows * grid.bits // 32), groups, dtype=torch.int32)}
    return parts | ({} if grid.symmetric else zero)


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


def tile_linears(model: nn.Module) -> None:
    """Tile every packed linear inside a model, where the CPU kernels serve; see ``PackedLinear.tiled``."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is PackedLinear:
                setattr(parent, name, child.tiled() or child)


def packed_parts(weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    """The parts of a PackedLinear."""
    parts = {"weight_packed": pack(weight.codes, weight.grid.bits), "weight_scale": weight.scale}
    if weight.zero is not None:
        parts["weight_zero_point"] = pack(weight.zero.T.contiguous(), weight.grid.bits).T.contiguous()
    return parts


def dense_weight(module: nn.Module, linear: Linear) -> torch.Tensor:
    """(out, in) float32 on the CPU, of a packed or a plain linear."""
    if isinstance(module, QuantizedLinear):
        return module.weight().cpu()
    weight = module.weight.detach().float().cpu()
    return weight.T.contiguous() if linear.layout == "conv1d" else weight
