"""A format with its own tensor names goes through every command: the pipeline knows only ``Format``."""

import copy
import json
import sys
from types import ModuleType

import pytest
import torch
import trial_format

from jettison import compress, evaluate, load, recover
from jettison.core.errors import JettisonError, UsageError
from jettison.formats import runtimes, support
from jettison.formats.draft_model import write_draft_model
from jettison.formats.format import find_format
from jettison.formats.packed import UnpackedFolder, read_grids
from jettison.formats.safetensors import LIBRARIES
from jettison.pipeline.size import measure_size
from jettison.pipeline.verification import verify

IDS = torch.arange(40).view(2, 20) * 7


@pytest.fixture(autouse=True)
def trial(monkeypatch):
    """Install the format ``trial`` as a module of the package and an entry of runtimes.yaml."""
    rows = copy.deepcopy(support.runtime_rows())
    rows["jettison"]["formats"]["trial"] = rows["jettison"]["formats"]["safetensors"]
    for module in (support, runtimes):
        monkeypatch.setattr(module, "runtime_rows", lambda: rows)
    runtimes._runtimes.cache_clear()
    monkeypatch.setitem(sys.modules, "jettison.formats.trial", trial_format)
    yield
    runtimes._runtimes.cache_clear()


@pytest.fixture
def folder(tiny, tmp_path):
    compress(tiny("llama"), "w8", tmp_path / "trial", format="trial", changes=["quantize.group_size=32"])
    return tmp_path / "trial"


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt_oss"])
def test_it_stands_for_the_same_model(tiny, tmp_path, family):
    for name in ("trial", "compressed-tensors"):
        compress(tiny(family), "w8", tmp_path / name, format=name, changes=["quantize.group_size=32"])
    for options in ({}, {"exact": True, "dtype": torch.float32}):
        one, other = (load(tmp_path / name, **options).logits(IDS) for name in ("trial", "compressed-tensors"))
        assert torch.equal(one, other)
    sizes = [measure_size(tmp_path / name) for name in ("trial", "compressed-tensors")]
    assert sizes[0]["bits_per_weight"] == pytest.approx(sizes[1]["bits_per_weight"], rel=1e-3)
    assert sizes[0]["quantized_linears"] == sizes[1]["quantized_linears"] > 0


def test_verified_and_evaluated(folder):
    assert verify(folder)["ok"]
    assert 0 < evaluate(folder, texts=["books"], tokens=256, window=64)["texts"]["books"]["kl"] < 0.1


def test_its_scales_are_trained(folder):
    before = load(folder, exact=True, dtype=torch.float32).logits(IDS)
    options = ["recover.samples=8", "recover.length=32", "recover.batch=4", "recover.scale_lr=0.3"]
    recover(folder, changes=["recover.train=[scales]", *options])
    assert not torch.equal(load(folder, exact=True, dtype=torch.float32).logits(IDS), before)
    assert verify(folder)["ok"]


def test_a_format_whose_scales_are_of_another_form_refuses_to_train_them(folder, monkeypatch):
    monkeypatch.setattr(trial_format, "SCALE", "")
    with pytest.raises(UsageError, match="its format stores them in another form"):
        recover(folder, changes=["recover.train=[scales]", "recover.samples=8", "recover.length=32"])


def test_a_draft_model_is_in_the_format_of_its_source(tiny, tmp_path):
    compress(tiny("llama", num_hidden_layers=4), "w8", tmp_path / "trial", format="trial")
    source = UnpackedFolder(tmp_path / "trial")
    write_draft_model(source, ("1",), tmp_path / "draft")
    assert (
        json.loads((tmp_path / "draft" / "config.json").read_text())["quantization_config"]["quant_method"] == "trial"
    )
    assert verify(tmp_path / "draft")["ok"]


def test_a_draft_model_that_its_format_cannot_hold_is_refused(tiny, tmp_path, folder):
    compress(tiny("llama"), {"steps": [{"quantize": {"method": "rtn", "bits": 2, "group_size": 32}}]}, tmp_path / "two")
    other = UnpackedFolder(tmp_path / "two")
    weights = {name: find_format("compressed-tensors").read_weight(super(UnpackedFolder, other).read, name, grid)
               for name, grid in read_grids(other).items() if name.endswith("gate_proj")}  # fmt: skip
    with pytest.raises(
        UsageError, match="a draft model .* cannot be written: trial holds symmetric 8-bit integers only"
    ):
        write_draft_model(UnpackedFolder(folder), (), tmp_path / "draft", weights)


def test_a_module_that_lacks_a_function_is_named(monkeypatch):
    incomplete = ModuleType("jettison.formats.trial")
    incomplete.detects, incomplete.LIBRARIES = trial_format.detects, LIBRARIES
    monkeypatch.setitem(sys.modules, "jettison.formats.trial", incomplete)
    with pytest.raises(JettisonError, match="format trial: jettison.formats.trial has no SCALE, see formats/format.py"):
        find_format("trial")
