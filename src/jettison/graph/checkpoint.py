"""Read a folder of safetensors files, one tensor at a time."""

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from jettison.core.documents import read_json
from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import check_regular, content_digest, inside, size_of
from jettison.core.progress import waiting

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
# Bits of the types whose bits the general rule, letters followed by bits, does not give (see ``bytes_of``).
BITS = {"C64": 64, "BF16": 16, "BOOL": 8}


class Checkpoint:
    """The tensors of a folder. Opening it reads names, shapes and types; ``read`` reads the values of one tensor.

    files: the shards to open; None means those of the folder.
    stem: of the names of its files, see ``graph.layout``.
    Raises UsageError if the folder has no safetensors, JettisonError if a shard is missing or damaged.
    """

    def __init__(self, folder: Path, files: list[Path] | None = None, stem: str = "model"):
        self.folder, self._stem = folder, stem
        self.files = files or self._find_files()
        self._shard_of: dict[str, Path] = {}
        self._open = {}
        for file in self.files:
            for name in self._open_shard(file).keys():  # noqa: SIM118 (not a mapping)
                self._shard_of[name] = file

    @property
    def index(self) -> str:
        """The name of the index, which a folder of several shards has."""
        return f"{self._stem}.safetensors.index.json"

    def _find_files(self) -> list[Path]:
        index = self.folder / self.index
        if os.path.lexists(index):
            files = [inside(self.folder, name) for name in self._shards_named_in(index)]
        else:
            files = [self.folder / f"{self._stem}.safetensors"]
            if not files[0].exists():
                files = sorted(self.folder.glob(f"{self._stem}*.safetensors"))
        for file in files:
            if not os.path.lexists(file):
                raise JettisonError(f"{self.folder}: shard {file.name} is named by {self.index} but missing")
        if not files:
            hint = (
                "; it has .bin files: save it again with safe_serialization" if any(self.folder.glob("*.bin")) else ""
            )
            raise UsageError(f"{self.folder} has no {self._stem}.safetensors or {self.index}{hint}")
        return files

    def _shards_named_in(self, index: Path) -> list[str]:
        """Return the file names of the shards that an index names, sorted.

        Raises JettisonError if its weight_map is not an object from tensors to file names.
        """
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise JettisonError(
                f"{index}: weight_map is {type(weight_map).__name__}; an object from tensors to files is needed"
            )
        for tensor, name in weight_map.items():
            if not isinstance(name, str) or not 0 < len(name.encode("utf-8", "replace")) < 256 or "\0" in name:
                raise JettisonError(
                    f"{index}: weight_map says {name!r:.60} of {tensor!r:.60}; the name of a file is needed"
                )
        return sorted(set(weight_map.values()))

    def _open_shard(self, file: Path):
        if file not in self._open:
            check_regular(file)  # opening a pipe would wait forever
            try:
                self._open[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError, MemoryError) as error:
                raise JettisonError(f"shard {file} is truncated or damaged ({error}): fetch it again") from error
        return self._open[file]

    def __contains__(self, name: str) -> bool:
        return name in self._shard_of

    def __iter__(self):
        return iter(self._shard_of)

    def home(self, name: str) -> Path:
        """Return the path of the shard that holds a tensor."""
        return self._shard_of[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the header alone."""
        return tuple(self._open_shard(self._shard_of[name]).get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Return the type of a tensor as safetensors writes it: BF16, F16, F32, I32 and so on."""
        return self._open_shard(self._shard_of[name]).get_slice(name).get_dtype()

    def read(self, name: str, index: int | slice | None = None) -> "torch.Tensor":
        """Read a tensor, or only the part at ``index`` along its first dimension.

        Raises JettisonError if it cannot be read.
        """
        try:
            handle = self._open_shard(self._shard_of[name])
            return handle.get_tensor(name) if index is None else handle.get_slice(name)[index]
        except (SafetensorError, OSError, MemoryError, RuntimeError, IndexError) as error:  # torch raises some of these
            raise JettisonError(f"cannot read tensor {name} of {self._shard_of[name]}: {error}") from error

    def release(self) -> None:
        """Close the files, which frees the memory that their mapped pages take. They open again when needed."""
        self._open.clear()

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata in the header of the first file."""
        return self._open_shard(self.files[0]).metadata() or {}

    @property
    def file_bytes(self) -> int:
        """The size of all files."""
        return size_of(self.files)

    @property
    def tensor_bytes(self) -> int:
        """The size of all tensors, without headers."""
        return sum(self.bytes_of(name) for name in self)

    def bytes_of(self, name: str) -> int:
        """Return the size of a tensor in bytes."""
        kind = self.dtype(name)
        bits = BITS.get(kind) or int(re.match(r"[A-Z]+(\d+)", kind)[1])  # F6_E2M3 has 6 bits
        return math.prod(self.shape(name)) * bits // 8

    @waiting("reading the model's files")
    def content(self) -> dict[str, str]:
        """Return the digest of every file's bytes: file name -> digest."""
        return {file.name: content_digest(file) for file in self.files}
