"""Pictures of the synthetic world: images, depth and labels agree with each other. Each is projected into each."""

from dataclasses import replace

import numpy as np
import pytest

from jettison.core.errors import UsageError
from jettison.domains.perception.scenes import ATTRIBUTES
from jettison.domains.perception.world.cameras import FRONT, NAMES, make_rig, parse_size
from jettison.domains.perception.world.consistency import Seen, carry, lift, misalignment
from jettison.domains.perception.world.labels import RANGE, label_road
from jettison.domains.perception.world.pictures import face, paint
from jettison.domains.perception.world.render import GROUND, SKY, Renderer, meet_ground
from jettison.domains.perception.world.solids import Ball, Board, Solid
from jettison.domains.perception.world.store import render_frame
from jettison.domains.perception.world.streets import Hills
from jettison.domains.perception.world.world import make_world

SIZE, SEED = (120, 300), 2


@pytest.fixture(scope="module")
def rig():
    return make_rig(SIZE, SEED)


@pytest.fixture(scope="module")
def world():
    return make_world(SEED, "junction", "day")


@pytest.fixture(scope="module")
def frames(world, rig):
    """Return the frame and its pictures at two times, half a second apart."""
    return [render_frame(world, time, rig) for time in (1.0, 1.5)]


@pytest.fixture(scope="module")
def seen(world, rig, frames):
    return [
        {name: Seen(picture, rig[name], frame.ego_to_world) for name, picture in pictures.items()}
        for frame, pictures in frames
    ]


@pytest.fixture(scope="module")
def moving(world):
    return np.array([False, *(solid.moving for solid in world.solids(1.0))])


def in_world(points, frame):
    return points @ frame.ego_to_world[:3, :3].T + frame.ego_to_world[:3, 3]


@pytest.mark.parametrize("place", range(len(NAMES)))
def test_neighbouring_cameras_agree(seen, moving, place):
    one, other = seen[0][NAMES[place]], seen[0][NAMES[(place + 1) % len(NAMES)]]
    carried = carry(one, other, moving)
    assert len(carried.error) > 300 and np.median(carried.error) < 0.05 and np.percentile(carried.error, 95) < 0.5
    grey = [colours.mean(1) for colours in carried.colours]
    assert np.corrcoef(*grey)[0, 1] > 0.8, "a place has the same colour in both"


def test_frames_agree(seen, moving):
    for name in (FRONT, "CAM_FRONT_LEFT"):
        carried = carry(seen[0][name], seen[1][name], moving)
        assert len(carried.error) > 3000 and np.median(carried.error) < 0.05 and np.percentile(carried.error, 95) < 0.5
        assert np.corrcoef(*[colours.mean(1) for colours in carried.colours])[0, 1] > 0.7


def test_images_are_aligned_to_a_fraction_of_a_pixel(seen, moving):
    """By the images alone. A camera that is 0.6 degrees off is noticed."""
    one, other = seen[0][FRONT], seen[1][FRONT]
    pairs = [(seen[0][name], seen[1][name]) for name in NAMES]
    pairs += [(seen[0][name], seen[0][NAMES[place - 1]]) for place, name in enumerate(NAMES)]
    aligned = np.concatenate([misalignment(*pair, moving) for pair in pairs])
    assert len(aligned) > 30 and np.median(aligned) < 0.3
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.01), -np.sin(0.01)], [np.sin(0.01), np.cos(0.01)]]
    wrong = misalignment(one, Seen(other.picture, other.camera, other.ego_to_world @ turned), moving)
    assert np.median(wrong) > 0.6
    tall = replace(other.camera, intrinsics=other.camera.intrinsics * [[1.06], [1.06], [1]])
    assert np.median(misalignment(one, Seen(other.picture, tall, other.ego_to_world), moving)) > 0.5


def test_depth_of_the_ground_is_the_ground(world, frames, seen):
    for name, one in seen[0].items():
        rows, columns = np.nonzero(one.picture.things == GROUND)
        depths = one.picture.depth[rows, columns].astype(np.float64)
        points = lift(one, np.column_stack([columns, rows]).astype(np.float64), depths)
        error = points[:, 2] - world.hills.height(points[:, 0], points[:, 1])
        assert np.abs(error).max() < 0.02, name
    assert (seen[0][FRONT].picture.depth[seen[0][FRONT].picture.things == SKY] == 0).all()


def test_lanes_lie_on_the_ground(world, frames):
    for frame, _ in frames:
        assert len(frame.road.lanes) > 3
        for lane in frame.road.lanes:
            assert (np.abs(lane.points[:, :2]) <= RANGE + 0.2).all()
            for points in (lane.points, lane.left.points, lane.right.points):
                x, y, z = in_world(points, frame).T
                assert np.abs(z - world.hills.height(x, y)).max() < 1e-6


def test_lanes_follow_driving_direction_and_sides(frames):
    for lane in frames[0][0].road.lanes:
        step = np.diff(lane.points[:, :2], axis=0)
        to_left = (lane.left.points - lane.points)[:-1, :2]
        assert (step[:, 0] * to_left[:, 1] - step[:, 1] * to_left[:, 0] > 0).all()


def test_topology_joins_ends(frames):
    road = frames[0][0].road
    joined = np.argwhere(road.lane_lane > 0)
    assert len(joined) > 1
    for i, j in joined:
        assert np.linalg.norm(road.lanes[i].points[-1] - road.lanes[j].points[0]) < 0.2
    ends = np.array([lane.points[-1] for lane in road.lanes])
    starts = np.array([lane.points[0] for lane in road.lanes])
    distance = np.linalg.norm(ends[:, None] - starts[None], axis=2)
    assert ((distance < 0.2) == (road.lane_lane > 0)).all()


def test_image_lanes_are_painted_lines(frames, rig):
    """The labelled pixels are brighter than the asphalt beside them, and are where the painted lines project."""
    frame, pictures = frames[0]
    grey = pictures[FRONT].image.mean(2)
    lanes = frame.views[FRONT].lanes
    assert 1 <= len(lanes) <= 4
    lines = np.concatenate([side.points for lane in frame.road.lanes for side in (lane.left, lane.right)])
    brighter = []
    for lane in lanes:
        assert (np.diff(lane.points[:, 1]) < 0).all() and (lane.points >= 0).all()
        for x, y in lane.points[lane.points[:, 1] > 0.6 * SIZE[0]]:
            i, j = round(y), round(x)
            if 12 < j < SIZE[1] - 13:
                around = np.concatenate([grey[i, j - 12 : j - 6], grey[i, j + 7 : j + 13]])
                brighter.append(grey[i, j - 2 : j + 3].max() - around.mean())
        bottom = lane.points[0]
        pixels, depths = rig[FRONT].project(lines)
        near = pixels[(depths > 1) & (depths < 12)]
        assert len(near) == 0 or np.abs(near - bottom).sum(1).min() < 60
    assert len(brighter) > 10 and np.mean(np.array(brighter) > 25) > 0.3


def test_traffic_elements_are_where_they_are_seen(rig):
    count = 0
    for seed in (2, 5, 14):
        world = make_world(seed, "junction", "day")
        camera = make_rig((160, 400), seed)[FRONT]
        picture = Renderer(world, 2.0).picture(camera)
        road, things = label_road(world, 2.0, camera, picture), picture.things
        for element in road.elements:
            count += 1
            number = next(k for k, solid in enumerate(world.still, 1) if solid.key == element.id)
            rows, columns = np.nonzero(things == number)
            (x1, y1), (x2, y2) = element.box
            assert columns.min() >= x1 - 1 and columns.max() <= x2 + 1 and rows.min() >= y1 - 1 and rows.max() <= y2 + 1
            assert len(rows) > 0.3 * (x2 - x1 - 1) * (y2 - y1 - 1)
            assert world.elements[element.id].attribute == element.attribute
        ids = [lane.id for lane in road.lanes]
        for j, element in enumerate(road.elements):
            held = {ids[i] for i in np.flatnonzero(road.lane_element[:, j])}
            assert held == set(world.elements[element.id].paths) & set(ids)
    assert count >= 4


def test_signs_are_readable():
    """Every pictogram differs from every other one, also at 12 pixels."""
    axis = (np.arange(12) + 0.5) / 6 - 1
    a, b = (part.ravel() for part in np.meshgrid(axis, -axis))
    shown = {name: paint(name, a, b, np.full(144, 2 / 12))[:, :3] for name in ATTRIBUTES}
    for i, one in enumerate(ATTRIBUTES):
        for other in ATTRIBUTES[i + 1 :]:
            assert np.abs(shown[one] - shown[other]).max(1).mean() > 0.03, (one, other)
    left, right = face("turn_left")[0], face("turn_right")[0]
    assert np.allclose(left, right[:, ::-1], atol=0.02), "left is right mirrored"


def test_a_sign_is_not_mirrored():
    """An arrow to the left points to the left of the image of a camera that sees its front."""
    board = Board((0.0, 0.0, 0.0), (1.0, 1.0), 0.0, "turn_left")
    t, point, normal = board.hit(np.array([5.0, 0.0, 0.0]), np.array([[-1.0, -0.1, 0.0]], np.float32))
    assert t[0] == pytest.approx(5) and point[0, 1] < 0, "what is on our left when we look along -x has a < 0"
    assert normal[0, 0] > 0
    assert face("turn_left")[0][16:40, :32, 0].sum() > face("turn_left")[0][16:40, 32:, 0].sum()


def test_weather_changes_images_and_nothing_else(rig):
    views = {}
    for weather in ("day", "night", "rain"):
        renderer = Renderer(make_world(SEED, "junction", weather), 1.0)
        views[weather] = renderer.picture(rig[FRONT])
    assert np.array_equal(views["day"].depth, views["night"].depth)
    assert np.array_equal(views["day"].things, views["rain"].things)
    means = {weather: view.image.mean() for weather, view in views.items()}
    assert means["night"] < 0.6 * means["day"] and views["rain"].image.std() < views["day"].image.std()


def test_shadows_are_dark_and_where_the_sun_is_blocked(world, rig):
    renderer = Renderer(world, 1.0)
    tree = next(solid for solid in world.still if isinstance(solid, Ball))
    reach = tree.centre[2] / world.sun[2]
    x, y = (tree.centre - reach * world.sun)[:2]
    z = world.hills.height(np.array([x]), np.array([y]))
    for _ in range(8):  # the point of the ground under the middle of the shadow
        x, y = (tree.centre - (tree.centre[2] - z[0]) / world.sun[2] * world.sun)[:2]
        z = world.hills.height(np.array([x]), np.array([y]))
    assert tree.blocks(np.array([x]), np.array([y]), z, world.sun)[0]
    assert not tree.blocks(np.array([x + 30]), np.array([y]), z, world.sun)[0]
    plain = np.full((1, 3), 0.3, np.float32)
    point, up = np.array([[x, y, z[0]]], np.float32), np.array([[0, 0, 1.0]], np.float32)
    assert renderer.light.lit(plain, point, up, 1.0).mean() < 0.6 * renderer.light.lit(plain, point, up, 0.0).mean()


class TestRays:
    def test_ground(self):
        hills = Hills(np.array([3.0]), np.array([[0.04, 0.01]]), np.array([0.7]))
        rng = np.random.default_rng(0)
        rays = rng.standard_normal((4000, 3)).astype(np.float32) * (1, 1, 0.15)
        rays = np.concatenate([rays, [[0.1, 0.05, -1.0]]]).astype(np.float32)
        origin = np.array([0.0, 0.0, hills.height(np.zeros(1), np.zeros(1))[0] + 1.6])
        t = meet_ground(hills, origin, rays)
        hit = np.isfinite(t)
        points = origin + t[hit, None].astype(np.float64) * rays[hit]
        assert hit.mean() > 0.3 and np.abs(points[:, 2] - hills.height(points[:, 0], points[:, 1])).max() < 0.02
        for share in (0.3, 0.6, 0.9):  # nothing is under the ground before the hit
            before = origin + share * t[hit, None].astype(np.float64) * rays[hit]
            assert (before[:, 2] > hills.height(before[:, 0], before[:, 1]) - 0.02).mean() > 0.995

    def test_box(self):
        box = Solid((10.0, 0, 1), (2, 1, 1), np.pi / 2)  # turned: 1 long along x, 2 along y
        rays = np.array([[1, 0, 0], [1, 0.18, 0], [1, 0.3, 0], [-1, 0, 0], [1, 0, -1]], np.float32)
        t, _, normal = box.hit(np.array([0, 0, 1.0]), rays)
        assert t[:2] == pytest.approx([9, 9], abs=1e-4) and np.isinf(t[2:]).all()
        assert np.allclose(normal[:2] @ box.axes, [[-1, 0, 0]] * 2, atol=1e-6)

    def test_ball(self):
        ball = Ball((10.0, 0, 0), (2, 2, 1))
        t, _, normal = ball.hit(np.zeros(3), np.array([[1, 0, 0], [1, 0, 0.2]], np.float32))
        assert t[0] == pytest.approx(8, abs=1e-4) and np.isinf(t[1]) and normal[0] == pytest.approx([-1, 0, 0])


class TestRig:
    def test_neighbours_overlap(self):
        rig = make_rig((60, 150))
        for one, other in zip(NAMES, NAMES[1:] + NAMES[:1], strict=True):
            edges = []
            for camera in (rig[one], rig[other]):
                rays = np.linalg.inv(camera.intrinsics) @ np.array([[0, 149.0], [25, 25], [1, 1]])
                x, y, _ = camera.camera_to_ego[:3, :3] @ rays
                edges.append(np.degrees(np.arctan2(y, x)))  # of the left and the right border
            overlap = (edges[1][0] - edges[0][1]) % 360  # the next camera is to the right
            assert 10 < overlap < 25, (one, other)

    def test_cameras_are_on_the_side_to_which_they_look(self):
        for name, camera in make_rig((16, 40)).items():
            ahead, left, _ = camera.camera_to_ego[:3, 2].round(6)
            assert ahead > 0 if "FRONT" in name else ahead < 0
            side = {"LEFT": 1, "RIGHT": -1}.get(name.rpartition("_")[2], 0)
            assert np.sign(left) == np.sign(camera.camera_to_ego[1, 3]) == side

    def test_a_mounted_rig_differs_a_little(self):
        exact, mounted = make_rig((60, 150)), make_rig((60, 150), 3)
        for name in NAMES:
            assert 0 < np.abs(exact[name].camera_to_ego - mounted[name].camera_to_ego).max() < 0.06

    @pytest.mark.parametrize("text", ["160", "160x", "axb", "8x400", "160x4000", "-1x20", "160x400x3", "²x³"])
    def test_absurd_sizes(self, text):
        with pytest.raises(UsageError, match="size"):
            parse_size(text)
        assert parse_size("160x400") == (160, 400)


def test_same_seed_same_bytes(world, rig, frames):
    again = Renderer(make_world(SEED, "junction", "day"), 1.0).picture(rig[FRONT], 0)
    assert np.array_equal(again.image, frames[0][1][FRONT].image)
