"""Safetensors folders, one tensor at a time."""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from jettison.errors import JettisonError, UsageError
from jettison.files import content_digest, inside, read_json

INDEX = "model.safetensors.index.json"
BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2} | dict.fromkeys(
    ("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1
)


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
        if index.exists():
            names = sorted(set(read_json(index).get("weight_map", {}).values()))
            files = [inside(self.folder, name) for name in names]
        else:
            files = [self.folder / "model.safetensors"]
            if not files[0].exists():
                files = sorted(self.folder.glob("model*.safetensors"))
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise JettisonError(f"{self.folder}: shard {missing[0]} is named by {INDEX} but missing")
        if not files:
            hint = (
                "; it has .bin files: save it again with safe_serialization" if any(self.folder.glob("*.bin")) else ""
            )
            raise UsageError(f"{self.folder} has no model.safetensors or {INDEX}{hint}")
        return files

    def _handle(self, file: Path):
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
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

    def read(self, name: str, index: int | slice | None = None) -> torch.Tensor:
        """A tensor, or its ``index``-th slice or slices along the first dimension, which alone are then read."""
        try:
            handle = self._handle(self._home[name])
            return handle.get_tensor(name) if index is None else handle.get_slice(name)[index]
        except (SafetensorError, OSError) as error:
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
        return sum(file.stat().st_size for file in self.files)

    @property
    def tensor_bytes(self) -> int:
        return sum(self.bytes_of(name) for name in self)

    def bytes_of(self, name: str) -> int:
        return math.prod(self.shape(name)) * BYTES[self.dtype(name)]

    def content(self) -> dict[str, str]:
        """File name -> digest of all its bytes."""
        return {file.name: content_digest(file) for file in self.files}
