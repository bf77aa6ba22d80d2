"""Model folders with a modules.json go through the same commands as any other."""

import json
import shutil

import pytest
import torch
from killing import SOME, check_kills
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from jettison import compress, draft, evaluate, load, plan, recover, verify
from jettison.core.errors import JettisonError, UsageError
from jettison.fitting import fit
from jettison.formats.card import write_card
from jettison.formats.packed import read_grids
from jettison.graph.blocks import ChannelScale, ResidualBlock, SamePadConv2d
from jettison.graph.dense import load_dense
from jettison.graph.described_files import write_replaced
from jettison.graph.folder import ModelFolder, open_shape

FIRST, LAST = "resnet.encoder.stages.0.layers.0", "resnet.encoder.stages.1.layers.1"
FEW = ["calibration.samples=8"]


def replaced_copy(folder, out, modules, kind=AutoModelForImageClassification):
    """Save a copy of a model with other modules at some paths; return the folder and the model."""
    model = kind.from_pretrained(folder).eval()
    for path, module in modules.items():
        model.set_submodule(path, module.eval())
    shutil.copytree(folder, out)
    model.save_pretrained(out)
    write_replaced(out, modules)
    return out, model


def convolutions() -> dict[str, nn.Module]:
    """Make modules for two blocks of the tiny ResNet: one convolution, and a residual block with a depthwise one."""
    torch.manual_seed(1)
    depthwise = SamePadConv2d(32, 32, 3, groups=32)
    branch = nn.Sequential(depthwise, ChannelScale(32), SamePadConv2d(32, 32, 5, bias=False), nn.BatchNorm2d(32))
    return {FIRST: nn.Conv2d(16, 16, 3, padding=1), LAST: ResidualBlock(branch, nn.Identity(), nn.ReLU())}


@pytest.fixture
def merged(tiny, tmp_path):
    """Return the folder of a ResNet with replaced blocks, and the model."""
    return replaced_copy(tiny("resnet"), tmp_path / "merged", convolutions())


PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def test_replaced_blocks_are_read_exactly(merged):
    folder, model = merged
    assert torch.equal(load(folder).logits(PIXELS), model(PIXELS).logits)
    source = ModelFolder(folder)
    roles = {linear.name: (linear.role, linear.block) for linear in source.anatomy}
    assert roles[FIRST] == ("conv", 0)
    assert roles[f"{LAST}.branch.0"] == ("depthwise", 2) and roles[f"{LAST}.branch.2"] == ("conv", 2)
    assert roles["resnet.embedder.embedder.convolution"] == ("stem", None) and roles["classifier.1"] == ("head", None)
    assert len(roles) == 8 and source.anatomy.parameters == sum(p.numel() for p in model.parameters())
    assert open_shape(folder / "config.json").anatomy == source.anatomy


def test_a_block_may_be_dropped(tiny, tmp_path):
    folder, model = replaced_copy(tiny("resnet"), tmp_path / "m", {LAST: nn.Identity()})
    assert torch.equal(load(folder).logits(PIXELS), model(PIXELS).logits)
    manifest = compress(folder, "w8", tmp_path / "out")
    assert manifest["blocks"][2]["linears"] == {} and verify(tmp_path / "out")["ok"]
    torch.testing.assert_close(load(tmp_path / "out").logits(PIXELS), model(PIXELS).logits, atol=0.05, rtol=0.05)


def test_eight_bits_on_top(merged, pictures, tmp_path):
    folder, model = merged
    manifest = compress(folder, "w8", tmp_path / "out")
    grids = read_grids(ModelFolder(tmp_path / "out"))
    assert {FIRST, f"{LAST}.branch.2"} <= set(grids) and f"{LAST}.branch.0" not in grids
    assert json.loads((tmp_path / "out" / "modules.json").read_text()) == json.loads(
        (folder / "modules.json").read_text()
    )
    assert manifest["replaced"] == [FIRST, LAST] and manifest["check"]["block"]["difference"] < 1e-4
    checks = verify(tmp_path / "out")["checks"]
    assert all(result["ok"] for result in checks), checks
    measured = evaluate(tmp_path / "out", images=pictures)["images"][str(pictures)]
    assert measured["kl"] < 0.01 and measured["agreement"] > 0.8
    difference = (load(tmp_path / "out").logits(PIXELS) - model(PIXELS).logits).abs().max()
    assert 0 < difference < 0.05 * model(PIXELS).logits.abs().max()


def test_calibration_sees_the_padding(merged, pictures, tmp_path):
    """The statistics of a convolution with SAME padding are of the padded image, and its packed form pads, too."""
    folder, _ = merged
    errors = {}
    for method in ("rtn", "gptaq"):
        step = {"quantize": {"method": method, "bits": 3, "group_size": 16}}
        recipe = {"steps": [step], "calibration": {"images": str(pictures), "samples": 36}}
        records = [block["linears"] for block in compress(folder, recipe, tmp_path / method)["blocks"]]
        errors[method] = sum(record["error"] for linears in records for record in linears.values())
    assert errors["gptaq"] < errors["rtn"]
    assert records[2][f"{LAST}.branch.0"]["tokens"] == 36 * 4 * 4 * 32, "a patch per place and group"
    assert verify(tmp_path / "gptaq")["ok"]


def test_scales_are_recovered(merged, pictures, tmp_path):
    step = {"quantize": {"method": "rtn", "bits": 2, "group_size": 16}}
    recipe = {"steps": [step, {"recover": {"train": ["scales"], "samples": 36, "epochs": 6, "batch": 12}}]}
    compress(merged[0], recipe, tmp_path / "out", images=pictures)
    before = evaluate(tmp_path / "out", images=pictures)["images"][str(pictures)]["kl"]
    recover(tmp_path / "out")
    assert evaluate(tmp_path / "out", images=pictures)["images"][str(pictures)]["kl"] < 0.8 * before
    assert verify(tmp_path / "out")["ok"]


def test_a_killed_run_ends_with_the_same_bytes(merged, pictures, tmp_path):
    step = {"quantize": {"method": "gptaq", "bits": 4, "group_size": 16}}
    recipe = {"steps": [step], "calibration": {"images": str(pictures), "samples": 8}}
    check_kills(lambda out: compress(merged[0], recipe, out), tmp_path, SOME)


def test_a_result_can_be_compressed_again(merged, tmp_path):
    """A pruned folder keeps its modules, and is a source itself."""
    compress(merged[0], {"steps": [{"prune": {"method": "magnitude", "sparsity": 0.5}}]}, tmp_path / "sparse")
    compress(tmp_path / "sparse", "w8", tmp_path / "out")
    assert ModelFolder(tmp_path / "out").replaced == ModelFolder(merged[0]).replaced
    assert verify(tmp_path / "out")["ok"]


def test_fit_reports_on_it(merged, pictures, tmp_path):
    result = fit(merged[0], out=tmp_path / "out", recipe="w8", images=pictures, changes=FEW)
    assert "modules.json" in " ".join(result["not_in_transformers"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "modules.json" in page and "Quality on images" in page


def test_nothing_promises_transformers(merged, tmp_path):
    """Transformers really gives the modules of config.json random weights, without an error."""
    folder, model = merged
    manifest = compress(folder, "w8", tmp_path / "out")
    notes = [note for note in manifest["not_in_transformers"] if "modules.json" in note]
    assert len(notes) == 1 and FIRST in notes[0] and "random weights" in notes[0]
    card = write_card(manifest)
    assert "library_name: jettison" in card and "`jettison.load(folder)` only." in card and notes[0] in card
    other, info = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert (
        f"{FIRST}.layer.0.convolution.weight" in info["missing_keys"] and f"{FIRST}.weight" in info["unexpected_keys"]
    )
    assert not torch.allclose(other(PIXELS).logits, model(PIXELS).logits, atol=0.01)
    for runtime in ("transformers", "vllm"):
        with pytest.raises(
            UsageError, match="in place of its own .modules.json.: .* only jettison.load does|convolution"
        ):
            compress(folder, "w8", tmp_path / runtime, runtime=runtime)


def test_another_description_is_another_model(merged, pictures, tmp_path):
    folder, _ = merged
    before, run = ModelFolder(folder).fingerprint(), tmp_path / "out"
    compress(folder, "w8", run)
    text = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(text.replace('"relu"', '"relu6"'))
    assert ModelFolder(folder).fingerprint() != before
    with pytest.raises(UsageError, match="holds another run|model"):
        compress(folder, "w8", run)
    with pytest.raises(UsageError, match="has changed since"):
        evaluate(run, images=pictures)


def test_a_folder_without_the_file_has_its_old_identity(tiny):
    """So that runs from before continue."""
    assert set(ModelFolder(tiny("resnet")).identity()) == {"config", "weights", "tokenizer"}


# Transformers


def of_vit() -> dict[str, nn.Module]:
    """Make modules for a ViT: one linear in place of an MLP and of the norm before it, and a dropped block."""
    torch.manual_seed(2)
    return {
        "vit.layers.0.mlp": nn.Linear(64, 64), "vit.layers.0.layernorm_after": nn.Identity(),
        "vit.layers.1": nn.Identity(),
    }  # fmt: skip


@pytest.mark.parametrize("method", ["gptaq", "awq"])
def test_a_vit_with_a_merged_mlp(tiny, pictures, tmp_path, method):
    """The dropped block is called with more arguments than an identity takes."""
    folder, _ = replaced_copy(tiny("vit"), tmp_path / "m", of_vit())
    model, source = load_dense(ModelFolder(folder), torch.float32), ModelFolder(folder)
    assert torch.isfinite(load(folder).logits(PIXELS)).all()
    roles = {linear.name: (linear.role, linear.block) for linear in source.anatomy}
    assert roles["vit.layers.0.mlp"] == ("linear", 0) and roles["vit.layers.0.attention.q_proj"] == ("q", 0)
    assert not source.anatomy.of_block(1) and source.anatomy.blocks == 2
    steps = [
        {"quantize": {"method": method, "bits": 8, "group_size": 32}, "where": {"role": ["q", "k", "v", "linear"]}}
    ]
    recipe = {"steps": steps, "calibration": {"images": str(pictures), "samples": 8}}
    manifest = compress(folder, recipe, tmp_path / "out")
    assert "vit.layers.0.mlp" in manifest["blocks"][0]["linears"]
    assert [note for note in manifest["not_in_transformers"] if "modules.json" in note]
    assert verify(tmp_path / "out")["ok"]
    logits = model(PIXELS).logits
    for _ in range(2):  # the second load maps the tiles, where there are kernels
        assert (load(tmp_path / "out").logits(PIXELS) - logits).abs().max() < 0.1 * logits.abs().max()


def test_a_language_model(tiny, tmp_path):
    """Its text is written by PyTorch, since the native decoder knows only the modules of the config."""
    torch.manual_seed(4)
    mlp = nn.Sequential(nn.Linear(64, 64, bias=False), nn.SiLU(), nn.Linear(64, 64, bias=False)).to(torch.bfloat16)
    folder, model = replaced_copy(tiny("llama"), tmp_path / "m", {"model.layers.1.mlp": mlp}, AutoModelForCausalLM)
    ids = torch.arange(12).unsqueeze(0)
    loaded = load(folder)
    assert torch.equal(loaded.logits(ids), model(ids).logits) and loaded.decoder is None
    assert loaded.generate("It was", tokens=3).timings is not None
    steps = [{"quantize": {"method": "gptq", "bits": 4, "group_size": 32}}]
    manifest = compress(folder, {"steps": steps}, tmp_path / "out", changes=[*FEW, "calibration.length=32"])
    assert "model.layers.1.mlp.2" in manifest["blocks"][1]["linears"] and verify(tmp_path / "out")["ok"]
    short = ModelFolder(folder).shortened(1)
    assert short.anatomy.blocks == 1 and not short.replaced and short.new_skeleton()
    for verb in (
        draft,
        lambda m: plan(m, memory="1MB", runtime="vllm"),
        lambda m: compress(m, "w4", tmp_path / "v", runtime="vllm"),
    ):
        with pytest.raises(UsageError, match="in place of its own"):
            verb(folder)


# Damaged files

RELU = {"kind": "relu"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "an object was expected"),
        ("{", "not readable JSON"),
        ("{}", "replaced = None; an object is needed"),
        ({"replaced": [RELU]}, "an object is needed"),
        ({"model": RELU}, "unknown field 'model' of"),
        ({"replaced": {}, "code": "import os"}, "unknown field 'code'"),
        ({"replaced": {"": RELU}}, "has no module ''"),
        ({"replaced": {"resnet.encoder.stages.0.layers.7": RELU}}, "did you mean 'resnet.encoder.stages.0.layers"),
        ({"replaced": {"a" * 10_000: RELU}}, "has no module 'aaa"),
        ({"replaced": {"../../etc": RELU}}, "has no module '../../etc'"),
        ({"replaced": {FIRST: RELU, f"{FIRST}.layer": RELU}}, f"{FIRST}.layer lies in {FIRST}"),
        ({"replaced": {FIRST: {"kind": "eval"}}}, f"{FIRST}; valid: adaptive_avg_pool2d"),
        ({"replaced": {FIRST: None}}, f"{FIRST} is NoneType"),
        ({"replaced": {FIRST: {"kind": "linear", "in_features": 1 << 24, "out_features": 1 << 24}}}, "parameters"),
    ],
    ids=range(14),
)
def test_a_damaged_file_is_refused(merged, tmp_path, jettison, content, words):
    (merged[0] / "modules.json").write_text(content if isinstance(content, str) else json.dumps(content))
    code, _, error = jettison("compress", merged[0], "--recipe", "w8", "--out", tmp_path / "out")
    text = " ".join(error.split())
    assert code == 1 and words in text and "modules.json" in text and "Traceback" not in text
    assert not (tmp_path / "out" / "journal.jsonl").exists()


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Conv2d(16, 16, 5, padding=2), "has shape (16, 16, 3, 3), the config asks for (16, 16, 5, 5)"),
        (nn.Sequential(nn.Conv2d(16, 16, 3)), f"has no tensor for {FIRST}.0.weight"),
    ],
)
def test_weights_of_another_module_are_refused(merged, tmp_path, module, words):
    write_replaced(merged[0], convolutions() | {FIRST: module})
    for verb in (load, lambda folder: compress(folder, "w8", tmp_path / "out")):
        with pytest.raises(JettisonError) as error:
            verb(merged[0])
        assert words in str(error.value)
    assert not verify(merged[0])["ok"]


def test_a_module_that_does_not_fit_is_no_traceback(merged, jettison, pictures):
    """A description may be sound, and the model not run with it."""
    write_replaced(merged[0], convolutions() | {"resnet.embedder": nn.Flatten()})
    code, _, error = jettison("evaluate", merged[0], "--images", pictures)
    assert code in (1, 2) and "Traceback" not in error and "does not run" in " ".join(error.split())
