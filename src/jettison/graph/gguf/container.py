"""Read the GGUF container: metadata, and tensors that are decoded from the mapped file when they are asked for.

- Every number that a file states is compared with the file's size before anything is allocated. Reading a header
  allocates less than 8 times the bytes that it was read from.
- A tensor lies in one place of its own; tensors that overlap are refused.
- Blocks of quantized types are decoded by the package gguf.
- A model in several files (NAME-00001-of-00003.gguf) is read from any one of them.

This file does not import torch, whose import takes seconds.

Source: the specification docs/gguf.md of ggml, versions 2 and 3.
"""

import math
import re
import struct
from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jettison.core.errors import JettisonError, UsageError, shown
from jettison.core.files import check_regular

SUFFIX = ".gguf"
EXTRA = 'install it with the extra gguf: pip install "jettison[gguf]"'
MAGIC, VERSIONS = b"GGUF", (2, 3)
MOST_KEYS = 4096  # a model has about fifty
MOST_DIMENSIONS, MOST_SHARDS = 4, 10_000
LEAST_TENSOR, LEAST_ALIGNED = 32, 8  # bytes that a tensor takes in the header at least; of its place in the data
LONGEST_NAME = 65_535  # bytes, the specification's limit for keys
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
NUMBERS = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
STRING, ARRAY = 8, 9


def require_gguf():
    """Import the package gguf. Raises UsageError that names the extra, if it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise UsageError(f"a GGUF file needs the package {error.name}: {EXTRA}") from error
    return gguf


@cache
def _kinds() -> dict[int, tuple[str, int, int]]:
    """Return number of a type -> its name, the weights of a block, and the bytes of a block."""
    return {int(kind): (kind.name, *sizes) for kind, sizes in require_gguf().GGML_QUANT_SIZES.items()}


class Stored(NamedTuple):
    """A tensor in a file.

    shape: the last dimension is the one that lies together, as in torch.
    kind: name of its type, such as Q4_K.
    start, nbytes: its place in the file.
    """

    shape: tuple[int, ...]
    kind: str
    start: int
    nbytes: int


class Strings(Sequence):
    """An array of strings in the metadata. Each is decoded when it is asked for."""

    def __init__(self, data: memoryview, starts: array, where: str):
        self._data, self._starts, self._where = data, starts, where

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        start = self._starts[index]
        return _decoded(self._data[start + 8 : start + 8 + _length(self._data, start)], self._where)


class GgufFile:
    """One GGUF file. Opening it reads the header.

    metadata: key -> number, text, numpy array or ``Strings``.
    tensors: name -> ``Stored``.
    Raises JettisonError for a file that is damaged or cut off, of another version, or in another byte order.
    """

    def __init__(self, path: Path):
        check_regular(path)
        self.path, self.metadata, self.tensors = path, {}, {}
        if path.stat().st_size < 24:
            raise JettisonError(f"{path} is no GGUF file: it is shorter than a header")
        try:
            self._bytes = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise JettisonError(f"cannot read {path}: {error}") from error
        self._data = memoryview(self._bytes)
        self._place = 0
        self._read_header()

    def _read_header(self) -> None:
        if bytes(self._take(4)) != MAGIC:
            raise JettisonError(f"{self.path} is no GGUF file: it does not begin with GGUF")
        version = self._number(4)
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            reason = "it is in big-endian byte order" if swapped else f"it has version {version}"
            raise JettisonError(f"{self.path}: {reason}; little-endian files of versions 2 and 3 can be read")
        tensors, keys = self._number(10), self._number(10)
        if keys > MOST_KEYS:
            raise self._damaged(f"it says that it has {keys:,} metadata keys; at most {MOST_KEYS:,} are read")
        if tensors * (LEAST_TENSOR + LEAST_ALIGNED) > len(self._data):
            raise self._damaged(f"it says that it has {tensors:,} tensors, more than fit in it")
        for _ in range(keys):
            key = self._text(LONGEST_NAME)
            if key in self.metadata:
                raise self._damaged(f"metadata key {shown(key)} stands there twice")
            self.metadata[key] = self._value(self._number(4), key)
        listed = [self._tensor() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment not in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
            raise self._damaged(f"general.alignment = {shown(alignment)}; a power of two from 8 to 4096 is valid")
        first, end = -(-self._place // alignment) * alignment, 0
        for name, stored in sorted(listed, key=lambda item: item[1].start):
            if stored.start % alignment or stored.start < end:
                raise self._damaged(f"tensor {shown(name)} lies at {stored.start}, inside another or not aligned")
            end = stored.start + stored.nbytes
            if first + end > len(self._data):
                raise self._damaged(f"tensor {shown(name)} ends at byte {first + end:,} of {len(self._data):,}")
        for name, stored in listed:
            if name in self.tensors:
                raise self._damaged(f"tensor {shown(name)} stands there twice")
            self.tensors[name] = stored._replace(start=first + stored.start)

    def _damaged(self, reason: str) -> JettisonError:
        return JettisonError(f"{self.path} is truncated or damaged: {reason}")

    def _take(self, count: int) -> memoryview:
        if count > len(self._data) - self._place:
            raise self._damaged(f"{count:,} bytes are needed at byte {self._place:,} of {len(self._data):,}")
        self._place += count
        return self._data[self._place - count : self._place]

    def _number(self, kind: int) -> Any:
        return self._numbers(kind, 1)[0].item()

    def _numbers(self, kind: int, count: int) -> np.ndarray:
        values = np.frombuffer(self._take(count * np.dtype(NUMBERS[kind]).itemsize), NUMBERS[kind])
        if kind == 7 and values.view(np.uint8).max(initial=0) > 1:
            raise self._damaged("a truth value is neither 0 nor 1")
        return values

    def _text(self, longest: int) -> str:
        length = self._number(10)
        if length > longest:
            raise self._damaged(f"a text has {length:,} bytes; at most {longest:,} are valid at byte {self._place:,}")
        return _decoded(self._take(length), str(self.path))

    def _value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self._text(len(self._data))
        if kind != ARRAY:
            if kind not in NUMBERS:
                raise self._damaged(f"{shown(key)} has the unknown type {kind}")
            return self._number(kind)
        kind, count = self._number(4), self._number(10)
        if kind == STRING:
            return self._strings(count)
        if kind not in NUMBERS:
            what = (
                "an array of arrays, which no model needs" if kind == ARRAY else f"an array of the unknown type {kind}"
            )
            raise self._damaged(f"{shown(key)} is {what}")
        return self._numbers(kind, count)

    def _strings(self, count: int) -> Strings:
        if count * 8 > len(self._data) - self._place:
            raise self._damaged(f"an array of {count:,} texts does not fit in it")
        starts = array("q", bytes(8 * count))
        for number in range(count):
            starts[number] = self._place
            self._take(8)
            self._take(_length(self._data, self._place - 8))
        return Strings(self._data, starts, str(self.path))

    def _tensor(self) -> tuple[str, Stored]:
        name, count = self._text(LONGEST_NAME), self._number(4)
        if not 1 <= count <= MOST_DIMENSIONS:
            raise self._damaged(f"tensor {shown(name)} has {count} dimensions; 1 to {MOST_DIMENSIONS} are valid")
        shape = tuple(self._numbers(10, count).tolist()[::-1])
        number, start = self._number(4), self._number(10)
        if number not in _kinds():
            raise JettisonError(f"{self.path}: tensor {shown(name)} has type {number}, which gguf does not know")
        kind, width, size = _kinds()[number]
        if 0 in shape:
            raise self._damaged(f"tensor {shown(name)} of shape {shape} is empty")
        if shape[-1] % width:
            raise self._damaged(
                f"tensor {shown(name)} has rows of {shape[-1]} weights; {kind} needs multiples of {width}"
            )
        return name, Stored(shape, kind, start, math.prod(shape) // width * size)

    def blocks(self, name: str, index: int | slice | None = None) -> np.ndarray:
        """Return the bytes of a tensor, or of a part along its first dimension, as they lie in the map.

        Returns uint8 (..., bytes of a row), read-only.
        """
        stored = self.tensors[name]
        data = self._bytes[stored.start : stored.start + stored.nbytes].reshape(*stored.shape[:-1], -1)
        return data if index is None else data[index]

    def decode(self, name: str, blocks: np.ndarray) -> np.ndarray:
        """Return the values of ``blocks`` of a tensor: floats and integers as stored, others as float32.

        bfloat16 comes as float32, which holds the same values. Raises JettisonError for a type that gguf cannot decode.
        """
        gguf, kind = require_gguf(), self.tensors[name].kind
        plain = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
        if kind in plain:
            return blocks.copy().view(plain[kind])
        try:
            with np.errstate(all="ignore"):  # damaged scales may be NaN
                return gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])
        except (NotImplementedError, ValueError, MemoryError) as error:
            raise JettisonError(f"{self.path}: {name} of type {kind} cannot be decoded: {error}") from error


def _length(data: memoryview, start: int) -> int:
    return struct.unpack_from("<Q", data, start)[0]


def _decoded(text: memoryview, where: str) -> str:
    try:
        return str(text, "utf-8")
    except UnicodeDecodeError as error:
        raise JettisonError(f"{where}: the text {shown(bytes(text[:60]))} is not UTF-8") from error


def open_files(path: Path) -> list[GgufFile]:
    """Open a GGUF file and, if it is one of several of a model, the others, in their order.

    Raises JettisonError as ``GgufFile``, if a file of the model is missing, and if two hold the same tensor.
    """
    files = [GgufFile(part) for part in _parts(path)]
    seen: dict[str, Path] = {}
    for number, file in enumerate(files):
        if file.metadata.get("split.no", 0) != number or file.metadata.get("split.count", 1) not in (0, len(files)):
            raise JettisonError(
                f"{file.path}: it says that it is part {shown(file.metadata.get('split.no'))} of "
                f"{shown(file.metadata.get('split.count'))}, its name says {number} of {len(files)}"
            )
        for name in file.tensors:
            if name in seen:
                raise JettisonError(f"{file.path}: tensor {shown(name)} lies in {seen[name].name}, too")
            seen[name] = file.path
    return files


def _parts(path: Path) -> Iterator[Path]:
    """Yield the files of a model, from the name of one of them."""
    match = SHARD.fullmatch(path.name)
    if not match:
        yield path
        return
    stem, count = match[1], int(match[3])
    if not 1 <= count <= MOST_SHARDS:
        raise JettisonError(f"{path}: it is named as one of {count} files; 1 to {MOST_SHARDS:,} are valid")
    for number in range(count):
        part = path.with_name(f"{stem}-{number + 1:05d}-of-{count:05d}{SUFFIX}")
        if not part.is_file():
            raise JettisonError(f"{path}: the model has {count} files, and {part.name} is missing")
        yield part
