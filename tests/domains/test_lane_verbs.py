"""A trained Sparse Laneformer and dense anchors go through all verbs: compress, evaluate, fit, show, export, xr."""

import json

import pytest
from lane_models import DENSE, OWN, SMALL, SPARSE
from PIL import Image

from jettison.core.errors import JettisonError, UsageError
from jettison.domains.perception.learning import train
from jettison.domains.perception.world.order import Order
from jettison.domains.perception.world.store import write_world
from jettison.fitting import fit
from jettison.graph.folder import ModelFolder
from jettison.pipeline import preset_times as timing
from jettison.pipeline.compression import compress
from jettison.pipeline.evaluation import evaluate
from jettison.pipeline.exporting import export
from jettison.pipeline.perceiving import evaluate_perception, show_perception
from jettison.planning import bits


def words(name):
    return [f"{field}={value}" for field, value in (SMALL | OWN[name]).items()]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driving") / "world"
    write_world(folder, Order(seed=3, size=(48, 80), frames=1, cameras="front"), 5)
    return folder


@pytest.fixture(scope="module", params=[SPARSE, DENSE])
def trained(request, world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lanes") / request.param
    train(request.param, world, folder, steps=3, batch=2, changes=words(request.param))
    return folder


def test_all_verbs_take_the_trained_models(trained, world, tmp_path):
    pytest.importorskip("onnxruntime")
    assert (trained / "training.svg").read_text().startswith("<svg")
    recipe = {"steps": [{"quantize": {"method": "rtn", "bits": 8}}]}
    compress(trained, recipe, tmp_path / "w8")
    compress(trained, {"steps": [{"quantize": {"method": "gptq", "bits": 4, "group_size": 32}}],
                       "calibration": {"images": str(world), "samples": 2}}, tmp_path / "w4")  # fmt: skip
    errors = {}
    for small in ("w8", "w4"):
        assert json.loads((tmp_path / small / "training.json").read_text())["synthetic"] is True
        measured = evaluate(tmp_path / small, images=world)
        errors[small] = measured["outputs"]["from the original"]["relative_error"]
        assert {"all"} <= set(measured["lanes"])
    assert 0 < errors["w8"] < 1e-2 and errors["w8"] < errors["w4"]
    roles = {linear.role for linear in ModelFolder(trained).anatomy if linear.block is not None}
    assert roles >= ({"conv", "q", "k", "v", "o", "up", "down", "linear"} if trained.name == SPARSE else {"conv"})
    for folder in (trained, tmp_path / "w8"):
        result = export(folder, tmp_path / f"{folder.name}.onnx")
        assert result["difference"] < 1e-3 * result["largest"]
    assert evaluate_perception(trained, world).frames == 1


def test_fit_reaches_a_latency_by_bits_or_says_what_was_measured(trained, world, tmp_path, monkeypatch):
    times = {"original": 10.0, "w8": 8.0, "w4": 6.0}
    monkeypatch.setattr(timing, "preset_times", lambda source, presets: times)
    chosen = {share: bits.plan_bits(ModelFolder(trained), latency=share).name for share in ("0.8x", "0.7x")}
    assert chosen == {"0.8x": "w8", "0.7x": "w4"}
    assert not bits.plan_bits(ModelFolder(trained), fps=90).steps, "10 ms are fast enough"
    assert bits.plan_bits(ModelFolder(trained), fps=120).name == "w8"
    with pytest.raises(UsageError, match="w8 takes 8 ms .* w4 takes 6 ms .* the budget is 5 ms"):
        bits.plan_bits(ModelFolder(trained), latency=0.5)
    with pytest.raises(UsageError, match="there is a recipe: give one of them"):
        fit(trained, out=tmp_path / "r", latency=0.8, recipe="w8", images=world)
    result = fit(trained, out=tmp_path / "run", latency=0.8, images=world)
    assert result["plan"]["recipe"]["name"] == "w8" and "quantized" in result
    page = (tmp_path / "run/report.html").read_text()
    assert "predicted ones red" in page and ("anchors after they turned" in page) == (trained.name == SPARSE)


def test_a_continued_run_has_the_times_of_its_beginning(trained, world, tmp_path, monkeypatch):
    times = [{"original": 10.0, "w8": 8.0, "w4": 6.0}, {"original": 10.0, "w8": 9.0, "w4": 6.0}]
    monkeypatch.setattr(timing, "preset_times", lambda source, presets: times.pop(0))
    plan = lambda model, folder: bits.plan_bits(ModelFolder(model), latency=0.8, folder=folder).name
    assert plan(trained, tmp_path) == plan(trained, tmp_path) == "w8" and len(times) == 1
    train(trained.name, world, tmp_path / "other", steps=1, batch=2, seed=1, changes=words(trained.name))
    assert plan(tmp_path / "other", tmp_path) == "w4", "another model is measured anew"


@pytest.mark.slow
def test_latencies_are_of_the_presets(trained, monkeypatch):
    monkeypatch.setattr(timing, "ROUNDS", 5)
    times = timing.preset_times(ModelFolder(trained), bits.TRIED)
    assert list(times) == ["original", "w8", "w4"] and all(0 < ms < 1e4 for ms in times.values())


def test_show_draws_predictions_anchors_and_curves(trained, world, tmp_path):
    Image.new("RGB", (300, 200), (90, 90, 90)).save(tmp_path / "mine.jpg")
    compress(trained, "w8", tmp_path / "w8")
    result = show_perception([trained, tmp_path / "w8"], tmp_path / "a.html", images=[tmp_path / "mine.jpg"])
    page = (tmp_path / "a.html").read_text()
    assert "trained on synthetic images only" in str(result["models"])
    assert page.count("trained on synthetic images only") == 2 and page.count("<svg") == 1
    assert "predicted lanes red" in page and "true lanes" not in page
    assert ("anchors after they turned" in page) == (trained.name == SPARSE)
    result = show_perception([trained], tmp_path / "b.html", data=world, frames=1)
    assert len(result["frames"]) == 1 and "true lanes white, predicted ones red" in (tmp_path / "b.html").read_text()
    for options, message in (
        ({}, "name images, or a dataset"),
        ({"images": [tmp_path / "no.jpg"]}, "no.jpg does not exist"),
        ({"images": [trained / "config.json"]}, "cannot be read"),
        ({"data": world, "frames": 0}, "frames = 0"),
    ):
        with pytest.raises(UsageError, match=message):
            show_perception([trained], tmp_path / "c.html", **options)
    with pytest.raises(UsageError, match="no folder of a perception model"):
        show_perception([], tmp_path / "c.html", images=[tmp_path / "mine.jpg"])
    assert not (tmp_path / "c.html").exists()


def test_a_checkpoint_of_another_model_is_refused(trained, world, tmp_path):
    other = DENSE if trained.name == SPARSE else SPARSE
    config = json.loads((trained / "config.json").read_text())
    (tmp_path / "m").mkdir()
    (tmp_path / "m/model.safetensors").write_bytes((trained / "model.safetensors").read_bytes())
    kept = {field: config[field] for field in SMALL}
    (tmp_path / "m/config.json").write_text(json.dumps({"model_type": f"jettison_{other}", **kept}))
    with pytest.raises(JettisonError, match="the checkpoint has no tensor for"):
        evaluate_perception(tmp_path / "m", world)


def test_a_model_is_a_unit_of_xrbench(trained):
    from jettison.xr.operators import count_operators
    from jettison.xr.variants import Variant, open_variant

    run = open_variant(Variant("OD", str(trained)))
    assert run().shape[0] == 1
    macs = sum(operator.macs for operator in count_operators(run))
    assert macs > 1e5
