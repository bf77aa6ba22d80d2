"""Numbers from packed weights, in Triton: codes, their scales and zero points.

A *unit* is the fewest whole words that hold whole codes: one word of 16, 8 or 4 codes for 2, 4 and 8 bits, three words
of 32 codes for 3 bits.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl


def codes_of(bits: int) -> int:
    """In the fewest whole words that hold whole codes."""
    return 32 // math.gcd(bits, 32)


def span_of(bits: int) -> int:
    """The columns that a warp works on at a time: what four threads hold, four words each, or three words of 3 bits."""
    return 128 if bits == 3 else 512 // bits


class Magic(NamedTuple):
    """How codes become numbers of 16 bits, two at a time: as a rule those at the same place of neighbouring words.

    They are or-ed into mantissas, where ``fields`` of them find place without a shift. A multiplication by a power of
    two takes each to where it belongs, and ``base``, the number whose last bits the first of them becomes, is
    subtracted together with the zero point: exact. ``steps``: instructions for that; ``weights``: and for the scale.
    """

    steps: tl.constexpr
    weights: tl.constexpr
    fields: tl.constexpr
    base: tl.constexpr


# Of two codes: their words $1 $2; the halves of both that hold them, as a choice of bytes $3 $4; how far to the right
# they are taken $5 $6; where they then are $7 $8; powers of two $9; what is subtracted $10; scales $11. Where places
# are the same, as everywhere so far, the assembler knows it and drops what is done under the condition p.
PAIR = """{{ .reg .b32 t, u, m; .reg .pred p;
    setp.ne.u32 p, $3, $4; setp.ne.or.u32 p, $5, $6, p; setp.ne.or.u32 p, $7, $8, p;
    prmt.b32 t, $1, $2, $3; shr.u32 t, t, $5; mov.b32 m, $7;
    @p and.b32 t, $3, 0xff; @p and.b32 u, $4, 0xff00; @p or.b32 t, t, u; @p prmt.b32 u, $1, $2, t;
    @p shr.u32 t, u, $5; @p shr.u32 u, u, $6; @p prmt.b32 t, t, u, 0x7610;
    @p and.b32 m, $7, 0xffff; @p and.b32 u, $8, 0xffff0000; @p or.b32 m, m, u;
    lop3.b32 t, t, m, {base}, 0xEA; fma.rn.{kind}x2 t, t, $9, $10; """


@cache
def magic(dtype: torch.dtype, bits: int) -> Magic | None:
    """None where a code does not fit into a mantissa, or not whole ones into a word."""
    kind, mantissa, one = {torch.bfloat16: ("bf16", 7, 0x4300), torch.float16: ("f16", 10, 0x6400)}[dtype]
    if bits > mantissa or 32 % bits:
        return None
    pair = PAIR.format(base=hex(one * 0x10001), kind=kind)
    scaled = f"mov.b32 u, 0x80008000; fma.rn.{kind}x2 $0, t, $11, u; }}"
    return Magic(pair + "mov.b32 $0, t; }", pair + scaled, mantissa // bits, 1 << mantissa)


@triton.jit
def lifted(above, bit):
    """What of a code that starts at ``bit`` is in the word above. Two shifts: a single one by 32 is undefined."""
    return (above << 1) << (31 - bit % 32).to(tl.uint32)


@triton.jit
def code_at(word, above, bit, BITS: tl.constexpr):
    """The code that starts at ``bit`` of a word, float32. Or-ed into a mantissa: converting integers is slow."""
    code = word.to(tl.uint32, bitcast=True) >> bit.to(tl.uint32)
    if 32 % BITS != 0:
        code = tl.where(bit + BITS > 32, code | lifted(above.to(tl.uint32, bitcast=True), bit), code)
    return ((code & (2**BITS - 1)) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def codes_from(word, at, left, BITS: tl.constexpr, CODES: tl.constexpr):
    """The codes of units, float32 (codes, rows, units), from their first words, which are ``at``: (rows, units).

    left: how many words of the row there are from there on.
    """
    word = word.reshape(1, word.shape[0], word.shape[1])
    bit = tl.arange(0, CODES)[:, None, None] * BITS
    low, above = word, word
    for number in tl.static_range(1, CODES * BITS // 32):
        other = tl.load(at + number, mask=left > number, other=0).reshape(word.shape)
        low = tl.where(bit // 32 == number, other, low)
        above = tl.where((bit + BITS - 1) // 32 == number, other, above)
    return code_at(low, above, bit % 32, BITS)


@triton.jit
def group_of(part, GROUPS: tl.constexpr, EVERY: tl.constexpr):
    """The group of parts of rows, EVERY parts being one, and whether there is such a part."""
    found = part // (EVERY if GROUPS > 1 else 1 << 30)
    exists = part < GROUPS * EVERY if GROUPS > 1 else part >= 0
    if len(part.shape) == 2:
        # A false statement: that the groups of the four parts of a quad of threads follow one another. It makes the
        # compiler give them to neighbouring threads, as words are, and does nothing else: what would be loaded at once
        # for being contiguous is not known to be aligned.
        found = tl.max_contiguous(found, (4, 1))
    return found, exists


@triton.jit
def scales(scale, row, part, GROUPS: tl.constexpr, EVERY: tl.constexpr):
    """The scales of parts of rows, float32."""
    group, exists = group_of(part, GROUPS, EVERY)
    return tl.load(scale + row * GROUPS + group, mask=exists, other=0).to(tl.float32)


@triton.jit
def zero_points(zero, row, part, BITS: tl.constexpr, GROUPS: tl.constexpr, EVERY: tl.constexpr):
    """Zero points of parts of rows, float32; they are packed along the rows."""
    if zero is None:
        found = tl.full(part.shape, 2 ** (BITS - 1), tl.float32)
    else:
        group, exists = group_of(part, GROUPS, EVERY)
        bit = row * BITS
        word = tl.load(zero + bit // 32 * GROUPS + group, mask=exists, other=0)
        above = word
        if 32 % BITS != 0:
            above = tl.load(zero + (bit + BITS - 1) // 32 * GROUPS + group, mask=exists, other=0)
        found = code_at(word, above, bit % 32, BITS)
    return found


@triton.jit
def spread(each, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """(parts, rows) -> (1, rows, units)."""
    PARTS: tl.constexpr = each.shape[0]
    each = tl.trans(each).reshape(ROWS, PARTS, 1).broadcast_to(ROWS, PARTS, UNITS // PARTS)
    return each.reshape(1, ROWS, UNITS)


@triton.jit
def numbers(x, word, at, left, middle, factor, BITS: tl.constexpr, CODES: tl.constexpr, MAGIC: tl.constexpr):
    """(code − middle) · factor in x's type, (codes, rows, units), from the first words of units, which are ``at``.

    left: how many words of the row there are from there on. middle, factor: (parts, rows); factor may be None.
    """
    ROWS: tl.constexpr = word.shape[0]
    UNITS: tl.constexpr = word.shape[1]
    middle = spread(middle, ROWS, UNITS)
    if factor is not None:
        factor = spread(factor, ROWS, UNITS)
    if MAGIC is None:
        found = codes_from(word, at, left, BITS, CODES) - middle
        if factor is not None:
            found = found * factor
        found = found.to(x.dtype.element_ty)
    else:
        word = word.reshape(1, ROWS, UNITS)
        place = tl.arange(0, CODES)[:, None, None]
        HALF: tl.constexpr = CODES // 2
        lift = place % HALF % MAGIC.fields * BITS
        select = tl.where(place < HALF, 0x5410, 0x7632)
        shift = place % HALF * BITS - lift
        mask = ((2**BITS - 1) * 0x10001) << lift
        power = ((127 - lift) << 23).to(tl.float32, bitcast=True)
        offset = (-MAGIC.base * power - middle).to(x.dtype.element_ty)
        power = power.to(x.dtype.element_ty)
        if factor is None:
            found = tl.inline_asm_elementwise(
                MAGIC.steps, "=r,r,r,r,r,r,r,r,r,r,r", [word, select, shift, mask, power, offset],
                dtype=x.dtype.element_ty, is_pure=True, pack=2,
            )  # fmt: skip
        else:
            found = tl.inline_asm_elementwise(
                MAGIC.weights, "=r,r,r,r,r,r,r,r,r,r,r,r",
                [word, select, shift, mask, power, offset, factor.to(x.dtype.element_ty)],
                dtype=x.dtype.element_ty, is_pure=True, pack=2,
            )  # fmt: skip
    return found
