"""The tensors of a GGUF model by the names and in the order of transformers, with the interface of ``Checkpoint``."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jettison.core.errors import JettisonError, UsageError, shown
from jettison.core.files import content_digest, size_of
from jettison.graph.gguf.architecture import EXACT, FACTORS, PLAIN, Keys, find_architecture, read_config
from jettison.graph.gguf.container import GgufFile, open_files

if TYPE_CHECKING:
    import torch

BLOCKS = "weight_blocks"  # the name of a matrix's bytes, after the module's name, for formats/gguf.py


class Place(NamedTuple):
    """Where a tensor of the model lies: its file, its name there, and the number of the expert, if it stacks them."""

    file: GgufFile
    tensor: str
    expert: int | None


class GgufCheckpoint:
    """The tensors of a GGUF model. Opening it reads the headers; ``read`` decodes one tensor.

    path: of the file, or of one of the files.
    config: what config.json would say.
    first: the file that has the metadata.

    Beside ``NAME.weight`` (dequantized) there is ``NAME.weight_blocks`` (the bytes, uint8) for matrices whose type is
    a grid of Jettison's. It is not listed: it holds the same weight.
    Raises UsageError for an architecture or a tensor that is not known; JettisonError as ``GgufFile``.
    """

    def __init__(self, path: Path):
        self.folder, self._opened = path, open_files(path)
        self.files, self.first = [file.path for file in self._opened], self._opened[0]
        first = self.first
        self.architecture = find_architecture(first)
        kinds = {name: stored.kind for file in self._opened for name, stored in file.tensors.items()}
        self.config: dict[str, Any] = read_config(first, kinds, self.architecture)
        keys = Keys(first, self.architecture)
        self._heads = {tensor: key and (keys.get(key) or keys.get("attention.head_count"))
                       for tensor, key in self.architecture.permuted.items()}  # fmt: skip
        self._places = dict(self._find_places())

    def _find_places(self) -> Iterator[tuple[str, Place]]:
        for file in self._opened:
            for tensor, stored in file.tensors.items():
                if tensor == FACTORS:  # part of the config
                    continue
                base, _, part = tensor.rpartition(".")
                module = self.architecture.module(base)
                if module is None or part not in ("weight", "bias"):
                    raise UsageError(
                        f"{file.path}: {shown(tensor)} is no tensor of {self.architecture.name} that can be read"
                    )
                if "*" not in module:
                    bare = base.rpartition(".")[2] in self.architecture.bare
                    yield module if bare else f"{module}.{part}", Place(file, tensor, None)
                    continue
                for expert in range(stored.shape[0]):
                    yield f"{module.replace('*', str(expert))}.{part}", Place(file, tensor, expert)

    @property
    def index(self) -> str:
        """The name of an index, which GGUF models do not have."""
        return "no index"

    def __contains__(self, name: str) -> bool:
        return name in self._places or (name.endswith(f".{BLOCKS}") and self._matrix(name) is not None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def _matrix(self, name: str) -> Place | None:
        """Return the place of the matrix whose bytes are called ``name``; None if its type is no grid."""
        place = self._places.get(f"{name.removesuffix(BLOCKS)}weight")
        return place if place and self.kind(place) in EXACT and not self._transposed(place) else None

    def _place(self, name: str) -> Place:
        return self._places[name] if name in self._places else self._matrix(name)

    def kind(self, name: "str | Place") -> str:
        """Return the type of a tensor as GGUF calls it, such as Q4_K."""
        place = self._place(name) if isinstance(name, str) else name
        return place.file.tensors[place.tensor].kind

    def home(self, name: str) -> Path:
        """Return the path of the file that holds a tensor."""
        return self._place(name).file.path

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the header alone."""
        place = self._place(name)
        stored = place.file.tensors[place.tensor]
        shape = stored.shape if place.expert is None else stored.shape[1:]
        if name.endswith(BLOCKS):
            return (*shape[:-1], stored.nbytes * shape[-1] // math.prod(stored.shape))
        return shape[::-1] if self._transposed(place) else shape

    def dtype(self, name: str) -> str:
        """Return the type that ``read`` returns, as safetensors writes it."""
        kind = self.kind(name)
        return "U8" if name.endswith(BLOCKS) else kind if kind in PLAIN else "F32"

    def dequantized(self, name: str) -> bool:
        """Return whether ``read`` computes the values, so that they have no type that they are stored in."""
        return self.kind(name) not in PLAIN

    def bytes_of(self, name: str) -> int:
        """Return the size of a tensor in the file in bytes."""
        place = self._place(name)
        stored = place.file.tensors[place.tensor]
        return stored.nbytes if place.expert is None else stored.nbytes // stored.shape[0]

    def read(self, name: str, index: int | slice | None = None) -> "torch.Tensor":
        """Read a tensor, or only the part at ``index`` along its first dimension.

        Raises JettisonError if it cannot be decoded, or the index is outside.
        """
        import torch

        place = self._place(name)
        shape, whole = self.shape(name), index is None or self._transposed(place) or len(self.shape(name)) == 1
        if isinstance(index, int) and not -shape[0] <= index < shape[0]:
            raise JettisonError(f"{place.file.path}: {name} has shape {shape}, so nothing at {index}")
        blocks = self._blocks(place, None if whole else index)
        if name.endswith(BLOCKS):
            return torch.from_numpy(blocks.copy())
        if self.kind(place) == "BF16":
            value = torch.from_numpy(blocks.copy().view(np.int16)).view(torch.bfloat16)
        else:
            value = torch.from_numpy(np.ascontiguousarray(place.file.decode(place.tensor, blocks)))
        if self.architecture.offset and re.search(r"norm\.weight$", place.tensor):
            value = value - self.architecture.offset
        value = value.T.contiguous() if self._transposed(place) else value
        return value if index is None or not whole else value[index]

    def _blocks(self, place: Place, index: int | slice | None) -> np.ndarray:
        """Return bytes of a tensor, rows in the model's order."""
        blocks = place.file.blocks(place.tensor, place.expert)
        if heads := self._heads.get(re.sub(r"^blk\.\d+\.|\.\w+$", "", place.tensor)):
            stored = place.file.tensors[place.tensor]
            if len(stored.shape) == 1:  # a bias: its values are the rows
                blocks = blocks.reshape(stored.shape[0], -1)
            order = rotary_order(len(blocks), heads, f"{place.file.path}: {place.tensor}")
            blocks = blocks[order if index is None else order[index]]
            return blocks.reshape(-1) if len(stored.shape) == 1 else blocks
        return blocks if index is None else blocks[index]

    def _transposed(self, place: Place) -> bool:
        name = re.sub(r"^blk\.\d+\.", "", place.tensor)
        return any(name == f"{tensor}.weight" for tensor in self.architecture.transposed)

    def release(self) -> None:
        """Do nothing: the pages of the map belong to the system."""

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of the first file."""
        return self.first.metadata

    @property
    def companions(self) -> Path:
        """A folder in the cache with the tokenizer and the settings, see ``gguf.tokenizer``."""
        from jettison.graph.gguf.tokenizer import companions

        return companions(self.first)

    @property
    def file_bytes(self) -> int:
        """The size of all files."""
        return size_of(self.files)

    @property
    def tensor_bytes(self) -> int:
        """The size of all tensors in the files, without headers."""
        return sum(stored.nbytes for file in self._opened for stored in file.tensors.values())

    def content(self) -> dict[str, str]:
        """Return the digest of every file's bytes: file name -> digest."""
        return {file.name: content_digest(file) for file in self.files}


def rotary_order(rows: int, heads: int, where: str) -> np.ndarray:
    """Return for every row of the model its row in the file, which pairs neighbours where the model pairs halves."""
    if type(heads) is not int or heads < 1 or rows % (2 * heads):
        raise JettisonError(f"{where} has {rows} rows; an even number for each of {shown(heads)} heads is needed")
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
