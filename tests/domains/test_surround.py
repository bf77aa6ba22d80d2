"""Cameras around a car: triangulation, the ring, the cache of matches, warping, photometric losses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from surround import TrueMatcher, true_table

from jettison.core.errors import JettisonError, UsageError
from jettison.domains.perception.layouts.reading import read_image
from jettison.domains.perception.scenes import Camera, Frame
from jettison.domains.perception.surround import matching
from jettison.domains.perception.surround.disagreement import agreeing, errors
from jettison.domains.perception.surround.matchers import Matches
from jettison.domains.perception.surround.matching import (
    Table,
    correctness,
    depth_map,
    match_frame,
    match_frames,
    slots_of,
    suspects,
)
from jettison.domains.perception.surround.occlusion import usable_pixels
from jettison.domains.perception.surround.photometric import dissimilarity, smoothness, temporal_loss
from jettison.domains.perception.surround.rig import neighbours, overlap, resized_intrinsics, ring, yaw_of
from jettison.domains.perception.surround.triangulation import Limits, triangulate
from jettison.domains.perception.surround.warping import inverse, rigid, warp
from jettison.domains.perception.world.cameras import NAMES, make_rig
from jettison.domains.perception.world.order import Order
from jettison.domains.perception.world.store import render_frame, write_world
from jettison.domains.perception.world.world import make_world

SIZE = (48, 120)
RIG = make_rig(SIZE, 3)


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    from jettison.domains.perception.layouts.opening import open_scenes

    folder = tmp_path_factory.mktemp("driving") / "world"
    write_world(folder, Order(seed=3, size=(64, 160), frames=1, place="road", weather="day"), 1)
    return open_scenes(folder, split="train")[0].frames[0]


def any_camera(rng) -> Camera:
    """Return a camera somewhere on a car, in any direction."""
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn * np.sign(np.linalg.det(turn)), rng.uniform(-2, 2, 3)
    focal = rng.uniform(80, 900)
    return Camera("c", 640, 480, [[focal, 0.3, 320], [0, focal * 1.1, 240], [0, 0, 1]], pose)


def test_triangulation_of_true_matches_is_exact():
    rng = np.random.default_rng(0)
    checked = 0
    for _ in range(40):
        one, other = any_camera(rng), any_camera(rng)
        points = rng.uniform(-60, 60, (200, 3))
        (pixels, depths), (others, other_depths) = one.project(points), other.project(points)
        ahead = (depths > 0.5) & (other_depths > 0.5)
        assert np.allclose(one.lift(pixels[ahead], depths[ahead]), points[ahead], atol=1e-8)
        made = triangulate(pixels[ahead], one, others[ahead], other)
        true = np.stack([depths, other_depths], 1)[ahead]
        sharp = made.angles > 0.05
        assert (np.abs(made.depths - true) / true)[sharp].max(initial=0) < 1e-6
        assert made.epipolar[np.abs(pixels[ahead]).max(1) < 1e4].max(initial=0) < 1e-5
        checked += int(sharp.sum())
    assert checked > 500


def test_limits_tell_wrong_matches():
    one, other = RIG["CAM_FRONT"], RIG["CAM_FRONT_RIGHT"]
    points = np.column_stack([np.linspace(10, 40, 20), np.linspace(-7, -26, 20), np.linspace(0, 3, 20)])
    pixels, others = one.project(points)[0], other.project(points)[0]
    assert triangulate(pixels, one, others, other).fits(Limits()).all()
    assert not triangulate(pixels, one, others + np.array([0, 6]), other).fits(Limits()).any(), (
        "beside the epipolar line"
    )
    assert not triangulate(pixels, one, others, other).fits(Limits(most=5)).any()
    assert not triangulate(pixels, one, others, other).fits(Limits(angle=60)).any()
    behind = triangulate(pixels, one, others + np.array([9, 0]), other)
    assert (~behind.in_range()).any(), "rays that part in front of the cameras meet behind them"
    same = triangulate(pixels, one, pixels, one)
    assert not same.fits(Limits()).any(), "parallel rays have no depth, and raise nothing"


def test_the_ring_follows_from_the_calibration():
    renamed = {f"x{place * 7 % 5}{place}": RIG[name] for place, name in enumerate(NAMES)}
    back = {id(camera): name for name, camera in RIG.items()}
    assert [back[id(renamed[name])] for name in ring(renamed, 6)] == list(NAMES), "front first, then clockwise"
    assert neighbours([RIG[name] for name in NAMES]) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)]
    for place, name in enumerate(NAMES):
        rest = {other: RIG[other] for other in NAMES if other != name}
        assert ring(rest, 6) == [None if index == place else other for index, other in enumerate(NAMES)]
    two = ring({name: RIG[name] for name in NAMES if name not in ("CAM_BACK", "CAM_FRONT_LEFT")}, 6)
    assert two == ["CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", None, "CAM_BACK_LEFT", None]
    with pytest.raises(UsageError, match=r"6 cameras \(CAM_FRONT, .*: from 1 to 4 are needed"):
        ring(RIG, 4)
    assert abs(yaw_of(RIG["CAM_BACK"])) > 3 and abs(yaw_of(RIG["CAM_FRONT"])) < 0.1


def test_strips_hold_all_that_both_see():
    one, other = RIG["CAM_FRONT"], RIG["CAM_FRONT_RIGHT"]
    rng = np.random.default_rng(1)
    points = np.column_stack([rng.uniform(3, 60, 4000), rng.uniform(-60, 5, 4000), rng.uniform(-1, 6, 4000)])
    places = [camera.project(points) for camera in (one, other)]
    with np.errstate(invalid="ignore"):
        inside = [((pixels >= 0) & (pixels <= (119, 47))).all(1) & (depth > 0) for pixels, depth in places]
    both = inside[0] & inside[1]
    first, last = overlap(one, other)
    assert both.sum() > 20 and places[0][0][both, 0].min() >= first and places[0][0][both, 0].max() <= last
    assert last - first < 60, "a strip, not the image"
    assert overlap(one, RIG["CAM_BACK"]) is None


def test_resized_intrinsics_move_pixels_with_the_image():
    camera, points = RIG["CAM_BACK"], np.array([[-9.0, 1, 2], [-20, -4, 1]])
    moved = resized_intrinsics(camera, 24, 90)
    small = replace(camera, width=90, height=24, intrinsics=moved)
    expected = (camera.project(points)[0] + 0.5) * (90 / 120, 24 / 48) - 0.5
    assert np.allclose(small.project(points)[0], expected)


def test_rigid_motions():
    turn, move = torch.tensor([[0.3, -0.2, 0.9], [0, 0, 0]]).double(), torch.randn(2, 3).double()
    made = rigid(turn, move)
    x, y, z = turn[0].tolist()
    axis = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    assert torch.allclose(made[0, :3, :3], torch.linalg.matrix_exp(axis), atol=1e-9)
    assert torch.allclose(made[1, :3, :3], torch.eye(3).double(), atol=1e-5)
    assert torch.allclose(inverse(made) @ made, torch.eye(4).double().expand(2, 4, 4), atol=1e-9)


def test_a_neighbour_is_carried_by_true_depth_alone():
    world, rig = make_world(3, "road", "day"), make_rig((96, 240), 3)
    _, pictures = render_frame(world, 1.0, rig)
    one, other = rig["CAM_FRONT"], rig["CAM_FRONT_RIGHT"]
    image = lambda name: torch.from_numpy(pictures[name].image).permute(2, 0, 1)[None].double() / 255
    true = torch.from_numpy(pictures["CAM_FRONT"].depth)[None].double()
    matrix = lambda camera: torch.from_numpy(camera.intrinsics)[None]
    between = torch.from_numpy(np.linalg.inv(other.camera_to_ego) @ one.camera_to_ego)[None]

    def error(depth):
        made, inside = warp(image("CAM_FRONT_RIGHT"), depth, matrix(one), matrix(other), between)
        inside = inside & (true > 0) & (true < 15)
        assert inside.sum() > 50
        return (dissimilarity(made, image("CAM_FRONT")) * inside).sum() / inside.sum()

    depth = torch.where(true > 0, true, 100.0)
    assert error(depth) < 0.6 * error(1.6 * depth) and error(depth) < 0.6 * error(0.6 * depth)
    factor = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    error(depth * factor).backward()
    assert factor.grad.isfinite() and factor.grad != 0


def test_photometric_losses():
    torch.manual_seed(0)
    image = torch.rand(2, 3, 12, 16)
    assert dissimilarity(image, image).abs().max() < 1e-6 < dissimilarity(image, image.flip(-1)).mean()
    inside, usable = torch.ones(2, 2, 12, 16, dtype=torch.bool), torch.ones(2, 12, 16, dtype=torch.bool)
    bad, good = torch.full((2, 2, 12, 16), 0.4), torch.full((2, 2, 12, 16), 0.1)
    made = torch.stack([bad[0], good[0]])
    assert torch.isclose(temporal_loss(made, bad, inside, usable), torch.tensor(0.1)), "the least error counts"
    hidden = inside.clone()
    hidden[1] = False
    assert torch.isclose(temporal_loss(made, bad + 1, hidden, usable), torch.tensor(0.4)), "where it was seen"
    assert temporal_loss(good, torch.zeros_like(good), inside, usable) == 0, "nothing moved: nothing is learned"
    assert temporal_loss(good, good, inside, usable) == 0, "motion explains nothing: nothing is learned"
    assert temporal_loss(good, bad, inside, ~usable) == 0 and temporal_loss(good, bad, ~inside, usable) == 0
    edge = torch.ones(1, 8, 8)
    edge[..., 4:] = 3
    flat, drawn = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    drawn[..., 4:] = 1
    assert smoothness(edge, drawn) < 0.5 * smoothness(edge, flat)


def test_the_own_car_is_masked():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (40, 60, 3), dtype=np.uint8) for _ in range(6)]
    bonnet = rng.integers(0, 255, (12, 60, 3), dtype=np.uint8)
    for image in images:
        image[28:, 10:50] = bonnet[:, 10:50]
        image[:5] = 200  # the sky stands still, too, but does not reach the lowest row
    mask = usable_pixels(images)
    assert not mask[28:, 10:50].any() and mask[:, :10].all() and mask[:28].all()
    assert usable_pixels(images[:2]).all(), "of two frames nothing is known"


def test_matches_lie_in_the_images_and_not_in_their_strips(frame):
    limits = Limits(epipolar=2.0)
    true, slots = true_table(frame, 6, TrueMatcher(), limits), slots_of(frame, 6)
    cameras = [view.camera for view in slots]
    pairs = iter(neighbours(cameras))

    class Stub:
        name = "stub"

        def match(self, image, other):
            one, two = next(pairs)
            places = true.pixels[(true.ends == torch.tensor([one, two])).all(1)].double().numpy().swapaxes(0, 1)
            for slot, seen, pixels, partner in ((one, image, places[0], two), (two, other, places[1], one)):
                first, last = overlap(cameras[slot], cameras[partner])
                assert np.array_equal(seen, read_image(slots[slot].image)[:, first:last])
                pixels[:, 0] -= first
            return Matches(*places, np.ones(len(places[0])))

    made = match_frame(frame, 6, Stub(), limits)
    assert next(pairs, None) is None and torch.equal(made.ends, true.ends) and torch.equal(made.fits, true.fits)
    wide = {"CAM_BACK": replace(frame.views["CAM_BACK"], camera=replace(frame.views["CAM_BACK"].camera, width=320))}
    with pytest.raises(UsageError, match=r"has 160 x 64 pixels: the 320 x 64 of the calibration of CAM_BACK"):
        match_frame(Frame("f", frame.views | wide), 6, Stub(), limits)
    assert torch.allclose(made.pixels, true.pixels) and torch.allclose(made.depths, true.depths, rtol=1e-2)


@pytest.fixture
def true_matches(monkeypatch):
    """Matches from true depth in place of a matcher. The list has the frames that were matched."""
    calls = []

    def match(frame, *rest):
        calls.append(frame.name)
        return true_table(frame, *rest)

    monkeypatch.setattr(matching, "match_frame", match)
    return calls


def matched(frame, folder, limits=Limits(epipolar=2.0)):
    return match_frames([("a", frame)], 1, 6, TrueMatcher(), limits, folder)["a"]


def test_matches_are_cached(frame, true_matches, tmp_path):
    first = matched(frame, tmp_path)
    again = matched(frame, tmp_path)
    assert len(true_matches) == 1 and len(first) > 100
    assert all(torch.equal(getattr(first, part), getattr(again, part)) for part in vars(first))
    matched(frame, tmp_path, Limits(epipolar=1.0))
    (file, _) = sorted(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:-9])
    matched(frame, tmp_path), matched(frame, tmp_path, Limits(epipolar=1.0))
    assert len(true_matches) == 3, "other limits, and a damaged file, are matched again"


def test_truth_tells_mismatches_and_maps_hold_depths(frame, true_matches, tmp_path):
    table = matched(frame, tmp_path)
    true, known = correctness(frame, table, 6)
    assert known.all() and 0.7 < true.float().mean() < 0.98
    assert table.fits[true].float().mean() > 0.9 > 0.8 > table.fits[~true].float().mean()
    good, slots = table.kept(true & table.fits), slots_of(frame, 6)
    maps = depth_map(good, slots, 64, 160)
    counts = maps > 0
    truth = torch.stack([torch.from_numpy(view.depth()) for view in slots])
    off = ((maps - truth).abs() / truth.clamp(min=0.1))[counts]
    assert counts.sum() > 100 and off.median() < 0.02
    assert depth_map(good, slots, 32, 80).shape == (6, 32, 80)


def test_matches_that_disagree_with_a_model_are_dropped(frame, true_matches, tmp_path):
    table = matched(frame, tmp_path)
    slots = slots_of(frame, 6)
    truth = torch.stack([torch.from_numpy(view.depth()) for view in slots])
    sizes = torch.tensor([(view.camera.width, view.camera.height) for view in slots])
    off = errors(truth, table, sizes)
    true, _ = correctness(frame, table, 6)
    kept = agreeing({"a": table}, {"a": off})["a"]
    assert kept[true].float().mean() > 0.9 and kept[~true].float().mean() < 0.5
    assert agreeing({"a": table}, {"a": torch.full_like(off, 0.29)})["a"].all(), "small errors are always kept"


def test_the_cache_knows_matchers_and_calibrations(frame, true_matches, tmp_path):
    matched(frame, tmp_path)
    other, view = TrueMatcher(), frame.views["CAM_BACK"]
    other.name = "other"
    match_frames([("a", frame)], 1, 6, other, Limits(epipolar=2.0), tmp_path)
    pose = view.camera.camera_to_ego.copy()
    pose[2, 3] += 0.1
    moved = frame.views | {"CAM_BACK": replace(view, camera=replace(view.camera, camera_to_ego=pose))}
    matched(Frame(frame.name, moved), tmp_path)
    assert len(true_matches) == 3


def table_of(ends, pixels, depths):
    return Table(torch.tensor(ends), torch.tensor(pixels), torch.tensor(depths), torch.ones(len(ends)).bool())


def test_the_nearest_match_and_the_larger_error_count(frame):
    table = table_of([[0, 1]] * 2, [[[9.0, 5], [20, 6]], [[9, 5], [30, 6]]], [[8.0, 10], [4, 10]])
    maps = depth_map(table, slots_of(frame, 6), 64, 160)
    assert maps[0, 5, 9] == 4 and maps[1, 6, 20] == maps[1, 6, 30] == 10 and (maps > 0).sum() == 3
    off = errors(torch.full((6, 64, 160), 8.0), table, torch.tensor([(160, 64)] * 6))
    assert torch.allclose(off, torch.tensor([0.2, 1.0]))


def test_each_pair_of_cameras_has_a_threshold_of_its_own():
    ends = [[0, 1]] * 10 + [[1, 2]] * 10
    table = table_of(ends, [[[0.0, 0], [0, 0]]] * 20, [[1.0, 1]] * 20)
    off = torch.cat([0.1 * torch.arange(10), 1.0 * torch.arange(10)])
    assert agreeing({"a": table}, {"a": off})["a"].view(2, 10).sum(1).tolist() == [9, 9]


def test_wrong_intrinsics_are_noticed(frame, monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(matching, "say", said.append)
    monkeypatch.setattr(matching, "match_frame", lambda *rest: tables.pop())
    limits = Limits(epipolar=1.0)
    true = true_table(frame, 6, TrueMatcher(), limits, wrong=0.0)
    assert not suspects([true]), "a true calibration is not suspected"
    view = frame.views["CAM_FRONT_RIGHT"]
    matrix = view.camera.intrinsics * np.array([1.35, 1.35, 1])[:, None]
    wrong = replace(view, camera=replace(view.camera, intrinsics=matrix))
    broken = Frame(frame.name, {**frame.views, "CAM_FRONT_RIGHT": wrong})
    cameras = [slot.camera for slot in slots_of(broken, 6)]
    fits = torch.stack([
        torch.from_numpy(
            triangulate(pair[:1].double().numpy(), cameras[one], pair[1:].double().numpy(), cameras[other]).fits(limits)
        )[0]
        for pair, (one, other) in zip(true.pixels, true.ends.tolist(), strict=True)
    ])  # fmt: skip
    assert set(suspects([replace(true, fits=fits)])) == {(0, 1), (1, 2)}
    tables = [replace(true, fits=fits)]
    matched(broken, tmp_path, limits)
    assert "between CAM_FRONT and CAM_FRONT_RIGHT fit the calibration" in said[0]
    assert said[2] == "note: CAM_FRONT_RIGHT is in several of these pairs: check its calibration first"


def test_no_match_at_all_is_an_error(frame, true_matches, tmp_path):
    table = matched(frame, tmp_path)
    with pytest.raises(JettisonError, match="no match between neighbouring cameras fits the calibration"):
        matching.check_enough([table.kept(torch.zeros(len(table), dtype=torch.bool))], True)
