"""y = x Wᵀ + b on packed weights, in Triton. Weights are read as the checkpoint stores them.

- Few rows of x, in 16 bits: ``_multiply`` reads every word once for 16 rows, converts its codes to x's type in
  registers, and multiplies on matrix units.
- Many rows, or float32, or bits and groups that do not fill whole words: ``_dense`` writes the weights in x's type,
  some rows at a time so that they stay in the cache, and PyTorch multiplies.

Shapes in ``_multiply`` are chosen so that no value moves between threads: a load puts a word into the thread where a
matrix unit needs its codes. (A test checks what Triton compiles for CUDA; on ROCm values move through shared memory.)
The order of columns in a matrix unit is free, as long as x has the same order.

The number of columns is a constant for the compiler: a model has three or four such numbers, and each is compiled once.
Block sizes follow from the shapes alone, so that the same input gives the same bits.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from jettison.core.errors import UsageError
from jettison.encodings.uniform import UniformGrid
from jettison.kernels.gpu.unpack import codes_from, codes_of, magic, numbers, scales, span_of, zero_points

TYPES = (torch.float32, torch.float16, torch.bfloat16)
BITS = (2, 3, 4, 8)  # that ``_multiply`` supports
FEW = 64  # rows of x; with more it is faster to write the dense weights first
WARPS = 1280  # enough to fill an H100: some 10 per multiprocessor
DENSE_BYTES = 32 << 20  # dense weights written at a time: less than the cache of an H100
DENSE_ROWS, DENSE_UNITS = 8, 64  # rows and units that a program of ``_dense`` writes


class Blocks(NamedTuple):
    """Block of one program of ``_multiply``: 8 x ``high`` rows of weights, ``width`` rows of x, ``warps`` warps."""

    high: int
    width: int
    warps: int


def quant_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    bits: int,
    group_size: int,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute x Wᵀ + bias for a packed weight W, without gradients.

    x: (..., columns), of a type of TYPES.
    packed: (rows, ceil(columns·bits/32)) int32.
    scale: (rows, groups).
    zero_point: (ceil(rows·bits/32), groups) int32, packed along the rows; None for symmetric grids.
    bias: (rows,) or None.

    Returns (..., rows) in the type of ``x``.
    Raises UsageError for another type of ``x`` and for shapes that do not fit.
    """
    rows, columns = packed.shape[0], x.shape[-1]
    groups = UniformGrid(bits, group_size).groups(columns)
    if x.dtype not in TYPES:
        raise UsageError(f"x is of {x.dtype}; valid: {', '.join(str(dtype) for dtype in TYPES)}")
    words = lambda count: -(-count * bits // 32)
    for name, tensor, shape in (
        ("packed", packed, (rows, words(columns))),
        ("scale", scale, (rows, groups)),
        ("zero_point", zero_point, (words(rows), groups)),
        ("bias", bias, (rows,)),
    ):
        if tensor is not None and tensor.shape != shape:
            raise UsageError(
                f"{name} has the shape {tuple(tensor.shape)}; for x with {columns} columns, {rows} rows of weights, "
                f"{bits} bits and group_size {group_size} it must be {shape}"
            )
    flat = x.reshape(-1, columns).contiguous()
    out = x.new_empty(len(flat), rows)
    if out.numel():
        tensors = [None if t is None else t.contiguous() for t in (packed, scale, zero_point, bias)]
        product = _many
        if len(flat) <= FEW and x.dtype != torch.float32 and bits in BITS:
            product = _few if groups == 1 or columns // groups % codes_of(bits) == 0 else _many
        with torch.cuda.device_of(x):
            product(out, flat, *tensors, bits, columns // groups)
    return out.reshape(*x.shape[:-1], rows)


def _few(out, x, packed, scale, zero, bias, bits, group) -> None:
    """Multiply few rows of x, by ``_multiply``."""
    (tokens, columns), rows = x.shape, out.shape[1]
    high, width, warps = blocks(tokens, rows, columns, bits)
    how = magic(x.dtype, bits) if _has_instructions(x) else None
    if group != columns and group % span_of(bits) and x.dtype == torch.float16 != scale.dtype:
        how = None  # it would round scales to float16, which may be too narrow for them
    _multiply[-(-rows // (8 * high)), -(-tokens // width)](
        x, packed, scale, zero, bias, out, tokens, rows,
        BITS=bits, CODES=codes_of(bits), GROUP=group, COLUMNS=columns,
        HIGH=high, TOKENS=width, SPANS=warps, MAGIC=how, num_warps=warps, num_stages=1,
        enable_fp_fusion=True,
    )  # fmt: skip


def _has_instructions(x: torch.Tensor) -> bool:
    """Return whether this GPU has the instructions of ``magic``."""
    if not x.is_cuda or torch.version.hip:
        return False
    return x.dtype == torch.float16 or torch.cuda.get_device_capability(x.device) >= (8, 0)


def blocks(tokens: int, rows: int, columns: int, bits: int) -> Blocks:
    """Choose the block of a program of ``_multiply``.

    It gets as many warps as it takes to fill a GPU, as long as every warp has at least two spans: with fewer, starting
    and ending a program would take longer than its work.
    """
    warps = 2
    while warps < 8 and rows // 16 * warps < WARPS and columns >= 4 * warps * span_of(bits):
        warps *= 2
    few = tokens <= 8 and not torch.version.hip  # products of 8 rows exist on CUDA only
    return Blocks(2 if few else 4, 8 if few else 16, warps)


def _many(out, x, packed, scale, zero, bias, bits, group) -> None:
    """Multiply many rows of x: write dense weights by ``_dense``, a part at a time, and multiply by PyTorch."""
    columns, codes = x.shape[1], codes_of(bits)
    count = max(128, DENSE_BYTES // (columns * x.element_size()) // 128 * 128)
    for start in range(0, out.shape[1], count):
        stop = min(start + count, out.shape[1])
        weight = x.new_empty(stop - start, columns)
        _dense[-(-(stop - start) // DENSE_ROWS), -(-columns // (DENSE_UNITS * codes))](
            packed, scale, zero, weight, start, stop,
            BITS=bits, CODES=codes, GROUP=group, COLUMNS=columns, ROWS=DENSE_ROWS, UNITS=DENSE_UNITS,
            enable_fp_fusion=True,
        )  # fmt: skip
        part = None if bias is None else bias[start:stop].to(x.dtype)
        out[:, start:stop] = torch.nn.functional.linear(x, weight, part)


@triton.jit(do_not_specialize=["start", "stop"])
def _dense(
    packed, scale, zero, out, start, stop,
    BITS: tl.constexpr, CODES: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Write the dense weights of rows ``start`` to ``stop``, in the type of ``out``.

    Program ids: block of rows, block of columns.
    """
    WORDS: tl.constexpr = (COLUMNS * BITS + 31) // 32
    GROUPS: tl.constexpr = COLUMNS // GROUP
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(start + number, stop - 1).to(tl.int64)
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    at = packed + row[:, None] * WORDS + unit[None, :] * (CODES * BITS // 32)
    left = (WORDS - unit * (CODES * BITS // 32))[None, :]
    word = tl.load(at, mask=left > 0, other=0)  # (rows, units)
    column = unit[None, None, :] * CODES
    if GROUP % CODES != 0:  # groups end within units: every code has its own group
        column += tl.arange(0, CODES)[:, None, None]
    row = row[None, :, None]
    middle = zero_points(zero, row, column, BITS, GROUPS, GROUP)
    factor = scales(scale, row, column, GROUPS, GROUP)
    weight = (codes_from(word, at, left, BITS, CODES) - middle) * factor
    weight = tl.permute(weight.to(out.dtype.element_ty), (1, 2, 0)).reshape(ROWS, UNITS * CODES)
    column = (tl.program_id(1) * UNITS * CODES + tl.arange(0, UNITS * CODES))[None, :]
    mask = (start + number < stop)[:, None] & (column < COLUMNS)
    tl.store(out + number.to(tl.int64)[:, None] * COLUMNS + column, weight, mask=mask)


@triton.jit
def _over_sums(values, HIGH: tl.constexpr, SPANS: tl.constexpr, TOKENS: tl.constexpr):
    """Broadcast values (4, rows) to the layout of the sums, (spans, rows, tokens).

    The four values of a row are equal: each of the four threads that hold a row has one, for its two of 8 sums.
    """
    spread = tl.permute(tl.trans(values).reshape(HIGH, SPANS, 8, 4), (1, 0, 2, 3)).reshape(SPANS, 8 * HIGH, 1, 4, 1)
    return spread.broadcast_to(SPANS, 8 * HIGH, TOKENS // 8, 4, 2).reshape(SPANS, 8 * HIGH, TOKENS)


# Scales and zero points are declared unaligned, so that a thread loads them one at a time, for its own words.
@triton.jit(do_not_specialize=["tokens", "rows"], do_not_specialize_on_alignment=["scale", "zero"])
def _multiply(
    x, packed, scale, zero, bias, out, tokens, rows,
    BITS: tl.constexpr, CODES: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr,
    HIGH: tl.constexpr, TOKENS: tl.constexpr, SPANS: tl.constexpr, MAGIC: tl.constexpr,
):  # fmt: skip
    """Multiply x with packed weights. Program ids: block of rows of weights, block of rows of x.

    The warps of a program share the columns: in every turn each warp takes one *span* of columns, and at the end their
    sums are added. Four threads (a quad) hold the 4 x EACH units of a row in a span, EACH neighbours per thread. If a
    span lies within one group, the sums are multiplied by the scale, else the weights are.
    """
    WIDE: tl.constexpr = CODES * BITS // 32
    WORDS: tl.constexpr = (COLUMNS * BITS + 31) // 32
    UNITS: tl.constexpr = (COLUMNS + CODES - 1) // CODES
    EACH: tl.constexpr = 4 if WIDE == 1 else 1
    SPAN: tl.constexpr = 4 * EACH * CODES
    TURN: tl.constexpr = 4 * EACH * SPANS  # units that all warps process at a time
    ROWS: tl.constexpr = 8 * HIGH
    GROUPS: tl.constexpr = COLUMNS // GROUP
    WHOLE: tl.constexpr = GROUPS == 1 or GROUP % SPAN == 0
    # A span is divided into parts with a scale each: what one thread holds, or less if groups are smaller.
    SHARE: tl.constexpr = 4 if GROUP % (4 * CODES) == 0 else 2 if GROUP % (2 * CODES) == 0 else 1
    PARTS: tl.constexpr = 4 if GROUPS == 1 or EACH == 1 else 16 // SHARE
    EVERY: tl.constexpr = GROUP * PARTS // SPAN if GROUP * PARTS > SPAN else 1
    EIGHTS: tl.constexpr = EACH * CODES // 8

    # Rows of the tile of words are laid out as (HIGH, SPANS, 8): 8 rows lie across the threads of a warp, and HIGH
    # such groups of rows in its registers.
    place = tl.arange(0, ROWS * SPANS)
    row = tl.program_id(0) * ROWS + place // (8 * SPANS) * 8 + place % 8
    row = tl.minimum(row, rows - 1).to(tl.int64)
    span = place // 8 % SPANS
    unit = span[:, None] * (4 * EACH) + tl.arange(0, 4 * EACH)[None, :]
    at = packed + row[:, None] * WORDS + unit * WIDE
    # Rows of the tile of x are laid out as (EIGHTS, TOKENS / 8, SPANS, 8). A row has 8 columns for every thread of a
    # quad.
    place = tl.arange(0, EIGHTS * TOKENS * SPANS)
    token = tl.program_id(1) * TOKENS + place // (8 * SPANS) % (TOKENS // 8) * 8 + place % 8
    token_mask = (token < tokens)[:, None]
    quad = tl.arange(0, 32)
    column = place // 8 % SPANS * SPAN + place // (TOKENS * SPANS) * 8
    column = column[:, None] + (quad // 8 * (EACH * CODES) + quad % 8)[None, :]
    at_x = x + token.to(tl.int64)[:, None] * COLUMNS + column

    # Words are loaded two turns ahead, and the loop is unrolled twice, so that registers need not be copied. Words past
    # the end are multiplied with zeros of x.
    row = row[None, :]
    part = span[None, :] * PARTS + tl.arange(0, PARTS)[:, None]
    word = tl.load(at, mask=unit < UNITS)
    factor = scales(scale, row, part, GROUPS, EVERY)
    middle = zero_points(zero, row, part, BITS, GROUPS, EVERY)
    next_word = tl.load(at + TURN * WIDE, mask=unit + TURN < UNITS)
    next_factor = scales(scale, row, part + SPANS * PARTS, GROUPS, EVERY)
    next_middle = middle if zero is None else zero_points(zero, row, part + SPANS * PARTS, BITS, GROUPS, EVERY)
    total = tl.zeros((SPANS, ROWS, TOKENS), tl.float32)
    for _ in tl.range(0, UNITS, TURN, loop_unroll_factor=2):
        if COLUMNS % (SPAN * SPANS) == 0:
            values = tl.load(at_x, mask=token_mask, other=0)
        else:
            values = tl.load(at_x, mask=token_mask & (column < COLUMNS), other=0)
        weight = numbers(x, word, at, WORDS - unit * WIDE, middle, None if WHOLE else factor, BITS, CODES, MAGIC)
        # A matrix unit takes two pairs of neighbouring columns from every thread of a quad.
        values = tl.permute(values.reshape(EIGHTS, TOKENS // 8, SPANS, 8, 4, 8), (2, 1, 3, 4, 0, 5))
        if EACH == 4:  # pairs of words, at the same code
            weight = tl.permute(weight.reshape(CODES, HIGH, SPANS, 8, 4, 2, 2), (2, 1, 3, 0, 5, 4, 6))
            values = tl.permute(values.reshape(SPANS, TOKENS, 4, 2, 2, CODES), (0, 5, 3, 2, 4, 1))
        else:  # pairs of codes
            weight = tl.permute(weight.reshape(CODES // 2, 2, HIGH, SPANS, 8, 4), (3, 2, 4, 0, 5, 1))
            values = tl.permute(values.reshape(SPANS, TOKENS, 4, CODES // 2, 2), (0, 3, 2, 4, 1))
        weight, values = weight.reshape(SPANS, ROWS, SPAN), values.reshape(SPANS, SPAN, TOKENS)
        if WHOLE:
            total += tl.dot(weight, values) * _over_sums(factor, HIGH, SPANS, TOKENS)
        else:
            total = tl.dot(weight, values, total)
        word, middle, factor = next_word, next_middle, next_factor
        next_word = tl.load(at + 2 * TURN * WIDE, mask=unit + 2 * TURN < UNITS)
        next_factor = scales(scale, row, part + 2 * SPANS * PARTS, GROUPS, EVERY)
        next_middle = middle if zero is None else zero_points(zero, row, part + 2 * SPANS * PARTS, BITS, GROUPS, EVERY)
        at += TURN * WIDE
        unit += TURN
        part += SPANS * PARTS
        at_x += SPAN * SPANS
        column += SPAN * SPANS
    y = tl.sum(total, 0)  # over spans, that is over warps
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)[None, :]
    if bias is not None:
        y += tl.load(bias + tl.minimum(row, rows - 1)).to(tl.float32)
    at = out + token.to(tl.int64) * rows + row
    tl.store(at, y.to(out.dtype.element_ty), mask=(token < tokens) & (row < rows))
