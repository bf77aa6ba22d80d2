"""Dry runs: what they try and print. benchmarks/house/proof.py, and no test, measures how accurate they are."""

import re

import psutil
import pytest
import torch

from jettison.core.errors import UsageError
from jettison.core.progress import set_quiet
from jettison.fitting import fit
from jettison.graph.folder import ModelFolder
from jettison.pipeline import trial
from jettison.pipeline.evaluation import TEXTS
from jettison.planning.estimate import Estimate, how_long
from jettison.planning.forecast import forecast
from jettison.recipe.recipe import load_recipe

CHANGES = ["quantize.group_size=32", "calibration.samples=8", "calibration.length=32"]
CHANGES += ["recover.samples=64", "recover.length=32", "recover.batch=8"]


@pytest.fixture(scope="module", autouse=True)
def no_measuring():
    patch = pytest.MonkeyPatch()
    row = {"bandwidth": 50e9, "memory": 4e9, "flops": 1e12, "share": 1.0}
    patch.setattr("jettison.devices.device.measure", lambda: row)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def whole(tiny):
    recipe = load_recipe("gateup-w4w2", CHANGES)
    return forecast(tiny("qwen3"), recipe, texts=TEXTS, tokens=1024)


def test_every_step_is_named_in_its_order(whole):
    assert [step["step"] for step in whole["steps"]] == ["compress", "evaluate", "recover", "evaluate again"]
    assert all(step[field] > 0 for step in whole["steps"] for field in ("seconds", "memory"))
    assert all(step["disk"] > 0 for step in whole["steps"] if step["step"] in ("compress", "recover"))
    assert whole["warnings"] == []


def test_days_are_said_plainly(tiny):
    recipe = load_recipe("gateup-w4w2", [*CHANGES, "recover.samples=1000000000"])
    result = forecast(tiny("qwen3"), recipe)
    days = result["steps"][1]["seconds"] / 86400
    assert f"recover would take {days:.1f} days on this machine: fewer samples" in result["warnings"][0]


def test_memory_that_is_not_there_is_said(tiny, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1e6, "total": 1e6}))
    warnings = forecast(tiny("llama"), load_recipe("w8", ["quantize.group_size=32"]))["warnings"]
    assert re.fullmatch(r"compress needs \d\.\d GB of memory; 0\.0 GB are free here", warnings[0])


def test_a_recipe_that_does_not_fit_is_refused_before_anything_is_tried(tiny, monkeypatch):
    monkeypatch.setattr(trial, "try_block", lambda *_: pytest.fail("tried"))
    experts = {"steps": [{"quantize": {"method": "rtn", "bits": 4}, "where": {"role": ["expert"]}}]}
    with pytest.raises(UsageError, match="fits nothing in"):
        forecast(tiny("llama"), load_recipe(experts))


def test_blocks_that_are_treated_alike_are_tried_once(tiny, monkeypatch):
    tried = []
    real = trial.try_block
    monkeypatch.setattr(trial, "try_block", lambda *arguments: tried.append(arguments[2]) or real(*arguments))
    step = {"method": "rtn", "group_size": 32}
    recipe = {"steps": [{"quantize": step | {"bits": 4}}]}
    mixed = {
        "steps": [
            {"quantize": step | {"bits": 4}, "where": {"block": ["0-2"]}},
            {"quantize": step | {"bits": 2}, "where": {"block": [3]}},
        ]
    }
    model = tiny("llama", num_hidden_layers=4)
    forecast(model, load_recipe(recipe))
    assert tried == [2, None]
    tried.clear()
    forecast(model, load_recipe(mixed))
    assert tried == [1, 3, None]


def test_a_recovery_of_late_blocks_alone_is_tried_on_the_first(tiny):
    recipe = load_recipe("gateup-w4w2", CHANGES).to_dict()
    recipe["steps"][-1]["where"]["block"] = [3]
    steps = forecast(tiny("llama", num_hidden_layers=4), load_recipe(recipe))["steps"]
    assert steps[1]["step"] == "recover" and steps[1]["seconds"] > 0


def test_nothing_is_left_behind(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = {path.name: path.stat().st_mtime for path in tiny("llama").iterdir()}
    forecast(tiny("llama"), load_recipe("w4", CHANGES[:3]))
    assert list(tmp_path.iterdir()) == []
    assert {path.name: path.stat().st_mtime for path in tiny("llama").iterdir()} == before


class TestTrials:
    def test_two_copies_tell_what_a_block_takes(self, tiny):
        source = ModelFolder(tiny("llama", num_hidden_layers=4))
        assert trial.per_model(source, lambda short: 3.0 + 2.0 * short.anatomy.blocks) == 3 + 2 * 4

    def test_a_shortened_copy_is_the_model_with_fewer_blocks(self, tiny):
        source = ModelFolder(tiny("gemma3_text"))
        short = source.shortened(1)
        assert short.anatomy.blocks == 1 and source.anatomy.blocks == 2
        assert {linear.name for linear in short.anatomy} < {linear.name for linear in source.anatomy}
        model = short.new_skeleton()
        short.fill(model, dtype=torch.float32)
        assert model(torch.ones(1, 4, dtype=torch.int64)).logits.isfinite().all()

    def test_memory_is_watched(self):
        with trial.timed() as small:
            pass
        with trial.timed() as large:
            tensor = torch.ones(1 << 26)
            assert tensor.sum() > 0
            del tensor
        assert large.memory > small.memory + 200e6
        assert large.seconds > 0


class TestEstimate:
    """The estimate that ``fit`` prints at its start. benchmarks/results/proof.json shows how accurate it is."""

    @pytest.fixture
    def estimate(self, tiny, monkeypatch):
        """Return the estimate for a machine of 1e8 operations per second that passes over 1e7 numbers per second."""
        monkeypatch.setattr(Estimate, "_product", lambda *_: 1e8)
        result = Estimate(ModelFolder(tiny("llama")), TEXTS, 1024)
        result.passes, result.call = 1e7, 1e-6
        return result

    def test_it_grows_with_the_work(self, estimate):
        seconds = lambda *changes: estimate.seconds(load_recipe("gateup-w4w2", [*CHANGES, *changes]))
        once, more = seconds(), seconds("recover.samples=128")
        assert list(once) == ["compress", "recover", "evaluate"]
        # ten operations per weight and training token
        linears = [linear for linear in estimate.source.anatomy if "embed" not in linear.roles]
        assert once["recover"] > 10 * sum(linear.weights for linear in linears) * 64 * 32 / 1e8
        assert more["recover"] == pytest.approx(2 * once["recover"], rel=0.01)
        assert more["compress"] == once["compress"] and more["evaluate"] == once["evaluate"]
        assert seconds("calibration.samples=128")["compress"] > 1.1 * once["compress"]
        assert "recover" not in estimate.seconds(load_recipe("w8", ["quantize.group_size=32"]))

    def test_experts_count_by_what_tokens_use(self, tiny):
        moe = Estimate(ModelFolder(tiny("qwen3_moe")))
        shares = {linear.role: share for linear, share in moe.share.items()}
        assert shares["q"] == 1.0 and set(shares.values()) == {0.5, 1.0}  # every token uses two of four experts

    def test_a_short_run(self, tiny, monkeypatch):
        lines = how_long(ModelFolder(tiny("llama")), load_recipe("gateup-w4w2", CHANGES), TEXTS, 1024)
        assert len(lines) == 1 and re.match(r"this will take roughly .*: compress .*, recover .*, evaluate ", lines[0])

    def test_a_long_run_says_what_makes_it_short(self, tiny, monkeypatch):
        monkeypatch.setattr(Estimate, "_product", lambda *_: 1e8)
        source, recipe = ModelFolder(tiny("llama")), load_recipe("gateup-w4w2", [*CHANGES, "recover.samples=65536"])
        first, second = how_long(source, recipe, TEXTS, 1024)
        assert "hours" in first
        assert re.fullmatch(r"roughly .* minutes, for less accuracy, with --set recover.samples=\d+", second)
        samples = int(second.rpartition("=")[2])
        assert 65536 % samples == 0 and 256 <= samples < 65536
        estimate = Estimate(source, TEXTS, 1024)
        assert sum(estimate.seconds(load_recipe(recipe, [f"recover.samples={samples}"])).values()) <= 1.1 * 3600

    def test_nothing_is_advised_that_does_not_help(self, tiny, monkeypatch):
        """Fewer samples are not advised if evaluation takes longest, or if there are already few."""
        monkeypatch.setattr(Estimate, "_product", lambda *_: 1e3)
        lines = how_long(ModelFolder(tiny("llama")), load_recipe("w8", ["quantize.group_size=32"]), TEXTS, 1024)
        assert len(lines) == 1 and "days" in lines[0]

    def test_fit_says_it_once(self, tiny, tmp_path, capfd):
        (tmp_path / "text.txt").write_text("It was a dark night, and nobody was there to see it. " * 60)
        options = {"recipe": {"steps": [{"quantize": {"method": "rtn", "bits": 8, "group_size": 32}}]}}
        options |= {"out": tmp_path / "out", "texts": [tmp_path / "text.txt"], "tokens": 64, "device": "raspberry-pi-5"}
        for expected in (1, 0):
            set_quiet(False)
            fit(tiny("llama"), **options)
            set_quiet(True)
            assert capfd.readouterr().err.count("this will take roughly") == expected
        assert (tmp_path / "out" / "progress.log").read_text().count("this will take roughly") == 1


def test_more_text_than_memory_holds_is_refused_at_once():
    """The states of fifty million windows fit into no memory, neither for a trial nor for calibration."""
    from jettison.core.errors import JettisonError
    from jettison.graph.folder import ModelFolder
    from jettison.graph.walk import Walk

    recipe = {"steps": [{"quantize": {"method": "gptq", "bits": 4, "group_size": 64}}]}
    recipe |= {"calibration": {"samples": 50_000_000}}
    with pytest.raises(JettisonError, match=r"calibrating on 50,000,000 windows of 256 tokens needs .* GB of memory"):
        forecast("scribe", load_recipe(recipe))
    with pytest.raises(JettisonError, match="calibrating on 50,000,000 windows"):
        Walk(ModelFolder("scribe"), torch.zeros(1, 256, dtype=torch.int64).expand(50_000_000, 256))
