"""A draft model as a folder of its own, for runtimes that take one (vLLM, assisted generation of transformers)."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from jettison.core.errors import UsageError
from jettison.core.files import write_json
from jettison.core.tensors import write_tensors
from jettison.encodings.grid import Grid
from jettison.encodings.quantized import QuantizedWeight
from jettison.formats import parts
from jettison.formats.format import choose_format, find_format
from jettison.formats.packed import UnpackedFolder, read_grids
from jettison.formats.writer import copy_companions
from jettison.graph.anatomy import Linear
from jettison.graph.checkpoint import INDEX, Checkpoint
from jettison.graph.folder import open_shape
from jettison.graph.surgery import Renumbering, shortened


def write_draft_model(
    source: UnpackedFolder, skip: tuple[str, ...], out: Path, view: Mapping[str, QuantizedWeight] | None = None
) -> None:
    """The checkpoint without the blocks ``skip``, the rest renumbered; linears of blocks in fewer bits (``view``: name
    in ``source`` -> weight). A shard at a time; the index is written last.

    Raises UsageError where a half of a block is skipped, which no other runtime can, and for a folder that holds a
    model.
    """
    if halves := [unit for unit in skip if "." in unit]:
        raise UsageError(f"a draft without {', '.join(halves)}: only whole blocks can be left out of a checkpoint")
    if (out / "config.json").exists():
        raise UsageError(f"{out} holds a model already: choose another folder")
    if "text_config" in source.raw_config:
        raise UsageError(f"a draft model of {source.name}: only models of text alone can be cut out")
    stay = [block for block in range(source.anatomy.blocks) if str(block) not in skip]
    config = dict(source.raw_config) | shortened(source.raw_config, stay)
    config.pop("quantization_config", None)
    write_json(out / "config.json", config)
    names = Renumbering(source.anatomy.family.blocks, stay)
    grids = read_grids(source) | {name: weight.grid for name, weight in (view or {}).items()}
    moved: dict[str, Grid] = {}
    weight_map: dict[str, str] = {}
    for old, new in [(None, None), *((block, number) for number, block in enumerate(stay))]:
        tensors = {name: source.checkpoint.read(name) for name in source.checkpoint if names.block(name) == old}
        for linear in source.anatomy.of_block(old):
            if view and linear.name in view:
                _replace(source, linear, view[linear.name], tensors)
            if linear.name in grids:
                moved[names.rename(linear.name)] = grids[linear.name]
        shard = f"model-{'rest' if new is None else f'{new:05d}'}.safetensors"
        renamed = {names.rename(name): tensor for name, tensor in tensors.items()}
        write_tensors(out / shard, renamed)
        weight_map |= dict.fromkeys(renamed, shard)
    size = Checkpoint(out, [out / shard for shard in sorted(set(weight_map.values()))]).tensor_bytes
    if moved:
        anatomy = open_shape(out / "config.json").anatomy
        config["quantization_config"] = find_format(choose_format(anatomy, moved)).section(anatomy, moved)
    copy_companions(source.folder, out)
    write_json(out / "config.json", config)
    write_json(out / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


def _replace(source: UnpackedFolder, linear: Linear, weight: QuantizedWeight, tensors: dict[str, torch.Tensor]) -> None:
    tensor, expert, _ = source.locate(f"{linear.name}.weight")
    if expert is not None:
        raise UsageError(f"a draft with {linear.name} in fewer bits: {source.name} stores its experts as one tensor")
    name = re.sub(r"\.weight(_packed)?$", "", tensor)
    for part in ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"):
        tensors.pop(f"{name}.{part}", None)
    tensors |= parts.tensors(name, weight)
