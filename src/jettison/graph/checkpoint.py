"""Safetensors folders, one tensor at a time."""

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
BITS = {"C64": 64, "BF16": 16, "BOOL": 8}  # of the types whose names do not begin with a letter and their bits


class Checkpoint:
    """The tensors of a folder: their names, shapes and types are known at once, their values when read.

    Raises UsageError if the folder has no safetensors, JettisonError if a shard is missing or damaged.
    """

    def __init__(self, folder: Path, files: list[Path] | None = None):
        self.folder = folder
        self.files = files or self._find_files()
        self._home: dict[str, Path] = {}
        self._open = {}
        for file in self.files:
            for name in self._handle(file).keys():  # noqa: SIM118 (not a mapping)
                self._home[name] = file

    def _find_files(self) -> list[Path]:
        index = self.folder / INDEX
        if os.path.lexists(index):
            files = [inside(self.folder, name) for name in self._named(index)]
        else:
            files = [self.folder / "model.safetensors"]
            if not files[0].exists():
                files = sorted(self.folder.glob("model*.safetensors"))
        for file in files:
            if not os.path.lexists(file):
                raise JettisonError(f"{self.folder}: shard {file.name} is named by {INDEX} but missing")
        if not files:
            hint = (
                "; it has .bin files: save it again with safe_serialization" if any(self.folder.glob("*.bin")) else ""
            )
            raise UsageError(f"{self.folder} has no model.safetensors or {INDEX}{hint}")
        return files

    def _named(self, index: Path) -> list[str]:
        """The shards that an index names."""
        placed = read_json(index).get("weight_map")
        if not isinstance(placed, dict):
            raise JettisonError(
                f"{index}: weight_map is {type(placed).__name__}; an object from tensors to files is needed"
            )
        for tensor, name in placed.items():
            if not isinstance(name, str) or not 0 < len(name.encode("utf-8", "replace")) < 256 or "\0" in name:
                raise JettisonError(
                    f"{index}: weight_map says {name!r:.60} of {tensor!r:.60}; the name of a file is needed"
                )
        return sorted(set(placed.values()))

    def _handle(self, file: Path):
        if file not in self._open:
            check_regular(file)  # to open a pipe would wait for ever
            try:
                self._open[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError, MemoryError) as error:
                raise JettisonError(f"shard {file} is truncated or damaged ({error}): fetch it again") from error
        return self._open[file]

    def __contains__(self, name: str) -> bool:
        return name in self._home

    def __iter__(self):
        return iter(self._home)

    def home(self, name: str) -> Path:
        """The shard that holds a tensor."""
        return self._home[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handle(self._home[name]).get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """As safetensors writes it: BF16, F16, F32, I32, ..."""
        return self._handle(self._home[name]).get_slice(name).get_dtype()

    def read(self, name: str, index: int | slice | None = None) -> "torch.Tensor":
        """A tensor, or its ``index``-th slice or slices along the first dimension, which alone are then read."""
        try:
            handle = self._handle(self._home[name])
            return handle.get_tensor(name) if index is None else handle.get_slice(name)[index]
        except (SafetensorError, OSError, MemoryError, RuntimeError, IndexError) as error:  # torch's, too
            raise JettisonError(f"cannot read tensor {name} of {self._home[name]}: {error}") from error

    def release(self) -> None:
        """Let go of the files, and so of the memory that what was read of them takes. They open again when needed."""
        self._open.clear()

    @property
    def metadata(self) -> dict[str, str]:
        """What the first file's header says beside the tensors."""
        return self._handle(self.files[0]).metadata() or {}

    @property
    def file_bytes(self) -> int:
        return size_of(self.files)

    @property
    def tensor_bytes(self) -> int:
        return sum(self.bytes_of(name) for name in self)

    def bytes_of(self, name: str) -> int:
        kind = self.dtype(name)
        bits = BITS.get(kind) or int(re.match(r"[A-Z]+(\d+)", kind)[1])  # F6_E2M3 has 6
        return math.prod(self.shape(name)) * bits // 8

    @waiting("reading the model's files")
    def content(self) -> dict[str, str]:
        """File name -> digest of all its bytes."""
        return {file.name: content_digest(file) for file in self.files}
