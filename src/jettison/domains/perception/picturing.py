"""Draws what a perception model predicts of a frame, beside what is true."""

import numpy as np

from jettison.domains.perception.drawing import birds_eye, depth_colours, stacked
from jettison.domains.perception.images import front_view
from jettison.domains.perception.layouts.reading import pillow, read_image
from jettison.domains.perception.modelling import Prediction, Sample

TRUE, MADE = (255, 255, 255), (235, 60, 60)
SMALLEST = 480  # pixels of the width of a picture


def picture_prediction(task: str, sample: Sample, prediction: Prediction) -> dict[str, np.ndarray]:
    """Return pictures of a prediction: a description -> image (height, width, 3) uint8."""
    return DRAWN[task](sample, prediction)


def _lanes(sample: Sample, prediction: Prediction) -> dict[str, np.ndarray]:
    view = front_view(sample.frame)
    image_module, draw_module = pillow()
    image = image_module.fromarray(read_image(view.image))
    factor = max(1, -(-SMALLEST // image.width))
    image = image.resize((image.width * factor, image.height * factor))
    draw, thick = draw_module.Draw(image), max(2, image.height // 120)
    for lanes, colour, width in ((view.lanes or (), TRUE, 2 * thick), (prediction.lanes, MADE, thick)):
        for lane in lanes:
            points = (lane.points + 0.5) * factor
            draw.line([tuple(point) for point in points.tolist()], fill=colour, width=width)
    return {"true lanes white, predicted ones red": np.asarray(image)}


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
