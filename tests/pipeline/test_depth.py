"""The depth step of a recipe, on small image classifiers: every method and family, kills, and what is asked wrongly."""

import json
import shutil
from contextlib import contextmanager
from copy import deepcopy
from functools import partial

import pytest
import tiny as maker
import torch
from killing import Killed, check_kills, files_of
from transformers import AutoModelForImageClassification
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer

from jettison import compress, evaluate, load, verify
from jettison.core.errors import UsageError
from jettison.core.journal import Journal
from jettison.formats.packed import read_grids
from jettison.graph.blocks import ResidualBlock
from jettison.graph.folder import ModelFolder
from jettison.pipeline import depth

FAMILIES = ["resnet", "convnext", "mobilenet_v2", "vit", "deit"]
SHORT = {"epochs": 1, "batch": 16}
METHODS = {
    "updp": {"blocks": 1, "supernet_epochs": 1} | SHORT,
    "depthshrinker": {"blocks": 1, "gate_epochs": 1} | SHORT,
    "drop": {"blocks": 1} | SHORT,
    "chosen": {"blocks": [1], "fade": 0.5} | SHORT,
}
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Return a folder of 45 pictures."""
    return maker.make_images(tmp_path_factory.mktemp("many") / "pictures", 15)


@pytest.fixture(autouse=True)
def timed(monkeypatch):
    """Let a model take as many milliseconds as it has matrices: times that are measured are not the same twice."""

    def milliseconds(models, example):
        matrices = lambda model: sum(isinstance(part, torch.nn.Conv2d | torch.nn.Linear) for part in model.modules())
        return {name: float(matrices(model)) for name, model in models.items()}

    monkeypatch.setattr(depth, "milliseconds", milliseconds)


def recipe(method, **changes):
    return {"steps": [{"depth": {"method": method} | METHODS[method] | changes}]}


@contextmanager
def watched(monkeypatch):
    """Yield a list that gets the pruned model in memory."""
    models, real = [], depth._write

    def write(task, *others):
        real(task, *others)
        models.append(deepcopy(task.model))

    with monkeypatch.context() as patch:
        patch.setattr(depth, "_write", write)
        yield models


def check_result(out, model, images):
    """Check that the folder is the model, in every command that reads it."""
    model.eval()
    with torch.no_grad():
        expected = model(PIXELS).logits
    torch.testing.assert_close(load(out).logits(PIXELS), expected, atol=1e-5, rtol=1e-5)
    assert verify(out)["ok"]
    assert evaluate(out, images=images, count=6)["images"][str(images)]["images"] == 6


SOME = [("updp", "resnet"), ("updp", "vit"), ("chosen", "convnext"), ("drop", "resnet"), ("depthshrinker", "deit")]
SOME += [("chosen", "mobilenet_v2")]
ALL = [
    pytest.param(method, family, marks=() if (method, family) in SOME else pytest.mark.slow)
    for method in METHODS
    for family in FAMILIES
]


@pytest.mark.parametrize(("method", "family"), ALL)
def test_every_method_on_every_family(tiny, images, tmp_path, monkeypatch, method, family):
    with watched(monkeypatch) as models:
        manifest = compress(tiny(family), recipe(method), tmp_path / "out", images=images)
    check_result(tmp_path / "out", models[0], images)
    record = manifest["depth"]
    assert record["method"] == method and len(record["pruned"]) == 1 and record["dropped"] == (method == "drop")
    assert record["blocks"] == ModelFolder(tiny(family)).anatomy.blocks and record["accuracy"]["images"] == 2
    assert record["difference"] < 1e-5
    assert manifest["teacher"]["folder"] == str(tiny(family))
    if method == "drop":
        assert record["merged"] == [] and bool(manifest["not_in_transformers"]) == (family not in ("vit", "deit"))
    else:
        (merged,) = record["merged"]
        assert merged["after"]["layers"] < merged["before"]["layers"]
        assert "modules.json" in manifest["not_in_transformers"][0]
        at = ModelFolder(tmp_path / "out").replaced[merged["path"]]
        assert at["kind"] in ("conv2d", "same_pad_conv2d", "linear", "residual_block")
    assert not list((tmp_path / "out" / "depth").glob("*.safetensors")), "states of trainings are removed"


@pytest.mark.parametrize("family", ["vit", "deit"])
def test_a_shorter_transformer_is_an_ordinary_checkpoint(tiny, images, tmp_path, family):
    manifest = compress(tiny(family), recipe("drop"), tmp_path / "out", images=images)
    assert manifest["not_in_transformers"] == [] and not (tmp_path / "out" / "modules.json").exists()
    model, info = AutoModelForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert model.config.num_hidden_layers == 1 and not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "out").logits(PIXELS), model(PIXELS).logits, atol=1e-6, rtol=1e-6)


def test_eight_bits_on_top(tiny, images, tmp_path):
    steps = recipe("updp")["steps"]
    steps.append({"quantize": {"method": "rtn", "bits": 8, "group_size": -1}})
    compress(tiny("resnet"), {"steps": steps}, tmp_path / "out", images=images)
    shorter, result = load(tmp_path / "out" / "depth" / "model"), load(tmp_path / "out")
    torch.testing.assert_close(result.logits(PIXELS), shorter.logits(PIXELS), atol=0.05, rtol=0.05)
    grids = read_grids(ModelFolder(tmp_path / "out"))
    (path,) = [path for path in ModelFolder(tmp_path / "out").replaced]
    assert any(name.startswith(path) for name in grids), "the merged convolution is quantized, too"
    assert verify(tmp_path / "out")["ok"]


def test_a_share_of_the_latency(tiny, images, tmp_path):
    """The ResNet has 9 matrices: 2 or 3 in each of 3 blocks, stem and head. A merged block has one or two."""
    changes = {"blocks": None, "latency": 0.8}
    manifest = compress(tiny("resnet"), recipe("updp", **changes), tmp_path / "out", images=images)
    journal = [json.loads(line) for line in (tmp_path / "out" / "depth" / "journal.jsonl").read_text().splitlines()]
    gains = next(entry["gains"] for entry in journal if "gains" in entry)
    chosen = next(entry for entry in journal if entry.get("searched"))
    assert len(gains) == 3 and all(gain > 0 for gain in gains.values())
    assert 1 - sum(gains[str(block)] for block in manifest["depth"]["pruned"]) <= 0.8
    assert chosen["latency"] <= 0.8 and all(entry["latency"] <= 0.8 for entry in journal if "genome" in entry)
    assert next(entry["milliseconds"] for entry in journal if entry.get("measured"))["pruned"] < 0.8 * 9


def test_a_subnet_that_misses_the_latency_is_searched_for_again(tiny, images, tmp_path, monkeypatch):
    """Each block alone saves a tenth, but two together save less than two tenths, so the third goes as well."""
    shares = [1.0, 0.9, 0.85, 0.75]  # by the number of merged blocks

    def milliseconds(models, example):
        merged = lambda model: 3 - sum(isinstance(part, ResNetBasicLayer) for part in model.modules())
        return {name: shares[merged(model)] for name, model in models.items()}

    monkeypatch.setattr(depth, "milliseconds", milliseconds)
    asked = recipe("updp", blocks=None, latency=0.8)
    manifest = compress(tiny("resnet"), asked, tmp_path / "out", images=images)
    journal = [json.loads(line) for line in (tmp_path / "out" / "depth" / "journal.jsonl").read_text().splitlines()]
    searched = [(entry["goal"], len(entry["pruned"])) for entry in journal if "searched" in entry]
    assert searched == [(0.8, 2), (0.75, 3)]
    assert [entry["share"] for entry in journal if "subnet" in entry] == [0.85, 0.75]
    assert manifest["depth"]["pruned"] == [0, 1, 2]


def test_the_same_seed_gives_the_same_bytes(tiny, images, tmp_path):
    run = lambda name, seed: compress(tiny("resnet"), recipe("updp"), tmp_path / name, images=images, seed=seed)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(name, seed)
    one, same, other = (files_of(tmp_path / name) for name in "abc")
    assert one["depth/model/model.safetensors"] == same["depth/model/model.safetensors"]
    assert one["depth/model/model.safetensors"] != other["depth/model/model.safetensors"]
    written = files_of(tmp_path / "a")
    run("a", 1)
    assert files_of(tmp_path / "a") == written, "a finished run changes nothing"
    with pytest.raises(UsageError, match="holds another run: its seed is 1"):
        run("a", 3)


@pytest.fixture
def saved_often(monkeypatch):
    """Save the state of a training after every step."""
    monkeypatch.setattr(depth, "prune_folder", partial(depth.prune_folder, save_every=0.0))


EVERY = [("updp", "resnet"), ("drop", "resnet"), ("depthshrinker", "vit"), ("drop", "vit"), ("chosen", "vit")]


@pytest.mark.parametrize(
    ("method", "family", "most"),
    [("updp", "resnet", 5), *(pytest.param(*case, None, marks=pytest.mark.slow) for case in EVERY)],
)
def test_killed_at_a_write_it_ends_with_the_same_bytes(tiny, images, tmp_path, saved_often, method, family, most):
    check_kills(lambda out: compress(tiny(family), recipe(method, batch=32), out, images=images), tmp_path, most)


class Count:
    """Kills a run at a record of a journal, before it is written or after."""

    def __init__(self, at=None, after=False):
        self.at, self.after, self.seen = at, after, 0

    def __enter__(self):
        self.patch, real = pytest.MonkeyPatch(), Journal.add

        def add(journal, **entry):
            number, self.seen = self.seen, self.seen + 1
            if number == self.at and not self.after:
                raise Killed
            real(journal, **entry)
            if number == self.at:
                raise Killed

        self.patch.setattr(Journal, "add", add)
        return self

    def __exit__(self, kind, *reason):
        self.patch.undo()
        return kind is Killed


def test_a_killed_depth_step_leaves_its_log(tiny, images, tmp_path):
    """The log begins with the depth step, which may take hours, and a run continues beside it."""
    run = lambda: compress(tiny("resnet"), recipe("drop"), tmp_path / "out", images=images)
    with Count(2):
        run()
    assert not (tmp_path / "out" / "journal.jsonl").exists()
    assert (tmp_path / "out" / "progress.log").read_text().count("ended by Killed") == 1
    assert run()["depth"]["pruned"]


@pytest.mark.parametrize(
    ("method", "family", "every"),
    [
        ("updp", "resnet", 8),
        ("drop", "resnet", 2),
        pytest.param("updp", "convnext", 1, marks=pytest.mark.slow),
        pytest.param("updp", "resnet", 1, marks=pytest.mark.slow),
        pytest.param("drop", "resnet", 1, marks=pytest.mark.slow),
        pytest.param("depthshrinker", "deit", 1, marks=pytest.mark.slow),
    ],
)
def test_killed_at_a_record_it_ends_with_the_same_bytes(tiny, images, tmp_path, saved_often, method, family, every):
    """Before a record of the journal and after it, in every stage: supernet, search, progressive training, merge."""
    run = lambda out: compress(tiny(family), recipe(method, batch=32), out, images=images)
    with Count() as count:
        run(tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    for number in range(0, count.seen, every):
        out = tmp_path / "killed"
        with Count(number, after=bool(number // every % 2)) as killing:
            run(out)
        assert killing.seen == number + 1
        run(out)
        assert files_of(out) == expected, f"killed at record {number} of {count.seen}"
        shutil.rmtree(out)


def test_a_damaged_result_is_made_again(tiny, images, tmp_path):
    run = lambda: compress(tiny("vit"), recipe("updp"), tmp_path / "out", images=images)
    run()
    whole, file = files_of(tmp_path / "out"), tmp_path / "out" / "depth" / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\1\2\3\4")
    run()
    assert files_of(tmp_path / "out") == whole


def test_broken_images_are_left_out(tiny, images, tmp_path):
    broken = shutil.copytree(images, tmp_path / "p")
    for name in ("cat/00.png", "cat/03.png", "frog/14.png"):
        (broken / name).write_bytes(b"no image")
    manifest = compress(tiny("vit"), recipe("chosen"), tmp_path / "out", images=broken)
    assert len(manifest["depth"]["pruned"]) == 1


def with_step(**changes):
    return {"steps": [{"depth": METHODS["updp"] | {"method": "updp"} | changes}]}


QUANTIZE = {"quantize": {"method": "rtn", "bits": 8, "group_size": -1}}
WRONG = {
    "language": ("llama", with_step(), "is a language model: depth is pruned in image classifiers only"),
    "too many": ("resnet", with_step(blocks=9), "blocks = 9: .* has 3 blocks that can be pruned"),
    "neither": ("resnet", with_step(blocks=None), "needs one of blocks .* and latency"),
    "both": ("resnet", with_step(latency=0.5), "needs one of blocks .* and latency"),
    "too fast": ("resnet", with_step(blocks=None, latency=0.1), "latency = 0.1: the smallest subnet, with all 3 "),
    "batch": ("resnet", with_step(batch=44), "batch = 44: there are 43 images to train on"),
    "option": ("resnet", with_step(block=3), "unknown option 'block'"),
    "kernel": ("resnet", with_step(kernel=-2), "kernel"),
    "method": ("resnet", {"steps": [{"depth": {"method": "updb"}}]}, "unknown depth method 'updb'"),
    "no such block": (
        "resnet", recipe("chosen", blocks=[0, 7]), "block 7: the model has blocks 0 to 2",
    ),
    "not droppable": ("resnet", recipe("drop", blocks=3), "blocks = 3: 2 blocks of the model have their"),
    "not first": ("vit", {"steps": [QUANTIZE, *recipe("drop")["steps"]]}, "it comes first"),
    "two": ("vit", {"steps": recipe("drop")["steps"] * 2}, "at most one depth step"),
    "where": (
        "vit", {"steps": [recipe("drop")["steps"][0] | {"where": {"role": "up"}}]}, "leave out 'where'",
    ),
}  # fmt: skip


def check_refused(words, model, asked, out, images, monkeypatch):
    """Check that a request is refused in one line before any training, and leaves nothing behind."""
    monkeypatch.setattr("jettison.training.depth.train", lambda *_, **__: pytest.fail("a training began"))
    with pytest.raises(UsageError, match=words) as error:
        compress(model, asked, out, images=images)
    assert "\n" not in str(error.value)
    assert not out.exists() or not [path for path in out.iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize("what", WRONG)
def test_what_is_asked_wrongly(tiny, images, tmp_path, monkeypatch, what):
    family, asked, words = WRONG[what]
    images = None if what == "language" else images
    check_refused(words, tiny(family), asked, tmp_path / "out", images, monkeypatch)


def test_images_that_cannot_be_used(tiny, images, tmp_path, monkeypatch):
    refused = partial(
        check_refused, model=tiny("vit"), asked=recipe("updp"), out=tmp_path / "o", monkeypatch=monkeypatch
    )
    refused("name a folder of class subfolders", images=None)
    refused("no images", images=tmp_path / "nowhere")
    refused("has 36 images: at least 40", images=maker.make_images(tmp_path / "few"))
    broken = shutil.copytree(images, tmp_path / "broken")
    for file in broken.rglob("*.png"):
        file.write_bytes(b"no image")
    refused("images can be decoded", images=broken)


def test_an_activation_that_cannot_be_written(images, tmp_path, monkeypatch):
    """The activation after a block stays, so it must have a description: this is known before the training."""
    folder = maker.make_vision("resnet", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu_new"}))
    words = "the activation after it: NewGELUActivation has no description"
    check_refused(words, folder, recipe("updp"), tmp_path / "out", images, monkeypatch)


def test_a_merged_block_keeps_the_activation_after_it(tiny, images, tmp_path):
    compress(tiny("resnet"), recipe("chosen"), tmp_path / "out", images=images)
    block = load(tmp_path / "out").model.resnet.encoder.stages[1].layers[0]
    assert isinstance(block, ResidualBlock) and isinstance(block.after, torch.nn.ReLU) and block.shortcut is None
