"""y = x Wᵀ + b on packed weights, in Triton.

Weights are read as the checkpoint stores them. Few rows of x, in 16 bits: ``_multiply`` reads each word once, turns its
codes into x's type in registers, and multiplies on matrix units; what it takes is the reading. Many, or float32:
``_dense`` writes the weights in x's type, some rows at a time so that they stay in the cache, and PyTorch multiplies.

Shapes in ``_multiply`` are such that no value ever changes threads: where a load puts a word is where a matrix unit
wants the codes of it (as of Triton 3.6 to 3.9 on Hopper; elsewhere the results are the same, and the compiler may move
values through shared memory). Which columns a matrix unit takes together is free, as long as x comes in the same order.

Columns are constants to the compiler: a model has three or four such numbers, and each is compiled once. Blocks follow
from the shapes alone, so that the same input gives the same bits.
"""

import math
from functools import cache

import torch
import triton
import triton.language as tl

from jettison.errors import UsageError
from jettison.grid import Grid

TYPES = (torch.float32, torch.float16, torch.bfloat16)
BITS = (2, 3, 4, 8)  # that ``_multiply`` takes
FEW = 64  # rows of x: with more, writing the weights down first is faster
WARPS = 16 * 132  # fill an H100
DENSE_BYTES = 32 << 20  # of weights written down at a time: less than the cache of an H100


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
    flat = x.reshape(-1, columns).contiguous()
    out = x.new_empty(len(flat), rows)
    if out.numel():
        weights = [None if t is None else t.contiguous() for t in (packed, scale, zero_point)]
        group = columns // groups
        codes = 32 // math.gcd(bits, 32)
        few = len(flat) <= FEW and x.dtype != torch.float32
        with torch.cuda.device_of(x):
            if few and bits in BITS and (groups == 1 or group % codes == 0):
                _few(out, flat, *weights, bias, bits, codes, group)
            else:
                _many(out, flat, *weights, bias, bits, group)
    return out.reshape(*x.shape[:-1], rows)


def _few(out, x, packed, scale, zero, bias, bits, codes, group) -> None:
    tokens, columns = x.shape
    high, split, wide = blocks(tokens, out.shape[1], columns, codes)
    _multiply[-(-out.shape[1] // (8 * high)), -(-tokens // wide)](
        x, packed, scale, zero, bias, out, tokens, out.shape[1],
        BITS=bits, CODES=codes, GROUP=group, COLUMNS=columns,
        HIGH=high, TOKENS=wide, SPLIT=split, MAGIC=magic(x.dtype, bits) if x.is_cuda and not torch.version.hip else None,
        num_warps=split, num_stages=1,
    )  # fmt: skip


def blocks(tokens: int, rows: int, columns: int, codes: int) -> tuple[int, int, int]:
    """(blocks of 8 rows, warps that share the columns, rows of x) of a program of ``_multiply``."""
    high = 2
    split = 4
    while split < 16 and rows // (8 * high) * split < WARPS and columns > 2 * split * 16 * codes:
        split *= 2
    return high, split, 8 if tokens <= 8 and not torch.version.hip else 16


def _many(out, x, packed, scale, zero, bias, bits, group) -> None:
    columns = x.shape[1]
    count = max(128, DENSE_BYTES // (columns * x.element_size()) // 128 * 128)
    for start in range(0, out.shape[1], count):
        stop = min(start + count, out.shape[1])
        weight = x.new_empty(stop - start, columns)
        _dense[stop - start, -(-columns // 1024)](
            packed, scale, zero, weight, start, BITS=bits, GROUP=group, COLUMNS=columns, WIDTH=1024
        )
        part = torch.nn.functional.linear(x, weight, None if bias is None else bias[start:stop].to(x.dtype))
        out[:, start:stop] = part


@cache
def magic(dtype: torch.dtype, bits: int) -> tuple[str, str, int, int] | None:
    """How ``_weights`` makes numbers of 16 bits from codes, two at a time: instructions without and with a scale, how
    many codes fit into the mantissa, the number whose last bits they become. None where a code does not fit."""
    name, mantissa = {torch.bfloat16: ("bf16", 7), torch.float16: ("f16", 10)}[dtype]
    if bits > mantissa or 32 % bits:
        return None
    base = {7: 0x4300, 10: 0x6400}[mantissa] * 0x10001
    start = (
        "{ .reg .b32 t, z; prmt.b32 t, $1, $2, $3; shr.u32 t, t, $5; "
        f"lop3.b32 t, t, $7, {base}, 0xEA; fma.rn.{name}x2 "
    )
    plain = start + "$0, t, $9, $10; }"
    scaled = start + f"t, t, $9, $10; mov.b32 z, {0x80008000}; fma.rn.{name}x2 $0, t, $11, z; }}"
    return plain, scaled, mantissa // bits, 1 << mantissa


@triton.jit
def _lifted(above, bit):
    """What of a code that starts at ``bit`` is in the word above. Two shifts: a single one by 32 is undefined."""
    return (above << 1) << (31 - bit % 32).to(tl.uint32)


@triton.jit
def _codes(word, above, bit, BITS: tl.constexpr):
    """The codes that start at ``bit`` of a word, float32. Or-ed into a mantissa: converting integers is slow."""
    code = word.to(tl.uint32, bitcast=True) >> bit.to(tl.uint32)
    if 32 % BITS != 0:
        code = tl.where(bit + BITS > 32, code | _lifted(above.to(tl.uint32, bitcast=True), bit), code)
    return ((code & (2**BITS - 1)) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def _spread(each, ROWS: tl.constexpr, UNITS: tl.constexpr, PER: tl.constexpr):
    """(rows, parts) -> (1, rows, units)."""
    if each.shape[1] == 1:
        found = each.reshape(1, each.shape[0], 1)
    else:
        found = each[:, :, None].broadcast_to(ROWS, UNITS // PER, PER).reshape(1, ROWS, UNITS)
    return found


@triton.jit
def _weights(
    x, word, at, left, middle, factor,
    PER: tl.constexpr, BITS: tl.constexpr, CODES: tl.constexpr, MAGIC: tl.constexpr,
):  # fmt: skip
    """(code − middle) · factor in x's type, (codes, rows, units), from the first words of units, which are ``at``.

    left: how many words of the row there are from there on. middle: float32, factor: the same or None; both as units.

    With ``magic``, codes are or-ed into the mantissas of two numbers at once: those at the same place of neighbouring
    words. A multiplication by a power of two takes each to where it belongs, and the base is subtracted: exact.
    """
    place = tl.arange(0, CODES)[:, None, None]
    ROWS: tl.constexpr = word.shape[0]
    UNITS: tl.constexpr = word.shape[1]
    word = word.reshape(1, ROWS, UNITS)
    middle = _spread(middle, ROWS, UNITS, PER)
    if factor is not None:
        factor = _spread(factor, ROWS, UNITS, PER)
    if MAGIC is None:
        bit = place * BITS
        low, above = word, word
        for number in tl.static_range(1, CODES * BITS // 32):
            other = tl.load(at + number, mask=left > number, other=0).reshape(word.shape)
            low = tl.where(bit // 32 == number, other, low)
            above = tl.where((bit + BITS - 1) // 32 == number, other, above)
        found = _codes(low, above, bit % 32, BITS) - middle
        if factor is not None:
            found = found * factor
        found = found.to(x.dtype.element_ty)
    else:
        HALF: tl.constexpr = CODES // 2
        lift = place % HALF % MAGIC[2] * BITS
        select = tl.where(place < HALF, 0x5410, 0x7632)
        shift = place % HALF * BITS - lift
        mask = ((2**BITS - 1) * 0x10001) << lift
        power = ((127 - lift) << 23).to(tl.float32, bitcast=True)
        offset = (-MAGIC[3] * power - middle).to(x.dtype.element_ty)
        power = power.to(x.dtype.element_ty)
        if factor is None:
            found = tl.inline_asm_elementwise(
                MAGIC[0], "=r,r,r,r,r,r,r,r,r,r,r", [word, select, shift, mask, power, offset],
                dtype=x.dtype.element_ty, is_pure=True, pack=2,
            )  # fmt: skip
        else:
            found = tl.inline_asm_elementwise(
                MAGIC[1], "=r,r,r,r,r,r,r,r,r,r,r,r",
                [word, select, shift, mask, power, offset, factor.to(x.dtype.element_ty)],
                dtype=x.dtype.element_ty, is_pure=True, pack=2,
            )  # fmt: skip
    return found


# Scales and zero points are declared not aligned, so that a thread takes one at a time, in the places of its words.
@triton.jit(do_not_specialize=["tokens", "rows"], do_not_specialize_on_alignment=["scale", "zero"])
def _multiply(
    x, packed, scale, zero, bias, out, tokens, rows,
    BITS: tl.constexpr, CODES: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr,
    HIGH: tl.constexpr, TOKENS: tl.constexpr, SPLIT: tl.constexpr, MAGIC: tl.constexpr,
):  # fmt: skip
    """Program (block of rows, block of rows of x): its warps share the columns, SPAN of them at a time, and add up.

    A *unit* is the fewest whole words that hold whole codes: one word of 16, 8 or 4 codes for 2, 4 and 8 bits, three
    words of 32 codes for 3 bits. Of a span, a quad of threads takes 4 x EACH units of a row, each thread EACH
    neighbours.
    """
    WIDE: tl.constexpr = CODES * BITS // 32
    WORDS: tl.constexpr = (COLUMNS * BITS + 31) // 32
    UNITS: tl.constexpr = (COLUMNS + CODES - 1) // CODES
    EACH: tl.constexpr = 4 if WIDE == 1 else 1
    SPAN: tl.constexpr = 4 * EACH * CODES
    ROWS: tl.constexpr = 8 * HIGH
    GROUPS: tl.constexpr = COLUMNS // GROUP
    WHOLE: tl.constexpr = GROUPS == 1 or GROUP % SPAN == 0  # a span lies in one group: scale the sums
    SHARE: tl.constexpr = 4 if GROUP % (4 * CODES) == 0 else 2 if GROUP % (2 * CODES) == 0 else 1
    PER: tl.constexpr = 4 * EACH if WHOLE else min(SHARE, EACH)  # units that a scale is loaded for
    EVERY: tl.constexpr = max(1, GROUP // (PER * CODES))
    EIGHTS: tl.constexpr = EACH * CODES // 8

    # Rows of the tile of words: (HIGH, SPLIT, 8), so that each warp has 8 and what is above is in its registers.
    place = tl.arange(0, ROWS * SPLIT)
    row = tl.program_id(0) * ROWS + place // (8 * SPLIT) * 8 + place % 8
    row = tl.minimum(row, rows - 1).to(tl.int64)[:, None]
    warp = (place // 8 % SPLIT)[:, None]
    unit = warp * (4 * EACH) + tl.arange(0, 4 * EACH)[None, :]
    at = packed + row * WORDS + unit * WIDE
    # Of x: (EIGHTS, TOKENS / 8, SPLIT, 8), each 8 columns of each thread of a quad.
    place = tl.arange(0, EIGHTS * TOKENS * SPLIT)
    token = tl.program_id(1) * TOKENS + place // (8 * SPLIT) % (TOKENS // 8) * 8 + place % 8
    column = place // 8 % SPLIT * SPAN + place // (TOKENS * SPLIT) * 8
    quad = tl.arange(0, 32)
    column = column[:, None] + (quad // 8 * (EACH * CODES) + quad % 8)[None, :]
    at_x = x + token.to(tl.int64)[:, None] * COLUMNS + column
    held = (token < tokens)[:, None]

    # What the next turn needs is asked for before this one works.
    word = tl.load(at, mask=unit < UNITS, other=0)
    part = warp * (4 * EACH // PER) + tl.arange(0, 4 * EACH // PER)[None, :]
    middle = _middle(zero, row, part, BITS, GROUPS, EVERY)
    if WHOLE:
        span = tl.arange(0, SPLIT)[:, None]
        high = tl.minimum(tl.program_id(0) * ROWS + tl.arange(0, ROWS), rows - 1).to(tl.int64)[None, :]
        factor = _scale(scale, high, span, GROUPS, EVERY)
    else:
        factor = _scale(scale, row, part, GROUPS, EVERY)
    total = tl.zeros((SPLIT, ROWS, TOKENS), tl.float32)
    for _ in range(0, UNITS, 4 * EACH * SPLIT):
        if COLUMNS % (SPAN * SPLIT) == 0:
            values = tl.load(at_x, mask=held, other=0)
        else:
            values = tl.load(at_x, mask=held & (column < COLUMNS), other=0)
        next_at = at + 4 * EACH * SPLIT * WIDE
        next_unit = unit + 4 * EACH * SPLIT
        next_word = tl.load(next_at, mask=next_unit < UNITS, other=0)
        part += SPLIT * (4 * EACH // PER)
        next_middle = middle if zero is None else _middle(zero, row, part, BITS, GROUPS, EVERY)
        if WHOLE:
            span += SPLIT
            next_factor = _scale(scale, high, span, GROUPS, EVERY)
            weight = _weights(x, word, at, WORDS - unit * WIDE, middle, None, PER, BITS, CODES, MAGIC)
        else:
            next_factor = _scale(scale, row, part, GROUPS, EVERY)
            weight = _weights(x, word, at, WORDS - unit * WIDE, middle, factor, PER, BITS, CODES, MAGIC)
        # A unit of a matrix takes in, from each thread of a quad, two pairs of neighbours.
        values = tl.permute(values.reshape(EIGHTS, TOKENS // 8, SPLIT, 8, 4, 8), (2, 1, 3, 4, 0, 5))
        if EACH == 4:  # pairs of words, at the same code
            weight = tl.permute(weight.reshape(CODES, HIGH, SPLIT, 8, 4, 2, 2), (2, 1, 3, 0, 5, 4, 6))
            values = tl.permute(values.reshape(SPLIT, TOKENS, 4, 2, 2, CODES), (0, 5, 3, 2, 4, 1))
        else:  # pairs of codes
            weight = tl.permute(weight.reshape(CODES // 2, 2, HIGH, SPLIT, 8, 4), (3, 2, 4, 0, 5, 1))
            values = tl.permute(values.reshape(SPLIT, TOKENS, 4, CODES // 2, 2), (0, 3, 2, 4, 1))
        weight, values = weight.reshape(SPLIT, ROWS, SPAN), values.reshape(SPLIT, SPAN, TOKENS)
        if WHOLE:
            total += tl.dot(weight, values) * factor[:, :, None]
        else:
            total = tl.dot(weight, values, total)
        at, unit, word, middle, factor = next_at, next_unit, next_word, next_middle, next_factor
        at_x += SPAN * SPLIT
        column += SPAN * SPLIT
    y = tl.sum(total, 0)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)[None, :]
    if bias is not None:
        y += tl.load(bias + tl.minimum(row, rows - 1)).to(tl.float32)
    tl.store(
        out + token.to(tl.int64) * rows + row, y.to(out.dtype.element_ty), mask=(token < tokens) & (row < rows)
    )  # fmt: skip


@triton.jit
def _scale(scale, row, part, GROUPS: tl.constexpr, EVERY: tl.constexpr):
    """The scales of parts of rows, float32; EVERY parts are a group."""
    if GROUPS == 1:
        found = tl.load(scale + row + part * 0)
    else:
        found = tl.load(scale + row * GROUPS + part // EVERY, mask=part < GROUPS * EVERY, other=0)
    return found.to(tl.float32)


@triton.jit
def _middle(zero, row, part, BITS: tl.constexpr, GROUPS: tl.constexpr, EVERY: tl.constexpr):
    """Zero points of parts of rows, float32; they are packed along the rows."""
    if zero is None:
        found = tl.full((1, 1), 2 ** (BITS - 1), tl.float32)
    else:
        group = part * 0 if GROUPS == 1 else part // EVERY
        mask = part < GROUPS * EVERY if GROUPS > 1 else part == part
        bit = row * BITS
        word = tl.load(zero + bit // 32 * GROUPS + group, mask=mask, other=0)
        above = word
        if 32 % BITS != 0:
            above = tl.load(zero + (bit + BITS - 1) // 32 * GROUPS + group, mask=mask, other=0)
        found = _codes(word, above, bit % 32, BITS)
    return found


@triton.jit
def _dense(
    packed, scale, zero, out, start,
    BITS: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Program (row of ``out``, block of columns): the weights of row ``start`` + its number, in the type of ``out``."""
    WORDS: tl.constexpr = (COLUMNS * BITS + 31) // 32
    GROUPS: tl.constexpr = COLUMNS // GROUP
    row = (start + tl.program_id(0)).to(tl.int64)
    column = (tl.program_id(1) * WIDTH + tl.arange(0, WIDTH))[None, :]
    mask = column < COLUMNS
    bit = column * BITS
    at = packed + row * WORDS + bit // 32
    word = tl.load(at, mask=mask, other=0)
    above = word
    if 32 % BITS != 0:
        above = tl.load(at + (bit + BITS - 1) // 32 - bit // 32, mask=mask, other=0)
    group = tl.minimum(column // GROUP, GROUPS - 1)
    weight = (_codes(word, above, bit % 32, BITS) - _middle(zero, row, group, BITS, GROUPS, 1)) * _scale(
        scale, row, group, GROUPS, 1
    )
    tl.store(out + tl.program_id(0).to(tl.int64) * COLUMNS + column, weight.to(out.dtype.element_ty), mask=mask)
