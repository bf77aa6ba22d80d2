"""The C++ library: exceptions thrown in it do not end the process, and a library of another version is refused."""

import ctypes
import ctypes.util
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

from jettison.core.errors import JettisonError, UsageError
from jettison.encodings.uniform import UniformGrid
from jettison.graph.modules import PackedLinear
from jettison.kernels import native
from jettison.kernels.specs import SPECS
from jettison.kernels.tiles import Tiling, dense
from jettison.methods.quantize.rtn import rtn
from jettison.runtime.load import load
from jettison.runtime.native_decoder import NativeDecoder

pytestmark = pytest.mark.skipif(native.library() is None, reason="built without a compiler")
KINDS = {1: "not enough memory", 2: "a vector of absurd length", 3: "none of the standard library's"}
ROOT = Path(__file__).parents[2]


def throw(kind: int, part: int, count: int = 1000, threads: int = 0) -> None:
    """Throw an exception of a kind in one part of ``count`` parallel parts."""
    native.raise_thrown(native.library().jettison_throw(kind, part, count, threads))


def product() -> tuple[torch.Tensor, torch.Tensor]:
    """Compute a product of large tiles on all threads. Returns the kernels' result and PyTorch's."""
    torch.manual_seed(0)
    module = PackedLinear.of(rtn(torch.randn(1024, 512) * 0.02, UniformGrid(4, 64), clip=False)).tiled()
    x, weight = torch.randn(8, 512), module.weight
    return native.linear(x, module.tiles, None, None, module.tiling), x @ weight.T


@pytest.mark.usefixtures("two_threads")
class TestThrown:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("threads", [0, 1, 2])
    def test_it_is_an_error_and_the_threads_go_on(self, kind, threads):
        expected, right = product()
        assert (expected - right).norm() / right.norm() < 0.02
        for part in (0, 1, 499, 500, 999):  # parts in the ranges of both threads
            with pytest.raises(JettisonError, match=f"the CPU kernels failed: .*{KINDS[kind]}"):
                throw(kind, part, threads=threads)
            assert torch.equal(product()[0], expected)

    def test_every_part_throws(self):
        """Many threads throw at once; one of the exceptions is reported."""
        for _ in range(200):
            with pytest.raises(JettisonError, match="the CPU kernels failed"):
                throw(2, 0, count=1)
            throw(0, 0)

    def test_callers_at_once_have_their_own(self):
        failures = []

        def call(kind: int) -> None:
            for _ in range(50):
                try:
                    throw(kind, 500)
                    failures.append(f"{kind} did not throw")
                except JettisonError as error:
                    if KINDS[kind] not in str(error):
                        failures.append(str(error))

        callers = [threading.Thread(target=call, args=(kind,)) for kind in KINDS]
        [caller.start() for caller in callers]
        [caller.join(60) for caller in callers]
        assert not failures and not any(caller.is_alive() for caller in callers)

    def test_in_the_child_of_a_fork(self):
        with pytest.raises(JettisonError):
            throw(1, 500)
        child = os.fork()
        if child == 0:
            try:
                throw(2, 500)
            except JettisonError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_memory_that_runs_out_is_an_error(tmp_path):
    """The process really may not get more memory. The decoder stays unchanged, and works again once there is more."""
    code = """
        import resource, torch
        from pathlib import Path
        from jettison.runtime.load import load
        from jettison.runtime.native_decoder import NativeDecoder
        from jettison.core.errors import JettisonError
        torch.set_num_threads(2)
        decoder = NativeDecoder(load("scribe").model)
        session = decoder.session()
        expected = session.append([1, 2, 3, 4])
        session.cut(0)
        limit = resource.getrlimit(resource.RLIMIT_AS)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        for more in (0, 1 << 20):
            resource.setrlimit(resource.RLIMIT_AS, (now + more, limit[1]))
            for attempt in (lambda: decoder.session(cache="float32"), lambda: session.append([5] * 400)):
                try:
                    attempt()
                    raise SystemExit("there was memory for it")
                except JettisonError as error:
                    assert "memory" in str(error) and session.length == 0
            resource.setrlimit(resource.RLIMIT_AS, limit)
            assert torch.equal(session.append([1, 2, 3, 4]), expected)
            session.cut(0)
        print("fine")
    """
    # By these settings, freed memory goes back to the system.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and done.stdout.strip() == "fine", done.stderr[-2000:]


class TestStatus:
    def test_no_memory_in_the_engine_is_not_blamed_on_the_tokens(self, tiny, monkeypatch):
        decoder = NativeDecoder(load(tiny("llama")).model)
        session = decoder.session()
        monkeypatch.setattr(decoder, "_library", Fake(decoder._library, jettison_forward=lambda *_: 4))
        with pytest.raises(JettisonError, match="the CPU kernels failed") as error:
            session.append([1])
        assert not isinstance(error.value, UsageError)

    def test_a_prepared_product_and_a_read_say_what_is_wrong(self):
        tiling = Tiling.of(UniformGrid(4, 64), 32, 64)
        run = native.prepared(torch.ones(1, 64), tiling, torch.empty(1, 32))
        tiles = torch.zeros(tiling.tiles_shape, dtype=torch.uint8)
        run(tiles.data_ptr(), tiles.numel())
        with pytest.raises(UsageError, match="do not fit"):
            run(tiles.data_ptr(), tiles.numel() - 1)
        with pytest.raises(UsageError, match="in 1 to 8 streams"):
            native.read(torch.ones(64), 9, 0)
        assert dense(tiles, None, tiling).shape == (32, 64)


class Fake:
    """A library with some functions replaced."""

    def __init__(self, library, **functions):
        self.__dict__.update(functions, _library=library)

    def __getattr__(self, name):
        return getattr(self._library, name)


class TestVersion:
    def refused(self, monkeypatch, file: Path, words: str) -> None:
        """Check that the library ``file`` is refused with an error that has ``words``."""
        monkeypatch.setenv("JETTISON_KERNELS", str(file))
        with pytest.raises(JettisonError, match=words) as error:
            native.library.__wrapped__()
        assert "`make setup`" in str(error.value) and "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            ("int jettison_cores() { return 1; }", "it has no version number"),
            ("int jettison_abi(long long* sizes) { return 1; }", "another version .1, not"),
            (f"int jettison_abi(long long* sizes) {{ return {native.ABI}; }}", "LinearSpec has 0 bytes, not"),
        ],
    )
    def test_another_is_refused(self, code, words, tmp_path, monkeypatch):
        compiler = shutil.which(os.environ.get("CC", "cc")) or pytest.skip("no compiler")
        (tmp_path / "fake.c").write_text(code)
        file = tmp_path / "libfake.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", file, tmp_path / "fake.c"], check=True)
        self.refused(monkeypatch, file, words)

    def test_the_program_says_so_in_one_line(self):
        """The library is one that is not ours."""
        file = ctypes.util.find_library("m") or pytest.skip("no library of mathematics")
        environment = os.environ | {"JETTISON_KERNELS": file, "TRANSFORMERS_VERBOSITY": "error"}
        command = [
            sys.executable,
            "-m",
            "jettison",
            "bench",
            "ops",
            "--matrix",
            "128x128",
            "--bits",
            "4",
            "--rounds",
            "1",
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 1 and "make setup" in done.stderr and "Traceback" not in done.stderr, done.stderr

    @pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__name__)
    def test_a_structure_that_grew_is_seen(self, spec, monkeypatch):
        bigger = type(spec.__name__, (ctypes.Structure,), {"_fields_": [*spec._fields_, ("more", ctypes.c_int64)]})
        monkeypatch.setattr(native, "SPECS", tuple(bigger if other is spec else other for other in SPECS))
        with pytest.raises(JettisonError, match=f"{spec.__name__} has {ctypes.sizeof(spec)} bytes"):
            native.library.__wrapped__()

    def test_versions_are_one(self):
        """The header and the Python file state the same version."""
        header = (ROOT / "src/jettison/kernels/cpu/isa.h").read_text()
        assert f"kAbi = {native.ABI};" in header
