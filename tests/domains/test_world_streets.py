"""The synthetic world before it is rendered: streets, the graph of lanes, signs, cars."""

import numpy as np
import pytest

from jettison.core.errors import UsageError
from jettison.domains.perception.scenes import ATTRIBUTES, LIGHT
from jettison.domains.perception.world.driving import Drive, queue
from jettison.domains.perception.world.ground import cover, stripes
from jettison.domains.perception.world.noise import sample, texture, tile
from jettison.domains.perception.world.streets import Hills, Street, trace
from jettison.domains.perception.world.world import make_world

SEEDS = range(40, 46)
COMPLETE = (0, 1, 2, 3, 5, 23)  # their signs and lights have all attributes


@pytest.fixture(scope="module")
def worlds():
    return [make_world(seed, ("junction", "fork")[seed % 2]) for seed in SEEDS]


@pytest.fixture(scope="module")
def bend():
    """Return a street that turns by 60 degrees with a radius of 60 metres."""
    return Street(trace(np.array([5.0, -3.0]), 0.4, np.full(126, 1 / 60)), 2, 1, 3.5, ())


def test_a_point_of_a_street_is_found_again(bend):
    rng = np.random.default_rng(0)
    s, d = rng.uniform(1, bend.length - 1, 500), rng.uniform(-12, 12, 500)
    x, y = bend.at(s, d).T
    found_s, found_d, tx, ty = bend.locate(x, y)
    assert np.abs(found_d - d).max() < 1e-3 and np.abs(found_s - s).max() < 0.02
    assert np.allclose(np.hypot(tx, ty), 1, atol=1e-6)


def test_a_bend_is_a_circle(bend):
    centre = bend.at(0.0, 60.0)[0]
    distances = np.linalg.norm(bend.at(np.linspace(0, bend.length, 50), 2.0) - centre, axis=1)
    assert np.abs(distances - 58).max() < 0.01


def test_beyond_its_ends_there_is_no_street(bend):
    for s in (-5.0, bend.length + 5.0):
        x, y = bend.at(s, 1.0).T
        assert bend.locate(x, y)[1] == 1e3


def test_the_slope_is_the_derivative_of_the_height():
    hills = Hills(np.array([2.0, 0.5]), np.array([[0.03, 0.01], [0.05, -0.02]]), np.array([0.3, 1.0]))
    x, y, step = np.array([3.0, 50.0]), np.array([-7.0, 20.0]), 1e-4
    slope_x, slope_y = hills.slope(x, y)
    assert np.allclose(slope_x, (hills.height(x + step, y) - hills.height(x - step, y)) / (2 * step), atol=1e-8)
    assert np.allclose(slope_y, (hills.height(x, y + step) - hills.height(x, y - step)) / (2 * step), atol=1e-8)


def test_paint_covers_its_share():
    at = np.array([0.0, 0.1, 5.0])
    assert cover(at, np.full(3, 0.2), -0.05, 0.05) == pytest.approx([0.5, 0.25, 0])
    fine = np.linspace(-20, 20, 4001)
    assert stripes(fine, np.full(4001, 1e-3), 9.0, 3.5).mean() == pytest.approx(3.5 / 9, abs=0.03)
    assert stripes(np.array([1.0, 5.0, -8.0]), np.full(3, 0.1), 9.0, 3.5) == pytest.approx([1, 0, 1])
    assert stripes(np.array([2.0]), np.array([900.0]), 9.0, 3.5) == pytest.approx([3.5 / 9], abs=1e-3)


def test_noise_is_continuous_and_fades_where_pixels_are_coarse():
    x = np.linspace(0, 40, 8001, dtype=np.float32)
    values = sample(x, np.zeros_like(x), 1.0, 3)
    assert abs(values.mean()) < 0.2 and 0.6 < values.std() < 1.3
    assert np.abs(np.diff(values)).max() < 0.1
    assert tile().std() == pytest.approx(1, abs=1e-3)
    assert not texture(x, x, np.full_like(x, 5.0), ((1.0, 1.0),)).any()


@pytest.mark.parametrize("number", range(len(SEEDS)))
class TestNetwork:
    def test_paths_meet_where_the_graph_says(self, worlds, number):
        paths = worlds[number].network.paths
        for path in paths:
            for after in path.after:
                other = paths[after]
                assert np.linalg.norm(path.points[-1] - other.points[0]) < 1e-6
                ends = [part[1] - part[0] for part in (path.points[-2:], other.points[:2])]
                cosine = ends[0] @ ends[1] / np.prod([np.linalg.norm(end) for end in ends])
                assert cosine > np.cos(np.radians(35)), "a lane goes on without a kink"

    def test_every_lane_leads_on_and_every_way_out_is_a_lane(self, worlds, number):
        network = worlds[number].network
        for path in network.incoming.values():
            assert network.connectors(path), "no sign leaves a lane without a way"
        for path in network.paths:
            assert not path.in_junction or len(path.after) == 1

    def test_ways_stay_on_the_asphalt(self, worlds, number):
        world = worlds[number]
        for path in world.network.paths:
            x, y = path.points.T
            inside = np.zeros(len(x), bool)
            for street in world.streets:
                d = street.locate(x, y)[1]
                inside |= (d < street.left + 3.5) & (d > street.right - 3.5)
            assert inside[1:-1].all() if path.in_junction else inside[3:-3].all()

    def test_signs_and_graph_agree(self, worlds, number):
        network, elements = worlds[number].network, worlds[number].elements
        for element in elements:
            moves = {network.paths[path].move for path in element.paths if network.paths[path].in_junction}
            name = ATTRIBUTES[element.attribute]
            if name.startswith("no_") and name != "no_u_turn":
                assert name.split("_")[1] not in moves
            if name in ("turn_left", "slight_left", "turn_right", "slight_right", "go_straight"):
                assert moves == {name.split("_")[1]}
            if name == "u_turn":
                assert "u" in moves
            assert element.paths, "it holds for some lane"


def test_lights_of_the_two_streets_exclude_each_other(worlds):
    for world in worlds:
        states: dict[int, set[str]] = {0: set(), 1: set()}
        for element in world.elements:
            if element.category == LIGHT:
                street = next(world.network.paths[path].street for path in element.paths)
                states[street].add(ATTRIBUTES[element.attribute])
        assert all(len(one) <= 1 for one in states.values())
        assert "green" not in states[0] | states[1] or states[0] != states[1]


def test_all_attributes_occur():
    seen = {element.attribute for seed in COMPLETE for element in make_world(seed, "junction").elements}
    assert seen == set(range(13))


def test_same_seed_same_world():
    one, two, other = make_world(5), make_world(5), make_world(6)
    assert np.array_equal(one.streets[0].points, two.streets[0].points)
    assert [solid.centre.tolist() for solid in one.still] == [solid.centre.tolist() for solid in two.still]
    assert not np.array_equal(one.streets[0].points, other.streets[0].points)


def test_houses_and_trees_stand_beside_the_streets(worlds):
    for world in worlds:
        for solid in world.still:
            if solid.paint in ("building", "trunk", "wall"):
                corners = solid.corners()
                for street in world.streets:
                    d = street.locate(*corners[:, :2].T)[1]
                    assert ((d > street.left + street.shoulder) | (d < street.right - street.shoulder)).all()


def test_cars_come_to_rest_in_line(bend):
    stops = queue(100.0, 1, [50.0, 70.0, 10.0])
    assert stops == [92.0, 100.0, 84.0]
    drive = Drive(bend, -1.75, 1, 5.0, 8.0, 40.0)
    places = [drive.place(time) for time in (0, 0.1, 5, 100)]
    assert places[0] == 5 and places[1] == pytest.approx(5.8, abs=0.02) and 25 < places[2] < 39
    assert places[3] == pytest.approx(40)


def test_the_pose_of_a_car_is_rigid_and_stands_on_the_ground(worlds):
    for world in worlds:
        for time in (0.0, 2.5):
            pose = world.ego_to_world(time)
            assert np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3)) and np.linalg.det(pose[:3, :3]) > 0
            x, y, z = pose[:3, 3]
            assert world.hills.height(np.array([x]), np.array([y]))[0] == pytest.approx(z)
        moved = world.ego_to_world(0.2)[:3, 3] - world.ego_to_world(0.0)[:3, 3]
        assert moved @ world.ego_to_world(0.0)[:3, 0] > 0.9 * np.linalg.norm(moved), "forward is where it drives"


def test_errors_name_what_is_valid():
    with pytest.raises(
        UsageError, match=r"unknown place 'rode' \(did you mean 'road'\?\); valid: fork, junction, road"
    ):
        make_world(0, "rode")
    with pytest.raises(UsageError, match="unknown weather 'snow'; valid: day, night, rain"):
        make_world(0, None, "snow")
    with pytest.raises(UsageError, match="seed = -1"):
        make_world(-1)
