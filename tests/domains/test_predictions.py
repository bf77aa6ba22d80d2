"""Predictions of all tasks: written and scored for every layout, and drawn."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from driving import MAKERS, lidar_image, road

from jettison.core.errors import UsageError
from jettison.domains.perception.judging import headline, judge
from jettison.domains.perception.layouts.openlanev2 import read_road
from jettison.domains.perception.modelling import TASKS, Prediction, Sample
from jettison.domains.perception.picturing import picture_prediction
from jettison.domains.perception.samples import Samples
from jettison.domains.perception.scenes import Frame, Road, Scene, View

SHAPES = {"number": (1,)}, {"number": (1,)}
SPLITS = {"culane": "test", "tusimple": "test", "nuscenes": "train"}  # of the tiny folders; others have val


def truth(config, outputs, sample):
    """Predict the labels; where the depth is unknown, 3 metres."""
    views = sample.frame.views
    depths = {name: view.depth() for name, view in views.items() if view.depth is not None}
    lanes = [lane for view in views.values() for lane in view.lanes or ()]
    filled = {name: np.where(depth > 0, depth, np.float32(3)) for name, depth in depths.items()}
    return Prediction(lanes, filled, sample.frame.road or Road())


def samples_of(folder, layout, predict=truth):
    """Return the frames of a folder for a model that predicts without a network."""
    task = next(task for task, layouts in TASKS.items() if layout in layouts)
    read, targets = (lambda config, sample: {"number": torch.zeros(1)}), (lambda config, sample: {})
    model = SimpleNamespace(TASK=task, read=read, targets=targets, predict=predict)
    return Samples(model, SimpleNamespace(model_type="jettison_test"), folder, SPLITS.get(layout, "val"), layout)


def judged(folder, layout, predict=truth, **options):
    return judge(samples_of(folder, layout, predict), lambda packed: packed, SHAPES, **options)


@pytest.mark.parametrize("layout", MAKERS)
def test_labels_as_predictions_score_1(layout, tmp_path):
    folder = MAKERS[layout](tmp_path / "data")
    scores = judged(folder, layout)
    assert headline(scores) == pytest.approx(1) and scores.layout == layout
    assert headline(judged(folder, layout, count=1)) == pytest.approx(1), "of some frames"
    nothing = lambda config, outputs, sample: Prediction(depth={
        name: 10 * depth for name, depth in truth(config, outputs, sample).depth.items()
    })  # fmt: skip
    assert headline(judged(folder, layout, nothing)) < 0.6


def test_confidences_are_written(tmp_path):
    """A wrong lane costs precision only if its confidence is above that of the right ones."""

    def with_wrong(confidence):
        def predict(config, outputs, sample):
            record = road(int(sample.frame.name[-1]), {"confidence": 0.7})
            wrong = {"id": 5, "points": [[0, 20, 0], [20, 20, 0]], "confidence": confidence}
            record["lane_centerline"].append(wrong)
            record["topology_lclc"] = [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
            record["topology_lcte"] = [[1], [0], [0]]
            return Prediction(road=read_road(record, "a prediction"))

        return judged(MAKERS["openlanev2"](tmp_path / "data"), "openlanev2", predict).to_dict()["scores"]["all"]

    assert with_wrong(0.2)["DET_l"] == pytest.approx(1)
    assert with_wrong(0.9)["DET_l"] < 0.8


@pytest.mark.parametrize("depth", [np.zeros((3, 4, 1)), np.full((3, 4), np.nan)])
def test_a_depth_map_that_is_none_is_refused(depth, tmp_path):
    predict = lambda config, outputs, sample: Prediction(depth={"CAMERA_01": depth})
    with pytest.raises(UsageError, match=r"depth of 000150/000000/CAMERA_01: it has shape \(3, 4"):
        judged(MAKERS["ddad"](tmp_path / "data"), "ddad", predict)


def sample_of(**parts):
    frame = Frame("f", **parts)
    return Sample(Scene("s", [frame]), 0, frame)


def test_pictures_of_depth_are_true_and_predicted():
    """The predicted depth is drawn in the size of the true one, if it is known."""
    true, made = lidar_image(), np.full((12, 20), 100.0, np.float32)
    sample = sample_of(views={"a": View(depth=lambda: true), "b": View()})
    pictures = picture_prediction("depth", sample, Prediction(depth={"a": made, "b": made}))
    assert list(pictures) == ["true depth", "predicted depth, yellow near"], "no points: no camera is calibrated"
    known, predicted = pictures.values()
    height, width = true.shape
    assert known.shape == (*true.shape, 3)
    assert (known[true == 0] == 0).all() and known[true > 0].any(1).all(), "black where it is unknown"
    own, other = predicted[:height, :width], predicted[: made.shape[0], width + 2 :][:, : made.shape[1]]
    assert (own == own[0, 0]).all() and (other == own[0, 0]).all(), "one colour, for one depth"
    assert (own[0, 0] != known[true == 5.0][0]).any(), "far has another colour than near"


def test_pictures_of_a_road(tmp_path):
    true, made = (read_road(road(number, {"confidence": 1.0}), "a road") for number in (0, 9))
    pictures = picture_prediction("road", sample_of(views={}, road=true), Prediction(road=made))
    assert list(pictures) == ["true and predicted road, from above"], "there is no camera to draw over"
    [both] = pictures.values()
    half = (both.shape[1] - 2) // 2
    assert (both[:, :half] != both[:, -half:]).any()
    alone = picture_prediction("road", sample_of(views={}), Prediction(road=made))
    assert list(alone) == ["predicted road, from above"]
    assert (alone["predicted road, from above"] == both[:, -half:]).all()
