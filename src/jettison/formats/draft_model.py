"""Write a draft model to a folder of its own, for runtimes that load one (vLLM, transformers' assisted generation)."""

from collections.abc import Mapping
from pathlib import Path

import torch

from jettison.core.errors import UsageError
from jettison.core.files import write_json
from jettison.core.tensors import write_tensors
from jettison.encodings.grid import Grid
from jettison.encodings.quantized import QuantizedWeight
from jettison.formats.format import READ, Format, choose_format, find_format, format_name, format_of
from jettison.formats.packed import UnpackedFolder, read_grids
from jettison.formats.writer import copy_companions
from jettison.graph.anatomy import Linear
from jettison.graph.checkpoint import INDEX, Checkpoint
from jettison.graph.folder import open_shape
from jettison.graph.surgery import Renumbering, check_kinds, shortened

# Fields from which transformers derives a list with an entry for every block.
DERIVING = ("sliding_window_pattern", "no_rope_layer_interval", "interleave_moe_layer_step")


def write_draft_model(
    source: UnpackedFolder, skip: tuple[str, ...], out: Path, view: Mapping[str, QuantizedWeight] | None = None
) -> None:
    """Write the draft model of a checkpoint: without some blocks, or with linears in fewer bits, or both.

    The remaining blocks are renumbered. One shard is in memory at a time; the index is written last.

    skip: numbers of the blocks to leave out.
    out: a folder that holds no model yet.
    view: linear name in ``source`` -> its weight in fewer bits, which replaces the one of ``source``.
    Raises UsageError if ``skip`` names half of a block, which no other runtime can skip, for a folder that holds a
    model, for a source in a format that is only read, for a model that does not read text alone, and for experts that
    are stored as one tensor.
    """
    if halves := [unit for unit in skip if "." in unit]:
        raise UsageError(f"a draft without {', '.join(halves)}: only whole blocks can be left out of a checkpoint")
    if source.quantization and (name := format_name(source)) in READ:
        raise UsageError(
            f"a draft model of {source.name}: {name} is a format that is only read; compress the model, then draft"
        )
    if (out / "config.json").exists():
        raise UsageError(f"{out} holds a model already: choose another folder")
    source.require_own_modules("drafts are made of the modules of config.json")
    if "text_config" in source.raw_config:
        raise UsageError(f"a draft model of {source.name}: only text models can be written as one")
    kept = [block for block in range(source.anatomy.blocks) if str(block) not in skip]
    config = dict(source.raw_config) | shortened(vars(source.config), kept, source.anatomy.blocks)
    config.pop("quantization_config", None)
    for name in DERIVING:  # the lists that follow from them are in the config now
        config.pop(name, None)
    write_json(out / "config.json", config)
    check_kinds(source.skeleton, open_shape(out / "config.json").skeleton, source.anatomy.family.blocks, kept)
    names = Renumbering(source.anatomy.family.blocks, kept)
    grids = read_grids(source) | {name: weight.grid for name, weight in (view or {}).items()}
    if source.anatomy.tied and source.anatomy.head.name in grids:  # one matrix, whose codes the view may replace
        grids[source.anatomy.linears[0].name] = grids[source.anatomy.head.name]
    format = format_of(source) if source.quantization else find_format(choose_format(source.anatomy, grids))
    new_grids: dict[str, Grid] = {}  # by the name after renumbering
    weight_map: dict[str, str] = {}
    # None, None: the tensors outside all blocks.
    for old, new in [(None, None), *((block, number) for number, block in enumerate(kept))]:
        tensors = {name: source.checkpoint.read(name) for name in source.checkpoint if names.block(name) == old}
        for linear in source.anatomy.of_block(old):
            if view and linear.name in view:
                _replace(source, format, linear, view[linear.name], tensors)
            if linear.name in grids:
                new_grids[names.rename(linear.name)] = grids[linear.name]
        shard = f"model-{'rest' if new is None else f'{new:05d}'}.safetensors"
        renamed = {names.rename(name): tensor for name, tensor in tensors.items()}
        write_tensors(out / shard, renamed)
        weight_map |= dict.fromkeys(renamed, shard)
    size = Checkpoint(out, [out / shard for shard in sorted(set(weight_map.values()))]).tensor_bytes
    if new_grids:
        anatomy = open_shape(out / "config.json").anatomy
        if refused := format.refuses(anatomy, new_grids):
            raise UsageError(f"a draft model of {source.name} cannot be written: {'; '.join(refused)}")
        config["quantization_config"] = format.section(anatomy, new_grids)
    copy_companions(source.companions, out)
    write_json(out / "config.json", config)
    write_json(out / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


def _replace(
    source: UnpackedFolder,
    format: Format,
    linear: Linear,
    weight: QuantizedWeight,
    tensors: dict[str, torch.Tensor],
) -> None:
    """Replace the tensors of a linear, but for its bias, by those of ``weight``."""
    tensor, expert, _ = source.locate(f"{linear.name}.weight")
    if expert is not None:
        raise UsageError(f"a draft with {linear.name} in fewer bits: {source.name} stores its experts as one tensor")
    name = tensor.rpartition(".")[0]
    for old in [key for key in tensors if key.startswith(f"{name}.") and key != f"{name}.bias"]:
        del tensors[old]
    tensors |= format.tensors(name, weight)
