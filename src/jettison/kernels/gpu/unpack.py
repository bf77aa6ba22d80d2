"""Unpack weights in Triton: codes, scales and zero points.

A *unit* is the smallest number of whole words that holds whole codes: one word with 16, 8 or 4 codes for 2, 4 and 8
bits, three words with 32 codes for 3 bits.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl


def codes_of(bits: int) -> int:
    """Return the number of codes in a unit."""
    return 32 // math.gcd(bits, 32)


def span_of(bits: int) -> int:
    """Return how many columns a warp processes at a time: four threads hold four words each (for 3 bits, three)."""
    return 128 if bits == 3 else 512 // bits


class Magic(NamedTuple):
    """How codes are converted to 16-bit floats, two at a time: usually those at the same place of neighbouring words.

    The codes are or-ed into mantissas. ``fields`` codes fit side by side into one mantissa without a shift. A
    multiplication by a power of two moves a code to the lowest bits, and ``base``, the number whose lowest bits hold
    the first code, is subtracted together with the zero point. The result is exact.

    steps: instructions for the conversion.
    weights: instructions for the conversion and the multiplication by the scale.
    """

    steps: tl.constexpr
    weights: tl.constexpr
    fields: tl.constexpr
    base: tl.constexpr


# Operands, for two codes: their words $1 $2; selectors of the bytes that hold them $3 $4; right shifts $5 $6; masks of
# the shifted codes $7 $8; powers of two $9; offsets to subtract $10; scales $11. If both codes are at the same place of
# their words, as in all present uses, the assembler knows it and removes the instructions under the condition p.
PAIR = """{{ .reg .b32 t, u, m; .reg .pred p;
    setp.ne.u32 p, $3, $4; setp.ne.or.u32 p, $5, $6, p; setp.ne.or.u32 p, $7, $8, p;
    prmt.b32 t, $1, $2, $3; shr.u32 t, t, $5; mov.b32 m, $7;
    @p and.b32 t, $3, 0xff; @p and.b32 u, $4, 0xff00; @p or.b32 t, t, u; @p prmt.b32 u, $1, $2, t;
    @p shr.u32 t, u, $5; @p shr.u32 u, u, $6; @p prmt.b32 t, t, u, 0x7610;
    @p and.b32 m, $7, 0xffff; @p and.b32 u, $8, 0xffff0000; @p or.b32 m, m, u;
    lop3.b32 t, t, m, {base}, 0xEA; fma.rn.{kind}x2 t, t, $9, $10; """


@cache
def magic(dtype: torch.dtype, bits: int) -> Magic | None:
    """Return the conversion for a type and bits; None if a code does not fit into a mantissa, or crosses words."""
    kind, mantissa, one = {torch.bfloat16: ("bf16", 7, 0x4300), torch.float16: ("f16", 10, 0x6400)}[dtype]
    if bits > mantissa or 32 % bits:
        return None
    pair = PAIR.format(base=hex(one * 0x10001), kind=kind)
    scaled = f"mov.b32 u, 0x80008000; fma.rn.{kind}x2 $0, t, $11, u; }}"
    return Magic(pair + "mov.b32 $0, t; }", pair + scaled, mantissa // bits, 1 << mantissa)


@triton.jit
def lifted(above, bit):
    """Return the part of a code starting at ``bit`` that is in the next word. Two shifts, as one by 32 is undefined."""
    return (above << 1) << (31 - bit % 32).to(tl.uint32)


@triton.jit
def code_at(word, above, bit, BITS: tl.constexpr):
    """Return the code that starts at ``bit`` of a word, as float32.

    above: the next word. The code is or-ed into a mantissa, because converting integers is slow.
    """
    code = word.to(tl.uint32, bitcast=True) >> bit.to(tl.uint32)
    if 32 % BITS != 0:
        code = tl.where(bit + BITS > 32, code | lifted(above.to(tl.uint32, bitcast=True), bit), code)
    return ((code & (2**BITS - 1)) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def codes_from(word, at, left, BITS: tl.constexpr, CODES: tl.constexpr):
    """Return the codes of units, (codes, rows, units) float32.

    word: (rows, units), the first words of the units.
    at: (rows, units), their addresses.
    left: how many words the row has from each of them on.
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
    """Return the group of every part of a row, and whether the part exists. EVERY parts make one group."""
    group = part // (EVERY if GROUPS > 1 else 1 << 30)
    exists = part < GROUPS * EVERY if GROUPS > 1 else part >= 0
    if len(part.shape) == 2:
        # This hint is false: it says that the groups of a quad's four parts are contiguous. It makes the compiler
        # assign them to neighbouring threads, as it assigns words. It has no other effect: contiguous values would be
        # loaded together, but only if they were known to be aligned.
        group = tl.max_contiguous(group, (4, 1))
    return group, exists


@triton.jit
def scales(scale, row, part, GROUPS: tl.constexpr, EVERY: tl.constexpr):
    """Load the scales of parts of rows, as float32."""
    group, exists = group_of(part, GROUPS, EVERY)
    return tl.load(scale + row * GROUPS + group, mask=exists, other=0).to(tl.float32)


@triton.jit
def zero_points(zero, row, part, BITS: tl.constexpr, GROUPS: tl.constexpr, EVERY: tl.constexpr):
    """Load the zero points of parts of rows, as float32; they are packed along the rows."""
    if zero is None:
        values = tl.full(part.shape, 2 ** (BITS - 1), tl.float32)
    else:
        group, exists = group_of(part, GROUPS, EVERY)
        bit = row * BITS
        word = tl.load(zero + bit // 32 * GROUPS + group, mask=exists, other=0)
        above = word
        if 32 % BITS != 0:
            above = tl.load(zero + (bit + BITS - 1) // 32 * GROUPS + group, mask=exists, other=0)
        values = code_at(word, above, bit % 32, BITS)
    return values


@triton.jit
def spread(values, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """Repeat values (parts, rows) for the units of every part. Returns (1, rows, units)."""
    PARTS: tl.constexpr = values.shape[0]
    values = tl.trans(values).reshape(ROWS, PARTS, 1).broadcast_to(ROWS, PARTS, UNITS // PARTS)
    return values.reshape(1, ROWS, UNITS)


@triton.jit
def numbers(x, word, at, left, middle, factor, BITS: tl.constexpr, CODES: tl.constexpr, MAGIC: tl.constexpr):
    """Return (code − middle) · factor in x's type, (codes, rows, units).

    word, at, left: the first words of the units, as in ``codes_from``.
    middle: (parts, rows), zero points.
    factor: (parts, rows), scales; None for no multiplication.
    """
    ROWS: tl.constexpr = word.shape[0]
    UNITS: tl.constexpr = word.shape[1]
    middle = spread(middle, ROWS, UNITS)
    if factor is not None:
        factor = spread(factor, ROWS, UNITS)
    if MAGIC is None:
        values = codes_from(word, at, left, BITS, CODES) - middle
        if factor is not None:
            values = values * factor
        values = values.to(x.dtype.element_ty)
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
            values = tl.inline_asm_elementwise(
                MAGIC.steps, "=r,r,r,r,r,r,r,r,r,r,r", [word, select, shift, mask, power, offset],
                dtype=x.dtype.element_ty, is_pure=True, pack=2,
            )  # fmt: skip
        else:
            values = tl.inline_asm_elementwise(
                MAGIC.weights, "=r,r,r,r,r,r,r,r,r,r,r,r",
                [word, select, shift, mask, power, offset, factor.to(x.dtype.element_ty)],
                dtype=x.dtype.element_ty, is_pure=True, pack=2,
            )  # fmt: skip
    return values
