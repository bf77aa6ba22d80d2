"""Random weights, sizes and faults against the CPU kernels: ``python tests/fuzz_kernels.py SECONDS [SEED]``.

tests/kernels/test_cpu.py runs it under sanitizers. It prints how many cases passed; any disagreement is an error.
"""

import itertools
import random
import sys
import time

import torch

from jettison.core.errors import UsageError
from jettison.encodings.quantized import QuantizedWeight
from jettison.encodings.uniform import UniformGrid
from jettison.kernels import native, ops
from jettison.kernels.tiles import Tiling, dense, pack_codes, spread, to_checkpoint, two_of_four

INSTRUCTION_SETS = ("avx512", "avxvnni", "avx2", "portable")


def available() -> list[str]:
    """Return the names of the instruction sets that this processor has."""
    names, current = [], native.instruction_set()
    for name in INSTRUCTION_SETS:
        try:
            names.append(native.instruction_set(name))
        except UsageError:
            continue
    native.instruction_set(current)
    return names


def random_weight(rng: random.Random) -> QuantizedWeight:
    """Return a quantized weight with random bits, groups, shape and codes; some weights are 2:4 sparse."""
    bits, group = rng.choice([2, 3, 4, 5, 8]), rng.choice([-1, -1, 1, 8, 16, 24, 32, 48, 64, 128, 200, 384, 512])
    columns = rng.randint(1, 700) if group == -1 else group * rng.randint(1, max(1, 700 // group))
    rows, symmetric = rng.randint(1, 80), rng.random() < 0.5
    kind = rng.choice(["bfloat16", "float16", "float32"])
    grid = UniformGrid(bits, group, symmetric, kind)
    shape = (rows, grid.groups(columns))
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    if symmetric and bits in (4, 8) and columns % 4 == 0 and rng.random() < 0.5:
        mask = torch.rand(rows, columns // 4, 4).argsort(-1).flatten(1) < 2  # two of every four columns
        codes[mask] = grid.zero_code
    zero = None if symmetric else torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    return QuantizedWeight(codes, torch.randn(shape).mul(0.1).to(grid.scale_dtype), zero, grid)


def representable(count: int, tiling: Tiling) -> torch.Tensor:
    """Return activations, (count, columns), that int8 represents exactly.

    They are whole numbers up to 127; every span of columns is multiplied by a power of 2.
    """
    x = torch.randint(-127, 128, (count, tiling.groups * tiling.span)).float().view(count, tiling.groups, tiling.span)
    x[:, :, 0] = 127.0
    x = x * torch.exp2(torch.randint(-8, 8, (count, tiling.groups, 1)).float())
    return x.flatten(1)[:, : tiling.columns]


def check(rng: random.Random, names: list[str]) -> None:
    """Check packing, unpacking and products of a random weight on every instruction set in ``names``."""
    weight = random_weight(rng)
    rows, columns = weight.codes.shape
    grid, sparse = weight.grid, two_of_four(weight.codes, weight.grid)
    tiling = Tiling.of(grid, rows, columns, sparse)
    if tiling is None:
        return
    parts = weight.parts()
    packed = (parts["weight_packed"], parts["weight_scale"], parts.get("weight_zero_point"))
    tiles, zero = ops.pack_tiles(*packed, grid, tiling)
    assert torch.equal(tiles, pack_codes(weight.codes, spread(weight.scale, grid, tiling), tiling)), "packing"
    for before, after in zip(packed, to_checkpoint(tiles, zero, tiling, grid), strict=True):
        assert (before is None and after is None) or torch.equal(before, after), "unpacking"
    assert torch.equal(dense(tiles, zero, tiling), weight.dequantize()), "dense"

    count = rng.choice([1, 1, 2, 3, 5, 8, 9, 16, 17, 40, 600])
    x, bias = representable(count, tiling), torch.randn(rows) if rng.random() < 0.5 else None
    exact = x.double() @ weight.dequantize(torch.float64).T + (0 if bias is None else bias)
    size = x.double().abs() @ weight.dequantize(torch.float64).abs().T + 1
    torch.set_num_threads(rng.choice([1, 2]))  # main resets it
    for dtype in (torch.float32, torch.bfloat16):
        outputs = []
        for name in names:
            native.instruction_set(name)
            outputs.append(native.linear(x.to(dtype), tiles, zero, bias, tiling))
        if dtype == torch.float32:
            assert ((outputs[0] - exact).abs() / size).max() < 1e-5, (
                f"{tiling}: off by {(outputs[0] - exact).abs().max()}"
            )
        for name, output in zip(names, outputs, strict=True):
            assert torch.equal(output, outputs[0]), f"{name} differs: {tiling}, {count} rows"
    check_15_bits(torch.randn_like(x) * x.abs().max(), weight, tiles, zero, tiling, names)
    spoil(rng, x, tiles, zero, bias, tiling)


def check_15_bits(x, weight: QuantizedWeight, tiles, zero, tiling: Tiling, names: list[str]) -> None:
    """Check products of any activations, rounded to 15 bits."""
    exact = x.double() @ weight.dequantize(torch.float64).T
    size = x.double().abs().amax(1, keepdim=True) * weight.dequantize(torch.float64).abs().sum(1) + 1e-30
    outputs = []
    for name in names:
        native.instruction_set(name)
        outputs.append(native.linear(x, tiles, zero, None, tiling, activation_bits=15))
    assert ((outputs[0] - exact).abs() / size).max() < 3.5e-5, f"{tiling}: 15-bit activations"
    for name, output in zip(names, outputs, strict=True):
        assert torch.equal(output, outputs[0]), f"{name} differs: {tiling}, 15-bit activations, {len(x)} rows"


def spoil(rng: random.Random, x, tiles, zero, bias, tiling: Tiling) -> None:
    """Check that one wrong argument raises UsageError, and that (by the sanitizers) no access is out of bounds."""
    shorter = lambda tensor: tensor.flatten()[:-1].clone()
    faults = {
        "x": lambda: (x[:, :-1], tiles, zero, bias),
        "type": lambda: (x.double(), tiles, zero, bias),
        "tiles": lambda: (x, shorter(tiles), zero, bias),
        "words": lambda: (x, tiles.view(torch.int8), zero, bias),
        "zero": lambda: (x, tiles, torch.zeros(tiling.zero_shape, dtype=torch.uint8)[:, :, :-1].contiguous(), bias),
        "bias": lambda: (x, tiles, zero, torch.zeros(tiling.rows + 1)),
    }
    name = rng.choice(sorted(faults))
    try:
        native.linear(*faults[name](), tiling)
    except UsageError:
        return
    raise AssertionError(f"{name}: no error, {tiling}")


def main(seconds: float, seed: int) -> None:
    """Check random cases for so many seconds. Raises AssertionError, with the seed, at the first disagreement."""
    names, deadline, threads = available(), time.monotonic() + seconds, torch.get_num_threads()
    for number in itertools.count():
        if time.monotonic() > deadline:
            break
        torch.manual_seed(seed + number)
        try:
            check(random.Random(seed + number), names)
        except AssertionError as error:
            raise AssertionError(f"seed {seed + number}: {error}") from error
    torch.set_num_threads(threads)
    print(f"{number} cases passed on {', '.join(names)}")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
