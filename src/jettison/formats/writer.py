"""Writes the folder of a compressed model: one shard per block, the index, the config and copied files."""

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
from jettison.formats.dequantized import DequantizedFolder
from jettison.formats.format import Format, find_format
from jettison.graph.anatomy import Linear
from jettison.graph.checkpoint import Checkpoint
from jettison.graph.described_files import write_replaced
from jettison.graph.extra import extra_linears, extra_matrices
from jettison.graph.folder import TOKENIZER, ModelFolder
from jettison.graph.layout import other_files
from jettison.graph.modules import of_matrix

# Packed; or dense, (out, in) float32, which is cast to the original's dtype when it is stored.
Stored = QuantizedWeight | torch.Tensor
# The files beside the weights that are copied. Nothing else is: no code, no results of an earlier run.
COMPANIONS = re.compile(
    TOKENIZER.pattern + r"|(pre|video_pre)?processor_config\.json|additional_chat_templates/[^/.][^/]*\.jinja|"
    r"training\.json|(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)[^/]*"
)


@dataclass(frozen=True)
class Writer:
    """Writes the compressed weights of ``source`` in the format ``name``.

    tied: whether the packed head is the embedding too; it is then stored once, under the embedding's name.
    """

    source: ModelFolder
    name: str
    tied: bool = False

    @property
    def format(self) -> Format:
        """The module of the format."""
        return find_format(self.name)

    def stored_name(self, linear: Linear) -> str:
        """Return the name of a compressed linear in the shards.

        It is the original's name. A linear that shares a tensor there gets its own name: an expert, a tied head, or
        a tied embedding that is stored under the head's name.
        """
        if self.tied and "head" in linear.roles:
            return self.source.anatomy.linears[0].name
        tensor, expert, _ = self.source.locate(f"{linear.name}.weight")
        shared = expert is not None or ("head" in linear.roles and self.source.anatomy.tied)
        shared = shared or ("embed" in linear.roles and not self.source.has(f"{linear.name}.weight"))
        return linear.name if shared else tensor.removesuffix(".weight")

    def shard_tensors(
        self,
        block: int | None,
        weights: Mapping[Linear, Stored],
        untie: bool,
        changed: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> dict[str, torch.Tensor]:
        """Return all tensors of a shard: quantized linears packed, pruned linears dense, everything else unchanged.

        block: its number; None for the tensors outside all blocks.
        untie: whether a tied head and embedding are separated, so that each needs tensors of its own.
        changed: name of another parameter -> its new value, which is stored in the original's dtype.
        """
        source = self.source
        tensors: dict[str, torch.Tensor] = {}
        dropped: set[str] = set()  # tensors of the original that packed ones replace
        for linear, weight in weights.items():
            name = self.stored_name(linear)
            tensor, expert, _ = source.locate(f"{linear.name}.weight")
            if not self.packed(linear, weight):
                tensors[f"{name}.weight"] = self._in_module(linear, weight)
                continue
            tensors |= self.format.tensors(name, weight)
            if f"{name}.weight" == tensor or expert is not None:
                dropped.add(tensor)
            if self.tied and "head" in linear.roles:
                dropped |= {tensor, source.locate(f"{name}.weight")[0]}
            if expert is not None and source.has(f"{linear.name}.bias"):
                tensors[f"{name}.bias"] = source.read(f"{linear.name}.bias")
                dropped.add(source.locate(f"{linear.name}.bias")[0])
        for parameter, value in changed.items():
            tensor = source.locate(parameter)[0]
            tensors[tensor] = value.to(source.checkpoint.read(tensor).dtype)
        head = source.anatomy.head
        if untie and block is None and head:
            if head not in weights:
                tensors[f"{head.name}.weight"] = self._as_kept(source.locate(f"{head.name}.weight")[0])
            embed = source.anatomy.linears[0]
            if embed not in weights and not source.has(f"{embed.name}.weight"):  # stored under the head's name
                tensors[f"{embed.name}.weight"] = self._as_kept(source.locate(f"{embed.name}.weight")[0]).clone()
            bias = f"{head.name}.bias"  # it may be tied to another parameter, as the weight was
            if source.skeleton.get_submodule(head.name).bias is not None and not source.has(bias):
                tensors[bias] = source.read(bias).clone()  # a file cannot hold two names of one tensor
        for tensor in source.tensors_of(block):
            if tensor not in dropped and tensor not in tensors:
                tensors[tensor] = self._as_kept(tensor)
        return tensors

    def _as_kept(self, tensor: str) -> torch.Tensor:
        """Read a tensor that does not change. One that a quantized source has no dense type for gets the model's."""
        source = self.source
        value = source.checkpoint.read(tensor)
        computed = isinstance(source, DequantizedFolder) and source.checkpoint.dequantized(tensor)
        return value.to(source.dtype) if computed else value

    def parameter_as_stored(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Round a parameter to the dtype of the original's, as a shard stores it; returns float32.

        name: of a parameter that is not a linear's weight.
        """
        return value.to(self.source.read(name).dtype).float()

    def packed(self, linear: Linear, weight: Stored) -> bool:
        """Whether a weight is stored packed; it is stored dense otherwise."""
        return isinstance(weight, QuantizedWeight) and self.format.packs(linear)

    def _in_module(self, linear: Linear, weight: Stored) -> torch.Tensor:
        """A weight that is stored dense, in the type and layout of the original's tensor."""
        stored = self.source.read(f"{linear.name}.weight")
        dtype = self._as_kept(self.source.locate(f"{linear.name}.weight")[0]).dtype
        dense = weight.dequantize(dtype) if isinstance(weight, QuantizedWeight) else weight.to(dtype)
        return of_matrix(dense, linear.layout, stored.shape)

    def as_stored(self, linear: Linear, weight: Stored) -> torch.Tensor:
        """Return the tensor that ``read_back`` will read for this weight."""
        if not self.packed(linear, weight):
            return self._in_module(linear, weight).float()
        return of_matrix(weight.dequantize(), linear.layout, self._shape(linear))

    def _shape(self, linear: Linear) -> torch.Size:
        if linear.layout == "linear":  # the model has no module for one of a block that only the checkpoint has
            return torch.Size((linear.rows, linear.columns))
        return self.source.skeleton.get_submodule(linear.name).weight.shape

    def read_back(self, shard: Checkpoint, linear: Linear, grid: Grid | None) -> torch.Tensor:
        """Read the weight of a compressed linear from a finished shard: dense float32, in the layout of its module.

        grid: of the linear; None if it is not quantized.
        """
        name = self.stored_name(linear)
        if grid is None or not self.format.packs(linear):
            return shard.read(f"{name}.weight").float()
        weight = self.format.read_weight(shard.read, name, grid).dequantize()
        return of_matrix(weight, linear.layout, self._shape(linear))

    def finish(self, out: Path, shards: Iterable[str], grids: Mapping[str, Grid], untie: bool) -> None:
        """Write the files beside the shards: index, config, tokenizer and licence files.

        grids: linear name -> grid, for the packed ones.
        untie: whether a tied head and embedding were separated.
        """
        source, home = self.source, out / self.source.layout.part
        written = Checkpoint(home, [out / shard for shard in shards])
        weight_map = {name: written.home(name).name for name in sorted(written)}
        write_json(
            home / source.layout.index, {"metadata": {"total_size": written.tensor_bytes}, "weight_map": weight_map}
        )
        copy_companions(source.companions, out)
        for name in other_files(source.folder, source.layout):
            (out / name).parent.mkdir(exist_ok=True, parents=True)
            write_atomic(out / name, lambda temporary, name=name: shutil.copyfile(source.folder / name, temporary))
        config = {name: value for name, value in source.raw_config.items() if name != "quantization_config"}
        if grids:
            extra = [linear for linear in extra_linears(source) if linear.name in grids]
            packed = {self.stored_name(linear) for linear in extra}
            dense = [name for name in extra_matrices(source) if name not in packed]
            config["quantization_config"] = self.format.section(source.anatomy, grids, dense, extra)
        if untie:
            config["tie_word_embeddings"] = False
            if "text_config" in config:
                config["text_config"] = config["text_config"] | {"tie_word_embeddings": False}
        if source.replaced:
            write_replaced(home, source.replaced)
        write_json(home / "config.json", config)


def copy_companions(source: Path, out: Path) -> None:
    """Copy tokenizer, chat template, generation settings, record of the training and licence of a model's folder.

    A link is followed within the folder and within a cache of the Hugging Face hub. Other links are not followed, so
    that no file from elsewhere is published; a note names each.
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
    repository = folder.parent.parent  # links of models--NAME/snapshots/REVISION lead to models--NAME/blobs
    cached = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    return cached and target.parent == repository / "blobs"
