"""The folder that a compression leaves: its shards, one per block, and what stands beside them."""

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from jettison.core.files import write_atomic, write_json
from jettison.core.progress import say
from jettison.encodings.grid import Grid
from jettison.encodings.quantized import QuantizedWeight
from jettison.formats.format import Format, find_format
from jettison.graph.anatomy import Linear
from jettison.graph.checkpoint import INDEX, Checkpoint
from jettison.graph.folder import TOKENIZER, ModelFolder
from jettison.graph.modules import of_matrix

Stored = QuantizedWeight | torch.Tensor  # packed; or dense, (out, in) float32, in the original's type once it is stored
# What stands beside the weights of a model. Nothing else is copied: no code, no results of an earlier run.
COMPANIONS = re.compile(
    TOKENIZER.pattern + r"|(pre|video_pre)?processor_config\.json|additional_chat_templates/[^/.][^/]*\.jinja|"
    r"(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)[^/]*"
)


@dataclass(frozen=True)
class Writer:
    """Writes what becomes of ``source`` in the format ``name``."""

    source: ModelFolder
    name: str

    @property
    def format(self) -> Format:
        return find_format(self.name)

    def stored_name(self, linear: Linear) -> str:
        """What a compressed linear is called in the shards: as the original calls it, if it has a name of its own
        there."""
        tensor, expert, _ = self.source.locate(f"{linear.name}.weight")
        shared = expert is not None or ("head" in linear.roles and self.source.anatomy.tied)
        return linear.name if shared else tensor.removesuffix(".weight")

    def shard_tensors(
        self,
        block: int | None,
        weights: Mapping[Linear, Stored],
        untie: bool,
        changed: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> dict[str, torch.Tensor]:
        """All tensors of a block, or with None of what lies outside: quantized linears packed, pruned ones dense with
        their zeros, the rest as they were.

        untie: head and embedding part ways, so each needs tensors of its own. changed: parameter -> its new value, of
        other parameters; they are stored in the type of the original's.
        """
        source = self.source
        tensors: dict[str, torch.Tensor] = {}
        dropped: set[str] = set()
        for linear, weight in weights.items():
            name = self.stored_name(linear)
            tensor, expert, _ = source.locate(f"{linear.name}.weight")
            if not self.packed(linear, weight):
                tensors[f"{name}.weight"] = self._in_module(linear, weight)
                continue
            tensors |= self.format.tensors(name, weight)
            if f"{name}.weight" == tensor or expert is not None:
                dropped.add(tensor)
            if expert is not None and source.has(f"{linear.name}.bias"):
                tensors[f"{name}.bias"] = source.read(f"{linear.name}.bias")
                dropped.add(source.locate(f"{linear.name}.bias")[0])
        for parameter, value in changed.items():
            tensor = source.locate(parameter)[0]
            tensors[tensor] = value.to(source.checkpoint.read(tensor).dtype)
        head = source.anatomy.head
        if untie and block is None and head and head not in weights:
            tensors[f"{head.name}.weight"] = source.read(f"{head.name}.weight")
        for tensor in source.tensors_of(block):
            if tensor not in dropped and tensor not in tensors:
                tensors[tensor] = source.checkpoint.read(tensor)
        return tensors

    def parameter_as_stored(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Another parameter than a linear's weight, rounded to the type of the original's, float32."""
        return value.to(self.source.read(name).dtype).float()

    def packed(self, linear: Linear, weight: Stored) -> bool:
        """Whether a weight is stored packed; dense otherwise."""
        return isinstance(weight, QuantizedWeight) and self.format.packs(linear)

    def _in_module(self, linear: Linear, weight: Stored) -> torch.Tensor:
        """A weight that is stored dense, in the type and layout of the original's tensor."""
        stored = self.source.read(f"{linear.name}.weight")
        dense = weight.dequantize(stored.dtype) if isinstance(weight, QuantizedWeight) else weight.to(stored.dtype)
        return of_matrix(dense, linear.layout, stored.shape)

    def as_stored(self, linear: Linear, weight: Stored) -> torch.Tensor:
        """What ``read_back`` will read of this weight."""
        if not self.packed(linear, weight):
            return self._in_module(linear, weight).float()
        return of_matrix(weight.dequantize(), linear.layout, self._shape(linear))

    def _shape(self, linear: Linear) -> torch.Size:
        return self.source.skeleton.get_submodule(linear.name).weight.shape

    def read_back(self, shard: Checkpoint, linear: Linear, grid: Grid | None) -> torch.Tensor:
        """The weight of a compressed linear in a finished shard, dense, in the layout of its module, float32. grid:
        None for one that is not quantized."""
        name = self.stored_name(linear)
        if grid is None or not self.format.packs(linear):
            return shard.read(f"{name}.weight").float()
        weight = self.format.read_weight(shard.read, name, grid).dequantize()
        return of_matrix(weight, linear.layout, self._shape(linear))

    def finish(self, out: Path, shards: Iterable[str], grids: Mapping[str, Grid], untie: bool) -> None:
        """Write what stands beside the shards: index, config, tokenizer and licence files."""
        source, written = self.source, Checkpoint(out, [out / shard for shard in shards])
        weight_map = {name: written.home(name).name for name in sorted(written)}
        write_json(out / INDEX, {"metadata": {"total_size": written.tensor_bytes}, "weight_map": weight_map})
        copy_companions(source.folder, out)
        config = dict(source.raw_config)
        if grids:
            config["quantization_config"] = self.format.section(source.anatomy, grids)
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
