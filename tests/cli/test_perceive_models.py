"""The commands ``train`` and ``evaluate`` of ``jettison perceive``, and scores of worlds without a layout."""

import json

import pytest
from PIL import Image

from jettison.domains.perception.learning import train
from jettison.domains.perception.world.order import Order
from jettison.domains.perception.world.store import write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driving") / "world"
    write_world(folder, Order(seed=5, size=(32, 80), frames=1, place="road"), 3)
    return folder


def test_train_evaluate_and_score(jettison, world, tmp_path):
    out = tmp_path / "lanes"
    tiny = ("--steps", 2, "--batch", 2, "--set", "height=32", "--set", "width=80", "--json", tmp_path / "t.json", "-q")
    code, text, err = jettison("perceive", "train", "lane_regressor", "--data", world, "--out", out, *tiny)
    assert (code, err) == (0, "") and "best score on val" in text
    assert json.loads((tmp_path / "t.json").read_text())["frames"] == {"train": 1, "val": 1}
    code, text, err = jettison(
        "perceive",
        "evaluate",
        out,
        "--data",
        world,
        "--predictions",
        tmp_path / "made",
        "--json",
        tmp_path / "e.json",
        "-q",
    )
    assert (code, err) == (0, "") and "1 frames of culane" in text
    code, text, err = jettison("plan", out, "--memory", "100KB")
    assert code == 2 and "is no language model" in err
    Image.new("RGB", (160, 90)).save(tmp_path / "mine.png")
    shown = ("perceive", "show", out, tmp_path / "mine.png", "--out", tmp_path / "a.html", "-q")
    code, text, err = jettison(*shown, "--json", tmp_path / "p.json")
    assert (code, err) == (0, "") and "trained on synthetic images only" in text and "1 frames" in text
    assert json.loads((tmp_path / "p.json").read_text())["frames"] == [str(tmp_path / "mine.png")]
    code, text, err = jettison("perceive", "show", tmp_path / "no.png", tmp_path / "mine.png", "--out", "a.html", "-q")
    assert code == 2 and "no folder of a perception model is named" in err
    code, text, err = jettison("perceive", "score", tmp_path / "made", world, "--json", tmp_path / "s.json", "-q")
    assert (code, err) == (0, "")
    evaluated, scored = (json.loads((tmp_path / file).read_text()) for file in ("e.json", "s.json"))
    assert evaluated["scores"] == scored["scores"] and evaluated["split"] == "test"


def test_export(jettison, world, tmp_path):
    pytest.importorskip("onnxruntime")
    train("lane_regressor", world, tmp_path / "m", steps=1, batch=2, changes=["height=32", "width=80"])
    to = ("export", tmp_path / "m", "--to", "onnx", "--out")
    code, text, err = jettison(*to, tmp_path / "a.onnx", "-q")
    assert (code, err) == (0, "") and "largest difference of its logits" in text
    code, text, err = jettison(*to, tmp_path / "b.onnx", "--size", "32x80")
    assert code == 2 and "has the size of its config" in err


def test_a_world_is_scored_by_the_predictions_layout(jettison, world):
    for predictions, split, layout in (
        (world, "test", "culane"),
        (world / "label_data_0531.json", "val", "tusimple"),
    ):
        code, text, err = jettison("perceive", "score", predictions, world, "--split", split)
        assert code == 0 and f"scored as those of the layout {layout}" in err and f"frames of {layout}" in text


def test_errors_are_one_line(jettison, world, tmp_path):
    new = ("perceive", "train", "lane_regressor", "--data", world, "--out", tmp_path / "m")
    scribe = ("perceive", "evaluate", "scribe", "--data", world)
    for arguments, words in (
        (("perceive", "train", "lanes", *new[3:]), "unknown model 'lanes'"),
        ((*new, "--steps", 0), "steps = 0"),
        ((*new, "--batch", 1), "batch = 1"),
        ((*new, "--rate", -1), "rate = -1"),
        ((*new, "--rate", 0), "rate = 0.0: a number from 1e-09 to 10.0 is needed"),
        ((*new, "--seed", -1), "seed = -1"),
        ((*new, "--set", "height"), "field=value is needed"),
        ((*new, "--set", "height=big"), "height = 'big'"),
        ((*new, "--set", "size=3"), "unknown field 'size'"),
        ((*new, "--layout", "ddad"), "needs culane or tusimple"),
        ((*new, "--layout", "world"), "has the layout world: a model of lanes needs culane or tusimple"),
        ((*new, "--layout", "kitti"), "unknown layout 'kitti'"),
        ((*new[:4], tmp_path / "no", *new[5:]), "does not exist"),
        (scribe, "no perception model"),
        (("perceive", "evaluate", tmp_path, "--data", world), "is not a model folder"),
    ):
        code, out, err = jettison(*arguments)
        assert code == 2 and not out and words in err and len(err.splitlines()) == 1, (arguments, err)
    assert not (tmp_path / "m").exists()
