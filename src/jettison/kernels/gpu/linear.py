"""y = x Wᵀ + b on packed weights, in Triton.

Weights are read as the checkpoint stores them. A *unit* is the fewest whole words that hold whole codes: one word of
16, 8 or 4 codes for 2, 4 and 8 bits, three words of 32 codes for 3 bits. A word is loaded once, and all its codes are
taken out of it in registers.

``_decode`` is for one or two rows of x: sums of products in float32. ``_multiply`` is for more: tiles of weights in x's
type, on matrix units. Either may split the columns among programs, where a matrix has too few rows to keep a GPU busy;
``_gather`` then adds up the parts, always in the same order.

Columns are constants to the compiler, since addresses would else cost as many instructions as weights do: a model has
three or four such numbers, and each is compiled once. Block sizes follow from the shapes alone, so that the same input
gives the same bits. They are reasoned out for an H100 from bytes and from the instructions of compiled kernels; none
has been timed yet.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from jettison.errors import UsageError
from jettison.grid import Grid

ONE = 0x3F800000  # the bits of 1.0
TYPES = (torch.float32, torch.float16, torch.bfloat16)
# Rows of x for ``_decode``: at 2 bits it compiles to 5 instructions a weight for one row, 7 for two, 11 for four, where
# a tile for 16 rows takes 7.
DECODE_ROWS = 2
WARPS = 16 * 132  # fill an H100: 132 multiprocessors, and 16 warps of each have enough loads under way
TURNS = 4  # of a loop, that a part of the columns must at least have: to add up parts costs a launch


class Blocks(NamedTuple):
    """What a program works on: ``rows`` of weights, ``tokens`` (rows of x), ``units`` in each turn of its loop."""

    rows: int
    tokens: int
    units: int
    warps: int
    stages: int = 1


def quant_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    bits: int,
    group_size: int,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """x Wᵀ + bias for a packed W: (..., columns) -> (..., rows), in the type of ``x``. No gradient flows.

    packed: int32 (rows, ceil(columns·bits/32)). scale: (rows, groups). zero_point: int32
    (ceil(rows·bits/32), groups), packed along the rows, None when symmetric. bias: (rows,) or None.
    """
    rows, columns = packed.shape[0], x.shape[-1]
    groups = Grid(bits, group_size).groups(columns)
    if x.dtype not in TYPES:
        raise UsageError(f"x is of {x.dtype}; valid: {', '.join(str(dtype) for dtype in TYPES)}")
    words = lambda count: -(-count * bits // 32)
    for name, given, shape in (
        ("packed", packed, (rows, words(columns))),
        ("scale", scale, (rows, groups)),
        ("zero_point", zero_point, (words(rows), groups)),
        ("bias", bias, (rows,)),
    ):
        if given is not None and given.shape != shape:
            raise UsageError(
                f"{name} has the shape {tuple(given.shape)}; for x with {columns} columns, {rows} rows of weights, "
                f"{bits} bits and group_size {group_size} it must be {shape}"
            )
    flat = x.reshape(-1, columns)
    out = x.new_empty(len(flat), rows)
    if out.numel():
        tensors = (None if t is None else t.contiguous() for t in (flat, packed, scale, zero_point, bias))
        with torch.cuda.device_of(x):
            _launch(out, *tensors, bits, columns // groups)
    return out.reshape(*x.shape[:-1], rows)


def _launch(
    out: torch.Tensor,
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: int,
    group: int,
) -> None:
    """Fills ``out`` (tokens, rows) from x (tokens, columns)."""
    (tokens, columns), rows = x.shape, out.shape[1]
    codes = 32 // math.gcd(bits, 32)
    units = -(-columns // codes)
    if tokens <= DECODE_ROWS:
        kernel, blocks = _decode, decode_blocks(tokens, rows, units)
    else:
        kernel, blocks = _multiply, multiply_blocks(tokens, x.dtype, codes)
    high, wide, turns = -(-rows // blocks.rows), -(-tokens // blocks.tokens), -(-units // blocks.units)
    parts = max(1, min(WARPS // (high * wide * blocks.warps), turns // TURNS))
    turns = -(-turns // parts)
    parts = -(-units // (turns * blocks.units))
    sums = out if parts == 1 else out.new_empty(parts, tokens, rows, dtype=torch.float32)
    kernel[high, parts, wide](
        x, packed, scale, zero, bias if parts == 1 else None, sums, tokens, rows, turns, ONE,
        BITS=bits, CODES=codes, GROUP=group, COLUMNS=columns,
        ROWS=blocks.rows, TOKENS=blocks.tokens, UNITS=blocks.units,
        num_warps=blocks.warps, num_stages=blocks.stages, enable_fp_fusion=True,
    )  # fmt: skip
    if parts > 1:
        _gather[-(-out.numel() // 512),](sums, bias, out, out.numel(), rows, PARTS=parts, WIDTH=512)


def decode_blocks(tokens: int, rows: int, units: int) -> Blocks:
    """Four warps. A thread has one unit of 4 rows, which share what is done to x, and asks for the next 4 before it
    works: 20 warps on a multiprocessor then have 20 kB under way, about bandwidth times latency.

    Blocks are as narrow as leaves enough of them: a narrow one wastes least where the columns end, and takes more turns
    between its start and its end, which cost about half a turn.
    """
    width = 32
    while width < min(units, 128) and rows // 4 * width // 32 < WARPS:
        width *= 2
    height = min(4 * 4 * 32 // width, 1 << rows.bit_length() - 1)
    return Blocks(height, triton.next_power_of_2(tokens), width, warps=4)


def multiply_blocks(tokens: int, dtype: torch.dtype, codes: int) -> Blocks:
    """64 rows are what one instruction of Hopper's matrix units takes, 16 rows of x the fewest that suit all types.

    Few rows of x: wide turns, three of which are being loaded while one is worked on. Many: larger tiles, since each
    weight is unpacked again for every block of x. Float32 has no matrix units: what fits into registers.
    """
    if dtype == torch.float32:
        return Blocks(32, 16, max(1, 32 // codes), warps=4, stages=2)
    if tokens <= 64:
        return Blocks(64, max(16, triton.next_power_of_2(tokens)), 128 // codes, warps=4, stages=4)
    return Blocks(128, 128, 64 // codes, warps=8, stages=3)


@triton.jit
def _scales(
    scale, zero, row, unit,
    BITS: tl.constexpr, CODES: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Scales and zero points, float32 (codes, rows, units); codes is 1 where no group ends within a unit."""
    if GROUP % CODES == 0:
        column = unit[None, None, :] * CODES
    else:
        column = unit[None, None, :] * CODES + tl.arange(0, CODES)[:, None, None]
    group = tl.minimum(column // GROUP, GROUPS - 1)  # units past the end read something, and meet zeros of x
    row = row[None, :, None]
    factor = tl.load(scale + row * GROUPS + group).to(tl.float32)
    if zero is None:
        middle = tl.full((1, 1, 1), 2.0 ** (BITS - 1), tl.float32)
    else:  # packed along the rows
        bit = row * BITS
        code = tl.load(zero + bit // 32 * GROUPS + group).to(tl.uint32, bitcast=True) >> (bit % 32).to(tl.uint32)
        if 32 % BITS != 0:
            above = tl.load(zero + (bit + BITS - 1) // 32 * GROUPS + group).to(tl.uint32, bitcast=True)
            code = tl.where(bit % 32 + BITS > 32, code | _lifted(above, bit), code)
        middle = (code & (2**BITS - 1)).to(tl.float32)
    return factor, middle


@triton.jit
def _lifted(above, bit):
    """What of a code that starts at ``bit`` is in the word above. Two shifts: a single one by 32 is undefined."""
    return (above << 1) << (31 - bit % 32).to(tl.uint32)


@triton.jit
def _steps(word, at, left, middle, one, BITS: tl.constexpr, CODES: tl.constexpr, FIXED: tl.constexpr):
    """code − zero, float32 (codes, rows, units), from the first words of units, which are ``at``: (rows, units).

    left: how many words of the row there are from there on, (1, units).

    Codes are or-ed into the mantissa of 1.0, and the one is taken off: converting integers is slow. ``one`` is passed,
    not written here, so that the compiler keeps it in a register. FIXED: every thread holds all codes of its units, so
    that shifts are constants; one then serves all the codes that fit into 8 bits of mantissa.
    """
    place = tl.arange(0, CODES)[:, None, None]
    bit = place * BITS
    word = word[None].to(tl.uint32, bitcast=True)
    top = 0  # where in the mantissa the code comes to lie
    if 32 % BITS != 0:
        low, above = word, word
        for number in tl.static_range(1, CODES * BITS // 32):
            other = tl.load(at + number, mask=left > number, other=0)[None].to(tl.uint32, bitcast=True)
            low = tl.where(bit // 32 == number, other, low)
            above = tl.where((bit + BITS - 1) // 32 == number, other, above)
        word = low >> (bit % 32).to(tl.uint32)
        word = tl.where(bit % 32 + BITS > 32, word | _lifted(above, bit), word)
    elif FIXED:
        FIELDS: tl.constexpr = 8 // BITS
        top = 23 - BITS * (FIELDS - place % FIELDS)
        right = bit - top
        word = (word >> tl.maximum(right, 0).to(tl.uint32)) << tl.maximum(-right, 0).to(tl.uint32)
    else:
        word = word >> bit.to(tl.uint32)
    mask = tl.cast((2**BITS - 1) << top, tl.uint32)
    value = ((word & mask) | one.to(tl.uint32)).to(tl.float32, bitcast=True)
    power = (1 << (23 - top)) * 1.0
    return value * power - (power + middle)  # exact


# Were the words known to be aligned, a thread would load four of one row, and no x would serve it twice.
@triton.jit(do_not_specialize=["tokens", "rows", "turns"], do_not_specialize_on_alignment=["packed"])
def _decode(
    x, packed, scale, zero, bias, out, tokens, rows, turns, one,
    BITS: tl.constexpr, CODES: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Program (block of rows, part of the columns): all rows of x (``tokens``), in ``turns`` of UNITS.

    Codes lead in every shape, so that a thread holds whole words, and a warp reads 32 words of a row at once.
    """
    WORDS: tl.constexpr = (COLUMNS * BITS + 31) // 32
    WIDE: tl.constexpr = CODES * BITS // 32
    GROUPS: tl.constexpr = COLUMNS // GROUP
    # The last block ends with the last row, if need be by doing some rows of the block before again.
    row = (tl.minimum(tl.program_id(0) * ROWS, rows - ROWS) + tl.arange(0, ROWS)).to(tl.int64)
    token = tl.arange(0, TOKENS)
    first = tl.program_id(1) * turns * UNITS
    stop = tl.minimum(first + turns * UNITS, (COLUMNS + CODES - 1) // CODES)
    unit = first + tl.arange(0, UNITS)
    at = packed + row[:, None] * WORDS + unit[None, :] * WIDE
    left = tl.where(unit < stop, WORDS - unit * WIDE, 0)[None, :]
    word = tl.load(at, mask=left > 0, other=0)
    factor, middle = _scales(scale, zero, row, unit, BITS, CODES, GROUP, GROUPS)
    total = tl.zeros((TOKENS, ROWS, UNITS), tl.float32)
    for _ in range(first, stop, UNITS):
        column = unit[None, :] * CODES + tl.arange(0, CODES)[:, None]
        # What the next turn needs is asked for before this one waits for x.
        unit += UNITS
        next_at = at + UNITS * WIDE
        next_left = tl.where(unit < stop, WORDS - unit * WIDE, 0)[None, :]
        next_word = tl.load(next_at, mask=next_left > 0, other=0)
        next_factor, next_middle = _scales(scale, zero, row, unit, BITS, CODES, GROUP, GROUPS)
        values = tl.load(
            x + token[:, None, None] * COLUMNS + column[None, :, :],
            mask=(token < tokens)[:, None, None] & (column < COLUMNS)[None, :, :], other=0,
        ).to(tl.float32)  # fmt: skip
        steps = _steps(word, at, left, middle, one, BITS, CODES, True)
        if GROUP % CODES == 0:
            total += tl.sum(steps[None] * values[:, :, None], 1) * factor
        else:
            total += tl.sum((steps * factor)[None] * values[:, :, None], 1)
        at, left, word, factor, middle = next_at, next_left, next_word, next_factor, next_middle
    y = tl.sum(total, 2)
    if bias is not None:
        y += tl.load(bias + row).to(tl.float32)[None, :]
    at = out + (tl.program_id(1) * tokens + token)[:, None] * rows.to(tl.int64) + row[None, :]
    tl.store(at, y.to(out.dtype.element_ty), mask=(token < tokens)[:, None])


@triton.jit(do_not_specialize=["tokens", "rows", "turns"])
def _multiply(
    x, packed, scale, zero, bias, out, tokens, rows, turns, one,
    BITS: tl.constexpr, CODES: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Program (block of rows, part of the columns, block of rows of x).

    Weights are the left factor: on Hopper it may stay in registers, and few rows of x waste little of a tile.
    """
    WORDS: tl.constexpr = (COLUMNS * BITS + 31) // 32
    WIDE: tl.constexpr = CODES * BITS // 32
    GROUPS: tl.constexpr = COLUMNS // GROUP
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    held = tl.minimum(row, rows - 1)
    token = (tl.program_id(2) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    first = tl.program_id(1) * turns * UNITS
    stop = tl.minimum(first + turns * UNITS, (COLUMNS + CODES - 1) // CODES)
    factor, middle = _scales(scale, zero, held, first + tl.arange(0, UNITS), BITS, CODES, GROUP, GROUPS)
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for start in range(first, stop, UNITS):
        column = start * CODES + tl.arange(0, UNITS * CODES)
        values = tl.load(
            x + token[None, :] * COLUMNS + column[:, None],
            mask=(token < tokens)[None, :] & (column < COLUMNS)[:, None], other=0,
        )  # fmt: skip
        unit = start + tl.arange(0, UNITS)
        at = packed + held[:, None] * WORDS + unit[None, :] * WIDE
        left = (WORDS - unit * WIDE)[None, :]
        word = tl.load(at, mask=left > 0, other=0)
        # Too small for the compiler's own pipeline: the scales of the next turn.
        next_factor, next_middle = _scales(scale, zero, held, unit + UNITS, BITS, CODES, GROUP, GROUPS)
        weight = _steps(word, at, left, middle, one, BITS, CODES, False) * factor
        weight = tl.permute(weight.to(x.dtype.element_ty), (1, 2, 0)).reshape(ROWS, UNITS * CODES)
        total = tl.dot(weight, values, total, input_precision="ieee")
        factor, middle = next_factor, next_middle
    y = tl.trans(total)
    if bias is not None:
        y += tl.load(bias + held).to(tl.float32)[None, :]
    at = out + (tl.program_id(1) * tokens + token)[:, None] * rows.to(tl.int64) + row[None, :]
    tl.store(at, y.to(out.dtype.element_ty), mask=(token < tokens)[:, None] & (row < rows)[None, :])


@triton.jit(do_not_specialize=["count", "rows"])
def _gather(sums, bias, out, count, rows, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """out (count) = the sum of ``sums``, float32 (PARTS, count), + bias."""
    place = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), tl.float32)
    for part in range(PARTS):
        total += tl.load(sums + part * count.to(tl.int64) + place, mask=place < count, other=0)
    if bias is not None:
        total += tl.load(bias + place % rows).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=place < count)
