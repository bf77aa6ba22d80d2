"""Draws what a perception model predicts of a frame, beside what is true."""

from collections.abc import Sequence

import numpy as np

from jettison.domains.perception.drawing import birds_eye, depth_colours, stacked
from jettison.domains.perception.images import front_view
from jettison.domains.perception.layouts.reading import pillow, read_image
from jettison.domains.perception.modelling import Prediction, Sample
from jettison.domains.perception.scenes import ImageLane, View

TRUE, MADE, ANCHOR = (255, 255, 255), (235, 60, 60), (250, 190, 40)
SMALLEST = 480  # pixels of the width of a picture


def picture_prediction(task: str, sample: Sample, prediction: Prediction) -> dict[str, np.ndarray]:
    """Return pictures of a prediction: a description -> image (height, width, 3) uint8."""
    return DRAWN[task](sample, prediction)


def _lanes(sample: Sample, prediction: Prediction) -> dict[str, np.ndarray]:
    view = front_view(sample.frame)
    known = () if view.lanes is None else view.lanes
    title = "predicted lanes red" if view.lanes is None else "true lanes white, predicted ones red"
    pictures = {title: _lines(view, (known, TRUE, 2), (prediction.lanes, MADE, 1))}
    for name, anchors in prediction.anchors.items():
        pictures[f"anchors {name}"] = _lines(view, (anchors, ANCHOR, 0.5))
    return pictures


def _lines(view: View, *groups: tuple[Sequence[ImageLane], tuple[int, int, int], float]) -> np.ndarray:
    """Return the image of a view, enlarged if it is small, with groups of lanes: lanes, colour, thickness."""
    image_module, draw_module = pillow()
    image = image_module.fromarray(read_image(view.image))
    factor = max(1, -(-SMALLEST // image.width))
    image = image.resize((image.width * factor, image.height * factor))
    draw, thick = draw_module.Draw(image), max(2, image.height // 120)
    for lanes, colour, width in groups:
        for lane in lanes:
            points = (lane.points + 0.5) * factor
            draw.line([tuple(point) for point in points.tolist()], fill=colour, width=max(1, round(width * thick)))
    return np.asarray(image)


def _depth(sample: Sample, prediction: Prediction) -> dict[str, np.ndarray]:
    pictures = {}
    for camera, made in prediction.depth.items():
        view = sample.frame.views.get(camera)
        parts = [depth_colours(np.asarray(made))]
        if view is not None and view.depth is not None:
            parts.insert(0, depth_colours(view.depth()))
        pictures[f"{camera}, {'true depth above predicted' if len(parts) > 1 else 'predicted depth'}"] = stacked(
            parts, 1
        )
    return pictures


def _road(sample: Sample, prediction: Prediction) -> dict[str, np.ndarray]:
    pictures = {} if sample.frame.road is None else {"true road": birds_eye(sample.frame.road)}
    return pictures | {"predicted road": birds_eye(prediction.road)}


DRAWN = {"lanes": _lanes, "depth": _depth, "road": _road}
