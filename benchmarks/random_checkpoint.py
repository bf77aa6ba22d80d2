"""Write a checkpoint of a known shape with random weights, packed as a recipe says. Loading is measured on it."""

from pathlib import Path

import torch

from jettison.core.files import write_json
from jettison.core.tensors import write_tensors
from jettison.encodings.quantized import empty_parts
from jettison.formats.compressed_tensors import section as config_section
from jettison.graph.checkpoint import INDEX
from jettison.graph.shape import ModelShape
from jettison.recipe.recipe import Recipe


def write_random_checkpoint(shape: ModelShape, recipe: Recipe, out: Path, seed: int = 0) -> None:
    """Write a checkpoint of random weights to ``out``: one shard for each block, one for everything else, no tokenizer.

    Packed codes are random bits; scales are chosen so that activations stay in range. All other tensors are bfloat16.
    Does nothing if ``out`` has a config.json already.
    """
    if (out / "config.json").exists():
        return
    rng, model = torch.Generator().manual_seed(seed), shape.new_skeleton()
    modules = dict(model.named_modules())
    grids = {
        linear.name: step.grid
        for step in recipe.of("quantize")
        for linear in shape.anatomy
        if step.where.matches(linear.roles, linear.block) and "embed" not in linear.roles
    }
    shard_of: dict[str, str] = {}
    for block in (*range(shape.config.get_text_config().num_hidden_layers), None):
        prefix = f"{shape.anatomy.family.blocks}."
        inside = lambda name, block=block, prefix=prefix: (
            name.startswith(f"{prefix}{block}.") if block is not None else not name.startswith(prefix)
        )
        tensors = {}
        for name, grid in grids.items():
            if inside(name):
                tensors |= _packed(name, modules[name], grid, rng)
        for name, parameter in model.named_parameters():
            if inside(name) and name.rpartition(".")[0] not in grids:
                size = parameter.shape
                random = torch.randn(size, generator=rng) * size[-1] ** -0.5 if len(size) > 1 else torch.ones(size)
                tensors[name] = random.bfloat16()
        shard = f"model-{'rest' if block is None else f'{block:03}'}.safetensors"
        write_tensors(out / shard, tensors)
        shard_of |= dict.fromkeys(tensors, shard)
    write_json(out / INDEX, {"weight_map": shard_of})
    section = config_section(shape.anatomy, grids)
    write_json(
        out / "config.json",
        shape.raw_config | {"quantization_config": section, "tie_word_embeddings": False, "dtype": "bfloat16"},
    )


def _packed(name: str, module: torch.nn.Module, grid, rng: torch.Generator) -> dict[str, torch.Tensor]:
    rows, columns = module.weight.shape
    tensors = {f"{name}.weight_shape": torch.tensor([rows, columns])}
    for part, empty in empty_parts(rows, columns, grid).items():
        if part == "weight_scale":
            # Weights reach 1 / sqrt(columns), so activations keep their size.
            value = torch.full(empty.shape, 2.0 / (columns**0.5 * 2**grid.bits), dtype=empty.dtype)
        else:
            value = torch.randint(-(2**31), 2**31, empty.shape, generator=rng).int()
        tensors[f"{name}.{part}"] = value
    return tensors
