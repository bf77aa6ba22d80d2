"""Tables of lanes: from labels and back, their changes in training, and predictions that become lanes."""

import math

import numpy as np
import pytest
import torch
from lane_models import SPARSE, config_of, sample_of, straight, table_of

from jettison.core.errors import UsageError
from jettison.domains.perception.layers.lanes import SLOTS, augment, best_lanes, extents, image_lane, inside, read
from jettison.domains.perception.modelling import find_model
from jettison.domains.perception.scenes import ImageLane


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

    @pytest.mark.parametrize("ends", [(0.0, 1.0), (0.0, 0.04), (0.97, 1.0)])
    def test_a_lane_goes_straight_on_beyond_the_first_and_the_last_row(self, ends, tmp_path):
        """Also a lane that lies in half a row at an edge of the image: it is not that of the other edge."""
        rows = torch.tensor([0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.5, 0.6])
        made = image_lane(config_of(SPARSE, crop=0.0), sample_of(tmp_path, []), rows, ends).points + 0.5
        assert np.allclose(made[[0, -1], 1], np.array(ends) * 96)
        line = lambda y: 0.2 + 0.8 * (y - 1 / 16) if y < 0.5 else 0.6 + 0.8 * (y - 15 / 16)
        assert np.allclose(made[[0, -1], 0], [160 * line(y) for y in ends], atol=1e-4)

    def test_the_upper_part_is_not_seen(self, tmp_path):
        sample = sample_of(tmp_path, [])
        whole = read(config_of(SPARSE, height=64, width=160, crop=0.0), sample)["pixels"]
        lower = read(config_of(SPARSE, height=32, width=160, crop=0.5), sample)["pixels"]
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
        assert not background.all(), "some images are brighter"
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
