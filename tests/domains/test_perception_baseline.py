"""The lane regressor learns from a rendered world. It takes minutes, most of them for rendering."""

import pytest
import torch

from jettison.domains.perception.domain import open_samples, shapes_of
from jettison.domains.perception.judging import judge
from jettison.domains.perception.learning import train
from jettison.domains.perception.world.order import Order
from jettison.domains.perception.world.store import write_world
from jettison.graph.folder import ModelFolder
from jettison.runtime.load import load


def mean_lines(samples):
    """Return a model that always predicts the mean line of every slot that is taken in most training frames."""
    lines = samples.targets(samples.spread())["lines"]  # (frames, slots, numbers)
    taken = lines[..., 0]
    mean = (lines * taken[..., None]).sum(0) / taken.sum(0)[:, None].clamp(min=1)
    mean[:, 0] = torch.where(taken.mean(0) > 0.5, 5.0, -5.0)
    return lambda packed: mean.expand(len(packed), -1, -1)


@pytest.mark.slow
def test_it_beats_the_mean_lines(tmp_path):
    """In TuSimple accuracy, on scenes that it has not seen. In CULane F1 it does not yet, with so few frames."""
    order = Order(size=(80, 200), frames=2, interval=2.0, place="road", weather="day")
    write_world(tmp_path / "world", order, 75)
    train("lane_regressor", tmp_path / "world", tmp_path / "lanes")
    source = ModelFolder(tmp_path / "lanes")
    training, unseen = (open_samples(source, tmp_path / "world", split, "tusimple") for split in ("train", "test"))
    runs = (load(source.folder).logits, mean_lines(training))
    learned, constant = (judge(unseen, run, shapes_of(source)).rows["all"][0] for run in runs)
    assert learned > constant + 0.03
