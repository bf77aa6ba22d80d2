"""What `jettison bench` measures and prints. No test asserts a speed: benchmarks/ does."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jettison.bench import decoding, llama_cpp, operators
from jettison.bench.peers import PEERS
from jettison.bench.random_model import random_model
from jettison.core import timing
from jettison.core.errors import JettisonError, UsageError
from jettison.graph.folder import open_shape
from jettison.graph.modules import Adapted, TiledLinear
from jettison.kernels import native
from jettison.pipeline.compression import compress
from jettison.recipe.recipe import load_recipe
from jettison.runtime.load import load

pytestmark = pytest.mark.skipif(native.library() is None, reason="built without a compiler")
FAST = ["--matrix", "64x128", "--matrix", "96x256", "--group-size", "64", "--rounds", "1"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Make measurements small, so that they take almost no time."""
    monkeypatch.setattr(operators, "STREAMED", 1 << 16)
    monkeypatch.setattr(operators, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(decoding, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(timing, "SECONDS", 0.001)
    monkeypatch.setattr(timing, "CALM", 0.0)


def test_the_table(jettison, tmp_path):
    arguments = ["--rows", "1", "--rows", "5", "--peer", "int4pack", "--peer", "bfloat16"]
    code, out, _ = jettison("bench", "ops", *FAST, *arguments, "--json", tmp_path / "ops.json")
    assert code == 0 and "torch int4pack" in out and "of the limit" in out
    result = json.loads((tmp_path / "ops.json").read_text())
    keys = [(row["shape"], row["operator"], row["bits"], row["rows"]) for row in result["rows"]]
    assert len(keys) == len(set(keys)) == 2 * 2 * 6
    for row in result["rows"]:
        assert len(row["samples"]) == 1 and row["microseconds"] > 0
        assert row["bandwidth"] == pytest.approx(1e6 * row_bytes(row) / row["microseconds"], rel=1e-6)
    assert result["limit"] > 0 and not result["missing"]


def row_bytes(row: dict) -> float:
    """Return the bytes that an operator reads: codes and scales."""
    rows, columns = map(int, row["shape"].split("x"))
    scales = {"kernel": 2, "jettison": 2, "torch int4pack": 4, "torch bfloat16": 0}[row["operator"]]
    return rows * columns * row["bits"] / 8 + rows * columns / 64 * scales


def test_a_peer_that_is_not_there_is_named(jettison, monkeypatch):
    def absent(*_):
        raise ImportError("pip install 'jettison[onnx]'")

    monkeypatch.setitem(PEERS, "onnxruntime", absent)
    code, out, _ = jettison("bench", "ops", *FAST, "--peer", "onnxruntime")
    assert code == 0 and "onnxruntime is left out: pip install 'jettison[onnx]'" in out


@pytest.mark.engines
def test_onnxruntime_is_measured(jettison):
    code, out, _ = jettison("bench", "ops", *FAST, "--peer", "onnxruntime")
    assert code == 0 and out.count("onnxruntime") == 4


def test_a_sample_is_taken_again_while_others_work(monkeypatch):
    """By the patched clock, other processes use a whole core in the first two samples, and none in the third."""
    others, calls = iter([0, 1000, 0, 1000, 0, 0]), []
    monkeypatch.setattr(timing, "_busy_seconds", lambda: next(others))
    monkeypatch.setattr(timing, "_own_seconds", lambda: 0.0)
    monkeypatch.setattr(timing, "CALM", 0.01)
    seconds, foreign = timing.sample(lambda: calls.append(1))
    assert foreign == 0 and seconds > 0 and next(others, None) is None


def test_shapes_of_models():
    assert operators.linear_shapes(open_shape("qwen3-4b")) == {
        "qkv": (6144, 2560), "o": (2560, 4096), "gate/up": (9728, 2560), "down": (2560, 9728),
    }  # fmt: skip
    assert operators.linear_shapes(open_shape("gpt-oss-20b"))["down"] == (2880, 2880)  # one expert


class TestDecoding:
    def test_a_checkpoint(self, jettison, tiny, tmp_path):
        steps = [{"quantize": {"method": "rtn", "bits": 4, "group_size": 32}}]
        compress(tiny("qwen3"), load_recipe({"steps": steps}), tmp_path / "out")
        arguments = ["--context", "8", "--context", "30", "--rounds", "2", "--json", tmp_path / "b.json"]
        code, out, _ = jettison("bench", "decode", tmp_path / "out", *arguments)
        assert code == 0 and "of the" in out
        result = json.loads((tmp_path / "b.json").read_text())
        assert [(row["context"], row["at_once"], len(row["samples"])) for row in result["rows"]] == [
            (8, 1, 2),
            (30, 1, 2),
        ]
        model = load(tmp_path / "out").model
        linears = [module for module in model.modules() if isinstance(module, TiledLinear)]
        packed = sum(linear.tiles.nbytes for linear in linears)
        assert packed < next(iter(result["bytes"].values())) < 1.1 * packed  # also the norms, but no embedding

    def test_drafts(self, jettison, scribe_w4, tmp_path):
        file = tmp_path / "b.json"
        code, out, _ = jettison("bench", "draft", scribe_w4, "--draft", "lookup", "--json", file)
        result = json.loads(file.read_text())
        assert code == 0 and f"{result['times_as_fast']:.2f} times as fast" in out
        assert 0 < result["acceptance_rate"] <= 1 and result["tokens_per_step"] > 1

    def test_shapes_with_random_weights(self, jettison):
        arguments = [
            "--shape",
            "scribe",
            "--recipe",
            "w4",
            "--recipe",
            "gateup-w4w2",
            "--set",
            "quantize.group_size=64",
        ]
        code, out, _ = jettison("bench", "decode", *arguments, "--context", "8", "--rounds", "1")
        assert code == 0 and out.count("gateup-w4w2") == 1

    def test_random_models_are_what_the_recipe_says(self):
        shape, recipe = open_shape("scribe"), load_recipe("gateup-w4w2")
        plain, adapted = (random_model(shape, recipe, adapter=adapter) for adapter in (False, True))
        grids = {name: module.grid.bits for name, module in plain.named_modules() if isinstance(module, TiledLinear)}
        assert {bits for name, bits in grids.items() if "gate" in name or "up_proj" in name} == {2}
        assert grids["lm_head"] == grids["model.layers.0.self_attn.q_proj"] == 4
        adapters = [module for module in adapted.modules() if isinstance(module, Adapted)]
        assert len(adapters) == 16
        difference = decoding.read_bytes(adapted) - decoding.read_bytes(plain)
        assert difference == 16 * 2 * 8 * (256 + 768)
        first, second = (random_model(shape, recipe, seed=seed).lm_head.tiles for seed in (0, 0))
        assert (first == second).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["decode"], "a checkpoint or a --shape"),
        (["decode", "DIR", "--shape", "qwen3-4b"], "a checkpoint or a --shape"),
        (["decode", "scribe", "--context", "0"], "context = 0: a whole number"),
        (["ops", "--matrix", "64"], "such as 9728x2560"),
        (["ops", "--peer", "mkl"], "unknown peer 'mkl'; valid: bfloat16, int4pack, onnxruntime"),
        (["ops", "--matrix", "64x100", "--group-size", "64"], "64 does not divide"),
        (["ops", "--bits", "9"], "bits = 9"),
        (["ops", "--rows", "0"], "rows"),
        (["ops", "--rounds", "0"], "rounds"),
    ],
)
def test_bad_usage(jettison, arguments, words):
    code, _, err = jettison("bench", *arguments)
    assert code == 2 and words in err


class TestLlamaCpp:
    """A script stands in for llama-bench: tests of its arguments, and of how its answers are used."""

    @pytest.fixture
    def program(self, tmp_path, monkeypatch):
        def make(answer: str) -> Path:
            file = tmp_path / "llama-bench"
            note = f"print(*sys.argv[1:], file=open({str(tmp_path / 'asked')!r}, 'a'))"
            file.write_text(f"#!{sys.executable}\nimport sys\n{note}\n{answer}\n")
            file.chmod(0o755)
            monkeypatch.setenv("LLAMA_BENCH", str(file))
            return file

        return make

    def test_files_of_a_shape(self, tmp_path):
        gguf = pytest.importorskip("gguf")
        llama_cpp.write_gguf(open_shape("scribe"), {"gate": "Q2_K", "up": "Q2_K"}, "Q4_0", tmp_path / "scribe.gguf")
        reader = gguf.GGUFReader(tmp_path / "scribe.gguf")
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        config = open_shape("scribe").config
        assert len(tensors) == 2 + 11 * config.num_hidden_layers
        gate = tensors["blk.0.ffn_gate.weight"]
        assert gate.tensor_type.name == "Q2_K" and gate.shape.tolist() == [config.hidden_size, config.intermediate_size]
        assert tensors["token_embd.weight"].tensor_type.name == "Q4_0"
        scales = tensors["blk.0.attn_q.weight"].data.reshape(-1, 18)[:, :2].copy().view(np.float16)
        assert np.isfinite(scales).all() and (scales > 0).all()

    def test_what_it_is_asked_and_says(self, program, tmp_path, jettison, monkeypatch):
        pytest.importorskip("gguf")
        monkeypatch.setenv("JETTISON_CACHE", str(tmp_path / "cache"))
        program("import json; print(json.dumps([{'avg_ts': 50.0}]))")
        command = "bench decode --shape scribe --recipe w4 --set quantize.group_size=64 --against llama.cpp"
        command += " --context 3 --rounds 1"
        code, out, err = jettison(*command.split(), "--json", tmp_path / "out.json")
        assert code == 0 and "llama.cpp Q4_0" in out, err
        rows = json.loads((tmp_path / "out.json").read_text())["rows"]
        assert {row["model"]: row["tokens_per_second"] for row in rows if "llama" in row["model"]} == dict.fromkeys(
            llama_cpp.KINDS, 50.0
        )
        asked = (tmp_path / "asked").read_text()
        assert "-p 0 -n 32 -d 3" in asked and "-p 512 -n 0" in asked

    def test_faults(self, program, tmp_path, monkeypatch):
        pytest.importorskip("gguf")
        program("sys.exit('no such model')")
        one = next(iter(llama_cpp.llama_cpp(open_shape("scribe"), tmp_path, 1).values()))
        with pytest.raises(JettisonError, match="no such model"):
            one.decode(0)
        with pytest.raises(UsageError, match="opt cannot be written, only of llama"):
            llama_cpp.llama_cpp(open_shape("opt-125m"), tmp_path, 1)
        monkeypatch.setenv("LLAMA_BENCH", str(tmp_path / "missing"))
        with pytest.raises(UsageError, match="no llama-bench on the PATH"):
            llama_cpp.llama_cpp(open_shape("scribe"), tmp_path, 1)
