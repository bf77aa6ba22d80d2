"""SA-FSM: symmetries of the network, rounds that choose their matches, stages, missing cameras, all other commands."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from surround import TrueMatcher, true_table

from jettison.core.errors import UsageError
from jettison.domains.perception import learning
from jettison.domains.perception.clouds import cloud, cloud_picture
from jettison.domains.perception.domain import open_samples
from jettison.domains.perception.layouts.opening import open_scenes
from jettison.domains.perception.learning import train
from jettison.domains.perception.modelling import Prediction, Sample, find_model
from jettison.domains.perception.models.sa_fsm import losses, reading, teaching
from jettison.domains.perception.models.sa_fsm.attention import Block
from jettison.domains.perception.models.sa_fsm.config import PAPER
from jettison.domains.perception.models.sa_fsm.network import SaFsm, around, mirrored
from jettison.domains.perception.picturing import picture_prediction
from jettison.domains.perception.samples import Samples
from jettison.domains.perception.scenes import Frame, Scene
from jettison.domains.perception.surround import matching
from jettison.domains.perception.surround.rig import resized_intrinsics
from jettison.domains.perception.surround.warping import inverse
from jettison.domains.perception.world.cameras import NAMES
from jettison.domains.perception.world.order import Order
from jettison.domains.perception.world.store import write_world
from jettison.graph.folder import ModelFolder
from jettison.graph.own_models import make_config, make_model
from jettison.pipeline.compression import compress
from jettison.pipeline.evaluation import evaluate
from jettison.pipeline.exporting import export
from jettison.pipeline.perceiving import evaluate_perception, show_perception
from jettison.xr.variants import Variant, open_variant

NAME, KIND = "sa_fsm", "jettison_sa_fsm"
SMALL = {
    "height": 32, "width": 64, "widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "decoder": [8, 8, 8, 16, 16],
    "blocks": 1, "heads": 2, "epipolar": 2.0,
}  # fmt: skip
TINY = {"steps": 2, "batch": 2, "changes": [f"{name}={value}" for name, value in SMALL.items()]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driving") / "world"
    write_world(folder, Order(seed=3, size=(64, 160), frames=2, interval=0.2, place="road", weather="day"), 3)
    return folder


@pytest.fixture(scope="module", autouse=True)
def true_matches():
    """Matches from true depth in place of SIFT."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "match_frame", true_table)
        patch.setattr(teaching, "open_matcher", lambda name: TrueMatcher())
        yield


@pytest.fixture(scope="module")
def model(world, true_matches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth") / "model"
    train(NAME, world, folder, **TINY)
    return folder


def network(**changes) -> SaFsm:
    """Return a tiny network whose outputs differ from place to place."""
    torch.manual_seed(0)
    made = make_model(make_config(KIND, SMALL | changes, "test")).eval()
    for head in made.decoder.heads:
        torch.nn.init.normal_(head.weight, std=0.2)
    return made


def ring_inputs(batch=2, seed=1) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(batch, *shape, generator=rng)
    return {
        "pixels": draw(6, 3, 32, 64), "focal": 0.5 + 0.3 * draw(6), "yaw": 6 * draw(6), "present": torch.ones(batch, 6)
    }  # fmt: skip


@torch.no_grad()
def depth(made, inputs):
    return made.compute(**inputs)["depth"]


def test_a_turned_ring_turns_the_outputs():
    made, inputs = network(view_embedding=False), ring_inputs()
    plain = depth(made, inputs)
    for steps in (1, 4):
        moved = depth(made, {name: value.roll(steps, 1) for name, value in inputs.items()})
        assert torch.allclose(moved, plain.roll(steps, 1), rtol=1e-4)
        assert not torch.allclose(moved, plain, rtol=1e-2), "the cameras see different things"
    named = network(view_embedding=True)
    for cross in named.crosses:
        torch.nn.init.normal_(cross.view)
    moved = depth(named, {name: value.roll(1, 1) for name, value in inputs.items()})
    assert not torch.allclose(moved, depth(named, inputs).roll(1, 1), rtol=1e-3), "embeddings tell cameras apart"


def test_the_neighbours_are_a_ring():
    torch.manual_seed(0)
    block = Block(8, 2, True)
    x, place = torch.randn(1, 6, 5, 8, requires_grad=True), torch.randn(6, 5, 8)
    yaw, present = torch.rand(1, 6), torch.ones(1, 6, dtype=torch.bool)
    made = block.beside(x, place, yaw, present)
    assert torch.allclose(block.beside(x, place, yaw + 0.7, present), made, atol=1e-6), "only angles between cameras"
    seen = torch.zeros(6, 6, dtype=torch.bool)
    for view in range(6):
        (gradient,) = torch.autograd.grad(made[0, view].square().sum(), x, retain_graph=True)
        seen[view] = gradient[0].abs().amax((1, 2)) > 0
    eye = torch.eye(6, dtype=torch.bool)
    assert torch.equal(seen, eye | eye.roll(1, 1) | eye.roll(-1, 1))
    assert not hasattr(Block(8, 2, False), "near"), "without neighbours it is a block of CVT"


def test_a_missing_camera_is_not_looked_at():
    made, inputs = network(), ring_inputs()
    inputs["present"][:, 2] = 0
    first = depth(made, inputs)
    inputs["pixels"][:, 2] = 0.9
    assert torch.equal(depth(made, inputs), first), "what stands in its place does not matter"
    inputs["yaw"][:, 2] = 1.0
    others = [0, 1, 3, 4, 5]
    assert torch.allclose(depth(made, inputs)[:, others], first[:, others], rtol=1e-5)
    inputs["present"][:] = torch.tensor([1.0, 0, 1, 0, 1, 0])
    assert depth(made, inputs).isfinite().all(), "without any neighbour"


def test_the_mirrored_world():
    inputs = tuple(ring_inputs().values())
    twice = mirrored(*mirrored(*inputs))
    assert all(torch.equal(a, b) for a, b in zip(inputs, twice, strict=True))
    assert around(torch.arange(6)[None]).tolist() == [[0, 5, 4, 3, 2, 1]]
    made = network(flip_average=True)
    plain, other = depth(made, ring_inputs()), depth(made, dict(zip(ring_inputs(), mirrored(*inputs), strict=True)))
    assert torch.allclose(other, around(plain).flip(-1), rtol=1e-4), "the average is that of the mirrored world"
    assert not torch.allclose(plain, depth(network(), ring_inputs()), rtol=1e-3)


def test_the_configuration_of_the_paper_can_be_built():
    with torch.device("meta"):
        made = make_model(make_config(KIND, PAPER, "paper"))
    assert made.outputs == {"depth": (6, 384, 640)} and len(made.crosses[0].blocks) == 4
    with pytest.raises(UsageError, match=r"heads = 3 must divide all widths"):
        make_config(KIND, {"heads": 3}, "test")
    with pytest.raises(UsageError, match="height = 50: a multiple of 32"):
        make_config(KIND, {"height": 50}, "test")


def test_depth_grows_with_the_focal_length():
    made, inputs = network(), ring_inputs()
    longer = depth(made, inputs | {"focal": 2 * inputs["focal"]})
    assert torch.allclose(longer, 2 * depth(made, inputs), rtol=1e-4)


def test_stages_and_their_records(model):
    result = json.loads((model / learning.RESULT).read_text())
    first, second, last = result["stages"]
    assert [stage["stage"] for stage in result["stages"]] == ["round-1", "round-2", "photometric"]
    assert first["targets"]["kept_ratio"] < 1 and first["targets"]["mismatches_removed_share"] > 0.2
    assert second["targets"]["matches"] == first["targets"]["kept"], "the second round begins with what was kept"
    assert 0.5 < second["targets"]["kept_ratio"] < 1 and "targets" not in last
    assert not list(model.glob(".*")) or {path.name for path in model.glob(".*")} <= {".lock"}


def test_a_killed_training_gives_the_same_bytes(world, model, tmp_path, monkeypatch):
    loop, count = learning.run_loop, []

    def dies(*arguments, **options):
        count.append(options["name"])
        if len(count) == 3:
            raise KeyboardInterrupt
        return loop(*arguments, **options)

    monkeypatch.setattr(learning, "run_loop", dies)
    with pytest.raises(KeyboardInterrupt):
        train(NAME, world, tmp_path / "m", **TINY)
    assert (tmp_path / "m/.prepared/.kept-train.safetensors").exists()
    monkeypatch.setattr(learning, "run_loop", loop)
    train(NAME, world, tmp_path / "m", **TINY)
    assert (tmp_path / "m/model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_training_begins_where_another_ended(world, tmp_path):
    options = TINY | {"cache": tmp_path / "cache"}
    train(NAME, world, tmp_path / "one", **options, stages=["round-1"])
    result = train(NAME, world, tmp_path / "two", **options, start=tmp_path / "one", stages=["round-2"])
    assert [stage["stage"] for stage in result["stages"]] == ["round-2"]
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    pose = next(name for name in before if name.startswith("pose."))
    assert torch.equal(before[pose], after[pose]), "a round does not train the pose network"
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert list((tmp_path / "cache/matches").iterdir())
    with pytest.raises(UsageError, match="has other weights than this config"):
        changes = [*TINY["changes"], "blocks=2"]
        train(NAME, world, tmp_path / "x", start=tmp_path / "one", changes=changes)
    with pytest.raises(UsageError, match="unknown stage 'round-3'"):
        train(NAME, world, tmp_path / "x", stages=["round-3"])


def test_one_round_keeps_all_matches(world, tmp_path):
    changes = [*TINY["changes"], "rounds=1", "filters=false"]
    first, second = train(NAME, world, tmp_path / "m", steps=2, batch=2, changes=changes)["stages"][:2]
    assert first["targets"]["kept_ratio"] == second["targets"]["kept_ratio"] == 1


def test_the_last_stage_learns_from_what_the_second_round_keeps(world, tmp_path):
    made = network()
    samples = Samples(find_model(NAME), made.config, world, "train")

    def matches(stage, folder):
        lessons = teaching.teach(made, samples, stage, tmp_path / folder, tmp_path)
        return sum(int((lessons.targets(made.config, samples.sample(n))["pseudo"] > 0).sum()) for n in (0, 1))

    first, second = matches("round-1", "a"), matches("round-2", "a")
    assert 0 < second < first
    assert matches("photometric", "b") == second, "alone, it drops what its own network denies"
    with torch.no_grad():
        for head in made.decoder.heads:
            head.bias += 3
    assert matches("photometric", "b") == second, "what was kept stays, whatever the network learned since"
    assert matches("photometric", "c") != second


def test_the_network_learns_the_depth_of_frames(world, tmp_path):
    """Few frames, few steps: the loss on the depths of matches falls by more than half, and depth gets its scale."""
    torch.manual_seed(0)
    made = network()
    samples = Samples(find_model(NAME), made.config, world, "train")
    lessons = teaching.teach(made, samples, "round-1", tmp_path, tmp_path)
    samples.learn(lessons.targets)
    inputs, targets = samples.inputs([0, 1]), samples.targets([0, 1])
    optimizer, seen = torch.optim.AdamW(made.parameters(), 4e-3), []
    made.train()
    for step in range(45):
        torch.manual_seed(step)
        loss = find_model(NAME).loss(made, inputs, targets, "round-1")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert np.mean(seen[-5:]) < 0.5 * seen[0], seen


def test_the_photometric_loss_reaches_depth_and_motion(world):
    made = network()
    samples = Samples(find_model(NAME), made.config, world, "train")
    inputs, targets = samples.inputs([0, 1]), samples.targets([0, 1])
    assert targets["moments"].tolist() == [[0, 1], [1, 0]], "the ends of the drive"
    value = find_model(NAME).loss(made.train(), inputs, targets, "photometric")
    value.backward()
    assert value.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())
    assert made.pose.motion.weight.grad.abs().sum() > 0 and made.decoder.heads[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("place", [0, 1])
def test_true_depth_and_motion_explain_the_images_best(world, place, monkeypatch):
    config = make_config(KIND, SMALL | {"height": 64, "width": 160}, "test")
    scene = open_scenes(world, split="train")[0]
    sample = Sample(scene, place, scene.frames[place])
    batch = lambda tensors: {name: value[None] for name, value in tensors.items()}
    inputs, targets = batch(reading.read(config, sample)), batch(find_model(NAME).targets(config, sample))
    slots = matching.slots_of(sample.frame, 6)
    true = torch.stack([torch.from_numpy(view.depth()) for view in slots])[None].float()
    first, second = (frame.ego_to_world for frame in scene.frames)
    moved = torch.from_numpy(np.linalg.inv(first) @ second)[None].float()  # the later frame to the earlier one
    assert 0.5 < moved[0, 0, 3] < 5, "it drives ahead"
    monkeypatch.setattr("jettison.domains.perception.models.sa_fsm.losses.SMOOTH", 0.0)
    still = torch.full((1, 2, 6, 64, 160), 9.0)  # errors of images that stay: the auto-mask hides nothing
    kept = losses.temporal_loss
    monkeypatch.setattr(losses, "temporal_loss", lambda made, _, *rest: kept(made, still[0], *rest))

    def value(depth, motion):
        class Stub:
            inputs, training = ("pixels", "focal", "yaw", "present"), False
            depths = staticmethod(lambda *_: [torch.where(depth > 0, depth, 200.0)])
            pose = staticmethod(lambda earlier, later: motion)

        return float(losses.photometric_loss(Stub(), inputs, targets))

    best = value(true, moved)
    wrong = value(true, inverse(moved)), value(true, torch.eye(4)[None]), value(1.5 * true, moved)
    assert best < 0.7 * min(wrong), "of five worlds the largest ratio was 0.60"
    targets["pseudo"] = 2 * true
    assert value(true, moved) == pytest.approx(best + losses.PSEUDO * np.log(2), rel=1e-4)
    targets["pseudo"] = torch.zeros_like(true)
    monkeypatch.setattr(losses, "temporal_loss", lambda *_: 0.0)
    assert 0 < value(true, moved) < 0.7 * min(value(1.5 * true, moved), value(0.6 * true, moved)), "neighbours"


def test_matches_are_mirrored_with_the_images(monkeypatch):
    for name in ("SMOOTH", "GAIN"):
        monkeypatch.setattr(losses, name, 0.0)

    class Stub:
        inputs, training = ("pixels", "focal", "yaw", "present"), True
        depths = staticmethod(lambda pixels, *_: [1 + pixels.mean(2)])

    inputs = ring_inputs()
    for seed in range(8):
        torch.manual_seed(seed)
        assert losses.match_loss(Stub(), inputs, {"pseudo": 1 + inputs["pixels"].mean(2)}) < 1e-6


def test_frames_without_motion_teach_no_motion(world, monkeypatch):
    config, scene = make_config(KIND, SMALL, "test"), open_scenes(world, split="train")[0]
    for name in ("SPATIAL", "GAIN"):
        monkeypatch.setattr(f"jettison.domains.perception.models.sa_fsm.losses.{name}", 0.0)

    def learned(frames):
        """Return how large the gradient of the pose network is."""
        made, sample = network().train(), Sample(Scene(scene.name, frames), 1, frames[1])
        batch = lambda tensors: {name: value[None] for name, value in tensors.items()}
        inputs, targets = batch(reading.read(config, sample)), batch(find_model(NAME).targets(config, sample))
        torch.manual_seed(0)
        value = find_model(NAME).loss(made, inputs, targets, "photometric")
        value.backward()
        assert value.isfinite()
        return sum(float(p.grad.abs().sum()) for p in made.pose.parameters() if p.grad is not None)

    first, second = scene.frames
    assert learned([first] * 3) < 0.1 * learned([second, first, second])


def test_a_frame_without_a_camera_is_read_with_a_note(world, monkeypatch):
    said = []
    monkeypatch.setattr(reading, "say", said.append)
    reading._warn.cache_clear()
    config, frame = make_config(KIND, SMALL, "test"), open_scenes(world, split="train")[0].frames[0]
    views = {name: view for name, view in frame.views.items() if name != "CAM_BACK_RIGHT"}
    lost = Frame(frame.name, views)
    sample = Sample(Scene("s", [lost]), 0, lost)
    inputs = reading.read(config, sample)
    assert inputs["present"].tolist() == [1, 1, 0, 1, 1, 1] and not inputs["pixels"][2].any()
    assert inputs["focal"][0] == pytest.approx(views["CAM_FRONT"].camera.intrinsics[0, 0] / 160), "of the width"
    reading.read(config, sample)
    assert len(said) == 1 and "of 6 cameras around the ring, 3 are missing" in said[0]
    made = find_model(NAME).predict(config, {"depth": torch.ones(6, 32, 64)}, sample)
    assert list(made.depth) == [name for name in NAMES if name != "CAM_BACK_RIGHT"]
    table = true_table(lost, 6, TrueMatcher(), matching.Limits(epipolar=2.0))
    assert {tuple(ends) for ends in table.ends.tolist()} == {(0, 1), (3, 4), (4, 5), (5, 0)}
    targets = find_model(NAME).targets(config, sample)
    assert not targets["usable"][2].any() and targets["usable"][0].any()
    blind = Frame(frame.name, frame.views | {"CAM_BACK": replace(frame.views["CAM_BACK"], image=None)})
    sample = Sample(Scene("s", [blind]), 0, blind)
    assert reading.read(config, sample)["present"].tolist() == [1, 1, 1, 0, 1, 1]
    assert find_model(NAME).targets(config, sample)["usable"].flatten(1).any(1).tolist() == [1, 1, 1, 0, 1, 1]
    with pytest.raises(UsageError, match="6 cameras"):
        reading.read(make_config(KIND, SMALL | {"views": 4}, "test"), Sample(Scene("s", [frame]), 0, frame))


def test_a_world_without_a_camera_is_trained_on_and_evaluated(world, model, tmp_path):
    copy = shutil.copytree(world, tmp_path / "copy")
    for path in copy.rglob("scene_*.json"):
        record = json.loads(path.read_text())
        lost = {row["key"] for row in record["data"] if row["id"]["name"] == "CAM_BACK"}
        for sample in record["samples"]:
            sample["datum_keys"] = [key for key in sample["datum_keys"] if key not in lost]
        path.write_text(json.dumps(record))
    train(NAME, copy, tmp_path / "m", **TINY, stages=["round-1"], layout="ddad")
    scores = evaluate_perception(model, copy)
    assert 0 <= scores.rows["all, metric scale"][4] <= 1
    assert "CAM_FRONT, median scale" in scores.rows and "CAM_BACK, median scale" not in scores.rows


def test_compress_evaluate_show_export_and_xr(world, model, tmp_path):
    compress(model, "w8", tmp_path / "w8")
    result = evaluate(tmp_path / "w8", images=world)
    assert result["outputs"]["from the original"]["relative_error"] < 1e-2
    assert {"all, metric scale", "all, median scale", "CAM_BACK, metric scale"} <= set(result["depth"])
    made = show_perception([tmp_path / "w8"], tmp_path / "page.html", data=world, frames=1)
    page = (tmp_path / "page.html").read_text()
    assert len(made["frames"]) == 1 and page.count("<img") >= 3 and "points of all cameras" in page
    run = open_variant(Variant("SURROUND", str(tmp_path / "w8")))
    assert run().shape == (1, 6, 32, 64)
    pytest.importorskip("onnxruntime")
    written = export(tmp_path / "w8", tmp_path / "m.onnx")
    assert written["difference"] < 1e-3 * written["largest"] and written["output"]["logits"][1:] == [6, 32, 64]
    with pytest.raises(UsageError, match="has the size of its config"):
        export(tmp_path / "w8", tmp_path / "n.onnx", size="32")


def test_pictures_of_depth(world):
    frame = open_scenes(world, split="test")[0].frames[0]
    depths = {name: view.depth() for name, view in frame.views.items()}
    sample = Sample(Scene("s", [frame]), 0, frame)
    pictures = picture_prediction("depth", sample, Prediction(depth=depths))
    true, made, points = pictures.values()
    assert np.array_equal(true, made), "the truth predicts itself"
    assert points.shape[2] == 3 and len(np.unique(points.reshape(-1, 3), axis=0)) > 100
    places, colours = cloud(frame, depths)
    road = np.abs(places[:, 2] - np.median(places[:, 2])) < 1
    assert len(places) == len(colours) and road.mean() > 0.3
    halved = {
        name: replace(view, camera=replace(
            view.camera, width=80, height=32, intrinsics=resized_intrinsics(view.camera, 32, 80)
        )) for name, view in frame.views.items()
    }  # fmt: skip
    assert np.allclose(cloud(Frame("f", halved), depths)[0], places), "images may be larger than the calibration says"
    dots = cloud_picture(np.array([[10.0, 0, 0], [0, 10.0, 0]]), np.array([[255, 0, 0], [0, 0, 255]], np.uint8))
    (red, *_), (blue, *_) = (np.argwhere((dots == colour).all(2)) for colour in ((255, 0, 0), (0, 0, 255)))
    assert red[0] < dots.shape[0] / 2 - 20 and blue[1] < dots.shape[1] / 2 - 50, "ahead is up, left is left"


def test_samples_of_a_compressed_model(world, model):
    assert len(open_samples(ModelFolder(model), world, "test")) == 2
