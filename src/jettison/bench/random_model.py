"""Make a model of a known shape with random weights, packed as a recipe says, to measure speed."""

import torch
from torch import nn

from jettison.core.errors import UsageError
from jettison.core.progress import waiting
from jettison.encodings.grid import Grid
from jettison.formats.runtimes import fitted_grids
from jettison.graph.anatomy import Linear
from jettison.graph.modules import Adapted, TiledLinear
from jettison.graph.shape import ModelShape
from jettison.kernels.tiles import Tiling
from jettison.recipe.recipe import Recipe


@waiting("making random weights")
def random_model(
    shape: ModelShape, recipe: Recipe, *, adapter: bool = False, sparse: bool = False, seed: int = 0
) -> nn.Module:
    """Make a model with random weights.

    Linears that the recipe quantizes get random codes with scales that keep activations in range. The rest is bfloat16.

    adapter: add LoRA adapters, as the recipe's recovery would.
    sparse: pack quantized linears of blocks as 2:4.

    Returns the model. Raises UsageError for a grid that the kernels do not support.
    """
    rng = torch.Generator().manual_seed(seed)
    normal = lambda *size, by: torch.randn(*size, generator=rng).mul(by).bfloat16()
    model = shape.new_skeleton()
    for step in recipe.of("quantize"):
        claimed = [linear for linear in shape.anatomy if step.where.matches(linear.roles, linear.block)]
        for linear, grid in fitted_grids(claimed, step.grid).items():
            if "embed" not in linear.roles:
                bias = None if model.get_submodule(linear.name).bias is None else torch.zeros(linear.rows)
                packed = _packed(linear, grid, bias, sparse and linear.block is not None, rng)
                model.set_submodule(linear.name, packed)
    for name, parameter in list(model.named_parameters()):
        owner, _, last = name.rpartition(".")
        size = parameter.shape
        value = torch.ones(size).bfloat16() if len(size) == 1 else normal(*size, by=size[-1] ** -0.5)
        setattr(model.get_submodule(owner), last, nn.Parameter(value, requires_grad=False))
    if shape.config.get_text_config().tie_word_embeddings and isinstance(model.get_output_embeddings(), nn.Linear):
        model.tie_weights()
    for step in recipe.of("recover") if adapter else ():
        rank = step.options["rank"] if "lora" in step.options["train"] else 0
        for linear in shape.anatomy:
            if rank and step.where.matches(linear.roles, linear.block):
                a, b = normal(rank, linear.columns, by=linear.columns**-0.5), normal(linear.rows, rank, by=0.01)
                model.set_submodule(linear.name, Adapted(model.get_submodule(linear.name), a, b, 1.0))
    return model


def _packed(linear: Linear, grid: Grid, bias: torch.Tensor | None, sparse: bool, rng: torch.Generator) -> TiledLinear:
    """Return a linear with random tiles. Making codes and packing them would take minutes for billions of weights."""
    rows, columns = linear.rows, linear.columns
    tiling = Tiling.of(grid, rows, columns, sparse)
    if tiling is None:
        raise UsageError(f"{linear.name}: the kernels do not support {grid} with rows of {columns} weights")
    tiles = torch.randint(0, 256, tiling.tiles_shape, dtype=torch.uint8, generator=rng)
    scale = torch.full((32,), 2.0 / (columns**0.5 * 2**grid.bits), dtype=grid.scale_dtype)
    tiles[:, :, tiling.code_bytes :][:, :, : tiling.scale_bytes] = scale.view(torch.uint8)
    zero = None if grid.symmetric else torch.full(tiling.zero_shape, grid.zero_code, dtype=torch.uint8)
    return TiledLinear(grid, tiling, tiles, zero, bias)
