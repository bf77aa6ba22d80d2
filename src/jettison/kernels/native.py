"""The CPU kernels, by ctypes: a library of C++ without Python or torch in it (``kernels/cpu``).

Where it was not built (no compiler) or does not load, PyTorch serves, and one warning says so. One of another version
is refused. What is thrown over there, on whichever thread, comes back as a status, and is raised as JettisonError.
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
from jettison.kernels.tiles import Tiling

ABI = 2  # as kAbi in cpu/isa.h
FILE = "cpu/libjettison_kernels.so"
TYPES = {torch.float32: 0, torch.bfloat16: 1}  # of activations; see Type in cpu/tiles.h
POINTER, INT, INT64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
FAULTS = {
    1: "types, sizes or devices do not fit",
    2: "a tensor does not start at a multiple of its element's size",
    3: "the result overlaps an argument",
}
THROWN = (4, 7)  # kNoMemory and kFailed, see Status in cpu/isa.h


@cache
def library() -> ctypes.CDLL | None:
    """The library: the installed package's, or the file that JETTISON_KERNELS names; None where there is none.

    Raises JettisonError for one of another version: what it takes for a size would be something else.
    """
    import jettison.kernels

    named = os.environ.get("JETTISON_KERNELS")
    files = [file for folder in jettison.kernels.__path__ if (file := Path(folder) / FILE).exists()]
    files = [Path(named)] if named else files
    try:
        found = ctypes.CDLL(str(files[0]))
    except (IndexError, OSError) as error:
        reason = f" ({error})" if isinstance(error, OSError) else ": they were not built, for want of a C++20 compiler"
        warnings.warn(f"Jettison's CPU kernels are not there, so PyTorch serves, slowly{reason}", stacklevel=2)
        return None
    if difference := _difference(found):
        raise JettisonError(
            f"the CPU kernels in {files[0]} are of another version ({difference}): run `make setup`, or install "
            "Jettison again"
        )
    return _declared(found)


def _difference(found: ctypes.CDLL) -> str:
    """Between the library and this file; empty if there is none."""
    if not hasattr(found, "jettison_abi"):
        return "it does not say which"
    sizes = (INT64 * len(SPECS))()
    found.jettison_abi.argtypes = [POINTER]
    if (version := found.jettison_abi(sizes)) != ABI:
        return f"{version}, not {ABI}"
    others = [
        f"{spec.__name__} has {size} bytes, not {ctypes.sizeof(spec)}"
        for spec, size in zip(SPECS, sizes, strict=True)
        if size != ctypes.sizeof(spec)
    ]
    return "; ".join(others)


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    found.jettison_cores.argtypes = []
    found.jettison_isa.argtypes, found.jettison_isa.restype = [ctypes.c_char_p], ctypes.c_char_p
    found.jettison_linear.argtypes = [
        POINTER, POINTER, INT64, INT,  # x, y, rows of x, type of both
        POINTER, INT64, POINTER, INT64, POINTER,  # tiles and zero with their bytes, bias
        INT64, INT64, INT64, INT, INT, INT,  # rows, columns, span, bits, middle, type of scales
        INT, INT,  # fine, threads
    ]  # fmt: skip
    found.jettison_pack.argtypes = [
        POINTER, INT64, INT, POINTER, INT64, POINTER, INT64,  # words, stored bits, scale, tiles
        INT64, INT64, INT64, INT, INT, INT,  # rows, columns, span, bits, type of scales, threads
    ]  # fmt: skip
    found.jettison_read.argtypes = [POINTER, INT64, INT, INT64, INT, POINTER]
    found.jettison_throw.argtypes = [INT, INT64, INT64, INT]
    found.jettison_fault.argtypes, found.jettison_fault.restype = [], ctypes.c_char_p
    return found


def instruction_set(name: str | None = None) -> str:
    """The instruction set in use: avx512, avxvnni, avx2 or portable. With a name: use that one from now on."""
    found = _required().jettison_isa(name.encode() if name else None)
    if found is None:
        raise UsageError(f"instruction set {name!r}: this processor or this build does not have it")
    return found.decode()


def threads() -> int:
    """How many threads the kernels use: one for each physical core, and no more than PyTorch may use."""
    return max(1, min(_required().jettison_cores(), torch.get_num_threads()))


def raise_thrown(status: int) -> None:
    """Raises JettisonError if ``status``, of the last call of this thread, is that of an exception in the kernels."""
    if status in THROWN:
        raise JettisonError(f"the CPU kernels gave up: {_required().jettison_fault().decode(errors='replace')}")


def linear(
    x: torch.Tensor,
    tiles: torch.Tensor,
    zero: torch.Tensor | None,
    bias: torch.Tensor | None,
    tiling: Tiling,
    out: torch.Tensor | None = None,
    activation_bits: int = 8,
) -> torch.Tensor:
    """x Wᵀ + bias: (..., columns) -> (..., rows), float32 or bfloat16. See ``ops.pack_tiles`` for the weight.

    bias: (rows,) float32. out: where the result goes, of its shape and type.
    activation_bits: 8 or 15. Raises UsageError for what does not fit, JettisonError where memory runs out.
    """
    check_activation_bits(activation_bits)
    kind = TYPES.get(x.dtype)
    fits = kind is not None and x.shape[-1] == tiling.columns and x.is_cpu
    fits = fits and tiles.dtype == torch.uint8 and tiles.is_cpu and tiles.is_contiguous()
    if zero is not None:
        fits = fits and zero.dtype == torch.uint8 and zero.is_cpu and zero.is_contiguous()
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
    if fits:  # sizes in bytes are checked over there
        status = _required().jettison_linear(
            x.data_ptr(), out.data_ptr(), x.numel() // tiling.columns, kind,
            tiles.data_ptr(), tiles.numel(),
            None if zero is None else zero.data_ptr(), 0 if zero is None else zero.numel(),
            None if bias is None else bias.data_ptr(), *tiling.numbers, activation_bits == WIDE,
            torch.get_num_threads(),
        )  # fmt: skip
    raise_thrown(status)
    if status:
        raise UsageError(f"{FAULTS[status]}. {_described(tiling, x=x, out=out, tiles=tiles, zero=zero, bias=bias)}")
    return out


def prepared(x: torch.Tensor, tiling: Tiling, out: torch.Tensor) -> Callable[[int, int], None]:
    """The C function for contiguous ``x`` and ``out``, which it keeps alive: takes the address and bytes of tiles.

    It raises what ``linear`` raises."""
    multiply, count, kind = _required().jettison_linear, x.numel() // tiling.columns, TYPES[x.dtype]
    before, after = (
        (x.data_ptr(), out.data_ptr(), count, kind),
        (None, 0, None, *tiling.numbers, False, torch.get_num_threads()),
    )

    def run(tiles: int, nbytes: int, _held=(x, out)) -> None:
        if status := multiply(*before, tiles, nbytes, *after):
            raise_thrown(status)
            raise UsageError(f"{FAULTS[status]}. {_described(tiling, x=x, out=out)}")

    return run


def pack(packed: torch.Tensor, bits: int, scale: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    """Tiles of a weight. packed: int32 (rows, words), codes of ``bits``. scale: (rows, groups of the tiling)."""
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
    """Read ``data`` once on all threads: each a part of it, in 1 to 8 streams, prefetched ``ahead`` bytes (0: not).

    Raises UsageError for another number of streams, or no data."""
    total = ctypes.c_uint64()
    status = _required().jettison_read(
        data.data_ptr(), data.nbytes, streams, ahead, torch.get_num_threads(), ctypes.byref(total)
    )
    raise_thrown(status)
    if status:
        raise UsageError(f"reading {data.nbytes} bytes in {streams} streams: at least one byte, in 1 to 8 streams")


def _required() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise UsageError("the CPU kernels are not there: they were not built, for want of a C++20 compiler")
    return found


def _described(tiling: Tiling, **tensors: torch.Tensor | None) -> str:
    """What was given, and what the kernels take."""
    given = []
    for name, tensor in tensors.items():
        if tensor is not None:
            kind = str(tensor.dtype).removeprefix("torch.")
            rest = "" if tensor.is_contiguous() else ", not contiguous"
            given.append(f"{name}: {kind} {tuple(tensor.shape)} on {tensor.device}{rest}")
    return (
        f"Given {'; '.join(given)}. A weight of {tiling.rows} x {tiling.columns}, {tiling.bits} bits in groups of "
        f"{tiling.span}, takes x: float32 or bfloat16 (..., {tiling.columns}); tiles: uint8 {tiling.tiles_shape}; "
        f"zero: uint8 {tiling.zero_shape}; bias: float32 ({tiling.rows},); all contiguous, on the CPU"
    )
