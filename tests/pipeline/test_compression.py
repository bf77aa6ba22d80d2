"""The block loop: its files load in transformers, kills do not change them, and bad recipes are refused."""

import errno
import json
import os
import shutil

import pytest
import tiny as maker
import torch
from killing import check_kills, files_of, some_writes
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from jettison.core.errors import JettisonError, UsageError
from jettison.encodings.uniform import UniformGrid
from jettison.formats.packed import read_grids
from jettison.graph.folder import ModelFolder
from jettison.methods.quantize.rtn import rtn
from jettison.pipeline.compression import compress
from jettison.pipeline.size import measure_size
from jettison.runtime.load import load

CALIBRATION = {"text": "books", "samples": 8, "length": 32}


def recipe(low="gptq", high="gptq", symmetric=True, where_high=("q", "k", "v", "o", "down", "head")):
    """Return a recipe with two quantize steps: 2-bit ``low`` for gate and up, 4-bit ``high`` for ``where_high``."""
    grid = {"group_size": 32, "symmetric": symmetric}
    return {
        "calibration": CALIBRATION,
        "steps": [
            {"quantize": {"method": high, "bits": 4} | grid, "where": {"role": list(where_high)}},
            {"quantize": {"method": low, "bits": 2} | grid, "where": {"role": ["gate", "up"]}},
        ],
    }


UNIFORM = {
    "calibration": CALIBRATION,
    "steps": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 32}}],
}


def logits_of_transformers(folder, ids, dtype=torch.float32):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        return model(ids).logits


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 4096, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", list(maker.CONFIGS))
def test_transformers_gives_our_logits(tiny, tmp_path, ids, family):
    """The model has mixed grids and a packed head (untied if it was tied).

    Mixture-of-experts models get one symmetric grid, because transformers needs that.
    """
    experts = family in ("qwen3_moe", "gpt_oss", "mixtral", "qwen2_moe", "olmoe")
    manifest = compress(tiny(family), UNIFORM if experts else recipe(), tmp_path / "out")
    ours = load(tmp_path / "out", dtype=torch.float32, exact=True).logits(ids)
    if family == "gpt_oss":
        assert "no loader for packed experts" in manifest["not_in_transformers"][0]
        return
    assert manifest["not_in_transformers"] == []
    if experts:  # transformers dequantizes experts in the dtype of their scales, ignoring ours
        ours = load(tmp_path / "out", dtype=torch.bfloat16, exact=True).logits(ids).float()
        theirs = logits_of_transformers(tmp_path / "out", ids, torch.bfloat16).float()
        assert float((ours - theirs).square().mean()) < 1e-3 * float(ours.square().mean())
        return
    assert torch.allclose(logits_of_transformers(tmp_path / "out", ids), ours, atol=2e-5)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "gpt_oss", "gpt2", "opt"])
def test_the_files_hold_what_the_methods_made(tiny, tmp_path, ids, family, symmetric):
    """The loaded model equals the original with every linear replaced by its dequantized weight.

    This covers asymmetric experts too.
    """
    manifest = compress(tiny(family), recipe("rtn", "rtn", symmetric), tmp_path / "out")
    assert any("zero points" in note for note in manifest["not_in_transformers"]) is not symmetric or family == "gpt2"
    source, packed = ModelFolder(tiny(family)), ModelFolder(tmp_path / "out")
    model = source.new_skeleton()
    source.fill(model, dtype=torch.float32)
    for linear in source.anatomy:
        if "embed" in linear.roles:
            continue
        bits = 2 if {"gate", "up"} & set(linear.roles) else 4
        dense = rtn(source.read_weight(linear.name, linear.layout), UniformGrid(bits, 32, symmetric)).dequantize()
        if linear.layout == "conv1d":  # stored dense, in the checkpoint's dtype
            dense = dense.T.bfloat16().float()
        model.get_submodule(linear.name).weight = torch.nn.Parameter(dense)
    with torch.no_grad():
        assert torch.allclose(
            load(tmp_path / "out", dtype=torch.float32, exact=True).logits(ids), model(ids).logits, atol=1e-4
        )
    assert packed.anatomy.tied is False or family == "gpt2"


def test_biases_and_everything_else_stay(tiny, tmp_path):
    compress(tiny("opt"), recipe(), tmp_path / "out")
    before, after = ModelFolder(tiny("opt")).checkpoint, ModelFolder(tmp_path / "out").checkpoint
    kept = [name for name in before if f"{name.removesuffix('.weight')}.weight_packed" not in after]
    assert {name.rpartition(".")[2] for name in kept} == {"bias", "weight"} and len(kept) > len(list(before)) / 2
    for name in kept:
        assert torch.equal(before.read(name), after.read(name)), name
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_calibration_helps(tmp_path):
    """On a trained model, GPTQ leaves a smaller error at the blocks' outputs than rounding does."""
    errors = {}
    for method in ("rtn", "gptq"):
        where = {"role": ["gate", "up", "down"], "block": ["0-1"]}
        low = {"quantize": {"method": method, "bits": 3, "group_size": 64}, "where": where}
        # The second step needs calibration statistics, so the run measures the error of blocks for rtn too.
        other = {"quantize": {"method": "gptq", "bits": 8, "group_size": 64}, "where": where | {"role": ["o"]}}
        calibration = {"text": "books", "samples": 16, "length": 128}
        manifest = compress("scribe", {"steps": [low, other], "calibration": calibration}, tmp_path / method)
        errors[method] = sum(block["error"] for block in manifest["blocks"][:2])
    assert errors["gptq"] < 0.8 * errors["rtn"]


def test_an_embedding_can_be_packed_too(tiny, tmp_path, ids):
    steps = [
        {"quantize": {"method": "rtn", "bits": 8, "group_size": 32}, "where": {"role": ["embed"]}},
        {"quantize": {"method": "rtn", "bits": 4, "group_size": 32}, "where": {"role": ["head", "down"]}},
    ]
    manifest = compress(tiny("qwen3"), {"steps": steps}, tmp_path / "out")
    assert "packed embedding" in manifest["not_in_transformers"][0]
    with_dense = compress(tiny("qwen3"), {"steps": steps[1:]}, tmp_path / "dense")
    ours, theirs = (load(tmp_path / name, dtype=torch.float32, exact=True).logits(ids) for name in ("out", "dense"))
    assert with_dense["not_in_transformers"] == []
    assert 0 < float((ours - theirs).square().mean()) < 1e-3 * float(theirs.square().mean())
    assert measure_size(tmp_path / "out")["bytes"] < 0.7 * measure_size(tmp_path / "dense")["bytes"]


def test_an_embedding_alone_unties_the_head(tiny, tmp_path, ids):
    steps = [{"quantize": {"method": "rtn", "bits": 8, "group_size": 32}, "where": {"role": ["embed"]}}]
    compress(tiny("qwen3"), {"steps": steps}, tmp_path / "out")
    out = ModelFolder(tmp_path / "out")
    original = ModelFolder(tiny("qwen3")).read("model.embed_tokens.weight")
    assert torch.equal(out.read("lm_head.weight"), original)


def test_blocks_can_differ(tiny, tmp_path, ids):
    """The config has patterns where blocks agree and names where they differ; transformers follows both."""
    steps = [
        {"quantize": {"method": "rtn", "bits": 3, "group_size": 32}, "where": {"role": ["gate", "up"], "block": 0}},
        {"quantize": {"method": "rtn", "bits": 5, "group_size": 16}, "where": {"role": ["gate", "up"], "block": 1}},
        {"quantize": {"method": "rtn", "bits": 6, "group_size": -1}, "where": {"role": ["down"]}},
    ]
    compress(tiny("llama"), {"steps": steps}, tmp_path / "out")
    section = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    targets = [target for group in section["config_groups"].values() for target in group["targets"]]
    assert "model.layers.0.mlp.gate_proj" in targets
    assert r"re:model\.layers\.\d+\.mlp\.down_proj$" in targets
    assert "lm_head" in section["ignore"]
    grids = read_grids(ModelFolder(tmp_path / "out"))
    assert grids["model.layers.1.mlp.up_proj"].bits == 5
    assert len(grids) == 6
    ours = load(tmp_path / "out", dtype=torch.float32, exact=True).logits(ids)
    assert torch.allclose(logits_of_transformers(tmp_path / "out", ids), ours, atol=2e-5)


def test_size_counts_scales_and_zero_points(tiny, tmp_path):
    compress(tiny("llama"), UNIFORM, tmp_path / "out")
    size = measure_size(tmp_path / "out")
    assert size["bits_per_weight"] == 4 + 16 / 32
    on_disk = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert size["disk_bytes"] == on_disk
    assert 0 < on_disk - size["bytes"] < 40_000  # safetensors headers
    assert measure_size(tiny("llama"))["bits_per_weight"] == 16


def test_uncalibrated_experts_are_reported(tmp_path):
    """The router chooses expert 0 or 1 by the sign of its first logit, and never another expert."""
    folder = maker.make("qwen3_moe", tmp_path / "m", num_experts_per_tok=1)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, value in tensors.items():
        if name.endswith("mlp.gate.weight"):
            value[1], value[2], value[3] = -value[0], value[0] / 2, 0  # 2 and 3 never have the largest logit
    save_file(tensors, file, {"format": "pt"})
    manifest = compress(folder, recipe(), tmp_path / "out")
    records = {name: record for block in manifest["blocks"] for name, record in block["linears"].items()}
    unseen = {name for name, record in records.items() if record.get("tokens") == 0}
    assert len(unseen) == 2 * 2 * 3 and all(".experts.2." in name or ".experts.3." in name for name in unseen)
    assert set(manifest["uncalibrated"]) == unseen
    out = load(tmp_path / "out", dtype=torch.float32, exact=True)
    assert torch.isfinite(out.logits(torch.arange(1, 30).unsqueeze(0))).all()


@some_writes
@pytest.mark.parametrize(("family", "method"), [("llama", "gptaq"), ("gpt2", "gptq"), ("llama", "rtn")])
def test_a_run_killed_at_any_write_gives_the_same_bytes(tiny, tmp_path, family, method, most):
    model, steps = tiny(family), recipe(method, method)
    check_kills(lambda out: compress(model, steps, out), tmp_path, most)


def test_a_finished_run_is_left_alone(tiny, tmp_path):
    compress(tiny("llama"), UNIFORM, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    compress(tiny("llama"), UNIFORM, tmp_path / "out")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_a_full_disk_says_so_and_resumes(tiny, tmp_path, monkeypatch):
    compress(tiny("llama"), UNIFORM, tmp_path / "whole")
    real, left = os.fsync, 4

    def filling(descriptor):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", filling)
    with pytest.raises(JettisonError, match="No space left on device"):
        compress(tiny("llama"), UNIFORM, tmp_path / "out")
    monkeypatch.undo()
    compress(tiny("llama"), UNIFORM, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_disk_too_small_is_noticed_before_work(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5, 5))
    with pytest.raises(JettisonError, match="GB free"):
        compress(tiny("llama"), UNIFORM, tmp_path / "out")
    assert not (tmp_path / "out").exists()


REFUSED = [
    ({"method": "rtn", "bits": 4, "group_size": 32}, {"role": ["q"]}, "runtimes run .*qkv as one matrix"),
    (
        {"method": "rtn", "bits": 4, "group_size": 32},
        {"role": ["expert"]},
        "fits nothing in .*whose roles are down, embed",
    ),
    ({"method": "gptq", "bits": 4, "group_size": 32}, {"role": ["embed"]}, "looked up, not multiplied"),
]


@pytest.mark.parametrize(("options", "where", "words"), REFUSED, ids=[words[:20] for *_, words in REFUSED])
def test_recipes_that_do_not_fit_are_refused_before_work(tiny, tmp_path, options, where, words):
    with pytest.raises(UsageError, match=words):
        compress(tiny("llama"), {"steps": [{"quantize": options, "where": where}]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_steps_for_one_linear_are_refused(tiny, tmp_path):
    steps = [
        *UNIFORM["steps"],
        {"quantize": {"method": "rtn", "bits": 2, "group_size": 32}, "where": {"role": ["up", "gate"]}},
    ]
    with pytest.raises(UsageError, match="two steps claim model.layers.0.mlp.gate_proj"):
        compress(tiny("llama"), {"steps": steps}, tmp_path / "out")


def test_zero_points_that_cannot_be_stored_are_refused(tiny, tmp_path):
    options = {"method": "hqq", "bits": 4, "group_size": 32, "symmetric": False, "round_zero": False}
    with pytest.raises(UsageError, match="q_proj: hqq gave fractional zero points"):
        compress(tiny("llama"), {"steps": [{"quantize": options}]}, tmp_path / "out")


def test_another_run_in_the_folder_is_refused(tiny, tmp_path):
    compress(tiny("llama"), UNIFORM, tmp_path / "out")
    before = files_of(tmp_path / "out")
    with pytest.raises(UsageError, match="holds another run: its steps"):
        compress(tiny("llama"), recipe("rtn", "rtn"), tmp_path / "out")
    assert files_of(tmp_path / "out") == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, value):
    folder = maker.make("llama", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(JettisonError, match="model.layers.1.mlp.up_proj.weight of .* has 1 values that are NaN"):
        compress(folder, UNIFORM, tmp_path / "out")
