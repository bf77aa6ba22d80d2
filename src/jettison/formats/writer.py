"""The folder that a compression leaves: its shards, one per block, and what stands beside them."""

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from jettison.files import write_atomic, write_json
from jettison.formats import compressed_tensors
from jettison.grid import Grid, QuantizedWeight
from jettison.models import Linear, ModelFolder
from jettison.models.checkpoint import INDEX, Checkpoint

NOT_COPIED = re.compile(r"config\.json|.*\.(safetensors|bin|pt|pth|gguf|h5|msgpack|onnx)|.*\.index\.json|README.*|\..*")


def stored_name(source: ModelFolder, linear: Linear) -> str:
    """What a quantized linear is called in the shards: as the original calls it, if it has a name of its own there."""
    tensor, expert, _ = source.locate(f"{linear.name}.weight")
    shared = expert is not None or ("head" in linear.roles and source.anatomy.tied)
    return linear.name if shared else tensor.removesuffix(".weight")


def shard_tensors(
    source: ModelFolder, block: int | None, weights: Mapping[Linear, QuantizedWeight], untie: bool
) -> dict[str, torch.Tensor]:
    """All tensors of a block, or with None of what lies outside: quantized linears packed, the rest as they were.

    untie: head and embedding part ways, so each needs tensors of its own.
    """
    tensors: dict[str, torch.Tensor] = {}
    dropped: set[str] = set()
    for linear, weight in weights.items():
        name = stored_name(source, linear)
        tensor, expert, _ = source.locate(f"{linear.name}.weight")
        if not compressed_tensors.storable(linear):
            tensors[tensor] = weight.dequantize(source.checkpoint.read(tensor).dtype).T
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


def as_stored(source: ModelFolder, linear: Linear, weight: QuantizedWeight) -> torch.Tensor:
    """What ``read_back`` will read of this weight."""
    if compressed_tensors.storable(linear):
        return weight.dequantize()
    stored = source.checkpoint.read(source.locate(f"{linear.name}.weight")[0]).dtype
    return weight.dequantize(stored).T.contiguous().float()


def read_back(source: ModelFolder, shard: Checkpoint, linear: Linear, grid: Grid) -> torch.Tensor:
    """The weight of a quantized linear in a finished shard, dense, in the layout of its module, float32."""
    if not compressed_tensors.storable(linear):
        return shard.read(source.locate(f"{linear.name}.weight")[0]).float()
    return compressed_tensors.read_weight(shard.read, stored_name(source, linear), grid).dequantize()


def finish(source: ModelFolder, out: Path, shards: Iterable[str], grids: Mapping[str, Grid], untie: bool) -> None:
    """Write what stands beside the shards: index, config, tokenizer and licence files."""
    written = Checkpoint(out, [out / shard for shard in shards])
    weight_map = {name: written.home(name).name for name in sorted(written)}
    write_json(out / INDEX, {"metadata": {"total_size": written.tensor_bytes}, "weight_map": weight_map})
    for path in sorted(source.folder.iterdir()):
        if path.is_file() and not NOT_COPIED.fullmatch(path.name):
            write_atomic(out / path.name, lambda temporary, path=path: shutil.copyfile(path, temporary))
    config = dict(source.raw_config)
    if grids:
        config["quantization_config"] = compressed_tensors.config_section(source.anatomy, grids)
    if untie:
        config["tie_word_embeddings"] = False
        if "text_config" in config:
            config["text_config"] = config["text_config"] | {"tie_word_embeddings": False}
    write_json(out / "config.json", config)
