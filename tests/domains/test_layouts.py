"""Readers of dataset folders: what they return, half-downloaded folders, broken and hostile files."""

import json
import pickle
import shutil

import numpy as np
import pytest
from driving import LANES, MAKERS, MATRIX, PLACE, SIZE, lidar_image, road, write
from driving import ddad as make_ddad
from hypothesis import given, settings
from hypothesis import strategies as st

from jettison.core.errors import UsageError
from jettison.domains.perception.layouts import culane, ddad, nuscenes, openlanev2, tusimple
from jettison.domains.perception.layouts.opening import find_layout, open_scenes
from jettison.domains.perception.layouts.reading import image_size, load_array, read_image, rotation_of
from jettison.domains.perception.scenes import ImageLane


@pytest.fixture(params=MAKERS)
def made(request, tmp_path):
    """A folder, and its layout."""
    return MAKERS[request.param](tmp_path / "data"), request.param


def refused(call, *words):
    with pytest.raises(UsageError) as error:
        call()
    message = str(error.value)
    assert all(word in message for word in words), message
    return message


def frames_of(folder, layout, **options):
    return [frame for scene in open_scenes(folder, layout, **options) for frame in scene.frames]


def test_every_layout_is_recognized_and_read(made):
    folder, layout = made
    assert find_layout(folder) == layout
    frames = frames_of(folder, layout)
    assert len(frames) == (3 if layout == "culane" else 2)
    for frame in frames:
        for view in frame.views.values():
            assert view.image.is_file() and read_image(view.image).dtype == np.uint8


def test_a_folder_without_a_layout(tmp_path):
    refused(lambda: find_layout(tmp_path), "layout of no known dataset", "culane, tusimple")
    refused(lambda: find_layout(tmp_path / "no"), "does not exist")
    refused(lambda: find_layout(tmp_path, "kitti"), "unknown layout 'kitti'")
    refused(lambda: find_layout(tmp_path, "wold"), "unknown layout 'wold'", "did you mean 'world'")
    MAKERS["culane"](tmp_path)
    MAKERS["tusimple"](tmp_path)
    refused(lambda: find_layout(tmp_path), "fits the layouts culane, tusimple: name one")


def images(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))


def test_half_downloaded(made, capsys):
    """Without one image, the reader counts the frames, and reads the others if that is asked for."""
    folder, layout = made
    total, first = len(images(folder)), images(folder)[0]
    if layout == "openlanev2":  # names of images are in the files of the frames
        first.unlink()
        refused(lambda: frames_of(folder, layout), "frame val/00001", "camera ring_front_center", "does not exist")
        assert [len(frame.views) for frame in frames_of(folder, layout, incomplete=True)] == [0, 1]
        shutil.rmtree(folder / "val/00001/image")
        refused(lambda: frames_of(folder, layout), "0 of 2 frames", "val/00001/image", "download the rest")
        return
    first.unlink()
    name = first.relative_to(folder).as_posix()
    refused(lambda: frames_of(folder, layout), f"{total - 1} of {total} frames: {name} is missing", "incomplete")
    assert len(frames_of(folder, layout, incomplete=True)) == total - 1
    for image in images(folder):
        image.unlink()
    words = f"0 of {total} frames", f"and {total - 1} more files are missing"
    refused(lambda: frames_of(folder, layout, incomplete=True), *words)


def test_a_corrupt_or_absurd_image(made):
    folder, layout = made
    image = images(folder)[0]
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    refused(lambda: read_image(image), str(image), "cannot be read")
    image.write_bytes(b"no image")
    refused(lambda: image_size(image), str(image))
    if layout == "openlanev2":
        refused(lambda: frames_of(folder, layout), "frame val/00001/", "cannot be read")


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path):
    from PIL import Image

    Image.new("1", (40_000, 1000)).save(tmp_path / "wide.png")
    refused(lambda: read_image(tmp_path / "wide.png"), "40,000 x 1,000 pixels", "16,384 a side")


JSON_FILES = {
    "tusimple": "test_label.json", "openlanev2": "val/00001/info/315970276749927220.json",
    "ddad": "000150/scene_x.json", "nuscenes": "v1.0-mini/sample_data.json",
}  # fmt: skip
INSIDE = {
    "tusimple": "clips/0313-1/0/20.jpg", "openlanev2": "val/00001/image/ring_front_center/315970276749927220.jpg",
    "ddad": "rgb/CAMERA_01/1000.png", "nuscenes": "samples/CAM_FRONT/0.jpg",
}  # fmt: skip


@pytest.mark.parametrize("layout", JSON_FILES)
@pytest.mark.parametrize("outside", ["../../secret.jpg", "/etc/passwd"])
def test_paths_do_not_leave_the_folder(tmp_path, layout, outside):
    folder = MAKERS[layout](tmp_path / "data")
    file = folder / JSON_FILES[layout]
    if layout == "ddad" and outside.startswith("/"):
        outside = "../../../etc/passwd"  # names are relative to the scene
    file.write_text(file.read_text().replace(INSIDE[layout], outside))
    refused(lambda: frames_of(folder, layout), "lies outside the folder")


def test_culane_lists_do_not_leave_the_folder(tmp_path):
    folder = MAKERS["culane"](tmp_path)
    write(folder / "list/test.txt", "/../../etc/passwd.jpg\n")
    refused(lambda: frames_of(folder, "culane"), "lies outside the folder")


@pytest.mark.parametrize("layout", JSON_FILES)
@pytest.mark.parametrize("content", ["", "{", "[1, 2", "[" * 100_000, '{"a": NaN}', "[[]]", '"x"', "\xff"])
def test_broken_json(tmp_path, layout, content):
    folder = MAKERS[layout](tmp_path / "data")
    (folder / JSON_FILES[layout]).write_bytes(content.encode("latin-1"))
    refused(lambda: frames_of(folder, layout))


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


class TestCulane:
    def test_lanes(self, tmp_path):
        frames = frames_of(MAKERS["culane"](tmp_path), "culane")
        lanes = frames[0].views["front"].lanes
        assert [lane.points.tolist() for lane in lanes] == LANES
        assert list(frames[-1].views["front"].lanes) == []  # an empty file: no lanes
        assert frames[0].name == "driver_1/0001.MP4/00000.jpg"
        assert culane.kinds(tmp_path)["normal"] == {frames[0].name} and len(culane.kinds(tmp_path)["night"]) == 2

    def test_what_is_no_lane(self, tmp_path):
        path = tmp_path / "a.lines.txt"
        for text, words in (
            ("1 2 3\n", "3 numbers: pairs"), ("1 2 x 4\n", "numbers x y"), ("1 2 nan 3", "coordinate nan"),
            ("1 2\n3 4 1e30 5", "line 2"),
        ):  # fmt: skip
            refused(lambda path=write(path, text): culane.read_lanes(path), words, "a.lines.txt, line")
        path.write_bytes(b"\xff\xfe")
        refused(lambda: culane.read_lanes(path), "no list of numbers")
        assert culane.read_lanes(write(path, "5 5\n\n-900 10 -800 20\n"))[0].points[0].tolist() == [-900, 10]

    def test_what_is_written_is_read_back(self, tmp_path):
        lanes = [ImageLane(np.array(lane)) for lane in LANES]
        again = culane.read_lanes(write(tmp_path / "b.lines.txt", culane.write_lanes(lanes)))
        assert [lane.points.tolist() for lane in again] == LANES

    def test_splits(self, tmp_path):
        folder = MAKERS["culane"](tmp_path)
        refused(lambda: culane.read(folder, "train"), "has no list/train_gt.txt or list/train.txt")
        refused(lambda: culane.read(folder, "trian"), "did you mean 'train'?")
        (folder / "driver_1/0001.MP4/00001.lines.txt").unlink()
        refused(lambda: culane.read(folder), "2 of 3 frames: driver_1/0001.MP4/00001.lines.txt is missing")
        write(folder / "list/test.txt", "\n")
        refused(lambda: culane.read(folder), "lists no frames")


class TestTusimple:
    def test_lanes(self, tmp_path):
        frames = frames_of(MAKERS["tusimple"](tmp_path), "tusimple")
        points = frames[0].views["front"].lanes[0].points
        assert points[0].tolist() == [600, 280] and len(points) == 11  # the first row has none

    def test_splits(self, tmp_path):
        folder = MAKERS["tusimple"](tmp_path)
        refused(
            lambda: tusimple.read(folder, "train"), "0 of 2 label files", "label_data_0313.json, label_data_0601.json"
        )
        shutil.copy(folder / "test_label.json", folder / "label_data_0313.json")
        refused(lambda: tusimple.read(folder, "train"), "1 of 2 label files", "label_data_0601.json is missing")
        assert len(tusimple.read(folder, "train", incomplete=True)[0].frames) == 2

    def test_broken_lines(self, tmp_path):
        good = '{"raw_file": "a.jpg", "lanes": [[1, 2]], "h_samples": [10, 20]}\n'
        for text, words in (
            (good + good, "line 2 repeats the image 'a.jpg'"),
            (good.replace("[1, 2]", "[1]"), "lane 0 has 1 values for 2 rows"),
            (good.replace("[1, 2]", '[1, "x"]'), "lane 0 is [1, 'x']"),
            (good.replace("[1, 2]", "[1, true]"), "a list of numbers"),
            (good.replace("[[1, 2]]", "{}"), "a value of type list"),
            (good.replace("raw_file", "file"), "line 1 has no 'raw_file'"),
            (good.replace("1, 2", "1, 1e40"), "a list of numbers"),
        ):
            refused(lambda path=write(tmp_path / "l.json", text): list(tusimple.read_lines(path)), words)


class TestOpenLane:
    def test_a_frame(self, tmp_path):
        frame = frames_of(MAKERS["openlanev2"](tmp_path), "openlanev2")[1]
        camera = frame.views["ring_front_center"].camera
        assert (camera.width, camera.height) == SIZE and camera.intrinsics.tolist() == MATRIX
        assert camera.camera_to_ego[:3, 3].tolist() == PLACE and frame.ego_to_world[0, 3] == 101
        assert frame.road.lanes[0].points.tolist() == [[0, 1, 0], [10, 1, 0], [20, 1, 0]]
        assert frame.road.lane_lane.tolist() == [[0, 1], [0, 0]] and frame.road.elements[0].attribute == 2
        assert openlanev2.road_record(frame.road) == road(1)
        assert frame.time == pytest.approx(315970276.749927221)

    def test_without_images_or_lists(self, tmp_path):
        folder = MAKERS["openlanev2"](tmp_path)
        shutil.rmtree(folder / "val/00001/image")
        assert len(frames_of(folder, "openlanev2", images=False)) == 2
        (folder / "data_dict_subset_A.json").unlink()
        assert len(frames_of(folder, "openlanev2", images=False)) == 2
        write(folder / "data_dict_subset_A.json", {"val": {"00001": ["1.json"]}, "train": {}})
        refused(lambda: openlanev2.read(folder), "0 of 1 frames: val/00001/info/1.json")
        refused(lambda: openlanev2.read(folder, "test"), "has no split 'test'; there: val, train")
        refused(lambda: openlanev2.read(folder, "train"), "lists no frames")
        refused(
            lambda: openlanev2.read(folder, subset="B"), "has no data_dict_subset_B.json; there: data_dict_subset_A"
        )
        write(folder / "data_dict_subset_B.json", {})
        refused(lambda: openlanev2.read(folder), "name one as subset")

    @pytest.mark.parametrize(("change", "words"), [
        (lambda info: info["sensor"]["ring_front_center"]["intrinsic"].pop("K"), "camera ring_front_center has no 'K'"),
        (lambda info: info["sensor"]["ring_front_center"].pop("extrinsic"), "has no 'extrinsic'"),
        (lambda info: info["sensor"]["ring_front_center"]["extrinsic"].update(rotation=[[1]]), "rotation"),
        (lambda info: info["pose"].update(translation=[1, 2]), "pose"),
        (lambda info: info["annotation"]["lane_centerline"][0].update(points=[[1, 2]]), "lane_centerline 0"),
        (lambda info: info["annotation"]["traffic_element"][0].update(attribute=99), "0 to 12 is valid"),
        (lambda info: info["annotation"].update(topology_lclc=[[1]]), "lane_lane of a road with 2 lanes"),
        (lambda info: info["annotation"].pop("topology_lcte"), "has no 'topology_lcte'"),
    ])  # fmt: skip
    def test_broken_fields_are_named(self, tmp_path, change, words):
        folder = MAKERS["openlanev2"](tmp_path)
        edit(folder / JSON_FILES["openlanev2"], change)
        refused(lambda: frames_of(folder, "openlanev2"), words, "frame val/00001/315970276749927220")

    def test_empty_annotations(self, tmp_path):
        folder = MAKERS["openlanev2"](tmp_path)
        empty = {"lane_centerline": [], "traffic_element": [], "topology_lclc": [], "topology_lcte": []}
        edit(folder / JSON_FILES["openlanev2"], lambda info: info.update(annotation=empty))
        road = frames_of(folder, "openlanev2")[0].road
        assert len(road.lanes) == 0 and road.lane_element.shape == (0, 0)

    def test_lane_segments(self, tmp_path):
        folder = MAKERS["openlanev2"](tmp_path)
        for path in list((folder / "val/00001/info").glob("*.json")):
            info = json.loads(path.read_text())
            line = [[0.0, 0, 0], [5, 0, 0]]
            segment = {
                "id": 4, "centerline": line, "left_laneline": line, "left_laneline_type": 2, "right_laneline": line,
                "right_laneline_type": 1, "is_intersection_or_connector": True,
            }  # fmt: skip
            info["annotation"] = {
                "lane_segment": [segment], "traffic_element": [], "topology_lsls": [[0]], "topology_lste": [[]],
            }  # fmt: skip
            write(path.with_name(f"{path.stem}-ls.json"), info)
        lane = frames_of(folder, "openlanev2", segments=True)[0].road.lanes[0]
        assert (lane.left.kind, lane.right.kind, lane.in_junction) == ("dashed", "solid", True)

    def test_pickles_are_refused(self, tmp_path):
        path = tmp_path / "results.pkl"
        path.write_bytes(pickle.dumps({"results": {}}))
        refused(lambda: openlanev2.read_results(path), "is a pickle", "JSON")


class TestDepth:
    @pytest.mark.parametrize("layout", ["ddad", "nuscenes"])
    def test_lidar_points_are_moved_and_the_nearest_counts(self, tmp_path, layout):
        (frame, _) = frames_of(MAKERS[layout](tmp_path), layout)
        (view,) = frame.views.values()
        assert (view.depth() == lidar_image()).all()
        assert view.camera.camera_to_ego[:3, 3] == pytest.approx(PLACE)
        assert view.ego_to_world[0, 3] == pytest.approx(51) and frame.ego_to_world[0, 3] == pytest.approx(50)

    def test_dense_depth(self, tmp_path):
        (frame, _) = frames_of(make_ddad(tmp_path, dense=True), "ddad")
        assert (frame.views["CAMERA_01"].depth() == 7).all()
        np.savez(tmp_path / "000150/depth/CAMERA_01/1000.npz", data=np.zeros((3, 3)))
        refused(frame.views["CAMERA_01"].depth, "shape (24, 40) are needed")

    def test_broken_clouds(self, tmp_path):
        frame = frames_of(MAKERS["nuscenes"](tmp_path / "n"), "nuscenes")[0]
        path = tmp_path / "n/samples/LIDAR_TOP/0.pcd.bin"
        path.write_bytes(path.read_bytes()[:-3])
        refused(frame.views["CAM_FRONT"].depth, "points of 5 float32")
        path.write_bytes(b"")
        assert (frame.views["CAM_FRONT"].depth() == 0).all()
        frame = frames_of(MAKERS["ddad"](tmp_path / "d"), "ddad")[0]
        np.savez(tmp_path / "d/000150/point_cloud/LIDAR/1000.npz", data=np.array([{}], dtype=object))
        refused(frame.views["CAMERA_01"].depth, "cannot be read")

    def test_an_array_that_unpacks_to_too_much(self, tmp_path, monkeypatch):
        from jettison.domains.perception.layouts import reading

        np.savez_compressed(tmp_path / "bomb.npz", data=np.zeros(10_000))
        monkeypatch.setattr(reading, "FILE_LIMIT", 1000)
        refused(lambda: load_array(tmp_path / "bomb.npz", "data"), "unpacks to 80,")

    def test_ddad_references(self, tmp_path):
        folder = MAKERS["ddad"](tmp_path)
        refused(lambda: ddad.read(folder, "train"), "has no split 'train' (0); there: val")
        edit(folder / "000150/calibration/cal.json", lambda record: record.update(names=["LIDAR", "OTHER"]))
        refused(lambda: frames_of(folder, "ddad"), "has no sensor 'CAMERA_01'; there: LIDAR, OTHER")
        edit(folder / "000150/scene_x.json", lambda record: record["samples"][0].update(datum_keys=["gone"]))
        refused(lambda: frames_of(folder, "ddad"), "sample 0", "datum 'gone' is not in the file")
        (folder / "000150/scene_x.json").unlink()
        refused(lambda: ddad.read(folder), "000150/scene_x.json is missing")
        (folder / "ddad.json").unlink()
        refused(lambda: ddad.read(folder), "has no ddad.json")

    def test_nuscenes_tables(self, tmp_path):
        folder = MAKERS["nuscenes"](tmp_path)
        refused(lambda: nuscenes.read(folder, scenes=["scene-1"]), "unknown scene 'scene-1'", "valid: scene-0001")
        refused(lambda: nuscenes.read(folder, "v1.0-trainval"), "valid: v1.0-mini")
        rows = folder / "v1.0-mini/sample.json"
        edit(rows, lambda table: table[1].update(next="sample0"))
        refused(lambda: nuscenes.read(folder), "form a circle")
        edit(rows, lambda table: table[1].update(next="lost"))
        refused(lambda: nuscenes.read(folder), "refers to sample 'lost', which is not in sample.json")
        (folder / "v1.0-mini/ego_pose.json").unlink()
        refused(lambda: nuscenes.read(folder), "5 of 6 tables: ego_pose.json is missing")

    def test_nuscenes_calibration(self, tmp_path):
        folder = MAKERS["nuscenes"](tmp_path)
        edit(folder / "v1.0-mini/calibrated_sensor.json", lambda table: table[0].update(rotation=[0, 0, 0, 0]))
        refused(lambda: frames_of(folder, "nuscenes"), "frame sample0", "CAM_FRONT", "of length 1 is needed")

    def test_nuscenes_splits(self, tmp_path):
        names = [f"scene-{number:04d}" for number in range(300)]
        data = nuscenes.DataFolder(tmp_path, "nuScenes")
        parts = {split: nuscenes._of_split(data, "v1.0-x", split, names) for split in ("train", "val", "test")}
        assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 300
        assert 200 < len(parts["train"]) < 280 and min(len(parts["val"]), len(parts["test"])) > 15
        (tmp_path / "v1.0-x").mkdir()
        (tmp_path / "v1.0-x/splits.json").write_text(json.dumps({"val": ["scene-0003"]}))
        assert nuscenes._of_split(data, "v1.0-x", "val", names) == {"scene-0003"}
        with pytest.raises(UsageError, match="train"):
            nuscenes._of_split(data, "v1.0-x", "train", names)
        with pytest.raises(UsageError, match="unknown split 'x'"):
            nuscenes._of_split(data, "v1.0-x", "x", names)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1))
def test_a_quaternion_is_a_rotation_and_its_negative_the_same(values):
    unit = np.array(values) / np.linalg.norm(values)
    turn = rotation_of(unit, "q")
    assert turn @ turn.T == pytest.approx(np.eye(3), abs=1e-12) and np.linalg.det(turn) == pytest.approx(1)
    assert rotation_of(-unit, "q") == pytest.approx(turn)
    axis = unit[1:] / max(np.linalg.norm(unit[1:]), 1e-12)
    assert turn @ axis == pytest.approx(axis, abs=1e-9)
    assert np.trace(turn) == pytest.approx(4 * unit[0] ** 2 - 1)
