"""The GPU kernels against a product in float64: on a GPU if there is one, else in Triton's interpreter.

The interpreter must be chosen before Triton is imported, and other tests may have imported it. Without a GPU, the tests
therefore run in a process of their own.
"""

import itertools
import os
import random
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

pytest.importorskip("triton")

from jettison.core.errors import UsageError
from jettison.encodings.quantized import pack
from jettison.kernels import gpu
from jettison.kernels.gpu import linear

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
HERE = INTERPRETED or torch.cuda.is_available()
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
TOLERANCE = {F32: 1e-5, F16: 2e-3, BF16: 2e-2}  # relative to a result plus the standard deviation of all results


@pytest.mark.skipif(HERE, reason="the tests run in this process")
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


if INTERPRETED:  # as of Triton 3.9, the interpreter's product of bfloat16 multiplies the raw bits
    import numpy as np
    import ptx_emulator
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _convert_float

    def widened(tensor):
        """Return a bfloat16 tensor as float32."""
        if tensor.dtype.scalar != tl.bfloat16:
            return tensor
        return TensorHandle(_convert_float(tensor.data, tl.bfloat16, tl.float32, None).view(np.float32), tl.float32)

    product = InterpreterBuilder.create_dot
    InterpreterBuilder.create_dot = lambda self, a, b, *rest: product(self, widened(a), widened(b), *rest)


@dataclass(frozen=True)
class Case:
    """A product: sizes of the weight, types, number of tokens."""

    bits: int
    group: int
    rows: int
    columns: int
    tokens: int
    symmetric: bool = True
    dtype: torch.dtype = F32
    bias: bool = False
    scales: torch.dtype = BF16

    def __str__(self) -> str:
        sign = "sym" if self.symmetric else "asym"
        return f"{self.bits}bit-g{self.group}-{self.rows}x{self.columns}-{self.tokens}-{sign}-{self.dtype}"[:60]


def make_case(case: Case, seed: int = 0) -> tuple[tuple, torch.Tensor]:
    """Return the arguments of quant_linear, and y in float64. Half of the scales are negative."""
    rng = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=rng)
    codes_of = lambda *shape: torch.randint(0, 2**case.bits, shape, generator=rng).to(torch.uint8)
    groups = 1 if case.group == -1 else case.columns // case.group
    codes, scale = codes_of(case.rows, case.columns), normal(case.rows, groups).to(case.scales)
    zero = None if case.symmetric else codes_of(case.rows, groups)
    x = normal(case.tokens, case.columns).to(case.dtype)
    bias = 3 * normal(case.rows).to(case.dtype) if case.bias else None
    middle = 2 ** (case.bits - 1) if zero is None else zero.double().unsqueeze(-1)
    steps = codes.double().unflatten(1, (groups, -1)) - middle
    y = x.double() @ (steps * scale.double().unsqueeze(-1)).flatten(1).T
    packed_zero = None if zero is None else pack(zero.T.contiguous(), case.bits).T
    tensors = (x, pack(codes, case.bits), scale, packed_zero, bias)
    x, packed, scale, packed_zero, bias = (None if t is None else t.to(DEVICE) for t in tensors)
    return (x, packed, scale, packed_zero, case.bits, case.group, bias), y if bias is None else y + bias.cpu().double()


def check(case: Case, seed: int = 0) -> None:
    """Check type, shape and error of a product."""
    arguments, expected = make_case(case, seed)
    y = gpu.quant_linear(*arguments)
    assert y.dtype == case.dtype
    assert y.shape == expected.shape
    error = ((y.cpu().double() - expected).abs() / (expected.abs() + expected.std(correction=0) + 1e-9)).max()
    assert error < TOLERANCE[case.dtype], f"{case}: {error:.2g}"


class Count:
    """Wraps a kernel and counts its launches."""

    def __init__(self, kernel):
        self.kernel, self.launches = kernel, 0

    def __getitem__(self, grid):
        self.launches += 1
        return self.kernel[grid]


CASES = [
    Case(2, 64, 33, 320, 1),
    Case(2, 16, 7, 48, 1, symmetric=False, dtype=BF16, bias=True),
    Case(2, 128, 65, 2432, 1, symmetric=False, dtype=F16),
    Case(2, -1, 31, 200, 1, symmetric=False),  # the last word is half empty
    Case(2, 8, 17, 136, 2, symmetric=False),  # groups end within words
    Case(2, 64, 33, 320, 5, symmetric=False, dtype=BF16),
    Case(2, 32, 129, 96, 17, dtype=F16, bias=True, scales=F32),
    Case(2, 24, 5, 72, 40, symmetric=False),
    Case(3, 32, 9, 160, 1, symmetric=False, bias=True),
    Case(3, 128, 33, 384, 1, dtype=BF16),
    Case(3, 40, 13, 40, 2, symmetric=False, scales=F16),
    Case(3, 16, 71, 112, 16, symmetric=False, dtype=F16),
    Case(3, 64, 40, 192, 17, symmetric=False, dtype=BF16, bias=True),
    Case(4, 128, 47, 640, 1, dtype=BF16, bias=True),
    Case(4, 16, 3, 1200, 1, symmetric=False, scales=F32),
    Case(4, 9, 11, 63, 2, symmetric=False),
    Case(4, 32, 66, 288, 5, symmetric=False, dtype=F16),
    Case(4, 64, 35, 192, 16, dtype=BF16),
    Case(4, -1, 140, 100, 40, symmetric=False, dtype=BF16, bias=True),
    Case(4, 128, 131, 256, 70, symmetric=False, dtype=F16),  # the large tiles of a long prompt
    Case(8, 128, 5, 256, 1, symmetric=False, dtype=F16),
    Case(8, 32, 34, 96, 2, dtype=BF16, bias=True),
    Case(8, 64, 37, 192, 17, symmetric=False, dtype=F16),
    Case(8, -1, 1, 50, 5, symmetric=False),  # one row
    *(Case(bits, 32, 19, 96, tokens, symmetric=False) for bits in (5, 6, 7) for tokens in (1, 5)),
]


class TestKernels:
    __test__ = HERE

    def test_available(self):
        assert gpu.available(torch.empty(1, device=DEVICE))
        assert not gpu.available(torch.empty(1, device="meta"))

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_product(self, case):
        check(case)

    def test_any_shape(self):
        """Random cases of the same kinds as CASES."""
        rng = random.Random(0)
        for seed in range(40):
            group = rng.choice([8, 12, 16, 32, 33, 64, 128])
            case = Case(
                bits=rng.choice([2, 2, 3, 4, 4, 8]),
                group=rng.choice([group, group, -1]),
                rows=rng.randint(1, 140),
                columns=group * rng.randint(1, max(2, 300 // group)),
                tokens=rng.choice([1, 1, 2, 3, 5, 16, 17, 33, 40, 65]),
                symmetric=rng.random() < 0.5,
                dtype=rng.choice([F32, F16, F16, BF16]),
                bias=rng.random() < 0.3,
                scales=rng.choice([F32, F16, BF16]),
            )
            check(case, seed)

    @pytest.mark.parametrize(
        ("bits", "group", "columns", "tokens", "dtype", "launches"),
        [
            (2, 64, 4160, 1, BF16, 1),  # more warps per program; the last ones have no work
            (3, 64, 4224, 1, BF16, 1),
            (4, 64, 2112, 9, F16, 1),
            (8, 64, 640, 5, F16, 1),
            (2, 64, 640, 17, BF16, 1),
            (4, 64, 640, 64, F16, 1),
            (4, -1, 100, 3, F16, 1),  # less than a span
            (4, 64, 640, 65, F16, 0),
            (4, 64, 640, 1, F32, 0),  # matrix units would round float32
            (2, 24, 72, 1, F16, 0),  # groups end within words
            (5, 64, 640, 1, F16, 0),
        ],
    )
    def test_which_kernel(self, monkeypatch, bits, group, columns, tokens, dtype, launches):
        multiply = Count(linear._multiply)
        monkeypatch.setattr(linear, "_multiply", multiply)
        check(Case(bits, group, 11, columns, tokens, symmetric=False, dtype=dtype, bias=True))
        assert multiply.launches == launches

    @pytest.mark.skipif(not INTERPRETED, reason="the GPU runs the instructions themselves")
    @pytest.mark.parametrize("pair_along", [-1, 0], ids=["words", "codes"])
    def test_instructions(self, monkeypatch, pair_along):
        """The PTX instructions of ``magic`` are right whichever two elements the compiler pairs."""
        calls = []
        emulated = ptx_emulator.inline_assembly(pair_along)
        monkeypatch.setattr(
            InterpreterBuilder, "create_inline_asm", lambda *args: calls.append(args[1]) or emulated(*args)
        )
        monkeypatch.setattr(linear, "_has_instructions", lambda x: True)
        for bits, group, dtype in itertools.product((2, 4, 8), (-1, 32, 256), (F16, BF16)):
            scales = dtype if group == 32 else BF16
            check(Case(bits, group, 19, 512, 3, symmetric=group == 32, dtype=dtype, bias=True, scales=scales))
        assert len(set(calls)) == 4  # two types, with scales and without

    @pytest.mark.skipif(not INTERPRETED, reason="of what the emulator runs")
    def test_scales_too_small_for_float16(self, monkeypatch):
        monkeypatch.setattr(InterpreterBuilder, "create_inline_asm", ptx_emulator.inline_assembly(-1))
        monkeypatch.setattr(linear, "_has_instructions", lambda x: True)
        for group in (32, 128):
            (x, packed, scale, zero, bits, group_size, _), expected = make_case(Case(4, group, 9, 256, 2, dtype=F16))
            y = gpu.quant_linear(64 * x, packed, scale.float() * 1e-5, zero, bits, group_size)
            assert ((y.double() - expected * 64e-5).abs() < 2e-3 * 64e-5 * expected.std()).all()

    @pytest.mark.parametrize("few", [0, linear.FEW])
    def test_many_rows_of_weights_are_written_down_in_parts(self, monkeypatch, few):
        monkeypatch.setattr(linear, "FEW", few)
        monkeypatch.setattr(linear, "DENSE_BYTES", 0)
        check(Case(4, 32, 300, 64, 3, symmetric=False, dtype=BF16, bias=True))

    @pytest.mark.parametrize("tokens", [1, 5])
    def test_sums_are_in_float32(self, tokens):
        """The first product is large and the last one cancels it. The products in between must not be lost."""
        codes = torch.randint(0, 16, (9, 2048), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        x = torch.randn(tokens, 2048, generator=torch.Generator().manual_seed(1)).half()
        codes[:, -1] = codes[:, 0]
        x[:, 0], x[:, -1] = 1000, -1000
        y = gpu.quant_linear(x.to(DEVICE), pack(codes, 4).to(DEVICE), torch.ones(9, 1, device=DEVICE), None, 4, -1)
        expected = x.double() @ (codes.double() - 8).T
        assert ((y.cpu().double() - expected).abs() < 1e-3 * expected.abs() + 0.1).all()

    def test_shapes_of_x(self):
        (x, *rest), expected = make_case(Case(4, 32, 21, 64, 6))
        y = gpu.quant_linear(x.reshape(2, 3, 64), *rest)
        assert torch.allclose(y.cpu().double(), expected.reshape(2, 3, 21), atol=1e-4)
        assert torch.equal(gpu.quant_linear(x[0], *rest), gpu.quant_linear(x[:1], *rest)[0])
        strided = x.T.contiguous().T
        assert torch.equal(gpu.quant_linear(strided, *rest), y.reshape(6, 21))
        half = gpu.quant_linear(x.half(), *rest)
        assert torch.equal(gpu.quant_linear(strided.half(), *rest), half)
        bias = torch.randn(21, 2, device=DEVICE)[:, 0]
        for typed in (x, x.half()):
            plain = gpu.quant_linear(typed, *rest)
            assert torch.allclose(gpu.quant_linear(typed, *rest[:-1], bias), plain + bias.to(typed.dtype), atol=0.3)
        assert gpu.quant_linear(x[:0].reshape(2, 0, 64), *rest).shape == (2, 0, 21)

    def test_same_bits_every_time(self):
        arguments, _ = make_case(Case(2, 64, 11, 9728, 1, dtype=BF16))
        first = gpu.quant_linear(*arguments)
        assert all(torch.equal(gpu.quant_linear(*arguments), first) for _ in range(3))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({0: torch.zeros(1, 60)}, "group_size 32 does not divide a row of 60"),
            ({0: torch.zeros(1, 32)}, r"packed has the shape \(21, 8\).*must be \(21, 4\)"),
            ({0: torch.zeros(1, 64, dtype=torch.int32)}, "x is of torch.int32; valid: torch.float32"),
            ({2: torch.zeros(21, 1)}, r"scale has the shape \(21, 1\).*must be \(21, 2\)"),
            ({3: torch.zeros(21, 2)}, r"zero_point has the shape \(21, 2\).*must be \(3, 2\)"),
            ({4: 9}, "bits = 9"),
            ({6: torch.zeros(20)}, r"bias has the shape \(20,\).*must be \(21,\)"),
        ],
    )
    def test_bad_arguments_say_what_would_be_valid(self, change, words):
        arguments, _ = make_case(Case(4, 32, 21, 64, 1, symmetric=False, bias=True))
        with pytest.raises(UsageError, match=words):
            gpu.quant_linear(*(change.get(index, value) for index, value in enumerate(arguments)))


@pytest.mark.parametrize(("rows", "columns"), [(6144, 2560), (2560, 4096), (19456, 2560), (2560, 9728), (28672, 4096)])
@pytest.mark.parametrize("bits", [2, 4])
def test_blocks_fill_a_gpu(bits, rows, columns):
    for tokens in (1, 8, 16):
        blocks = linear.blocks(tokens, rows, columns, bits)
        assert blocks.width == (8 if tokens <= 8 else 16)
        count = rows // 16 * blocks.warps
        assert (
            linear.WARPS / 2 < count < 2 * linear.WARPS
            or blocks.warps == 2
            or columns < 4 * blocks.warps * linear.span_of(bits)
        )
        assert blocks.warps == 2 or 2 * blocks.warps * linear.span_of(bits) <= columns


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
@pytest.mark.parametrize(
    ("bits", "group", "columns", "tokens", "zero"),
    [
        (2, 64, 4096, 1, False),
        (2, 64, 4096, 16, True),
        (2, 128, 4096, 1, True),
        (2, 2560, 2560, 9, True),
        (3, 128, 4096, 1, True),
        (4, 32, 4096, 1, False),
        (4, 128, 4096, 1, True),
        (4, 2560, 2560, 16, True),
        (8, 128, 4096, 1, False),
    ],
)
def test_no_weight_changes_threads(bits, group, columns, tokens, zero):
    """Compile for A100 or H100, which needs no GPU: weights must reach the matrix units in registers alone."""
    import triton
    from triton.backends.compiler import GPUTarget

    types = {"x": "*bf16", "packed": "*i32", "scale": "*bf16", "out": "*bf16", "tokens": "i32", "rows": "i32"}
    types |= {"zero": "*i32"} if zero else {}
    blocks = linear.blocks(tokens, 4096, columns, bits)
    constants = {
        "BITS": bits, "CODES": linear.codes_of(bits), "GROUP": group, "COLUMNS": columns, "HIGH": blocks.high,
        "TOKENS": blocks.width, "SPANS": blocks.warps, "MAGIC": linear.magic(BF16, bits), "bias": None,
    } | ({} if zero else {"zero": None})  # fmt: skip
    names = linear._multiply.arg_names
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in ("x", "packed", "out")}
    signature = {name: types.get(name, "constexpr") for name in names}
    source = triton.compiler.ASTSource(linear._multiply, signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": blocks.warps, "num_stages": 1, "enable_fp_fusion": True}
    target = GPUTarget("cuda", 80 if zero else 90, 32)
    assembly = triton.compile(source, target=target, options=options).asm
    assert "tt.dot" in assembly["ttgir"]
    assert "local_alloc" not in assembly["ttgir"]
    assert ".local" not in assembly["ptx"]
