"""Linear layers and convolutions with packed weights, and the LoRA adapter that recovers the lost quality."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from jettison.encodings.grid import Grid
from jettison.encodings.quantized import QuantizedWeight, unpack
from jettison.graph.anatomy import Linear
from jettison.graph.blocks import SamePadConv2d, pad_same
from jettison.kernels import native, ops
from jettison.kernels.tiles import Tiling, dense, to_checkpoint, two_of_four

PARTS = ("weight_packed", "weight_scale", "weight_zero_point")
SETTINGS = ("stride", "padding", "dilation", "groups")  # of a convolution


class PackedLinear(nn.Module):
    """y = x Wᵀ + b with W packed. Its parts have the names of compressed-tensors.

    columns: the number of inputs.
    weight_packed: (out, words) int32.
    weight_scale: (out, groups).
    weight_zero_point: (words, groups) int32, or None for a symmetric grid.
    bias: (out,) or None.

    ``tiled`` converts the weight to the layout of the CPU kernels.
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
        _register(self, dict(parts))

    @classmethod
    def of(cls, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> "PackedLinear":
        """Pack a quantized weight."""
        return cls(weight.grid, weight.codes.shape[1], **weight.parts(), bias=bias)

    @property
    def scale(self) -> torch.Tensor:
        """The scales in use, (out, groups). Subclasses that train the scales override it."""
        return self.weight_scale

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized weight, (out, in) float32. The code of some models reads it."""
        return ops.dequantize(self.weight_packed, self.scale, self.weight_zero_point, self.grid, self.in_features)

    def rows(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return rows of the dequantized weight. numbers: (n,) int64. Returns (n, in) float32."""
        parts = (self.weight_packed, self.scale, self.weight_zero_point)
        return ops.look_up(numbers, *parts, self.grid, self.in_features)

    def tiled(self, sparse: bool = True) -> "TiledLinear | None":
        """Return the same linear with its weight in the layout of the CPU kernels, which use int8 activations.

        sparse: whether a 2:4 weight may be stored as such; rows of the result cannot be looked up.
        Returns None if the kernels are missing or cannot run it: the weight is on another device, the scales were
        converted to another type, or the kernels do not support the grid.
        """
        if not self.weight_packed.is_cpu or self.weight_scale.dtype != self.grid.scale_dtype:
            return None
        tiling = Tiling.of(self.grid, self.out_features, self.in_features, sparse and self._two_of_four())
        if tiling is None or native.library() is None:
            return None
        parts = (self.weight_packed, self.weight_scale, self.weight_zero_point)
        return TiledLinear(self.grid, tiling, *ops.pack_tiles(*parts, self.grid, tiling), bias=self.bias)

    def _two_of_four(self) -> bool:
        """Return whether the weight is 2:4 sparse: two of every four columns are zero, and tiles leave them out.

        For most weights the first rows already show that they are not 2:4, so these are tested first.
        """
        if Tiling.of(self.grid, 1, self.in_features, True) is None:
            return False
        codes = lambda packed: unpack(packed, self.grid.bits, self.in_features)
        return all(two_of_four(codes(part), self.grid) for part in (self.weight_packed[:8], self.weight_packed))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ops.quant_linear(x, self.weight_packed, self.scale, self.weight_zero_point, self.grid, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features} → {self.out_features}, {self.grid}"


class TiledLinear(nn.Module):
    """y = x Wᵀ + b with W in the layout of the CPU kernels.

    tiles, tile_zero: see ``Tiling`` for their shapes.
    bias: (out,) or None.

    ``packed`` converts the weight to the layout of checkpoints, which the state dict also has.
    """

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
        _register(self, {"tiles": tiles, "tile_zero": tile_zero}, persistent=False)
        _register(self, {"bias": bias})
        self.float_bias = (
            None if bias is None else bias.detach().float()
        )  # no buffer, so that it stays float32 if the module is converted

    def _parts(self) -> dict[str, torch.Tensor | None]:
        """Return the parts of the weight in the layout of checkpoints."""
        return dict(zip(PARTS, to_checkpoint(self.tiles, self.tile_zero, self.tiling, self.grid), strict=True))

    def packed(self) -> PackedLinear:
        """Return the linear in the layout of checkpoints, exactly as it was packed, on the device of the tiles."""
        return PackedLinear(self.grid, self.in_features, **self._parts(), bias=self.bias)

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized weight, (out, in) float32. The code of some models reads it."""
        return dense(self.tiles, self.tile_zero, self.tiling)

    def rows(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return rows of the dequantized weight. numbers: (n,) int64. Returns (n, in) float32."""
        if numbers.is_cpu and native.library() is not None and not self.tiling.sparse:
            return native.look_up(numbers, self.tiles, self.tile_zero, self.tiling)
        return self.weight[numbers]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_cpu and not (x.requires_grad and torch.is_grad_enabled()):
            return ops.tiled_linear(x, self.tiles, self.tile_zero, self.float_bias, self.tiling)
        return ops.dense_linear(x, self.weight, self.bias)  # exact: for gradients, and for devices without tiles

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update((prefix + name, part) for name, part in self._parts().items() if part is not None)

    def extra_repr(self) -> str:
        return f"{self.in_features} → {self.out_features}, {self.grid}"


QuantizedLinear = PackedLinear | TiledLinear


class PackedEmbedding(nn.Module):
    """The embedding of a model whose packed head is the same matrix: it looks up rows of the head.

    like: the embedding that it replaces, of a kind that is ``known``.
    head: stays the head's module; it is no part of this one, so that its tensors have one name.
    dtype: of the result.
    """

    def __init__(self, like: nn.Embedding, head: QuantizedLinear, dtype: torch.dtype):
        super().__init__()
        self.num_embeddings, self.embedding_dim = like.num_embeddings, like.embedding_dim
        self.dtype, self.embed_scale = dtype, getattr(like, "embed_scale", None)  # Gemma multiplies its embeddings
        self.share(head)

    @staticmethod
    def known(module: nn.Module) -> bool:
        """Return whether a module only looks up rows, and perhaps multiplies them by ``embed_scale``."""
        return type(module) is nn.Embedding or (isinstance(module, nn.Embedding) and hasattr(module, "embed_scale"))

    def share(self, head: QuantizedLinear) -> None:
        """Look up rows of ``head`` from now on."""
        self._head = (head,)  # in a tuple, PyTorch does not see a part of this module

    @property
    def head(self) -> QuantizedLinear:
        """The packed head."""
        return self._head[0]

    @property
    def weight(self) -> torch.Tensor:
        """The whole dequantized matrix, (tokens, width) float32. The code of some models reads it."""
        return self.head.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Look up tokens (...) int64. Returns (..., width)."""
        rows = self.head.rows(tokens.flatten()).to(self.dtype).unflatten(0, tokens.shape)
        return rows if self.embed_scale is None else rows * self.embed_scale.to(self.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings} rows of the head"


class PackedConv2d(nn.Module):
    """A convolution whose weight is packed as a matrix of (out, in / groups · height · width).

    like: the convolution that it replaces.
    weight_packed, weight_scale, weight_zero_point, bias: see ``PackedLinear``.
    same_padding: whether the input is padded as by ``blocks.SamePadConv2d``.

    Our kernels do not run it. After loading, ``unpacked`` converts it to an ordinary convolution.
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
        super().__init__()
        self.grid, self.same_padding = grid, isinstance(like, SamePadConv2d) or getattr(like, "same_padding", False)
        for name in (*SETTINGS, "kernel_size", "in_channels", "out_channels"):  # the code of some models reads these
            setattr(self, name, getattr(like, name))
        self.kernel = (self.in_channels // self.groups, *self.kernel_size)
        parts = zip((*PARTS, "bias"), (weight_packed, weight_scale, weight_zero_point, bias), strict=True)
        _register(self, dict(parts))

    @property
    def scale(self) -> torch.Tensor:
        """The scales in use, (out, groups). Subclasses that train the scales override it."""
        return self.weight_scale

    @property
    def weight(self) -> torch.Tensor:
        """The weight as (out, in / groups, height, width) float32. The code of some models reads its type."""
        return self.matrix().view(-1, *self.kernel)

    def matrix(self) -> torch.Tensor:
        """Return the weight as (out, in / groups · height · width) float32."""
        columns = math.prod(self.kernel)
        return ops.dequantize(self.weight_packed, self.scale, self.weight_zero_point, self.grid, columns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve x, (batch, in, height, width), with the unpacked weight."""
        x = pad_same(x, self) if self.same_padding else x
        return nn.functional.conv2d(x, self.weight.to(x.dtype), self.bias, **self._settings)

    @property
    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SETTINGS}

    def unpacked(self, dtype: torch.dtype) -> nn.Conv2d:
        """Return an ordinary convolution with the same weight in ``dtype``."""
        channels, biased = (self.in_channels, self.out_channels), self.bias is not None
        kind = SamePadConv2d if self.same_padding else nn.Conv2d
        conv = kind(*channels, self.kernel_size, bias=biased, device="meta", **self._settings)
        conv.weight = nn.Parameter(self.weight.to(dtype), requires_grad=False)
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias, requires_grad=False)
        return conv

    def extra_repr(self) -> str:
        return f"{self.kernel} → {len(self.weight_packed)}, {self.grid}"


Quantized = QuantizedLinear | PackedConv2d


def _register(module: nn.Module, tensors: Mapping[str, torch.Tensor | None], persistent: bool = True) -> None:
    """Register every tensor as a buffer. A None becomes a plain attribute: torch.export miscounts buffers of None."""
    for name, value in tensors.items():
        if value is None:
            setattr(module, name, None)
        else:
            module.register_buffer(name, value, persistent)


class Adapted(nn.Module):
    """A linear with a LoRA adapter: base(x) + scaling · B(A(x)), in float32 as PEFT computes it by default.

    a: (rank, in).
    b: (out, rank).
    """

    def __init__(self, base: nn.Module, a: torch.Tensor, b: torch.Tensor, scaling: float):
        super().__init__()
        self.base, self.scaling = base, scaling
        self.lora_a, self.lora_b = nn.Parameter(a, requires_grad=False), nn.Parameter(b, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.base(x)
        low = nn.functional.linear(x.float(), self.lora_a.float())  # (..., rank)
        return (result + nn.functional.linear(low, self.lora_b.float()) * self.scaling).to(result.dtype)


def tile_linears(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Prepare the packed modules of a model for inference, in place.

    Linears that the CPU kernels can run are tiled (see ``PackedLinear.tiled``). Convolutions are unpacked to ``dtype``.
    """
    embeddings = {id(module.head): module for module in model.modules() if isinstance(module, PackedEmbedding)}
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is PackedLinear:
                embedding = embeddings.get(id(child))
                setattr(parent, name, tiled := child.tiled(sparse=embedding is None) or child)
                if embedding is not None:
                    embedding.share(tiled)
            elif type(child) is PackedConv2d:
                setattr(parent, name, child.unpacked(dtype))


def dense_weight(module: nn.Module, linear: Linear) -> torch.Tensor:
    """Return the weight of a packed or plain linear or convolution as (out, in) float32 on the CPU."""
    if isinstance(module, PackedConv2d):
        return module.matrix().cpu()
    if isinstance(module, QuantizedLinear):
        return module.weight.cpu()
    return as_matrix(module.weight.detach().float().cpu(), linear.layout)


def as_matrix(weight: torch.Tensor, layout: str) -> torch.Tensor:
    """Return the weight of a module as a matrix (out, in).

    A conv1d stores its weight as (in, out), which is transposed. A conv2d stores (out, in / groups, height, width),
    whose last three dimensions are flattened to one. Other layouts are returned unchanged.
    """
    if layout == "conv1d":
        return weight.T.contiguous()
    return weight.flatten(1) if layout == "conv2d" else weight


def of_matrix(matrix: torch.Tensor, layout: str, shape: torch.Size) -> torch.Tensor:
    """Invert ``as_matrix``: return the weight in the module's own layout. shape: of the module's weight."""
    return matrix.T.contiguous() if layout == "conv1d" else matrix.view(shape)
