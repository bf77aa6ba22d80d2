"""Perception models: tensors of frames, training that resumes, predictions that score the same, bad data."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jettison.core.errors import JettisonError, UsageError
from jettison.domains.domain import Sources
from jettison.domains.perception import learning
from jettison.domains.perception.domain import open_samples, shapes_of
from jettison.domains.perception.judging import predict
from jettison.domains.perception.layouts.culane import LABELS, read_lanes
from jettison.domains.perception.layouts.opening import open_scenes
from jettison.domains.perception.learning import train
from jettison.domains.perception.modelling import Prediction, Sample, find_model, model_names
from jettison.domains.perception.picturing import picture_prediction
from jettison.domains.perception.scenes import Frame, ImageLane, Scene, View
from jettison.domains.perception.scoring import score
from jettison.domains.perception.world.order import Order
from jettison.domains.perception.world.store import write_world
from jettison.graph.folder import ModelFolder
from jettison.graph.own_models import make_config, make_model, pack, unpack
from jettison.metrics.tusimple import tusimple_image, tusimple_score
from jettison.pipeline.compression import compress
from jettison.pipeline.evaluation import evaluate
from jettison.pipeline.perceiving import evaluate_perception
from jettison.pipeline.showing import show

NAME, KIND = "lane_regressor", "jettison_lane_regressor"
TINY = {"steps": 4, "batch": 2, "changes": ["height=32", "width=80", "channels=[8, 8, 8]"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driving") / "world"
    write_world(folder, Order(seed=3, size=(32, 80), frames=1, place="road"), 5)
    return folder


@pytest.fixture(scope="module")
def model(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lanes") / "model"
    train(NAME, world, folder, **TINY)
    return folder


def test_models_are_found_by_being_there():
    assert NAME in model_names()
    with pytest.raises(UsageError, match="did you mean 'lane_regressor'"):
        find_model("lane_regresor")


def test_several_tensors_are_one_row():
    shapes = {"a": (2, 3), "b": (), "c": (4,)}
    tensors = {"a": torch.rand(5, 2, 3), "b": torch.rand(5), "c": torch.rand(5, 4)}
    rows = pack(tensors, shapes)
    assert rows.shape == (5, 11)
    assert all(torch.equal(value, tensors[name]) for name, value in unpack(rows, shapes).items())
    with pytest.raises(UsageError, match=r"c of a sample is \(4,\): the shape \(3,\) is needed"):
        pack(tensors, shapes | {"c": (3,)})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "jettison_lane_regresor"}, "no model of Jettison's own; valid: jettison_lane_regressor"),
        ({"model_type": KIND, "height": 10**9}, "height = 1000000000: a whole number from 32 to 1,024"),
        ({"model_type": KIND, "channels": [8, 8]}, "channels = "),
        ({"model_type": KIND, "hieght": 80}, "did you mean 'height'"),
    ],
)
def test_a_config_that_is_wrong_is_refused(config, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=words):
        _ = ModelFolder(tmp_path).skeleton


def lanes_frame(lanes, size=(80, 200)):
    """Return a sample whose front image is black, with lanes."""
    from PIL import Image

    return lambda folder: (
        Image.new("RGB", size[::-1]).save(folder / "a.png"),
        Sample(
            scene := Scene("s", [Frame("f", {"front": View(image=folder / "a.png", lanes=lanes)})]), 0, scene.frames[0]
        ),
    )[1]


def test_targets_and_predictions_are_inverse(tmp_path):
    y = np.linspace(30.0, 70.0, 9)
    lines = [(90, -0.5), (60, -1.0), (120, 0.5), (150, 1.5)]  # x at row 60, slope; the nearest of a side first
    true = [np.stack([x + slope * (y - 60), y], 1) for x, slope in lines]
    sample = lanes_frame([ImageLane(points) for points in true[::-1]])(tmp_path)
    model, config = find_model(NAME), make_config(KIND, {}, "test")
    target = model.targets(config, sample)["lines"]
    assert target[:, 0].tolist() == [1, 1, 1, 1], "all slots are taken"
    outputs = torch.cat([target[:, :1] * 9, target[:, 1:]], 1)
    made = model.predict(config, {"lines": outputs}, sample).lanes
    for points, lane in zip(true, made, strict=True):
        at = np.interp(lane.points[:, 1], points[:, 1], points[:, 0])
        assert np.abs(lane.points[:, 0] - at).max() < 0.02
    absent = model.predict(config, {"lines": outputs * torch.tensor([-1.0, 1, 1, 1, 1])}, sample)
    assert absent.lanes == []


def test_a_frame_without_lanes_and_lanes_outside_the_image(tmp_path):
    model, config = find_model(NAME), make_config(KIND, {}, "test")
    far = ImageLane([[-500.0, 10.0], [-400.0, 70.0]])
    level = ImageLane([[10.0, 40.0], [150.0, 40.0]])
    for lanes in ([], [far], [level]):
        target = model.targets(config, lanes_frame(lanes)(tmp_path))["lines"]
        assert not target.any()
        network = make_model(config).train()
        value = model.loss(
            network, {"pixels": torch.rand(2, 3, 80, 200)}, {"lines": target[None].repeat(2, 1, 1)}, "train"
        )
        value.backward()
        assert value.isfinite() and all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    with pytest.raises(UsageError, match="no labels of lanes"):
        model.targets(config, lanes_frame(None)(tmp_path))


def test_a_mirrored_image_has_mirrored_lines():
    model = find_model(NAME)
    lines = torch.tensor([[1, 0.4, -1, 0.4, 0.9], [1, 0.2, -2, 0.4, 0.9], [1, 0.6, 1.5, 0.4, 0.9], [0.0, 0, 0, 0, 0]])
    torch.manual_seed(0)
    pixels = torch.rand(64, 3, 8, 200)
    _, moved = model._augment(pixels, lines.repeat(64, 1, 1))
    flipped = moved[:, 0, 2] != -1
    assert flipped.any() and not flipped.all()
    assert (moved[flipped][:, 1, 0] == 0).all() and torch.allclose(moved[flipped][:, 0, 2], torch.tensor(-1.5))
    assert (moved[flipped][:, 2, 2] == 1).all(), "left and right change places, and slopes their signs"


def test_a_killed_training_gives_the_same_bytes(world, model, tmp_path, monkeypatch):
    loop = learning.run_loop

    def dies(lesson, groups, fetch, plan, state, **options):
        def stop(step, loss):
            options["record"](step, loss)
            if step == 1:
                raise KeyboardInterrupt

        return loop(lesson, groups, fetch, plan, state, **options | {"record": stop, "save_every": 0})

    monkeypatch.setattr(learning, "run_loop", dies)
    with pytest.raises(KeyboardInterrupt):
        train(NAME, world, tmp_path / "m", **TINY)
    assert not (tmp_path / "m/config.json").exists(), "no model yet"
    monkeypatch.setattr(learning, "run_loop", loop)
    result = train(NAME, world, tmp_path / "m", **TINY)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "m" / file).read_bytes() == (model / file).read_bytes()
    journal = (tmp_path / "m" / learning.JOURNAL).read_text()
    steps = [entry["step"] for entry in map(json.loads, journal.splitlines()) if "step" in entry]
    assert steps.count(0) == 1 and steps[-1] == 3, "it continued, and did not begin anew"
    assert not list((tmp_path / "m").glob(".*.safetensors")), "states of the training are removed"
    assert train(NAME, world, tmp_path / "m", **TINY) == result
    assert (tmp_path / "m" / learning.JOURNAL).read_text() == journal, "a finished run is not run again"
    for other, words in (({"seed": 1}, "its seed"), ({"layout": "tusimple"}, "its layout")):
        with pytest.raises(UsageError, match=f"holds another run: {words}"):
            train(NAME, world, tmp_path / "m", **TINY, **other)


def test_of_equal_scores_the_parameters_of_the_smallest_loss_are_kept(world, tmp_path, monkeypatch):
    losses, seen = iter([3.0, 1.0, 2.0, 4.0, 5.0]), []

    def validate(network, *more):
        seen.append((next(losses), {name: value.clone() for name, value in network.state_dict().items()}))
        return 0.5, seen[-1][0]

    monkeypatch.setattr(learning, "_validate", validate)
    train(NAME, world, tmp_path / "m", **TINY)
    assert len(seen) > 2
    kept, best = load_file(tmp_path / "m/model.safetensors"), next(state for loss, state in seen if loss == 1.0)
    assert all(torch.equal(kept[name], value) for name, value in best.items())


def test_the_model_learned_something(model):
    entries = [json.loads(line) for line in (model / learning.JOURNAL).read_text().splitlines()]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert json.loads((model / learning.RESULT).read_text())["synthetic"] is True
    before = make_model(ModelFolder(model).config).state_dict()
    after = load_file(model / "model.safetensors")
    assert after.keys() == before.keys()


def test_evaluation_equals_the_score_of_its_predictions(world, model, tmp_path):
    for layout, place in (("culane", "made"), ("tusimple", "made.json")):
        direct = evaluate_perception(model, world, layout=layout, predictions=tmp_path / place)
        assert direct == score(tmp_path / place, world, layout), layout
        assert direct == score(tmp_path / place, world), "the layout of a world is told by the predictions"
    assert evaluate_perception(model, world, split="val", layout="culane").frames == 1
    with pytest.raises(UsageError, match="is not empty"):
        evaluate_perception(model, world, predictions=tmp_path / "made")


def test_predicted_lanes_lie_in_the_files(world, model, tmp_path):
    evaluate_perception(model, world, predictions=tmp_path / "made")
    source = ModelFolder(model)
    samples, network = open_samples(source, world, "test"), make_model(source.config).eval()
    network.load_state_dict(load_file(model / "model.safetensors"))
    (pair,) = predict(samples, lambda packed: network(packed).logits, shapes_of(source), [0])
    file = tmp_path / "made" / (pair[0].frame.name.rpartition(".")[0] + LABELS)
    for lane, stored in zip(pair[1].lanes, read_lanes(file), strict=True):
        assert np.allclose(lane.points, stored.points, atol=1e-4)


def test_compress_evaluate_and_show(world, model, tmp_path):
    compress(model, "w8", tmp_path / "w8")
    manifest = json.loads((tmp_path / "w8/jettison.json").read_text())
    assert "jettison.load" in manifest["not_in_transformers"][0]
    result = evaluate(tmp_path / "w8", images=world)
    assert result["outputs"]["from the original"]["relative_error"] < 1e-2
    assert set(result["lanes"]) >= {"all"} and "F1" in result["lanes"]["all"]
    assert result["size"]["bits_per_weight"] < 12
    sources = Sources(images=str(world))
    (exhibit,) = show(tmp_path / "w8", original=model, sources=sources)["exhibits"]
    assert len(exhibit["pictures"]) == 2 and "predicted ones red" in exhibit["pictures"][0]["caption"]


@pytest.mark.parametrize(("task", "colour"), [("lanes", (235, 60, 60))])
def test_pictures_show_predictions(task, colour, tmp_path):
    sample = lanes_frame([ImageLane([[20.0, 10.0], [20.0, 70.0]])])(tmp_path)
    made = Prediction(lanes=[ImageLane([[150.0, 10.0], [150.0, 70.0]])])
    (picture,) = picture_prediction(task, sample, made).values()
    scale = picture.shape[1] // 200
    assert tuple(picture[40 * scale, 150 * scale + scale // 2]) == colour
    assert tuple(picture[40 * scale, 20 * scale + scale // 2]) == (255, 255, 255)


def damaged(world, tmp_path, name, content):
    """Return a copy of a world with another content of all files of a name."""
    copy = shutil.copytree(world, tmp_path / "copy")
    for path in copy.rglob(name):
        path.write_bytes(content)
    return copy


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("*.jpg", b"broken", "cannot be read"),
        ("*.jpg", b"", "cannot be read"),
        ("*.lines.txt", b"1 2 3\n", "pairs x y are needed"),
        ("*.lines.txt", b"1 nan 3 4\n", "coordinate"),
        ("train_gt.txt", b"", "lists no frames"),
        ("train_gt.txt", b"/../../secret.jpg\n", "."),
    ],
)
def test_bad_data_is_refused_in_one_sentence(world, tmp_path, name, content, words):
    copy = damaged(world, tmp_path, name, content)
    with pytest.raises(JettisonError, match=words):
        train(NAME, copy, tmp_path / "m", **TINY)
    assert not (tmp_path / "m/config.json").exists()


def test_empty_labels_can_be_trained_on(world, tmp_path):
    copy = damaged(world, tmp_path, "*.lines.txt", b"")
    assert train(NAME, copy, tmp_path / "m", **TINY)["stages"][0]["score"] == 0
    assert evaluate_perception(tmp_path / "m", copy).rows["all"][4] >= 0


def test_data_of_another_task_is_refused(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/ddad.json").write_text("{}")
    with pytest.raises(UsageError, match="has the layout ddad: a model of lanes needs culane or tusimple"):
        train(NAME, tmp_path / "d", tmp_path / "m")
    with pytest.raises(UsageError, match="does not exist"):
        train(NAME, tmp_path / "no", tmp_path / "m")


def test_a_world_opens_without_a_layout(world):
    (scene,) = open_scenes(world, split="val")
    front = scene.frames[0].views["CAM_FRONT"]
    assert front.lanes is not None and front.depth() is not None and scene.frames[0].road.lanes


def test_lanes_of_a_world_are_scored_at_the_benchmarks_size(world, tmp_path):
    """A lane of 30 pixels would cover a third of a small image, and everything would be found."""
    made = tmp_path / "made"
    for label in (world / "test").rglob(f"*{LABELS}"):
        lanes = [" ".join(f"{x + 2} {y}" for x, y in lane.points) for lane in read_lanes(label)]
        path = made / label.relative_to(world)
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(lanes))
    scores = score(made, world)
    assert scores.layout == "culane" and scores.rows["all"][0] < 0.5, "two of 80 pixels are 41 of 1640"


def test_points_of_a_world_are_scored_at_the_size_of_tusimple(world, tmp_path):
    """x and y have factors of their own, 16 and 22.5, and the tolerance depends on the angle of a lane."""
    labels = [json.loads(line) for line in (world / "test_label.json").read_text().splitlines()]
    moved = [[[x + 2 if x >= 0 else x for x in lane] for lane in label["lanes"]] for label in labels]
    lines = [json.dumps({**label, "lanes": lanes}) + "\n" for label, lanes in zip(labels, moved, strict=True)]
    (tmp_path / "made.json").write_text("".join(lines))
    bigger = lambda lanes: np.array(lanes) * 16
    scaled = [
        tusimple_image(bigger(label["lanes"]), bigger(lanes), np.array(label["h_samples"]) * 22.5)
        for label, lanes in zip(labels, moved, strict=True)
    ]
    expected = tusimple_score(scaled)
    assert 0.02 < expected.accuracy < 0.98
    assert score(tmp_path / "made.json", world).rows["all"][:3] == pytest.approx(expected)
