"""The CPU kernels, called through ctypes: a C++ library that does not depend on Python or PyTorch (``kernels/cpu``).

- If the library was not built (no compiler) or cannot be loaded, PyTorch is used, with one warning.
- A library of another version is refused.
- C++ exceptions, of any thread, come back as a status and are raised as JettisonError.
"""

import ctypes
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from jettison.core.errors import JettisonError, UsageError
from jettison.kernels.specs import SPECS, WIDE, check_activation_bits
from jettison.kernels.tiles import MINIMUM, Tiling

ABI = 5  # must equal kAbi in cpu/isa.h
FILE = "cpu/libjettison_kernels.so"
TYPES = {torch.float32: 0, torch.bfloat16: 1}  # types of activations; see Type in cpu/tiles.h
POINTER, INT, INT64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
FAULTS = {
    1: "types, sizes or devices do not fit",
    2: "a tensor does not start at a multiple of its element's size",
    3: "the result overlaps an argument",
}
THROWN = (4, 7)  # statuses of C++ exceptions: kNoMemory and kFailed, see Status in cpu/isa.h


@cache
def library() -> ctypes.CDLL | None:
    """Load the library of the package, or the file that JETTISON_KERNELS names. Returns None if it cannot be loaded.

    Raises JettisonError for a library of another version, which would misread the arguments.
    """
    import jettison.kernels

    named = os.environ.get("JETTISON_KERNELS")
    files = [file for folder in jettison.kernels.__path__ if (file := Path(folder) / FILE).exists()]
    files = [Path(named)] if named else files
    try:
        loaded = ctypes.CDLL(str(files[0]))
    except (IndexError, OSError) as error:
        reason = (
            f" ({error})" if isinstance(error, OSError) else ": they were not built, as there was no C++20 compiler"
        )
        warnings.warn(f"Jettison's CPU kernels are missing, so PyTorch is used, slowly{reason}", stacklevel=2)
        return None
    if difference := _difference(loaded):
        raise JettisonError(
            f"the CPU kernels in {files[0]} are of another version ({difference}): run `make setup`, or install "
            "Jettison again"
        )
    return _declared(loaded)


def _difference(loaded: ctypes.CDLL) -> str:
    """Describe how the library differs from what this file expects; empty if it does not."""
    if not hasattr(loaded, "jettison_abi"):
        return "it has no version number"
    sizes = (INT64 * len(SPECS))()
    loaded.jettison_abi.argtypes = [POINTER]
    if (version := loaded.jettison_abi(sizes)) != ABI:
        return f"{version}, not {ABI}"
    differences = [
        f"{spec.__name__} has {size} bytes, not {ctypes.sizeof(spec)}"
        for spec, size in zip(SPECS, sizes, strict=True)
        if size != ctypes.sizeof(spec)
    ]
    return "; ".join(differences)


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    loaded.jettison_cores.argtypes = []
    loaded.jettison_isa.argtypes, loaded.jettison_isa.restype = [ctypes.c_char_p], ctypes.c_char_p
    loaded.jettison_linear.argtypes = [
        POINTER, POINTER, INT64, INT,  # x, y, rows of x, type of both
        POINTER, INT64, POINTER, INT64, POINTER,  # tiles and zero with their bytes, bias
        INT64, INT64, INT64, INT, INT, INT,  # rows, columns, span, bits, middle, type of scales
        INT, INT,  # activations of 15 bits or not, threads
    ]  # fmt: skip
    loaded.jettison_pack.argtypes = [
        POINTER, INT64, INT, POINTER, INT64, POINTER, INT64,  # words, stored bits, scale, tiles
        INT64, INT64, INT64, INT, INT, INT,  # rows, columns, span, bits, type of scales, threads
    ]  # fmt: skip
    loaded.jettison_look_up.argtypes = [
        POINTER, INT64, POINTER, INT64, POINTER, INT64, POINTER, INT64,  # row numbers, result, tiles and zero
        INT64, INT64, INT64, INT, INT, INT, INT,  # rows, columns, span, bits, middle, type of scales, threads
    ]  # fmt: skip
    loaded.jettison_read.argtypes = [POINTER, INT64, INT, INT64, INT, POINTER]
    loaded.jettison_throw.argtypes = [INT, INT64, INT64, INT]
    loaded.jettison_engine_new.argtypes = [POINTER, POINTER]
    loaded.jettison_engine_free.argtypes, loaded.jettison_engine_free.restype = [POINTER], None
    loaded.jettison_session_new.argtypes = [POINTER, INT64, INT, POINTER]
    loaded.jettison_session_free.argtypes, loaded.jettison_session_free.restype = [POINTER], None
    loaded.jettison_session_length.argtypes, loaded.jettison_session_length.restype = [POINTER], INT64
    loaded.jettison_session_cut.argtypes, loaded.jettison_session_cut.restype = [POINTER, INT64], None
    loaded.jettison_session_keep.argtypes = [POINTER, POINTER, INT64, POINTER, INT64]
    loaded.jettison_forward.argtypes = [POINTER, POINTER, POINTER]
    loaded.jettison_fault.argtypes, loaded.jettison_fault.restype = [], ctypes.c_char_p
    return loaded


def instruction_set(name: str | None = None) -> str:
    """Return the instruction set in use: avx512, avxvnni, avx2 or portable. With a name, switch to that one first.

    Raises UsageError if this processor or this build does not have it.
    """
    used = _required().jettison_isa(name.encode() if name else None)
    if used is None:
        raise UsageError(f"instruction set {name!r}: this processor or this build does not have it")
    return used.decode()


def threads() -> int:
    """Return how many threads the kernels use: one per physical core, but no more than PyTorch may use."""
    return max(1, min(_required().jettison_cores(), torch.get_num_threads()))


def raise_thrown(status: int) -> None:
    """Raise JettisonError if ``status``, of the last call of this thread, means that a C++ exception was thrown."""
    if status in THROWN:
        raise JettisonError(f"the CPU kernels failed: {_required().jettison_fault().decode(errors='replace')}")


def linear(
    x: torch.Tensor,
    tiles: torch.Tensor,
    zero: torch.Tensor | None,
    bias: torch.Tensor | None,
    tiling: Tiling,
    out: torch.Tensor | None = None,
    activation_bits: int = 8,
) -> torch.Tensor:
    """Compute x Wᵀ + bias on tiles.

    x: (..., columns) float32 or bfloat16.
    tiles, zero: the weight W (rows, columns); see ``ops.pack_tiles``.
    bias: (rows,) float32.
    out: tensor for the result, of its shape and type.
    activation_bits: 8 or 15, to which activations are rounded.

    Returns (..., rows) in the type of ``x``.
    Raises UsageError for tensors that do not fit, JettisonError if memory runs out.
    """
    check_activation_bits(activation_bits)
    kind = TYPES.get(x.dtype)
    fits = kind is not None and x.shape[-1] == tiling.columns and x.is_cpu
    fits = fits and tiles.dtype == torch.uint8 and tiles.is_cpu and tiles.is_contiguous()
    if zero is not None:
        expected = tiling.scale_dtype if tiling.middle == MINIMUM else torch.uint8
        fits = fits and zero.dtype == expected and zero.is_cpu and zero.is_contiguous()
    if bias is not None:
        fits = fits and bias.dtype == torch.float32 and bias.is_cpu and bias.shape == (tiling.rows,)
        fits = fits and bias.is_contiguous()
    if out is None:
        out = x.new_empty((*x.shape[:-1], tiling.rows))
    else:
        fits = fits and out.dtype == x.dtype and out.is_cpu and out.is_contiguous()
        fits = fits and out.shape == (*x.shape[:-1], tiling.rows)
    if not x.is_contiguous():
        x = x.contiguous()
    status = 1
    if fits:  # the C++ side checks sizes in bytes, alignment and overlap
        status = _required().jettison_linear(
            x.data_ptr(), out.data_ptr(), x.numel() // tiling.columns, kind,
            tiles.data_ptr(), tiles.numel(),
            None if zero is None else zero.data_ptr(), 0 if zero is None else zero.nbytes,
            None if bias is None else bias.data_ptr(), *tiling.numbers, activation_bits == WIDE,
            torch.get_num_threads(),
        )  # fmt: skip
    raise_thrown(status)
    if status:
        raise UsageError(f"{FAULTS[status]}. {_described(tiling, x=x, out=out, tiles=tiles, zero=zero, bias=bias)}")
    return out


def prepared(x: torch.Tensor, tiling: Tiling, out: torch.Tensor) -> Callable[[int, int], None]:
    """Return a function that multiplies ``x`` with tiles into ``out``, with as little Python per call as possible.

    x: contiguous (count, columns). out: contiguous (count, rows). The function keeps both alive.
    The function takes the address and the number of bytes of tiles, and raises as ``linear`` does.
    """
    multiply, count, kind = _required().jettison_linear, x.numel() // tiling.columns, TYPES[x.dtype]
    first, rest = (
        (x.data_ptr(), out.data_ptr(), count, kind),
        (None, 0, None, *tiling.numbers, False, torch.get_num_threads()),
    )

    def run(tiles: int, nbytes: int, _kept_alive=(x, out)) -> None:
        if status := multiply(*first, tiles, nbytes, *rest):
            raise_thrown(status)
            raise UsageError(f"{FAULTS[status]}. {_described(tiling, x=x, out=out)}")

    return run


def look_up(rows: torch.Tensor, tiles: torch.Tensor, zero: torch.Tensor | None, tiling: Tiling) -> torch.Tensor:
    """Dequantize rows of a weight in tiles, which must not be 2:4.

    rows: (n,) int64, numbers of rows. tiles, zero: see ``ops.pack_tiles``.

    Returns (n, columns) float32.
    Raises UsageError for numbers of rows that do not exist and tensors that do not fit.
    """
    rows, out = rows.contiguous(), torch.empty(len(rows), tiling.columns)
    status = _required().jettison_look_up(
        rows.data_ptr(), len(rows), out.data_ptr(), out.nbytes, tiles.data_ptr(), tiles.nbytes,
        None if zero is None else zero.data_ptr(), 0 if zero is None else zero.nbytes, *tiling.numbers,
        torch.get_num_threads(),
    )  # fmt: skip
    raise_thrown(status)
    if status:
        raise UsageError(
            f"rows {rows[:8].tolist()}...: each must be from 0 to {tiling.rows - 1}, of a weight that is not 2:4. "
            + _described(tiling, tiles=tiles, zero=zero)
        )
    return out


def pack(packed: torch.Tensor, bits: int, scale: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """Pack a weight into tiles.

    packed: (rows, words) int32, codes of ``bits``, as in checkpoints.
    scale: (rows, groups of the tiling), of the tiling's type.

    Returns ``tiling.tiles_shape`` uint8.
    Raises UsageError for tensors that do not fit, JettisonError if memory runs out.
    """
    packed, scale = packed.contiguous(), scale.contiguous()
    tiles, status = torch.empty(tiling.tiles_shape, dtype=torch.uint8), 1
    if packed.dtype == torch.int32 and scale.dtype == tiling.scale_dtype and packed.is_cpu and scale.is_cpu:
        status = _required().jettison_pack(
            packed.data_ptr(), packed.nbytes, bits, scale.data_ptr(), scale.nbytes, tiles.data_ptr(), tiles.numel(),
            *tiling.numbers[:4], tiling.numbers[5], torch.get_num_threads(),
        )  # fmt: skip
    raise_thrown(status)
    if status:
        raise UsageError(f"{FAULTS[status]}. {_described(tiling, packed=packed, scale=scale, tiles=tiles)}")
    return tiles


def read(data: torch.Tensor, streams: int, ahead: int) -> None:
    """Read ``data`` once on all threads, one part per thread, to measure how fast memory can be read.

    streams: 1 to 8, places that a thread reads in turns.
    ahead: bytes between reading and prefetching, 0 for no prefetching.

    Raises UsageError for another number of streams, or no data.
    """
    total = ctypes.c_uint64()
    status = _required().jettison_read(
        data.data_ptr(), data.nbytes, streams, ahead, torch.get_num_threads(), ctypes.byref(total)
    )
    raise_thrown(status)
    if status:
        raise UsageError(f"reading {data.nbytes} bytes in {streams} streams: at least one byte, in 1 to 8 streams")


def _required() -> ctypes.CDLL:
    loaded = library()
    if loaded is None:
        raise UsageError("the CPU kernels are missing: they were not built, as there was no C++20 compiler")
    return loaded


def _described(tiling: Tiling, **tensors: torch.Tensor | None) -> str:
    """Describe the tensors of a call, and what the kernels take."""
    parts = []
    for name, tensor in tensors.items():
        if tensor is not None:
            kind = str(tensor.dtype).removeprefix("torch.")
            layout = "" if tensor.is_contiguous() else ", not contiguous"
            parts.append(f"{name}: {kind} {tuple(tensor.shape)} on {tensor.device}{layout}")
    return (
        f"Given {'; '.join(parts)}. A weight of {tiling.rows} x {tiling.columns}, {tiling.bits} bits in groups of "
        f"{tiling.span}, takes x: float32 or bfloat16 (..., {tiling.columns}); tiles: uint8 {tiling.tiles_shape}; "
        f"zero: uint8, or as scales, {tiling.zero_shape}; bias: float32 ({tiling.rows},); all contiguous, on the CPU"
    )
