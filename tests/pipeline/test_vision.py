"""Image classifiers go through the same commands as language models."""

import shutil

import pytest
import torch
from killing import SOME, check_kills

from jettison import compress, draft, evaluate, load, recover
from jettison.core.errors import UsageError
from jettison.fitting import fit
from jettison.formats.packed import read_grids
from jettison.graph.dense import load_dense
from jettison.graph.folder import ModelFolder
from jettison.pipeline.showing import measure_images
from jettison.pipeline.tasks import evaluate_tasks
from jettison.pipeline.verification import verify
from jettison.planning.planner import make_plan

FAMILIES = ["vit", "deit", "resnet", "convnext", "mobilenet_v2"]
FEW = ["calibration.samples=8"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_at_eight_bits(tiny, pictures, tmp_path, family):
    """Compress, load and compare: little is lost, and the intended weights are packed."""
    compress(tiny(family), "w8", tmp_path / "out", changes=FEW)
    measured = evaluate(tmp_path / "out", images=pictures)
    result = measured["images"][str(pictures)]
    assert result["images"] == 36 and result["broken"] == 0
    assert result["kl"] < 0.01 and result["agreement"] > 0.8
    assert measured["size"]["bytes"] < ModelFolder(tiny(family)).checkpoint.tensor_bytes
    assert verify(tmp_path / "out")["ok"]
    grids = read_grids(ModelFolder(tmp_path / "out"))
    assert len(grids) == sum(
        {"stem", "depthwise"}.isdisjoint(linear.roles) for linear in ModelFolder(tiny(family)).anatomy
    )


@pytest.mark.parametrize("family", ["resnet", "vit", "mobilenet_v2"])
def test_statistics_help(tiny, pictures, tmp_path, family):
    """At 3 bits, a method that knows the inputs leaves a smaller error than rounding."""
    errors = {}
    for method in ("rtn", "gptaq"):
        step = {"quantize": {"method": method, "bits": 3, "group_size": 16}}
        manifest = compress(tiny(family), {"steps": [step], "calibration": {"images": str(pictures), "samples": 36}},
                            tmp_path / method)  # fmt: skip
        linears = [record for block in manifest["blocks"] for record in block["linears"].values()]
        errors[method] = sum(record["error"] for record in linears if "tokens" in record or method == "rtn")
    assert errors["gptaq"] < errors["rtn"]


@pytest.mark.parametrize(("family", "method"), [("resnet", "gptaq"), ("convnext", "gptq"), ("vit", "awq")])
def test_a_killed_run_ends_with_the_same_bytes(tiny, pictures, tmp_path, family, method):
    step = {
        "quantize": {"method": method, "bits": 4, "group_size": 16},
        "where": {"role": ["q", "k", "v", "up", "conv"]},
    }
    recipe = {"steps": [step], "calibration": {"images": str(pictures), "samples": 8}}
    check_kills(lambda out: compress(tiny(family), recipe, out), tmp_path, SOME)


def test_every_matrix_can_be_quantized(tiny, pictures, tmp_path):
    """Stem and depthwise convolutions can be quantized too, with a table of values (nf4)."""
    step = {"quantize": {"method": "gptq", "values": "nf4", "group_size": -1}}
    compress(tiny("mobilenet_v2"), {"steps": [step]}, tmp_path / "out", images=pictures, changes=FEW)
    source = ModelFolder(tmp_path / "out")
    assert len(read_grids(source)) == len(source.anatomy.linears)
    assert source.quantization["quant_method"] == "jettison"
    assert evaluate(tmp_path / "out", images=pictures, count=6)["images"][str(pictures)]["images"] == 6


@pytest.mark.parametrize(
    ("family", "train"),
    [("vit", ["lora"]), ("vit", ["lora", "scales"]), ("resnet", ["scales"]), ("convnext", ["scales"])],
)
def test_recovery_wins_back(tiny, pictures, tmp_path, family, train):
    step = {"quantize": {"method": "rtn", "bits": 2, "group_size": 16}}
    recipe = {"steps": [step, {"recover": {"train": train, "rank": 4, "samples": 36, "epochs": 6, "batch": 12}}]}
    compress(tiny(family), recipe, tmp_path / "out", images=pictures)
    before = evaluate(tmp_path / "out", images=pictures)["images"][str(pictures)]["kl"]
    manifest = recover(tmp_path / "out")
    after = evaluate(tmp_path / "out", images=pictures)["images"][str(pictures)]["kl"]
    assert after < 0.8 * before and len(manifest["recovery"]["loss"]) == 18


def test_fit_and_its_page(tiny, pictures, tmp_path):
    result = fit(tiny("resnet"), out=tmp_path / "out", recipe="w4", images=pictures, changes=FEW)
    assert result["original"]["images"][str(pictures)]["kl"] == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 12 and "Quality on images" in page
    assert "for one image" in page and "Quality on text" not in page
    again = fit(tiny("resnet"), out=tmp_path / "out", recipe="w4", images=pictures, changes=FEW)
    assert again["quantized"] == result["quantized"]


def test_what_it_would_take(tiny, pictures, tmp_path):
    recipe = {"steps": [{"quantize": {"method": "gptq", "bits": 4, "group_size": 16}}, {"recover": {"samples": 8}}]}
    from jettison.recipe.recipe import load_recipe

    plan = fit(tiny("vit"), out=tmp_path / "o", recipe=load_recipe(recipe), images=pictures, dry_run=True)["forecast"]
    assert [step["step"] for step in plan["steps"]] == ["compress", "recover", "evaluate"]
    assert all(step["seconds"] > 0 for step in plan["steps"]) and not (tmp_path / "o" / "journal.jsonl").exists()


def test_older_names_in_a_checkpoint_are_found(tiny):
    """The class of ViT was renamed in transformers; the names in its checkpoints were not."""
    source = ModelFolder(tiny("vit"))
    assert "vit.encoder.layer.0.attention.attention.query.weight" in source.checkpoint
    assert source.locate("vit.layers.0.attention.q_proj.weight")[0] in source.checkpoint


def test_batch_statistics_are_loaded(tiny):
    source = ModelFolder(tiny("resnet"))
    name = "resnet.embedder.embedder.normalization.running_mean"
    assert torch.equal(load_dense(source).get_buffer(name), source.read(name))
    assert float(source.read(name).abs().max()) > 0


def test_loaded_it_names_classes(tiny, tmp_path):
    compress(tiny("resnet"), "w8", tmp_path / "out")
    assert load(tmp_path / "out").logits(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, o, p: compress(m, "w4", o), "calibrated on images: name a folder"),
        (lambda m, o, p: evaluate(m), "is an image classifier: name the images"),
        (lambda m, o, p: evaluate("scribe", images=p), "scribe is a language model"),
        (
            lambda m, o, p: fit(m, out=o, memory="1MB", images=p),
            "memory is a budget of language models; .* is an image classifier: give latency or fps, or a recipe",
        ),
        (lambda m, o, p: evaluate(m, images=p, count=0), "count = 0"),
        (
            lambda m, o, p: compress(m, "w4", o, images=p, format="compressed-tensors"),
            "holds no quantized convolutions",
        ),
        (lambda m, o, p: compress(m, "w4", o, images=p, runtime="vllm"), "conv|convolution"),
    ],
)
def test_what_is_asked_wrongly(tiny, pictures, tmp_path, call, words):
    with pytest.raises(UsageError, match=words):
        call(tiny("resnet"), tmp_path / "out", pictures)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.safetensors"))


def test_a_changed_image_is_another_run(tiny, pictures, tmp_path):
    copy = shutil.copytree(pictures, tmp_path / "p")
    recipe = {"steps": [{"quantize": {"method": "gptq", "bits": 4, "group_size": 16}}]}
    compress(tiny("vit"), recipe, tmp_path / "out", images=copy, changes=FEW)
    (copy / "cat" / "00.png").write_bytes((copy / "dog" / "00.png").read_bytes())
    with pytest.raises(UsageError, match="images"):
        compress(tiny("vit"), recipe, tmp_path / "out", images=copy, changes=FEW)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: make_plan(m, memory="1MB"), "is no language model: plan an image classifier by latency or fps"),
        (lambda m: load(m).generate("It was"), "is no language model: it writes no text"),
        (lambda m: evaluate_tasks(m, ["jettison_books"], items=2), "is no language model: tasks are for"),
        (lambda m: draft(m), "is no language model: drafts are for"),
    ],
)
def test_what_is_for_language_models_only(tiny, call, words):
    with pytest.raises(UsageError, match=words):
        call(tiny("vit"))


def test_a_broken_image_moves_no_label(tiny, pictures, tmp_path):
    """The report's images after a broken one keep their own labels."""
    broken = shutil.copytree(pictures, tmp_path / "pictures")
    (broken / "cat" / "00.png").write_bytes(b"no image")
    compress(tiny("vit"), "w8", tmp_path / "out", images=pictures)
    shown = measure_images(tmp_path / "out", tiny("vit"), broken)
    assert shown["looked_at"] == 35, "of 36, one is broken"
    whole = measure_images(tmp_path / "out", tiny("vit"), pictures)
    labels = {picture["png"]: picture["label"] for picture in whole["pictures"]}
    assert len(labels) == 12
    for picture in shown["pictures"]:
        assert labels.get(picture["png"], picture["label"]) == picture["label"]
    assert sum(picture["png"] in labels for picture in shown["pictures"]) >= 11
