"""Point clouds from depth maps of several cameras, in the colours of their images, drawn from above and behind."""

from collections.abc import Mapping

import numpy as np

from jettison.domains.perception.layouts.reading import read_image
from jettison.domains.perception.scenes import Frame
from jettison.domains.perception.surround.matching import there
from jettison.metrics.depth import resized

PITCH = np.radians(38.0)  # of the view, down from level
SIZE = (420, 720)  # height, width of the picture
PIXELS = 9.0  # of a metre
FARTHEST, HIGHEST = 60.0, 6.0  # metres: depth, and height above the road, of points that are drawn
PAPER = 250  # brightness of the background
CAR = (235, 60, 60)


def cloud(frame: Frame, depths: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return points of the ego frame (n, 3), and their colours (n, 3) uint8.

    depths: name of the camera -> (height, width) metres, 0 where unknown; of any size. Cameras without a calibration or
    an image are left out.
    """
    points, colours = [np.zeros((0, 3))], [np.zeros((0, 3), np.uint8)]
    for name, depth in depths.items():
        view = frame.views.get(name)
        if not there(view) or view.camera is None:
            continue
        image, camera = read_image(view.image), view.camera
        size = image.shape[:2]
        full = resized(np.asarray(depth, np.float32), size)
        rows, columns = np.nonzero((full > 0) & (full < FARTHEST))
        pixels = (np.column_stack([columns, rows]) + 0.5) * (camera.width / size[1], camera.height / size[0]) - 0.5
        points.append(camera.lift(pixels, full[rows, columns].astype(np.float64)))
        colours.append(image[rows, columns])
    return np.concatenate(points), np.concatenate(colours)


def cloud_picture(points: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Draw points of the ego frame, (height, width, 3) uint8. The car looks up, and is the red mark in the middle."""
    height, width = SIZE
    picture = np.full((height, width, 3), PAPER, np.uint8)
    low = points[:, 2] < HIGHEST
    points, colours = points[low], colours[low]
    x = np.rint(width / 2 - points[:, 1] * PIXELS).astype(int)
    y = np.rint(height / 2 - (points[:, 0] * np.sin(PITCH) + points[:, 2] * np.cos(PITCH)) * PIXELS).astype(int)
    near = points[:, 2] * np.sin(PITCH) - points[:, 0] * np.cos(PITCH)  # towards the viewer
    order = np.argsort(near, kind="stable")
    order = order[(x[order] >= 0) & (x[order] < width - 1) & (y[order] >= 0) & (y[order] < height - 1)]
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):  # a point covers 2 x 2 pixels
        picture[y[order] + down, x[order] + right] = colours[order]
    picture[height // 2 - 4 : height // 2 + 5, width // 2 - 2 : width // 2 + 3] = CAR
    return picture
