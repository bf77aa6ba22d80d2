"""Dry runs: what they try, and what they say. How near they come is measured by benchmarks/proof.py, not here."""

import re

import psutil
import pytest
import torch

from jettison.errors import UsageError
from jettison.evaluate.quality import TEXTS
from jettison.models import ModelFolder
from jettison.plan import forecast, trial
from jettison.recipe import load_recipe

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
    with pytest.raises(UsageError, match="group_size 128 does not divide"):
        forecast(tiny("llama"), load_recipe("w8"))


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
            held = torch.ones(1 << 26)
            assert held.sum() > 0
            del held
        assert large.memory > small.memory + 200e6
        assert large.seconds > 0
