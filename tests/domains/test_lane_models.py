"""Sparse Laneformer and the dense anchors: their structure, what they match and learn, and their anchors."""

import math

import numpy as np
import pytest
import torch
from lane_models import DENSE, SPARSE, config_of, network_of, sample_of, straight, table_of
from torch import nn

from jettison.core.errors import UsageError
from jettison.domains.diffusion.tracing import flop_counter
from jettison.domains.perception.layers.encodings import sine_encoding
from jettison.domains.perception.layers.lanes import angles_of, extents, inside, row_middles
from jettison.domains.perception.layers.matching import match
from jettison.domains.perception.layers.steps import Attention
from jettison.domains.perception.modelling import find_model
from jettison.domains.perception.models import dense_anchors, sparse_laneformer
from jettison.domains.perception.models.sparse_laneformer import PAPER, costs
from jettison.domains.perception.models.sparse_laneformer.network import (
    LaneSelfAttention,
    anchor_lines,
    anchor_starts,
    attend_all,
    attend_rows,
)
from jettison.domains.perception.picturing import picture_prediction
from jettison.graph.own_models import build_skeleton, make_config


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

    def test_self_attention_is_among_the_anchors_of_a_row_and_along_the_rows_of_an_anchor(self):
        lanes = torch.randn(1, 3, 4, 16)
        other = lanes.clone()
        other[0, 1, 2] += torch.randn(16)
        for silent, reached in (("along", lambda a, r: r == 2), ("among", lambda a, r: a == 1)):
            step = LaneSelfAttention(config_of(SPARSE))
            torch.nn.init.zeros_(getattr(step, silent).o_proj.weight)
            change = (step(lanes, torch.zeros_like(lanes)) - step(other, torch.zeros_like(lanes))).abs().amax(-1)[0]
            assert (change > 1e-5).tolist() == [[reached(a, r) for r in range(4)] for a in range(3)], silent

    def test_queries_and_cells_have_codes_of_their_places(self):
        network, seen = network_of(SPARSE).eval(), []
        network.perceive[0].horizontal.register_forward_pre_hook(lambda module, args: seen.extend(args))
        network.compute(torch.rand(2, 3, 32, 80))  # 6 anchors, 4 x 10 cells
        _, _, of_queries, of_cells = seen  # (batch·rows, anchors, width), (batch·rows, columns, width)
        code = lambda x, y: sine_encoding(torch.tensor([x, y]), 16)
        assert torch.allclose(of_queries[1, 2], code(2.5 / 6, 1.5 / 4), atol=1e-5)
        assert torch.allclose(of_cells[4 + 3, 7], code(7.5 / 10, 3.5 / 4), atol=1e-5), "of the second image"

    def test_lpa_looks_where_the_lanes_are(self):
        """First along the anchors, then along the lanes of the layer before, as places and not to learn from."""
        network, seen = network_of(SPARSE).eval(), []
        torch.nn.init.constant_(network.offsets[0][-1].bias, 0.02)
        for layer in network.refine:
            layer.perceptual.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
        network.compute(torch.rand(2, 3, 32, 80))
        for points, shift in zip(seen, (0.0, 0.02), strict=True):
            x, y = points.unflatten(1, (6, 4)).unbind(-1)
            assert torch.allclose(x, (anchor_starts(6)[:, None] + shift).expand(2, 6, 4), atol=1e-6)
            assert torch.allclose(y, row_middles(4, y).expand(2, 6, 4))
            assert not points.requires_grad

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

        def loss_of(shift=0.0, logit=20.0, higher=0.0, turn=0.0):
            lanes = torch.full((1, 6, 11), -20.0)
            lanes[0, :2] = torch.cat([torch.full((2, 1), logit), ends[0, :2], table[0, :2] + shift], 1)
            turned, scores = torch.ones(1, 6), torch.full((1, 6), -20.0)
            lanes[0, :2, 1] -= higher
            turned[0, :2], scores[0, :2] = angles[0, :2] + turn, logit
            network.steps = lambda pixels: {"angles": [turned], "scores": [scores], "lanes": [lanes]}
            return model.loss(network, {"pixels": torch.zeros(1)}, {"lanes": table}, "train").item()

        overlap = (30 - 8) / (30 + 8)  # of lines 15 pixels of 800 to both sides, 8 pixels apart
        assert loss_of() < 1e-3
        assert loss_of(shift=0.01) == pytest.approx(5 * 0.01 + 2 * (1 - overlap), rel=1e-3)
        assert loss_of(higher=2 / 8) == pytest.approx(0.2 * (2 - 0.5), rel=1e-3), "two of eight rows"
        assert loss_of(turn=0.1) == pytest.approx(0.1, rel=1e-3)
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

    def test_anchors_are_lines_from_their_point_upwards(self):
        """Of a point in the middle of the left edge and of one at the lower edge, five directions each."""
        anchors, y = dense_anchors.make_anchors(config_of(DENSE)), (torch.arange(8) + 0.5) / 8
        side = torch.where(y < 0.5, (0.5 - y) / math.tan(0.3 * math.pi) * 32 / 80, dense_anchors.NOWHERE)
        lower = 1.5 / 8 + (1 - y) / math.tan(0.5 * math.pi) * 32 / 80
        for line in (side, lower):
            assert (anchors - line).abs().amax(-1).min() < 1e-5

    def test_the_loss_of_anchors(self):
        """A near anchor learns its rows, a far one that it means no lane, and one between learns nothing."""
        network, line = network_of(DENSE).eval(), straight(0.3, 1.0)
        there = torch.arange(8) < 6
        near = torch.where(there, line, dense_anchors.NOWHERE)  # its point is in row 5
        network.anchors = torch.stack([near, straight(0.325, 1.0), straight(0.5, 1.0)])

        def loss_of(x, higher=0.0, between=30.0):
            lanes = torch.zeros(1, 3, 11)
            lanes[0, :, 0] = torch.tensor([30.0, between, -30.0])
            lanes[0, :, 1:3], lanes[0, :, 3:] = extents(line), x
            lanes[0, :, 1] -= higher
            network.compute = lambda pixels: {"lanes": lanes}
            inputs, lesson = {"pixels": torch.zeros(1)}, {"lanes": table_of(line)}
            return find_model(DENSE).loss(network, inputs, lesson, "train").item()

        assert loss_of(line) < 1e-6 and loss_of(line, between=-30.0) < 1e-6
        assert loss_of(torch.where(there, line, 0.9)) < 1e-6, "rows below its point"
        assert loss_of(line + 0.01) == pytest.approx(50 * 0.01, rel=1e-3)
        assert loss_of(line, higher=2 / 8) == pytest.approx(0.2 * (2 - 0.5), rel=1e-3)

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


def test_anchors_are_drawn_before_and_after(tmp_path):
    config, sample = config_of(SPARSE), sample_of(tmp_path, [])
    outputs = {"lanes": torch.full((6, 11), -9.0), "angles": torch.full((6,), 0.8)}
    made = find_model(SPARSE).predict(config, outputs, sample)
    before, after = made.anchors.values()
    assert len(before) == 6 and np.ptp(before[0].points[:, 0]) < 1e-6
    assert len(after) >= 4 and np.ptp(after[2].points[:, 0]) > 10
    assert len(picture_prediction("lanes", sample, made)) == 3
