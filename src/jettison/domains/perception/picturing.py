"""Draws what a perception model predicts of a frame, beside what is true."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jettison.domains.perception.clouds import cloud, cloud_picture
from jettison.domains.perception.drawing import birds_eye, camera_sheet, depth_colours, ordered, stacked
from jettison.domains.perception.images import front_view
from jettison.domains.perception.layouts.reading import pillow, read_image
from jettison.domains.perception.modelling import Prediction, Sample
from jettison.domains.perception.scenes import ImageLane, Road, View
from jettison.metrics.depth import resized

TRUE, MADE, ANCHOR = (255, 255, 255), (235, 60, 60), (250, 190, 40)
SMALLEST = 480  # pixels of the width of a picture
LIKELY = 0.5


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
    frame = sample.frame
    names = [name for name in ordered(frame) if name in prediction.depth]
    true = {name: view.depth() for name in names if (view := frame.views[name]).depth is not None}
    sizes = {name: true[name].shape if name in true else np.shape(prediction.depth[name]) for name in names}
    made = [depth_colours(resized(np.asarray(prediction.depth[name], np.float32), sizes[name])) for name in names]
    pictures = {"predicted depth, yellow near": stacked(made, 3)}
    if true:
        pictures = {"true depth": stacked([depth_colours(true[name]) for name in names if name in true], 3)} | pictures
    points, colours = cloud(frame, prediction.depth)
    if len(points):
        pictures["points of all cameras, the car drives up"] = cloud_picture(points, colours)
    return pictures


def _road(sample: Sample, prediction: Prediction) -> dict[str, np.ndarray]:
    """The true road beside the predicted one, from above and over the images. Only what is likelier than not."""
    frame = sample.frame
    bare = {name: replace(view, lanes=None) for name, view in frame.views.items()}
    roads = {"predicted": likely_part(prediction.road)}
    if frame.road is not None:
        roads = {"true": frame.road} | roads
    pictures = {f"{' and '.join(roads)} road, from above": stacked([birds_eye(road) for road in roads.values()], 2)}
    for kind, road in roads.items() if bare else ():
        pictures[f"{kind} lanes and traffic elements"] = camera_sheet(replace(frame, views=bare, road=road), graph=True)
    return pictures


def likely_part(road: Road) -> Road:
    """Return the lanes and elements of a predicted road that are likelier than not, and their edges."""
    lanes = [place for place, lane in enumerate(road.lanes) if lane.confidence > LIKELY]
    elements = [place for place, element in enumerate(road.elements) if element.confidence > LIKELY]
    return Road(
        [road.lanes[place] for place in lanes],
        [road.elements[place] for place in elements],
        road.lane_lane[np.ix_(lanes, lanes)],
        road.lane_element[np.ix_(lanes, elements)],
    )


DRAWN = {"lanes": _lanes, "depth": _depth, "road": _road}
