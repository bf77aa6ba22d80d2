"""Cameras and roads: projection, and what a scene cannot hold."""

import numpy as np
import pytest
from driving import LOOK, MATRIX, PLACE, SIZE
from hypothesis import given, settings
from hypothesis import strategies as st

from jettison.core.errors import UsageError
from jettison.domains.perception.scenes import Camera, Centerline, Frame, ImageLane, LaneLine, Road, TrafficElement


def pose():
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = LOOK, PLACE
    return matrix


def camera(**changes):
    parts = {"width": SIZE[0], "height": SIZE[1], "intrinsics": MATRIX, "camera_to_ego": pose()}
    return Camera("front", **(parts | changes))


def test_projection():
    """Ahead is the middle of the image; to the left and up is left and up; behind is nowhere."""
    pixels, depths = camera().project(np.array([[11.5, 0, 1.6], [11.5, 1, 2.6], [-8.5, 0, 1.6]]))
    assert pixels[:2] == pytest.approx(np.array([[20, 12], [18, 10]])) and np.isnan(pixels[2]).all()
    assert depths == pytest.approx([10, 10, -10])


@settings(max_examples=30, deadline=None)
@given(st.floats(1, 100), st.floats(0, 39), st.floats(0, 23))
def test_a_pixel_and_its_depth_give_back_the_point(depth, x, y):
    inside = np.linalg.inv(MATRIX) @ (x * depth, y * depth, depth)
    pixels, depths = camera().project((pose()[:3, :3] @ inside + pose()[:3, 3])[None])
    assert pixels[0] == pytest.approx((x, y), abs=1e-6) and depths[0] == pytest.approx(depth)


@pytest.mark.parametrize(("changes", "words"), [
    ({"width": 0}, "0 x 24 pixels: whole numbers from 1 to 16,384"),
    ({"height": 10**9}, "whole numbers from 1"),
    ({"intrinsics": [[0.0, 0, 5], [0, 5, 5], [0, 0, 1]]}, "focal lengths 0 and 5: positive"),
    ({"intrinsics": [[5.0, 0, 5], [0, 5, 5]]}, "[fx, skew, cx], [0, fy, cy], [0, 0, 1] is needed"),
    ({"intrinsics": [[float("nan")] * 3] * 3}, "have a coordinate nan"),
    ({"intrinsics": "broken"}, "numbers in 3 columns are needed"),
    ({"camera_to_ego": np.eye(3)}, "have shape (3, 3)"),
    ({"camera_to_ego": np.diag([1.0, 1, 2, 1])}, "differ from orthonormal by 3"),
    ({"camera_to_ego": np.diag([1.0, 1, -1, 1])}, "mirror the axes"),
    ({"camera_to_ego": np.eye(4) + np.eye(4)[[3, 0, 1, 2]]}, "the last row 0 0 0 1"),
])  # fmt: skip
def test_a_broken_calibration_is_refused(changes, words):
    with pytest.raises(UsageError) as error:
        camera(**changes)
    assert words in str(error.value) and "front" in str(error.value)


def test_broken_labels_are_refused():
    lane = Centerline(1, [[0, 0, 0], [1, 0, 0]])
    for build, words in (
        (lambda: ImageLane([[1, 2, 3]]), "(points, 2) is needed"),
        (lambda: ImageLane([[1, 1e300]]), "at most 10,000,000"),
        (lambda: Centerline(7, [[0, 0, 0]]), "points of centerline 7 are 1: at least 2"),
        (lambda: LaneLine(lane.points, "dotted"), "valid: solid, dashed, none"),
        (lambda: TrafficElement(3, [[5, 5], [4, 9]], 0), "traffic element 3 has the box"),
        (lambda: TrafficElement(3, [[1, 1], [4, 9]], 13), "attribute 13: 0 to 12 is valid"),
        (lambda: Road([lane], [], [[0, 1]]), "with 1 lanes and 0 traffic elements"),
        (lambda: Frame("f", {}, ego_to_world=np.zeros((4, 4))), "ego pose of frame f"),
    ):
        with pytest.raises(UsageError) as error:
            build()
        assert words in str(error.value)


def test_empty_labels_are_valid():
    road = Road()
    assert road.lane_lane.shape == road.lane_element.shape == (0, 0)
    assert Road([Centerline(1, [[0, 0, 0], [1, 0, 0]])]).lane_element.shape == (1, 0)
    assert ImageLane([]).points.shape == (0, 2)
