"""Labels of a rendered frame: centerlines and their topology, traffic elements, lane lines in space and in the image.

Ranges and fields are those of OpenLane-V2 (arXiv:2304.10440), the lanes in the image those of CULane: the lines of the
own lane and of the lanes beside it, also where cars hide them, but not behind a hill.
"""

import numpy as np

from jettison.domains.perception.scenes import Camera, Centerline, ImageLane, LaneLine, Road, TrafficElement
from jettison.domains.perception.world.network import LanePath
from jettison.domains.perception.world.render import Picture, meet_ground
from jettison.domains.perception.world.solids import Board
from jettison.domains.perception.world.world import World

RANGE = np.array([51.2, 25.6])  # metres ahead and behind, left and right, as in OpenLane-V2
POINTS = 21  # of a centerline
SHORTEST = 2.0  # metres of a centerline
SMALLEST, VISIBLE = 3.0, 0.3  # pixels of a side of a traffic element; share of its outline that must be seen
LANE_FAR = 90.0  # metres ahead up to which lines are marked in the image
MOST_LANES = 4  # in an image, as in CULane
ROWS = 59  # rows of an image at which lanes have points: CULane has one every 10 pixels of 590
JUNCTION_HALF = 1.75  # metres from the middle to the sides of a way through a junction


def label_road(world: World, time: float, camera: Camera, picture: Picture) -> Road:
    """Return the lanes and traffic elements around the car, in its frame.

    camera, picture: the front camera and what it sees.
    """
    lanes = {}
    to_ego = np.linalg.inv(world.ego_to_world(time))
    for number, path in enumerate(world.network.paths):
        if (lane := _centerline(world, number, path, to_ego)) is not None:
            lanes[number] = lane
    elements, paths = _elements(world, time, camera, picture)
    numbers = list(lanes)
    lane_lane = np.zeros((len(numbers), len(numbers)))
    for i, number in enumerate(numbers):
        for after in world.network.paths[number].after:
            if after in lanes:
                j = numbers.index(after)
                gap = np.linalg.norm(lanes[number].points[-1] - lanes[after].points[0])
                lane_lane[i, j] = gap < 0.2  # neither is cut off there
    lane_element = np.array([[float(number in held) for held in paths] for number in numbers])
    return Road(list(lanes.values()), elements, lane_lane, lane_element.reshape(len(numbers), len(elements)))


def _centerline(world: World, number: int, path: LanePath, to_ego: np.ndarray) -> Centerline | None:
    """The part of a path that is in range; None if there is none."""
    plane = path.points
    own = _moved(world.hills.lift(plane), to_ego)
    inside = (np.abs(own[:, :2]) <= RANGE).all(1)
    if not inside.any():
        return None
    bounds = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(int), [0]])))
    first, last = max(bounds.reshape(-1, 2), key=lambda run: run[1] - run[0])
    part = plane[first:last]
    way = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(part, axis=0), axis=1))])
    if way[-1] < SHORTEST:
        return None
    at = np.linspace(0, way[-1], POINTS)
    middle = np.column_stack([np.interp(at, way, part[:, axis]) for axis in (0, 1)])
    step = np.gradient(middle, axis=0)
    left = np.column_stack([-step[:, 1], step[:, 0]]) / np.linalg.norm(step, axis=1, keepdims=True)
    half, kinds = JUNCTION_HALF, ("none", "none")
    if not path.in_junction:
        street = world.streets[path.street]
        half, sign = street.lane / 2, 1 if path.lane >= 0 else -1
        offsets = (street.lane_middle(path.lane) + sign * half, street.lane_middle(path.lane) - sign * half)
        kinds = tuple(line.kind if (line := street.line_at(offset)) else "none" for offset in offsets)
    lift = lambda points: _moved(world.hills.lift(points), to_ego)
    sides = [LaneLine(lift(middle + side * half * left), kind) for side, kind in zip((1, -1), kinds, strict=True)]
    return Centerline(number, lift(middle), left=sides[0], right=sides[1], in_junction=path.in_junction)


def _moved(points: np.ndarray, transform: np.ndarray) -> np.ndarray:
    return points @ transform[:3, :3].T + transform[:3, 3]


def _elements(
    world: World, time: float, camera: Camera, picture: Picture
) -> tuple[list[TrafficElement], list[set[int]]]:
    """The traffic elements that are seen, and for each the paths for which it holds."""
    to_ego = np.linalg.inv(world.ego_to_world(time))
    eye = np.linalg.inv(to_ego) @ camera.camera_to_ego[:, 3]
    numbers = {solid.key: place + 1 for place, solid in enumerate(world.still) if isinstance(solid, Board)}
    elements, paths = [], []
    for key, element in enumerate(world.elements):
        towards = eye[:3] - element.board.centre
        if element.board.axes[0] @ towards < 0.25 * np.linalg.norm(towards):
            continue  # its back, or too much from the side
        pixels, depths = camera.project(_moved(element.board.outline(), to_ego))
        if (depths < 1).any():
            continue
        low = np.maximum(pixels.min(0), -0.5)
        high = np.minimum(pixels.max(0), (camera.width - 0.5, camera.height - 0.5))
        if (high - low < SMALLEST).any():
            continue
        columns, rows = (slice(max(0, round(a)), round(b) + 1) for a, b in zip(low, high, strict=True))
        seen = (picture.things[rows, columns] == numbers[key]).sum()
        if seen < VISIBLE * np.prod(pixels.max(0) - pixels.min(0)):
            continue
        elements.append(TrafficElement(key, np.stack([low, high]), element.attribute, category=element.category))
        paths.append(set(element.paths))
    return elements, paths


def label_lanes(world: World, time: float, camera: Camera) -> list[ImageLane]:
    """Return the lane lines in an image: at most two on each side of the car, from left to right.

    A lane has a point at each of ``ROWS`` rows where it is seen, from the bottom up.
    """
    street, offset = world.ego.street, world.ego.offset
    offsets = sorted((line.offset for line in street.lines), reverse=True)
    left = [one for one in offsets if one > offset][-MOST_LANES // 2 :]
    right = [one for one in offsets if one < offset][: MOST_LANES // 2]
    lanes = [_image_lane(world, time, camera, one) for one in (*left, *right)]
    return [lane for lane in lanes if lane is not None]


def _image_lane(world: World, time: float, camera: Camera, offset: float) -> ImageLane | None:
    """The nearest piece of a line that is seen over a part of the image's height; None if there is none."""
    street, junction, own_s = world.ego.street, world.network.junction, world.ego.place(time)
    pieces = [(0.0, street.length)]
    if junction:
        place, gap = junction.places[0], junction.gaps[0]
        pieces = [(0.0, place - gap), (place + gap, street.length)]
    pose = world.ego_to_world(time)
    origin = (pose @ camera.camera_to_ego)[:3, 3]
    for low, high in pieces:
        low, high = max(low, own_s), min(high, own_s + LANE_FAR)
        if high - low < 3:
            continue
        points = world.hills.lift(street.at(np.arange(low, high, 0.25), offset))
        pixels, depths = camera.project(_moved(points, np.linalg.inv(pose)))
        rays = ((points - origin) / np.maximum(depths, 0.1)[:, None]).astype(np.float32)
        seen = (depths > 0.5) & (meet_ground(world.hills, origin, rays) > depths * 0.97 - 0.2)
        if not seen.any():
            continue
        end = len(seen) if seen[seen.argmax() :].all() else seen.argmax() + (~seen[seen.argmax() :]).argmax()
        u, v = pixels[seen.argmax() : end].T
        rows = (camera.height - 1) * np.arange(ROWS, -1, -1) / ROWS
        falling = np.minimum.accumulate(v)  # on a crest, later points are not higher in the image
        rows = rows[(rows <= v[0]) & (rows >= falling[-1])]
        columns = np.interp(-rows, -falling, u)
        inside = (columns >= 0) & (columns <= camera.width - 1)
        if inside.sum() > 1 + ROWS // 12:
            return ImageLane(np.column_stack([columns, rows])[inside])
    return None
