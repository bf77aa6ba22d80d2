"""Sparse Laneformer and the dense anchors: structure, targets, matching, learning, and all verbs on a tiny model."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from jettison.core.errors import JettisonError, UsageError
from jettison.domains.diffusion.tracing import flop_counter
from jettison.domains.perception.layers.lanes import (
    SLOTS,
    angles_of,
    augment,
    best_lanes,
    extents,
    image_lane,
    inside,
    read_pixels,
    row_middles,
)
from jettison.domains.perception.layers.matching import match
from jettison.domains.perception.layers.steps import Attention
from jettison.domains.perception.learning import train
from jettison.domains.perception.modelling import Sample, find_model
from jettison.domains.perception.models import dense_anchors, sparse_laneformer
from jettison.domains.perception.models.sparse_laneformer import PAPER, costs
from jettison.domains.perception.models.sparse_laneformer.network import (
    anchor_lines,
    anchor_starts,
    attend_all,
    attend_rows,
)
from jettison.domains.perception.picturing import picture_prediction
from jettison.domains.perception.scenes import Frame, ImageLane, Scene, View
from jettison.domains.perception.world.order import Order
from jettison.domains.perception.world.store import write_world
from jettison.fitting import fit
from jettison.graph.folder import ModelFolder
from jettison.graph.own_models import build_skeleton, make_config, make_model
from jettison.pipeline import preset_times as timing
from jettison.pipeline.compression import compress
from jettison.pipeline.evaluation import evaluate
from jettison.pipeline.exporting import export
from jettison.pipeline.perceiving import evaluate_perception, show_perception
from jettison.planning import bits

SPARSE, DENSE = "sparse_laneformer", "dense_anchors"
SMALL = {
    "height": 32, "width": 80, "widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "dimension": 16, "stride": 8,
    "per_row": 2,
}  # fmt: skip
OWN = {
    SPARSE: {"anchors": 6, "heads": 2, "hidden": 16, "perceiving": 1, "refining": 2, "points": 2},
    DENSE: {"below": 8, "beside": 3, "directions": 5},
}


def config_of(name, **changes):
    return make_config(f"jettison_{name}", SMALL | OWN[name] | changes, "test")


def network_of(name, **changes):
    torch.manual_seed(0)
    return make_model(config_of(name, **changes))


def words(name):
    return [f"{field}={value}" for field, value in (SMALL | OWN[name]).items()]


def straight(x, angle, height=32, width=80, rows=8, at=0.6):
    """Return x in every row of a line through (x, at) at an angle to the horizontal."""
    slope = -1 / math.tan(angle) * height / width
    return x + slope * ((torch.arange(rows) + 0.5) / rows - at)


def table_of(*lines):
    table = torch.full((1, SLOTS, 8), -1.0)
    for place, line in enumerate(lines):
        table[0, place] = torch.where((line >= 0) & (line < 1), line, -1.0)
    return table


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


def sample_of(folder, lanes, size=(96, 160)):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / "a.png")
    scene = Scene("s", [Frame("f", {"front": View(image=folder / "a.png", lanes=lanes)})])
    return Sample(scene, 0, scene.frames[0])


class TestStructure:
    def test_hpa_is_full_attention_under_a_row_mask(self):
        torch.manual_seed(0)
        step, (rows, columns, anchors) = Attention(16, 2), (4, 5, 3)
        lanes, positions = torch.randn(2, 2, anchors, rows, 16)
        features, places = torch.randn(2, rows, columns, 16), torch.randn(1, rows, columns, 16)
        of_query = torch.arange(rows).repeat(anchors)
        mask = of_query[:, None] == torch.arange(rows).repeat_interleave(columns)
        full = attend_all(step, lanes, features, positions, places, mask)
        assert torch.allclose(attend_rows(step, lanes, features, positions, places), full, atol=1e-5)
        assert not torch.allclose(attend_all(step, lanes, features, positions, places), full, atol=1e-3)

    def test_a_query_sees_its_row_alone(self):
        step, lanes = Attention(16, 2), torch.randn(1, 3, 4, 16)
        features = torch.randn(1, 4, 5, 16)
        other = features.clone()
        other[:, 2] += 1
        places = torch.zeros(1, 4, 5, 16)
        change = attend_rows(step, lanes, features, lanes, places) - attend_rows(step, lanes, other, lanes, places)
        assert (change.abs().amax((0, 1, 3)) > 1e-4).tolist() == [False, False, True, False]

    def test_an_anchor_of_90_degrees_is_vertical_and_turns_about_its_point(self):
        starts, angles = anchor_starts(4), torch.tensor([math.pi / 2, math.pi / 4, 3 * math.pi / 4, 0.0])
        lines = anchor_lines(starts, angles, 10, 0.55, 0.5)  # 0.55 is the middle of a row
        assert torch.allclose(lines[0], starts[0].expand(10))
        assert torch.allclose(lines[:, 5], starts)
        assert (lines[1].diff() < 0).all() and (lines[2].diff() > 0).all(), "45 degrees: up to the right"
        assert torch.allclose(lines[1][4] - lines[1][5], torch.tensor(0.1 * 0.5)), "in pixels as far across as up"
        assert lines[3].isfinite().all()

    def test_true_angles_are_those_of_the_anchors(self):
        for angle in (0.4, 1.2, math.pi / 2, 2.5):
            line = straight(0.5, angle)
            assert angles_of(table_of(line), 32, 80)[0, 0] == pytest.approx(angle, abs=1e-4)
            turned = anchor_lines(torch.tensor([0.5]), torch.tensor([angle]), 8, 0.6, 32 / 80)
            assert torch.allclose(turned[0], line, atol=1e-5)

    def test_the_network_begins_at_its_anchors(self):
        network = network_of(SPARSE).eval()
        out = network.compute(torch.rand(2, 3, 32, 80))
        assert torch.allclose(out["angles"], torch.full((2, 6), math.pi / 2))
        assert torch.allclose(out["lanes"][..., 3:], anchor_starts(6)[:, None].expand(2, 6, 8), atol=1e-6)
        assert torch.allclose(out["lanes"][..., 0].sigmoid(), torch.tensor(0.1), atol=0.08)

    @pytest.mark.parametrize("part", ["hpa", "laca", "lpa", "dynamic"])
    def test_every_part_can_be_left_out(self, part):
        network = network_of(SPARSE, **{part: False})
        with torch.no_grad():
            network.turn[-1].weight.normal_()
            network.angle_queries.normal_()
        pixels = torch.rand(2, 3, 32, 80)
        angles = network.eval().compute(pixels)["angles"]
        same = torch.allclose(angles[0], angles[1], atol=1e-6)
        assert same == (part in ("laca", "dynamic")), "without LACA an anchor has the same angle in all images"
        if part == "dynamic":
            assert torch.allclose(angles, torch.tensor(math.pi / 2))
        looks = any(name.startswith("refine") and "offsets" in name for name, _ in network.named_parameters())
        assert looks == (part != "lpa")
        network.train()
        table = table_of(straight(0.4, 1.0)).expand(2, -1, -1)
        find_model(SPARSE).loss(network, {"pixels": pixels}, {"lanes": table}, "train").backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())

    @pytest.mark.parametrize("backbone", ["bottleneck", "swin"])
    def test_other_backbones(self, backbone):
        network = network_of(SPARSE, backbone=backbone, widths=[8, 16, 32, 64])
        assert network.eval().compute(torch.rand(1, 3, 32, 80))["lanes"].shape == (1, 6, 11)

    def test_macs_of_the_papers_configuration(self):
        """The paper states 18.1 G. The backbone alone has 18.7 G, ours with all layers 20.8 G."""
        module = build_skeleton(make_config(f"jettison_{SPARSE}", PAPER, "paper"))[0].to("meta")
        assert module.inputs["pixels"] == (3, 320, 800) and module.outputs["lanes"] == (20, 73)
        with flop_counter() as counter:
            module(torch.zeros(1, 3, 320, 800, device="meta"))
        assert counter.get_total_flops() / 2e9 == pytest.approx(18.1, rel=0.16)
        backbone = sum(parameter.numel() for parameter in module.backbone.parameters())
        assert backbone == 21_797_672 - 513_000, "ResNet-34 without its classifier"

    def test_the_default_is_small(self):
        network = build_skeleton(make_config(f"jettison_{SPARSE}", {}, "small"))[0]
        assert sum(parameter.numel() for parameter in network.backbone.parameters()) < 2e6
        height, width = network.inputs["pixels"][1:]
        assert height / 0.6 <= 160 and width <= 400

    @pytest.mark.parametrize("name", [SPARSE, DENSE])
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"height": 33}, "height = 33: a multiple of 16"),
            ({"widths": [8, 8]}, "widths = .*four whole numbers"),
            ({"backbone": "resnot"}, "did you mean 'resnet'"),
            ({"stride": 5}, "stride = 5: 4, 8, 16 or 32"),
            ({"stride": 8, "finest": 16}, "stride = 8: at least 16"),
            ({"crop": 1.0}, "crop = 1.0"),
            ({"confidence": 0.0}, "confidence = 0.0"),
        ],
    )
    def test_configs_that_cannot_be_are_refused(self, name, changes, message):
        with pytest.raises(UsageError, match=message):
            network_of(name, **changes)

    def test_heads_must_divide_the_width(self):
        with pytest.raises(UsageError, match="3 heads for the width 16"):
            network_of(SPARSE, heads=3)


class TestTables:
    def test_a_lane_goes_to_a_table_and_back(self, tmp_path):
        config = config_of(SPARSE, crop=0.25)
        y = np.linspace(30.0, 95.0, 40)
        lane = np.stack([40 + 0.01 * (y - 30) ** 2, y], 1)
        sample = sample_of(tmp_path, [ImageLane(lane)])
        table = find_model(SPARSE).targets(config, sample)["lanes"]
        assert table.shape == (SLOTS, 8) and not inside(table[1:]).any()
        made = image_lane(config, sample, table[0], extents(table[0]).tolist())
        at = np.interp(made.points[:, 1], lane[:, 1], lane[:, 0])
        assert np.abs(made.points[:, 0] - at).max() < 0.3, "of 160 pixels, with rows 9 pixels apart"
        assert made.points[:, 1].min() <= 37 and made.points[:, 1].max() > 94

    def test_the_upper_part_is_not_seen(self, tmp_path):
        sample = sample_of(tmp_path, [])
        whole = read_pixels(config_of(SPARSE, height=64, width=160, crop=0.0), sample)
        lower = read_pixels(config_of(SPARSE, height=32, width=160, crop=0.5), sample)
        assert torch.equal(whole[:, 32:], lower)

    def test_what_is_no_lane_is_left_out(self, tmp_path):
        far, level = ImageLane([[-500.0, 10.0], [-400.0, 70.0]]), ImageLane([[10.0, 60.0], [150.0, 60.0]])
        for lanes in ([], [far], [level], [ImageLane([[5.0, 5.0]])]):
            table = find_model(SPARSE).targets(config_of(SPARSE), sample_of(tmp_path, lanes))["lanes"]
            assert not inside(table).any() and not extents(table).any()
        with pytest.raises(UsageError, match="no labels of lanes"):
            find_model(SPARSE).targets(config_of(SPARSE), sample_of(tmp_path, None))

    def test_of_too_many_lanes_the_longest_stay(self, tmp_path):
        lanes = [ImageLane([[4.0 * n + 2, 95.0], [4.0 * n + 2, 92.0 - n]]) for n in range(30)]
        table = find_model(SPARSE).targets(config_of(SPARSE), sample_of(tmp_path, lanes))["lanes"]
        assert inside(table[0]).sum() >= inside(table[-1]).sum() > 1
        assert table[0, -1] == pytest.approx((4 * 29 + 2.5) / 160, abs=0.05)

    def test_a_changed_image_has_changed_lanes(self):
        """A bright column on black is a lane: it stays on the column, wherever the image goes."""
        torch.manual_seed(3)
        pixels, table = torch.zeros(32, 3, 32, 80), table_of(straight(0.425, math.pi / 2)).repeat(32, 1, 1)
        pixels[..., 33:35] = 1
        moved, lanes = augment(pixels, table)
        row = moved[:, 0, 10::4]  # (images, 6, columns)
        bright = (row * (torch.arange(80) + 0.5)).sum(-1) / row.sum(-1).clamp(min=1e-6) / 80
        there = inside(lanes[:, 0, 2:])
        background = row.median(-1).values.amax(-1) < 0.02  # brightened black would move the mean
        assert background.sum() > 8 and there[background].float().mean() > 0.9
        apart = (bright - lanes[:, 0, 2:]).abs()[background]
        assert apart[there[background]].median() < 0.01 and apart[there[background]].max() < 0.06
        assert lanes[:, 0].std() > 0.05 and not inside(lanes[:, 1:]).any()

    def test_predictions_have_confidence_and_are_few(self, tmp_path):
        config, sample = config_of(SPARSE, most=2), sample_of(tmp_path, [])
        lines = torch.stack([straight(0.2 + 0.1 * n, math.pi / 2) for n in range(4)])
        logits = torch.tensor([[3.0], [1.0], [2.0], [-3.0]])
        table = torch.cat([logits, torch.tensor([[0.1, 0.9]]).expand(4, -1), lines], 1)
        made = best_lanes(config, sample, table, 0.5)
        assert [round(lane.points[0, 0] + 0.5) for lane in made] == [32, 64], "the two likeliest"
        assert best_lanes(config, sample, table, 0.96) == []
        table[0, 1:3] = torch.tensor([0.9, 0.1])  # its upper end is below its lower end
        assert len(best_lanes(config, sample, table, 0.9)) == 0


class TestMatching:
    def test_a_lane_is_matched_with_its_anchor(self):
        true = table_of(straight(0.3, 1.0), straight(0.7, 2.0))
        lanes = torch.zeros(1, 5, 11)
        lanes[0, :, 3:] = torch.stack(
            [straight(x, a) for x, a in ((0.1, 1), (0.72, 2), (0.5, 1.5), (0.31, 1), (0.9, 2))]
        )
        turned = torch.tensor([[1.0, 2.0, 1.5, 1.0, 2.0]])
        cost, valid = costs(lanes, turned, true, angles_of(true, 32, 80))
        assert valid.sum() == 2 and match(cost, valid)[0, :3].tolist() == [3, 1, -1]

    def test_more_lanes_than_anchors(self):
        network = network_of(SPARSE, anchors=2).train()
        table = table_of(*(straight(0.1 + 0.15 * n, 1.3) for n in range(6))).expand(2, -1, -1)
        loss = find_model(SPARSE).loss(network, {"pixels": torch.rand(2, 3, 32, 80)}, {"lanes": table}, "train")
        loss.backward()
        assert loss.isfinite()

    @pytest.mark.parametrize("name", [SPARSE, DENSE])
    def test_images_without_lanes_teach_that_there_are_none(self, name):
        network, model = network_of(name).train(), find_model(name)
        optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
        inputs, table = {"pixels": torch.rand(2, 3, 32, 80)}, {"lanes": table_of().expand(2, -1, -1)}
        before = network.compute(inputs["pixels"])["lanes"][..., 0].mean().item()
        for _ in range(3):
            loss = model.loss(network, inputs, table, "train")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.isfinite() and network.compute(inputs["pixels"])["lanes"][..., 0].mean() < before

    def test_perfect_predictions_have_no_distance(self):
        """The loss of true lanes is that of their confidences alone, and grows with every error."""
        network, model = network_of(SPARSE).eval(), find_model(SPARSE)
        table = table_of(straight(0.3, 1.0), straight(0.7, 2.0))
        ends, angles = extents(table), angles_of(table, 32, 80)

        def loss_of(shift=0.0, logit=20.0):
            lanes = torch.full((1, 6, 11), -20.0)
            lanes[0, :2] = torch.cat([torch.full((2, 1), logit), ends[0, :2], table[0, :2] + shift], 1)
            turned, scores = torch.ones(1, 6), torch.full((1, 6), -20.0)
            turned[0, :2], scores[0, :2] = angles[0, :2], logit
            network.steps = lambda pixels: {"angles": [turned], "scores": [scores], "lanes": [lanes]}
            return model.loss(network, {"pixels": torch.zeros(1)}, {"lanes": table}, "train").item()

        assert loss_of() < 1e-3 < loss_of(shift=0.01) < loss_of(shift=0.05)
        assert loss_of(logit=-2.0) > loss_of(logit=2.0) > loss_of()


class TestDenseAnchors:
    def test_anchors_are_many_and_start_at_edges(self):
        config = make_config(f"jettison_{DENSE}", {}, "test")
        anchors = dense_anchors.make_anchors(config)
        assert 500 < len(anchors) < 1000 and (inside(anchors).sum(-1) > 1).all()

    def test_near_anchors_mean_a_lane_and_far_ones_none(self):
        anchors = torch.stack([straight(0.30, 1.0), straight(0.315, 1.0), straight(0.5, 1.0), straight(0.325, 1.0)])
        table = table_of(straight(0.3, 1.0))
        positive, negative, nearest = dense_anchors.assign(anchors, table)
        assert positive[0].tolist() == [True, True, False, False]
        assert negative[0].tolist() == [False, False, True, False]
        lonely, _, nearest = dense_anchors.assign(anchors[2:3], table)
        assert lonely.all() and nearest[0, 0] == 0, "every lane has an anchor"
        none, all_negative, _ = dense_anchors.assign(anchors, table_of())
        assert not none.any() and all_negative.all()

    def test_of_similar_predictions_the_likeliest_stays(self, tmp_path):
        config = config_of(DENSE)
        lines = torch.stack([straight(x, 1.4) for x in (0.30, 0.31, 0.32, 0.60)])
        table = torch.cat(
            [torch.tensor([[1.0], [3.0], [2.0], [0.5]]), torch.tensor([[0.1, 0.9]]).expand(4, -1), lines], 1
        )
        made = find_model(DENSE).predict(config, {"lanes": table}, sample_of(tmp_path, []))
        assert [round(lane.confidence, 2) for lane in made.lanes] == [0.95, 0.62]


@pytest.mark.parametrize(("name", "steps", "share"), [(SPARSE, 60, 0.6), (DENSE, 40, 0.4)])
def test_a_tiny_model_learns_a_few_frames_by_heart(name, steps, share, monkeypatch):
    module = sparse_laneformer if name == SPARSE else dense_anchors
    monkeypatch.setattr(module, "augment", lambda pixels, table: (pixels, table))
    network = network_of(name).train()
    lines = [[straight(0.35, 1.1), straight(0.65, 2.0)], [straight(0.5, 1.5)]]
    table = torch.cat([table_of(*own) for own in lines])
    pixels = torch.zeros(2, 3, 32, 80)
    for image, own in zip(pixels, lines, strict=True):
        for line in own:
            for y in range(32):
                x = np.interp((y + 0.5) / 32, row_middles(8, line).numpy(), line.numpy())
                image[:, y, max(0, int(80 * x) - 1) : int(80 * x) + 2] = 1
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    losses = []
    for _ in range(steps):
        loss = module.loss(network, {"pixels": pixels}, {"lanes": table}, "train")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < share * losses[0]


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


def test_anchors_are_drawn_before_and_after(tmp_path):
    config, sample = config_of(SPARSE), sample_of(tmp_path, [])
    outputs = {"lanes": torch.full((6, 11), -9.0), "angles": torch.full((6,), 0.8)}
    made = find_model(SPARSE).predict(config, outputs, sample)
    before, after = made.anchors.values()
    assert len(before) == 6 and np.ptp(before[0].points[:, 0]) < 1e-6
    assert len(after) >= 4 and np.ptp(after[2].points[:, 0]) > 10
    assert len(picture_prediction("lanes", sample, made)) == 3


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


def test_a_world_of_the_front_camera_alone_is_read_in_all_layouts(world):
    from jettison.domains.perception.layouts.opening import open_scenes

    for layout in (None, "openlanev2", "culane", "tusimple", "ddad"):
        scenes = open_scenes(world, layout, split="train") if layout else open_scenes(world, split="train")
        views = scenes[0].frames[0].views
        assert len(views) == 1, layout
    with pytest.raises(UsageError, match="holds another run"):
        write_world(world, Order(seed=3, size=(48, 80), frames=1), 5)
    with pytest.raises(UsageError, match="unknown cameras 'back'"):
        Order(cameras="back")
