"""Linear layers on packed weights, and the low-rank side path that recovers what they lost."""

import torch
from torch import nn

from jettison.encodings.grid import Grid
from jettison.encodings.uniform import QuantizedWeight, pack, unpack
from jettison.graph.anatomy import Linear
from jettison.kernels import native, ops
from jettison.kernels.tiles import Tiling, dense, to_checkpoint, two_of_four

PARTS = ("weight_packed", "weight_scale", "weight_zero_point")


class QuantLinear(nn.Module):
    """y = x Wᵀ + b with W packed, under the names that compressed-tensors gives its parts.

    weight_packed: int32 (out, words). weight_scale: (out, groups). weight_zero_point: int32 (words, groups) or None.
    ``tile`` swaps them for what the CPU kernels read; ``untile`` brings them back.
    """

    def __init__(self, rows: int, columns: int, grid: Grid, bias: torch.Tensor | None = None):
        super().__init__()
        self.grid, self.in_features, self.out_features = grid, columns, rows
        empty = lambda *shape, dtype: torch.empty(*shape, dtype=dtype, device="meta")
        words, groups = -(-columns * grid.bits // 32), grid.groups(columns)
        self._hold("weight_packed", empty(rows, words, dtype=torch.int32))
        self._hold("weight_scale", empty(rows, groups, dtype=grid.scale_dtype))
        zero = None if grid.symmetric else empty(-(-rows * grid.bits // 32), groups, dtype=torch.int32)
        self._hold("weight_zero_point", zero)
        self._hold("bias", bias)
        self.gain: nn.Parameter | None = None  # set while the scales are trained
        self.tiling: Tiling | None = None
        self.tile_bias: torch.Tensor | None = None  # float32, whatever type the module is turned to
        self.tiles = self.tile_zero = None

    @classmethod
    def of(cls, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> "QuantLinear":
        module = cls(*weight.codes.shape, weight.grid, bias)
        for name, value in packed_parts(weight).items():
            setattr(module, name, value)
        return module

    def tile(self) -> None:
        """Hold the weight in the order in which the CPU kernels read it: from now on it meets activations as int8.

        Nothing happens where they do not serve (another device, scales in training or turned to another type, a grid
        they do not know) or are missing.
        """
        tiling = Tiling.of(self.grid, self.out_features, self.in_features, self._two_of_four())
        if tiling is None or self.tiling is not None or self.gain is not None or not self.weight_packed.is_cpu:
            return
        if self.weight_scale.dtype != self.grid.scale_dtype or native.library() is None:
            return
        parts = (self.weight_packed, self.weight_scale, self.weight_zero_point)
        self.hold_tiles(tiling, *ops.pack_tiles(*parts, self.grid, tiling))

    def _two_of_four(self) -> bool:
        """Whether two of each four columns are zero, and left out of tiles. Most weights show in few rows that not."""
        if (
            self.tiling is not None
            or not self.weight_packed.is_cpu
            or Tiling.of(self.grid, 1, self.in_features, True) is None
        ):
            return False
        codes = lambda packed: unpack(packed, self.grid.bits, self.in_features)
        return all(two_of_four(codes(part), self.grid) for part in (self.weight_packed[:8], self.weight_packed))

    def hold_tiles(self, tiling: Tiling, tiles: torch.Tensor, zero: torch.Tensor | None) -> None:
        """Take ready tiles in the place of whatever the weight was."""
        for name in PARTS:
            self._hold(name, None)
        self._hold("tiles", tiles, persistent=False)
        self._hold("tile_zero", zero, persistent=False)
        self.tile_bias = None if self.bias is None else self.bias.detach().float()
        self.tiling = tiling

    def untile(self) -> None:
        """Back to the layout of checkpoints, bit for bit, on whatever device the tiles are."""
        if self.tiling is not None:
            parts = to_checkpoint(self.tiles, self.tile_zero, self.tiling, self.grid)
            for name, value in zip(PARTS, parts, strict=True):
                self._hold(name, value)
            self._hold("tiles", None)
            self._hold("tile_zero", None)
            self.tile_bias = self.tiling = None

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        """What a checkpoint holds, tiled or not."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.tiling is not None:
            parts = to_checkpoint(self.tiles, self.tile_zero, self.tiling, self.grid)
            destination.update(
                (prefix + name, part) for name, part in zip(PARTS, parts, strict=True) if part is not None
            )

    def _load_from_state_dict(self, *arguments):
        self.untile()
        super()._load_from_state_dict(*arguments)

    def _hold(self, name: str, value: torch.Tensor | None, persistent: bool = True) -> None:
        """A buffer where there is a tensor, else a plain None: torch.export miscounts buffers that are None."""
        self._buffers.pop(name, None)
        self.__dict__.pop(name, None)
        if value is None:
            setattr(self, name, None)
        else:
            self.register_buffer(name, value, persistent)

    @property
    def scale(self) -> torch.Tensor:
        """The stored scales; while they are trained, what they would be stored as, with the gradient passed through."""
        if self.gain is None:
            return self.weight_scale
        exact = self.weight_scale.float() * self.gain.exp()
        return exact + (exact.to(self.grid.scale_dtype).float() - exact).detach()

    def weight(self) -> torch.Tensor:
        """(out, in) float32."""
        if self.tiling is not None:
            return dense(self.tiles, self.tile_zero, self.tiling)
        return ops.dequantize(self.weight_packed, self.scale, self.weight_zero_point, self.grid, self.in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.tiling is not None and x.is_cpu:
            if x.requires_grad and torch.is_grad_enabled():
                return ops.dense_linear(x, self.weight(), self.bias)
            return ops.tiled_linear(x, self.tiles, self.tile_zero, self.tile_bias, self.tiling)
        self.untile()
        return ops.quant_linear(x, self.weight_packed, self.scale, self.weight_zero_point, self.grid, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features} → {self.out_features}, {self.grid}"


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
    """Ready every packed linear of a model for the CPU kernels; see ``QuantLinear.tile``."""
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.tile()


def packed_parts(weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    """The tensors of a QuantLinear, as they are stored."""
    parts = {"weight_packed": pack(weight.codes, weight.grid.bits), "weight_scale": weight.scale}
    if weight.zero is not None:
        parts["weight_zero_point"] = pack(weight.zero.T.contiguous(), weight.grid.bits).T.contiguous()
    return parts


def dense_weight(module: nn.Module, linear: Linear) -> torch.Tensor:
    """(out, in) float32 on the CPU, of a packed or a plain linear."""
    if isinstance(module, QuantLinear):
        return module.weight().cpu()
    weight = module.weight.detach().float().cpu()
    return weight.T.contiguous() if linear.layout == "conv1d" else weight
