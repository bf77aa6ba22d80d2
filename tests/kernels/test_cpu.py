"""The CPU kernels: tiles, products, faults, threads, and the PyTorch path without them. Nothing is timed."""

import copy
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import fuzz_kernels
import pytest
import torch
from products import random_weight, tiled

from jettison.core.errors import UsageError
from jettison.encodings.uniform import UniformGrid
from jettison.graph.modules import PackedLinear, TiledLinear
from jettison.kernels import native
from jettison.kernels.tiles import Tiling, dense
from jettison.runtime.load import load

TESTS = Path(__file__).parents[1]
needs_kernels = pytest.mark.skipif(native.library() is None, reason="built without a compiler")
CASES = [  # bits, group size, symmetric
    (2, 64, True), (2, 128, False), (3, 128, True), (4, 32, False), (4, 128, True), (8, -1, True), (5, 64, False),
]  # fmt: skip


@pytest.fixture
def every_set():
    """Return the names of all instruction sets of this processor; restore the used one afterwards."""
    current = native.instruction_set()
    yield fuzz_kernels.available()
    native.instruction_set(current)


def test_where_there_is_a_compiler_there_are_kernels():
    assert native.library() is not None or not (shutil.which("c++") or os.environ.get("CXX"))


@needs_kernels
class TestProducts:
    @pytest.mark.parametrize(("bits", "group_size", "symmetric"), CASES)
    def test_error_against_the_dequantized_weight_in_float64(self, bits, group_size, symmetric, every_set):
        weight = random_weight(UniformGrid(bits, group_size, symmetric), 96, 2560)
        module, x = tiled(weight), torch.randn(16, 2560)
        exact = x.double() @ weight.dequantize(torch.float64).T
        for name in every_set:
            native.instruction_set(name)
            error = (module(x) - exact).norm() / exact.norm()
            assert 1e-4 < error < 1e-2, f"{name}: {error}"  # the error of int8 activations, and no larger one

    def test_random_cases_on_every_instruction_set(self, every_set):
        """If int8 represents the activations exactly, all instruction sets give the exact product, bit for bit."""
        fuzz_kernels.main(6.0, seed=1000)
        assert "portable" in every_set

    def test_rows_do_not_depend_on_each_other(self):
        module, x = tiled(random_weight(UniformGrid(4, 64), 70, 256)), torch.randn(530, 256)
        together = module(x)
        for count in (1, 2, 5, 7, 8, 9, 16, 17):
            assert torch.equal(module(x[:count]), together[:count])
        assert torch.equal(module(x[511:513]), together[511:513])

    def test_leading_dimensions_and_bias(self):
        bias = torch.randn(40).bfloat16()
        weight = random_weight(UniformGrid(4, 32), 40, 96)
        x = torch.randn(2, 3, 96)
        plain, biased = tiled(weight)(x), tiled(weight, bias)(x)
        assert plain.shape == (2, 3, 40)
        assert torch.allclose(biased, plain + bias.float())
        assert tiled(weight)(x[:0]).shape == (0, 3, 40)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_short_types_are_the_rounded_result(self, dtype):
        module, x = tiled(random_weight(UniformGrid(2, 64), 64, 256)), torch.randn(3, 256).to(dtype)
        result = module(x)
        assert result.dtype == dtype
        assert torch.equal(result, module(x.float()).to(dtype))

    def test_what_is_not_finite_stays_in_its_row(self, every_set):
        module, x = tiled(random_weight(UniformGrid(4, 64), 40, 256)), torch.randn(4, 256)
        clean = module(x)
        x[1, 100], x[2, 3] = float("nan"), float("-inf")
        for name in every_set:
            native.instruction_set(name)
            result = module(x)
            assert torch.isnan(result[1:3]).all(), name
            assert torch.equal(result[[0, 3]], clean[[0, 3]]), name

    def test_zeros_and_the_smallest_numbers(self):
        module = tiled(random_weight(UniformGrid(4, 64), 40, 128), torch.ones(40))
        assert torch.equal(module(torch.zeros(2, 128)), torch.ones(2, 40))
        assert torch.equal(module(torch.full((1, 128), 1e-40)), torch.ones(1, 40))


@needs_kernels
class TestFaults:
    def make(self) -> tuple[torch.Tensor, torch.Tensor, Tiling]:
        """Return valid x, tiles and tiling."""
        weight = random_weight(UniformGrid(4, 32), 40, 64)
        module = tiled(weight)
        return torch.randn(2, 64), module.tiles, module.tiling

    def test_the_message_names_what_was_given_and_what_is_valid(self):
        x, tiles, tiling = self.make()
        with pytest.raises(UsageError, match=r"x: float64 \(2, 64\).*takes x: float32 or bfloat16 \(\.\.\., 64\)"):
            native.linear(x.double(), tiles, None, None, tiling)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda x, tiles: (x[:, :32], tiles, None, None),
            lambda x, tiles: (x, tiles[:1].repeat(3, 1, 1), None, None),
            lambda x, tiles: (x, tiles.transpose(0, 1), None, None),
            lambda x, tiles: (x, tiles.to("meta"), None, None),
            lambda x, tiles: (x.to("meta"), tiles, None, None),
            lambda x, tiles: (x, tiles, torch.zeros(3, dtype=torch.uint8), None),
            lambda x, tiles: (x, tiles, None, torch.zeros(40).bfloat16()),
        ],
    )  # fmt: skip
    def test_sizes_types_and_devices(self, spoil):
        x, tiles, tiling = self.make()
        with pytest.raises(UsageError, match="do not fit"):
            native.linear(*spoil(x, tiles), tiling)

    def test_misaligned(self):
        _, tiles, tiling = self.make()
        askew = torch.frombuffer(bytearray(2 * 64 * 4 + 1), dtype=torch.float32, offset=1).view(2, 64)
        with pytest.raises(UsageError, match="does not start at a multiple"):
            native.linear(askew, tiles, None, None, tiling)

    def test_overlapping(self):
        _, tiles, tiling = self.make()
        buffer = torch.randn(2 * 64 + 2 * 40)
        output = native.linear(buffer[:128].view(2, 64), tiles, None, None, tiling, out=buffer[128:].view(2, 40))
        assert torch.equal(output, native.linear(buffer[:128].view(2, 64), tiles, None, None, tiling))
        with pytest.raises(UsageError, match="overlaps"):
            native.linear(buffer[:128].view(2, 64), tiles, None, None, tiling, out=buffer[120:200].view(2, 40))

    def test_grids_that_they_do_not_serve(self):
        assert Tiling.of(UniformGrid(4, 2 * 257), 32, 4 * 257) is None  # no divisor of 514 between 32 and 256
        assert Tiling.of(UniformGrid(3, 16), 32, 64) is None  # a step has 32 columns: half would be empty
        module = PackedLinear.of(random_weight(UniformGrid(4, 2 * 257), 32, 4 * 257))
        assert module.tiled() is None and module(torch.randn(1, 4 * 257)).shape == (1, 32)

    def test_unknown_instruction_set(self):
        with pytest.raises(UsageError, match="sse9"):
            native.instruction_set("sse9")


@needs_kernels
@pytest.mark.usefixtures("two_threads")
class TestThreads:
    def test_callers_at_once(self):
        module, x = tiled(random_weight(UniformGrid(4, 64), 512, 1024)), torch.randn(8, 2, 1024)
        expected, failures = [module(row) for row in x], []

        def work(number: int) -> None:
            for _ in range(50):
                if not torch.equal(module(x[number]), expected[number]):
                    failures.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not failures

    def test_one_thread_gives_the_same_bits(self):
        module, x = tiled(random_weight(UniformGrid(2, 64), 512, 1024)), torch.randn(3, 1024)
        two = module(x)
        torch.set_num_threads(1)
        assert torch.equal(module(x), two)

    def test_the_child_of_a_fork_has_threads_of_its_own(self):
        run_python("""
            import os, torch
            from products import random_weight, tiled
            from jettison.encodings.uniform import UniformGrid
            torch.set_num_threads(2)
            module, x = tiled(random_weight(UniformGrid(4, 64), 2048, 1024)), torch.randn(2, 1024)
            right = module(x)
            child = os.fork()
            same = all(torch.equal(module(x), right) for _ in range(20))
            if child == 0:
                os._exit(0 if same else 7)
            assert same and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            print("fine")
        """)  # fmt: skip


class TestModule:
    @needs_kernels
    @pytest.mark.parametrize(("bits", "group_size", "symmetric"), CASES)
    def test_to_tiles_and_back(self, bits, group_size, symmetric):
        weight = random_weight(UniformGrid(bits, group_size, symmetric), 40, 256)
        packed = PackedLinear.of(weight)
        before, module = packed.state_dict(), packed.tiled()
        assert {name for name, _ in module.named_buffers()} == {"tiles"} | ({"tile_zero"} if not symmetric else set())
        assert torch.equal(module.weight, weight.dequantize())
        self.same(module.state_dict(), before)  # tensors and names as in a checkpoint
        self.same(copy.deepcopy(module).state_dict(), before)
        with pytest.raises(RuntimeError, match="Unexpected key"):  # load into PackedLinear, then tile
            tiled(random_weight(weight.grid, 40, 256, seed=1)).load_state_dict(before)
        self.same(dict(module.packed().named_buffers()), before)

    def same(self, actual: dict, expected: dict) -> None:
        """Check that two state dicts are equal."""
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], value) for name, value in expected.items())

    @needs_kernels
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
    def test_scales_that_were_turned_to_another_type_stay_out_of_tiles(self, dtype):
        weight = random_weight(UniformGrid(4, 64), 40, 256)
        module, x = PackedLinear.of(weight).to(dtype), torch.randn(3, 256)
        assert module.tiled() is None
        with torch.no_grad():
            assert torch.allclose(module(x), x @ weight.dequantize().T, atol=1e-2)

    @needs_kernels
    def test_float64_comes_back_as_it_went_in(self):
        module, x = tiled(random_weight(UniformGrid(4, 64), 40, 256)), torch.randn(3, 256)
        assert torch.equal(module(x.double()), module(x).double())

    @needs_kernels
    def test_a_gradient_is_exact(self):
        """The gradient through a tiled linear uses the dequantized weight, and is not rounded like activations."""
        weight = random_weight(UniformGrid(4, 64), 40, 256)
        module, x = tiled(weight), torch.randn(3, 256, requires_grad=True)
        module(x).sum().backward()
        assert torch.allclose(x.grad, weight.dequantize().sum(0).expand(3, -1), atol=1e-5)
        assert isinstance(module, TiledLinear)

    def test_a_module_without_tiles_is_exact(self):
        weight = random_weight(UniformGrid(4, 64), 40, 256)
        x = torch.randn(3, 256)
        with torch.no_grad():
            assert torch.allclose(PackedLinear.of(weight)(x), x @ weight.dequantize().T, atol=1e-5)

    @needs_kernels
    def test_a_model_runs_on_them(self, scribe_w4):
        """A whole model on the kernels, also with generate of transformers, is close to exact products."""
        exact, fast = load(scribe_w4, exact=True), load(scribe_w4)
        kinds = [{type(module) for module in loaded.model.modules()} for loaded in (fast, exact)]
        assert TiledLinear in kinds[0] and PackedLinear not in kinds[0]
        assert PackedLinear in kinds[1] and TiledLinear not in kinds[1]
        ids = fast.tokenizer("It was a dark and stormy night, and the", return_tensors="pt").input_ids
        first, second = (loaded.logits(ids).float().log_softmax(-1) for loaded in (exact, fast))
        kl = (first.exp() * (first - second)).sum(-1).mean()
        assert 0 < kl < 5e-3
        assert fast.generate("It was a", tokens=8).text


class TestOperators:
    def arguments(self) -> tuple:
        """Return valid arguments of the operator tiled_linear."""
        weight = random_weight(UniformGrid(4, 32, symmetric=False), 40, 64)
        module = tiled(weight)
        numbers = (40, module.tiling.bits, module.tiling.span, module.tiling.middle, 1)
        return torch.randn(2, 64), module.tiles, module.tile_zero, torch.randn(40), *numbers

    @needs_kernels
    def test_torch_checks_them(self):
        torch.library.opcheck(torch.ops.jettison.tiled_linear.default, self.arguments())
        module = PackedLinear.of(random_weight(UniformGrid(4, 32), 40, 64))
        packed = (module.weight_packed, module.weight_scale, None, None, 4, 32)
        torch.library.opcheck(torch.ops.jettison.quant_linear.default, (torch.randn(2, 64), *packed))

    @needs_kernels
    def test_compile_and_export_see_them(self):
        module, x = tiled(random_weight(UniformGrid(4, 32), 40, 64)).eval(), torch.randn(2, 64)
        with torch.no_grad():
            compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
            assert torch.equal(compiled(x), module(x))
            program = torch.export.export(module, (x,))
            assert torch.equal(program.module()(x), module(x))
        assert "jettison.tiled_linear" in str(program.graph)

    @needs_kernels
    def test_the_reference_is_the_product_with_the_dense_weight(self, monkeypatch):
        x, tiles, zero, bias, *numbers = self.arguments()
        tiling = Tiling(40, 64, *numbers[1:4], torch.bfloat16)
        fast = torch.ops.jettison.tiled_linear(x, tiles, zero, bias, *numbers)
        monkeypatch.setattr(native, "library", lambda: None)
        slow = torch.ops.jettison.tiled_linear(x, tiles, zero, bias, *numbers)
        assert torch.allclose(slow, x @ dense(tiles, zero, tiling).T + bias, atol=1e-5)
        assert 0 < (fast - slow).norm() / slow.norm() < 3e-2


def test_without_the_library_pytorch_serves_with_one_warning():
    run_python(
        """
        import warnings
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            import torch
            from products import random_weight
            from jettison.encodings.uniform import UniformGrid
            from jettison.graph.modules import PackedLinear
            weight = random_weight(UniformGrid(4, 64), 40, 256)
            x = torch.randn(3, 256)
            for _ in range(3):
                module = PackedLinear.of(weight)
                assert module.tiled() is None
                with torch.no_grad():
                    assert torch.allclose(module(x), x @ weight.dequantize().T, atol=1e-5)
        said = [str(each.message) for each in said if "kernels" in str(each.message)]
        assert len(said) == 1 and "PyTorch is used" in said[0], said
        print("fine")
        """,
        JETTISON_KERNELS="/nowhere/libjettison_kernels.so",
    )


@pytest.mark.slow
@needs_kernels
def test_sanitizers_find_nothing(tmp_path):
    source = TESTS.parent / "src" / "jettison" / "kernels" / "cpu"
    build = ["cmake", "-S", str(source), "-B", str(tmp_path), "-DJETTISON_SANITIZE=ON"]
    subprocess.run(build, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(tmp_path), "-j2"], check=True, capture_output=True)
    compiler = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = os.environ | {
        "LD_PRELOAD": compiler.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaks memory at exit
        "JETTISON_KERNELS": str(next(tmp_path.glob("*jettison_kernels.*"))),
    }
    for script in ("fuzz_kernels.py", "fuzz_engine.py"):
        command = [sys.executable, str(TESTS / script), "60"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "runtime error" not in done.stderr, done.stderr[-3000:]
        assert "cases passed" in done.stdout


@pytest.mark.slow
def test_the_package_installs_without_a_compiler(tmp_path):
    """An override of scikit-build-core repeats a failed build without the library."""
    environment = os.environ | {"CXX": str(tmp_path / "missing"), "CC": str(tmp_path / "missing")}
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(TESTS.parent),
    ]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    wheel = next(tmp_path.glob("jettison-*.whl"))
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True, check=True
    )
    assert "jettison/kernels/native.py" in names.stdout and "libjettison_kernels" not in names.stdout
    assert wheel.name.endswith("-py3-none-any.whl")


def run_python(code: str, **environment: str) -> None:
    """Run code, which must print "fine", in a new process."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    folders = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": folders} | environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0 and done.stdout.strip() == "fine", done.stdout + done.stderr
