"""What is known of a driving scene: cameras, poses, lanes, centerlines with their topology, traffic elements.

Loaders of all layouts return these classes, and the synthetic world makes them. Conventions, the same everywhere:

- Lengths are metres, image coordinates pixels: x to the right, y down, (0, 0) the centre of the top left pixel.
- The camera frame has x to the right, y down, z forward (as in OpenCV, nuScenes and OpenLane-V2).
- The ego frame has x forward, y to the left, z up (as in nuScenes, OpenLane-V2 and DDAD).
- A transform ``a_to_b`` is a matrix (4, 4): it maps homogeneous points of frame a to those of frame b.
- Arrays are numpy float64 and must not be changed. Two objects are equal only if they are the same object.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jettison.core.errors import UsageError, shown

ATTRIBUTES = (
    "unknown", "red", "green", "yellow", "go_straight", "turn_left", "turn_right", "no_left_turn", "no_right_turn",
    "u_turn", "no_u_turn", "slight_left", "slight_right",
)  # fmt: skip
LIGHT, SIGN = 1, 2  # categories of traffic elements, the numbers of OpenLane-V2
MOST_SIDE = 1 << 14  # pixels of a side of an image
LARGEST = 1e7  # metres or pixels; larger coordinates are mistakes
SKEW = 1e-3  # how far a rotation may be from orthonormal; files round quaternions and matrices


def checked_points(points, columns: int, what: str, least: int = 0) -> np.ndarray:
    """Return points as a new array (n, columns) float64.

    least: fewest points. what: name of the points in errors.
    Raises UsageError for another shape, and for numbers that are not finite or absurdly large.
    """
    try:
        array = np.array(points, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{what} are {shown(points)}: numbers in {columns} columns are needed") from error
    if array.size == 0:
        array = array.reshape(0, columns)
    if array.ndim != 2 or array.shape[1] != columns:
        raise UsageError(f"{what} have shape {array.shape}: (points, {columns}) is needed")
    if len(array) < least:
        raise UsageError(f"{what} are {len(array)}: at least {least} are needed")
    if not (np.abs(array) <= LARGEST).all():
        raise UsageError(f"{what} have a coordinate {_first_wrong(array)}: at most {LARGEST:,.0f} is valid")
    return array


def _first_wrong(array: np.ndarray) -> float:
    return float(array[~(np.abs(array) <= LARGEST)][0])


def checked_transform(matrix, what: str) -> np.ndarray:
    """Return a rigid transform as a new array (4, 4) float64. what: its name in errors.

    Raises UsageError if it has another shape, is not finite, or does more than rotate and move.
    """
    array = checked_points(matrix, 4, what)
    if array.shape != (4, 4) or not np.allclose(array[3], (0, 0, 0, 1)):
        raise UsageError(f"{what} is {shown(array.tolist())}: a matrix (4, 4) with the last row 0 0 0 1 is needed")
    rotation = array[:3, :3]
    error = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if error > SKEW or np.linalg.det(rotation) < 0:
        raise UsageError(f"{what} has no rotation: its rows differ from orthonormal by {error:.2g} or mirror the axes")
    return array


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera without distortion, and where it is on the car.

    width, height: of its images in pixels.
    intrinsics: (3, 3), pixel = intrinsics · point / z, for points in the camera frame.
    camera_to_ego: (4, 4), maps the camera frame to the ego frame.
    Raises UsageError for a calibration that no camera can have.
    """

    name: str
    width: int
    height: int
    intrinsics: np.ndarray
    camera_to_ego: np.ndarray

    def __post_init__(self):
        for side in (self.width, self.height):
            if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= MOST_SIDE:
                raise UsageError(
                    f"camera {self.name} has images of {shown(self.width)} x {shown(self.height)} pixels: whole "
                    f"numbers from 1 to {MOST_SIDE:,} are needed"
                )
        what = f"intrinsics of camera {self.name}"
        matrix = checked_points(self.intrinsics, 3, what)
        if matrix.shape != (3, 3) or not np.allclose(matrix[2], (0, 0, 1)) or abs(matrix[1, 0]) > SKEW:
            raise UsageError(f"{what} are {shown(matrix.tolist())}: [fx, skew, cx], [0, fy, cy], [0, 0, 1] is needed")
        if not (matrix[0, 0] > 0 and matrix[1, 1] > 0):
            raise UsageError(
                f"{what} have focal lengths {matrix[0, 0]:g} and {matrix[1, 1]:g}: positive ones are needed"
            )
        object.__setattr__(self, "intrinsics", matrix)
        pose = checked_transform(self.camera_to_ego, f"extrinsics of camera {self.name}")
        object.__setattr__(self, "camera_to_ego", pose)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Project points of the ego frame, (n, 3). Returns pixels (n, 2) and depths along the axis (n,).

        Points with a depth of 0 or less lie behind the camera; their pixels are NaN.
        """
        ego_to_camera = np.linalg.inv(self.camera_to_ego)
        inside = np.asarray(points, dtype=np.float64) @ ego_to_camera[:3, :3].T + ego_to_camera[:3, 3]  # (n, 3)
        depths = inside[:, 2]
        ahead = np.where(depths > 0, depths, np.nan)[:, None]
        return (inside @ self.intrinsics.T)[:, :2] / ahead, depths

    def lift(self, pixels: np.ndarray, depths: np.ndarray) -> np.ndarray:
        """Return the points of the ego frame, (n, 3), at pixels (n, 2) with depths (n,) along the axis."""
        rays = np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(self.intrinsics).T
        return (rays * depths[:, None]) @ self.camera_to_ego[:3, :3].T + self.camera_to_ego[:3, 3]


@dataclass(frozen=True, eq=False)
class ImageLane:
    """A lane line in an image. points: (n, 2), x and y in pixels; they may lie outside the image."""

    points: np.ndarray
    confidence: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "points", checked_points(self.points, 2, "points of a lane"))


@dataclass(frozen=True, eq=False)
class LaneLine:
    """A painted line in space. points: (n, 3), ego frame. kind: ``solid``, ``dashed`` or ``none`` (not painted)."""

    points: np.ndarray
    kind: str = "solid"

    def __post_init__(self):
        object.__setattr__(self, "points", checked_points(self.points, 3, "points of a lane line", 2))
        if self.kind not in ("solid", "dashed", "none"):
            raise UsageError(f"lane line of kind {shown(self.kind)}; valid: solid, dashed, none")


@dataclass(frozen=True, eq=False)
class Centerline:
    """The middle of a lane, in driving direction.

    points: (n, 3), ego frame, at least 2.
    left, right: the lines beside it, if they are known.
    in_junction: whether it lies in a junction; None if unknown.
    """

    id: int
    points: np.ndarray
    confidence: float = 1.0
    left: LaneLine | None = None
    right: LaneLine | None = None
    in_junction: bool | None = None

    def __post_init__(self):
        points = checked_points(self.points, 3, f"points of centerline {self.id}", 2)
        object.__setattr__(self, "points", points)


@dataclass(frozen=True, eq=False)
class TrafficElement:
    """A traffic light or a sign in the front camera.

    box: (2, 2), the corners [x1, y1] and [x2, y2] in pixels, x1 < x2 and y1 < y2.
    attribute: index into ``ATTRIBUTES``. category: ``LIGHT`` or ``SIGN``; None if unknown.
    """

    id: int
    box: np.ndarray
    attribute: int
    confidence: float = 1.0
    category: int | None = None

    def __post_init__(self):
        box = checked_points(self.box, 2, f"corners of traffic element {self.id}")
        if box.shape != (2, 2) or not (box[0] < box[1]).all():
            raise UsageError(
                f"traffic element {self.id} has the box {shown(box.tolist())}: [x1, y1], [x2, y2] with x1 < x2 and "
                "y1 < y2 is needed"
            )
        object.__setattr__(self, "box", box)
        if isinstance(self.attribute, bool) or self.attribute not in range(len(ATTRIBUTES)):
            raise UsageError(
                f"traffic element {self.id} has attribute {shown(self.attribute)}: 0 to {len(ATTRIBUTES) - 1} is valid"
            )


@dataclass(frozen=True, eq=False)
class Road:
    """The lanes and traffic elements around the car, and which belong together.

    lane_lane: (lanes, lanes), 1 where the end of lane i is the start of lane j; of predictions, a probability.
    lane_element: (lanes, elements), 1 where traffic element j holds for lane i; of predictions, a probability.
    """

    lanes: Sequence[Centerline] = ()
    elements: Sequence[TrafficElement] = ()
    lane_lane: np.ndarray | None = None  # None: no connections
    lane_element: np.ndarray | None = None

    def __post_init__(self):
        for name, columns in (("lane_lane", len(self.lanes)), ("lane_element", len(self.elements))):
            value, shape = getattr(self, name), (len(self.lanes), columns)
            what = f"{name} of a road with {len(self.lanes)} lanes and {len(self.elements)} traffic elements"
            matrix = np.zeros(shape) if value is None else checked_points(value, columns, what)
            if not matrix.size and 0 in shape:  # lists of no numbers do not keep their shape
                matrix = np.zeros(shape)
            if matrix.shape != shape:
                raise UsageError(f"{what} has shape {matrix.shape}: {shape} is needed")
            object.__setattr__(self, name, matrix)


@dataclass(frozen=True, eq=False)
class View:
    """What one camera saw at one moment.

    camera: None where a layout has no calibration (CULane, TuSimple).
    image: its file; None if only labels are known.
    lanes: lane lines in the image; None if there are no labels.
    depth: reads the depth map, (height, width) float32 metres along the camera's axis, 0 where unknown.
    ego_to_world: (4, 4), where the car was when this image was taken; None: where it was in the frame.
    """

    camera: Camera | None = None
    image: Path | None = None
    lanes: Sequence[ImageLane] | None = None
    depth: Callable[[], np.ndarray] | None = field(default=None, repr=False)
    ego_to_world: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Frame:
    """One moment of a scene.

    views: name of the camera -> what it saw.
    time: seconds; only differences have a meaning. None if unknown.
    ego_to_world: (4, 4), where the car was; the world frame is that of the scene. None if unknown.
    road: labels in the ego frame; the elements are in the image of the front camera. None if there are none.
    """

    name: str
    views: Mapping[str, View]
    time: float | None = None
    ego_to_world: np.ndarray | None = None
    road: Road | None = None

    def __post_init__(self):
        if self.ego_to_world is not None:
            pose = checked_transform(self.ego_to_world, f"ego pose of frame {self.name}")
            object.__setattr__(self, "ego_to_world", pose)


@dataclass(frozen=True, eq=False)
class Scene:
    """Frames of one drive in the order of time. Datasets of single images are one scene."""

    name: str
    frames: Sequence[Frame]
