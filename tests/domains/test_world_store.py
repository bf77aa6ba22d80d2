"""Folders of rendered worlds: readable in every layout, resumable, the same bytes with any number of processes."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from jettison.core.errors import UsageError
from jettison.domains.perception.drawing import birds_eye, camera_sheet, depth_sheet, write_page
from jettison.domains.perception.layouts.opening import open_scenes
from jettison.domains.perception.layouts.reading import read_image
from jettison.domains.perception.scenes import Road
from jettison.domains.perception.scoring import score
from jettison.domains.perception.world import loading, store
from jettison.domains.perception.world.cameras import FRONT, NAMES, make_rig
from jettison.domains.perception.world.order import Order, split_of
from jettison.domains.perception.world.store import render_frame, write_world
from jettison.domains.perception.world.world import make_world

ORDER = Order(seed=2, size=(64, 160), frames=2, place="junction", weather="day")


@pytest.fixture(scope="module")
def folder(made_once):
    return made_once("world", lambda folder: write_world(folder, ORDER, 3))


@pytest.fixture(scope="module")
def rendered():
    """Return frame 1 of scene 1, the only validation scene, as it is before it is written."""
    world = make_world(3, ORDER.place, ORDER.weather)
    return render_frame(world, ORDER.interval, make_rig(ORDER.size, 3), 1)


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")
    }  # fmt: skip


def check_cameras(frame, truth):
    assert np.allclose(frame.ego_to_world, truth.ego_to_world, atol=1e-9)
    assert set(frame.views) == set(NAMES)
    for name, view in frame.views.items():
        own = truth.views[name].camera
        assert (view.camera.width, view.camera.height) == (160, 64)
        assert np.allclose(view.camera.intrinsics, own.intrinsics, atol=1e-9)
        assert np.allclose(view.camera.camera_to_ego, own.camera_to_ego, atol=1e-6)


def check_road(road, own):
    assert np.array_equal(road.lane_lane, own.lane_lane) and np.array_equal(road.lane_element, own.lane_element)
    for lane, other in zip(road.lanes, own.lanes, strict=True):
        assert lane.id == other.id and np.allclose(lane.points, other.points)
    for element, other in zip(road.elements, own.elements, strict=True):
        assert (element.id, element.attribute, element.category) == (other.id, other.attribute, other.category)
        assert np.allclose(element.box, other.box)


class TestLayouts:
    def test_openlanev2(self, folder, rendered):
        (scene,) = open_scenes(folder, "openlanev2")
        truth, pictures = rendered
        assert scene.name == "00001" and [frame.time for frame in scene.frames] == [1.6e9, 1.6e9 + 0.5]
        frame = scene.frames[1]
        check_cameras(frame, truth)
        check_road(frame.road, truth.road)
        image = read_image(frame.views[FRONT].image).astype(float)
        assert np.abs(image - pictures[FRONT].image).mean() < 3, "JPEG at quality 95"

    def test_lane_segments(self, folder, rendered):
        frame, own = open_scenes(folder, "openlanev2", segments=True)[0].frames[1], rendered[0].road
        check_road(frame.road, own)
        for lane, other in zip(frame.road.lanes, own.lanes, strict=True):
            assert lane.in_junction == other.in_junction
            for side in ("left", "right"):
                assert np.allclose(getattr(lane, side).points, getattr(other, side).points)
                assert getattr(lane, side).kind == getattr(other, side).kind

    def test_ddad(self, folder, rendered):
        (scene,) = open_scenes(folder, "ddad")
        truth, pictures = rendered
        frame = scene.frames[1]
        check_cameras(frame, truth)
        for name, view in frame.views.items():
            assert np.abs(view.depth() - pictures[name].depth).max() <= 5.1e-4, "depth is kept to the millimetre"

    def test_culane_and_tusimple(self, folder, rendered):
        own = rendered[0].views[FRONT].lanes
        culane, tusimple = (
            open_scenes(folder, layout, split="val")[0].frames[1].views["front"] for layout in ("culane", "tusimple")
        )
        assert len(culane.lanes) == len(tusimple.lanes) == len(own) > 0
        for lane, other, row_lane in zip(culane.lanes, own, tusimple.lanes, strict=True):
            assert np.allclose(lane.points, other.points, atol=1e-4)
            order = np.argsort(other.points[:, 1])
            x = np.interp(row_lane.points[:, 1], other.points[order, 1], other.points[order, 0])
            assert np.abs(x - row_lane.points[:, 0]).max() < 0.02

    def test_true_labels_score_perfectly(self, folder):
        assert score(folder, folder, layout="culane", split="val").rows["all"][0] == 1
        accuracy = score(folder / "label_data_0531.json", folder, layout="tusimple", split="val")
        assert max(accuracy.rows["all"][:1]) == pytest.approx(1)

    def test_the_splits(self, folder):
        assert [split_of(number) for number in range(6)] == ["train", "val", "test", "train", "train", "train"]
        for layout in ("openlanev2", "culane", "tusimple", "ddad"):
            for split in ("train", "val", "test"):
                assert len(open_scenes(folder, layout, split=split)[0].frames) == 2


def test_all_that_is_known(folder, rendered):
    scenes = loading.read(folder)
    assert [scene.name for scene in scenes] == ["00000", "00001", "00002"]
    (scene,) = loading.read(folder, "val")
    frame, truth = scene.frames[1], rendered[0]
    check_cameras(frame, truth)
    check_road(frame.road, truth.road)
    assert len(frame.views[FRONT].lanes) == len(truth.views[FRONT].lanes) and frame.views["CAM_BACK"].lanes is None
    assert frame.views["CAM_BACK"].depth().shape == (64, 160)


class TestRuns:
    def test_a_run_continues_and_gives_the_same_bytes(self, folder, tmp_path, monkeypatch):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        stamp = "1600000000500000"
        (copy / f"test/00002/info/{stamp}.json").unlink()
        (copy / f"test/00002/image/{FRONT}/{stamp}.jpg").write_bytes(b"half")
        made = []
        original = store._write_frame
        monkeypatch.setattr(store, "_write_frame", lambda *arguments: (made.append(arguments[2]), original(*arguments)))
        assert write_world(copy, ORDER, 3) == {"scenes": 3, "frames": 6, "rendered": 1}
        assert made == [(2, 1)] and files(copy) == files(folder)

    @pytest.mark.slow
    def test_two_processes_give_the_same_bytes(self, folder, tmp_path):
        write_world(tmp_path / "w", ORDER, 3, processes=2)
        assert files(tmp_path / "w") == files(folder)

    def test_scenes_can_be_added(self, folder, tmp_path):
        few = replace(ORDER, frames=1, size=(16, 40))
        assert write_world(tmp_path / "w", few, 1)["rendered"] == 1
        assert write_world(tmp_path / "w", few, 2) == {"scenes": 2, "frames": 2, "rendered": 1}
        assert len(loading.read(tmp_path / "w")) == 2

    def test_another_order_is_refused(self, folder):
        before = files(folder)
        for other, words in ((replace(ORDER, seed=3), "seed"), (replace(ORDER, size=(64, 162)), "size")):
            with pytest.raises(UsageError, match=f"holds another run: its {words}"):
                write_world(folder, other, 3)
        assert files(folder) == before

    def test_a_folder_with_other_things_is_refused(self, tmp_path):
        (tmp_path / "mine.txt").touch()
        with pytest.raises(UsageError, match="is not empty"):
            write_world(tmp_path, ORDER, 1)

    @pytest.mark.parametrize(
        "wrong", [{"seed": -1}, {"frames": 0}, {"frames": 1.5}, {"interval": 0}, {"size": (8, 8)}, {"size": (9000, 90)}]
    )
    def test_bad_orders(self, wrong):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            replace(ORDER, **wrong)

    def test_bad_names_and_counts_write_nothing(self, tmp_path):
        for order, scenes in ((replace(ORDER, weather="fog"), 1), (replace(ORDER, place="sea"), 1), (ORDER, 0)):
            with pytest.raises(UsageError):
                write_world(tmp_path / "w", order, scenes)
        assert not (tmp_path / "w").exists()


class TestDrawing:
    def test_sheets(self, folder):
        frame = loading.read(folder, "val")[0].frames[0]
        plain, labelled = camera_sheet(frame, labels=False), camera_sheet(frame)
        assert plain.shape == labelled.shape == (2 * 64 + 2, 3 * 160 + 4, 3)
        changed = (plain != labelled).any(2)
        assert 0.002 < changed.mean() < 0.5
        depth = depth_sheet(frame)
        assert depth.shape == plain.shape
        near, far = depth[60, 240], depth[36, 240]
        assert near[0] > far[0], "near is yellow"

    def test_the_front_camera_is_in_the_middle_of_the_upper_row(self, folder):
        frame = loading.read(folder, "val")[0].frames[0]
        image = read_image(frame.views[FRONT].image)
        assert np.array_equal(camera_sheet(frame, labels=False)[:64, 162:322], image)

    def test_from_above(self, rendered):
        road = rendered[0].road
        image = birds_eye(road)
        blue = ((image == (40, 110, 220)).all(2)).sum()
        assert blue > 500 and birds_eye(Road()).shape == image.shape
        assert not (birds_eye(Road()) == (40, 110, 220)).all(2).any()

    def test_a_page(self, folder, tmp_path):
        scene = loading.read(folder, "val")[0]
        write_page(tmp_path / "page.html", "A <title>", list(scene.frames))
        text = (tmp_path / "page.html").read_text()
        assert (
            text.count("data:image/webp;base64,") == 10 and "A &lt;title&gt;" in text and scene.frames[0].name in text
        )

    def test_damage_is_named(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "w")
        base = tmp_path / "w/val/00001"
        (base / f"image/{FRONT}/1600000000000000.jpg").write_bytes(b"no image")
        with pytest.raises(UsageError, match="1600000000000000.jpg"):
            camera_sheet(loading.read(tmp_path / "w", "val")[0].frames[0])
        (base / "depth/CAM_BACK/1600000000500000.npz").write_bytes(b"no array")
        with pytest.raises(UsageError, match=r"CAM_BACK/1600000000500000.npz"):
            depth_sheet(loading.read(tmp_path / "w", "val")[0].frames[1])

    def test_no_worlds(self, tmp_path, folder):
        with pytest.raises(UsageError, match="holds no rendered worlds"):
            loading.read(tmp_path)
        with pytest.raises(UsageError, match="unknown split 'all'"):
            loading.read(folder, "all")


def test_a_world_of_the_front_camera_alone_is_read_in_all_layouts(tmp_path):
    order = Order(seed=3, size=(48, 80), frames=1, cameras="front")
    write_world(tmp_path / "world", order, 5)
    for layout in (None, "openlanev2", "culane", "tusimple", "ddad"):
        views = open_scenes(tmp_path / "world", layout, split="train")[0].frames[0].views
        assert len(views) == 1, layout
    with pytest.raises(UsageError, match="holds another run"):
        write_world(tmp_path / "world", replace(order, cameras="all"), 5)
    with pytest.raises(UsageError, match="unknown cameras 'back'"):
        Order(cameras="back")
