"""The folder that a compression leaves: its shards, one per block, and what stands beside them."""

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from jettison.core.files import write_atomic, write_json
from jettison.core.progress import say
from jettison.encodings.grid import Grid
from jettison.encodings.uniform import QuantizedWeight
from jettison.formats import compressed_tensors
from jettison.graph.anatomy import Linear
from jettison.graph.checkpoint import INDEX, Checkpoint
from jettison.graph.folder import TOKENIZER, ModelFolder

Stored = QuantizedWeight | torch.Tensor  # packed; or dense, (out, in) float32, in the original's type once it is stored
# What stands beside the weights of a model. Nothing else is copied: no code, no results of an earlier run.
COMPANIONS = re.compile(
    TOKENIZER.pattern + r"|(pre|video_pre)?processor_config\.json|additional_chat_templates/[^/.][^/]*\.jinja|"
    r"(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)[^/]*"
)


def stored_name(source: ModelFolder, linear: Linear) -> str:
    """What a compressed linear is called in the shards: as the original calls it, if it has a name of its own there."""
    tensor, expert, _ = source.locate(f"{linear.name}.weight")
    shared = expert is not None or ("head" in linear.roles and source.anatomy.tied)
    return linear.name if shared else tensor.removesuffix(".weight")


def shard_tensors(
    source: ModelFolder, block: int | None, weights: Mapping[Linear, Stored], untie: bool
) -> dict[str, torch.Tensor]:
    """All tensors of a block, or with None of what lies outside: quantized linears packed, pruned ones dense with their
    zeros, the rest as they were.

    untie: head and embedding part ways, so each needs tensors of its own.
    """
    tensors: dict[str, torch.Tensor] = {}
    dropped: set[str] = set()
    for linear, weight in weights.items():
        name = stored_name(source, linear)
        tensor, expert, _ = source.locate(f"{linear.name}.weight")
        if not packed(linear, weight):
            tensors[f"{name}.weight"] = _in_module(source, linear, weight)
            continue
        tensors |= compressed_tensors.tensors(name, weight)
        if f"{name}.weight" == tensor or expert is not None:
            dropped.add(tensor)
        if expert is not None and source.has(f"{linear.name}.bias"):
            tensors[f"{name}.bias"] = source.read(f"{linear.name}.bias")
            dropped.add(source.locate(f"{linear.name}.bias")[0])
    head = source.anatomy.head
    if untie and block is None and head and head not in weights:
        tensors[f"{head.name}.weight"] = source.read(f"{head.name}.weight")
    for tensor in source.tensors_of(block):
        if tensor not in dropped and tensor not in tensors:
            tensors[tensor] = source.checkpoint.read(tensor)
    return tensors


def packed(linear: Linear, weight: Stored) -> bool:
    """Whether a weight is stored packed; dense otherwise."""
    return isinstance(weight, QuantizedWeight) and compressed_tensors.storable(linear)


def _in_module(source: ModelFolder, linear: Linear, weight: Stored) -> torch.Tensor:
    """A weight that is stored dense, in the type and layout of the original's tensor."""
    dtype = source.checkpoint.read(source.locate(f"{linear.name}.weight")[0]).dtype
    dense = weight.dequantize(dtype) if isinstance(weight, QuantizedWeight) else weight.to(dtype)
    return dense.T.contiguous() if linear.layout == "conv1d" else dense


def as_stored(source: ModelFolder, linear: Linear, weight: Stored) -> torch.Tensor:
    """What ``read_back`` will read of this weight."""
    return weight.dequantize() if packed(linear, weight) else _in_module(source, linear, weight).float()


def read_back(source: ModelFolder, shard: Checkpoint, linear: Linear, grid: Grid | None) -> torch.Tensor:
    """The weight of a compressed linear in a finished shard, dense, in the layout of its module, float32. grid: None
    for one that is not quantized."""
    name = stored_name(source, linear)
    if grid is None or not compressed_tensors.storable(linear):
        return shard.read(f"{name}.weight").float()
    return compressed_tensors.read_weight(shard.read, name, grid).dequantize()


def finish(source: ModelFolder, out: Path, shards: Iterable[str], grids: Mapping[str, Grid], untie: bool) -> None:
    """Write what stands beside the shards: index, config, tokenizer and licence files."""
    written = Checkpoint(out, [out / shard for shard in shards])
    weight_map = {name: written.home(name).name for name in sorted(written)}
    write_json(out / INDEX, {"metadata": {"total_size": written.tensor_bytes}, "weight_map": weight_map})
    copy_companions(source.folder, out)
    config = dict(source.raw_config)
    if grids:
        config["quantization_config"] = compressed_tensors.config_section(source.anatomy, grids)
    if untie:
        config["tie_word_embeddings"] = False
        if "text_config" in config:
            config["text_config"] = config["text_config"] | {"tie_word_embeddings": False}
    write_json(out / "config.json", config)


def copy_companions(source: Path, out: Path) -> None:
    """Copy tokenizer, chat template, generation settings and licence of a model's folder.

    A link is followed within the folder, and within a cache of the Hugging Face hub; what another link leads to is not
    published.
    """
    for path in sorted([*source.glob("*"), *source.glob("additional_chat_templates/*")]):
        name = path.relative_to(source).as_posix()
        if not COMPANIONS.fullmatch(name) or not path.is_file():
            continue
        if not _belongs(path, source):
            say(f"note: {path} is a link to {path.resolve()}, outside the model's folder: it is not copied")
            continue
        write_atomic(out / name, lambda temporary, path=path: shutil.copyfile(path, temporary))


def _belongs(path: Path, source: Path) -> bool:
    target, folder = path.resolve(), source.resolve()
    if target.is_relative_to(folder):
        return True
    repository = folder.parent.parent  # models--NAME/snapshots/REVISION, whose links lead to models--NAME/blobs
    cached = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    return cached and target.parent == repository / "blobs"
