"""Scores of prediction files: perfect and changed predictions, missing and broken files."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from driving import LANES, MAKERS, ROWS, lidar_image, results, tusimple_lines, write
from safetensors.torch import save_file

from jettison.core.errors import UsageError
from jettison.domains.perception.scoring import score


def refused(call, *words):
    with pytest.raises(UsageError) as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)


class TestCulane:
    @pytest.fixture
    def pair(self, tmp_path):
        folder = MAKERS["culane"](tmp_path / "data")
        guesses = tmp_path / "predictions"
        for label in folder.rglob("*.lines.txt"):
            write(guesses / label.relative_to(folder), label.read_text())
        return guesses, folder

    def test_perfect_and_wrong(self, pair):
        guesses, folder = pair
        shutil.rmtree(folder / "driver_1", ignore_errors=True)  # labels alone are needed, so they come back
        for label in guesses.rglob("*.lines.txt"):
            write(folder / label.relative_to(guesses), label.read_text())
        rows = score(guesses, folder).to_dict()["scores"]
        assert rows["all"] == {"F1": 1, "precision": 1, "recall": 1, "TP": 4, "FP": 0, "FN": 0, "F1@75": 1, "mF1": 1}
        assert set(rows) == {"normal", "night", "all"} and rows["night"]["TP"] == 2
        moved = "".join(" ".join(f"{x + 300} {y}" for x, y in lane) + "\n" for lane in LANES)
        write(guesses / "driver_1/0001.MP4/00002.lines.txt", moved)  # there are no lanes in this image
        rows = score(guesses, folder).to_dict()["scores"]
        assert rows["night"]["FP"] == 2 and rows["night"]["F1"] == pytest.approx(2 / 3) and rows["normal"]["F1"] == 1

    def test_missing_predictions(self, pair):
        guesses, folder = pair
        next(guesses.rglob("00001.lines.txt")).unlink()
        refused(lambda: score(guesses, folder, incomplete=True), "2 of 3 predictions", "00001.lines.txt is missing")
        refused(lambda: score(guesses / "no", folder), "do not exist")
        refused(lambda: score(folder / "list/test.txt", folder), "is a file: a folder")


class TestTusimple:
    def save(self, path, lines):
        return write(path, "".join(json.dumps(line) + "\n" for line in lines))

    def test_scores(self, tmp_path):
        folder, lines = MAKERS["tusimple"](tmp_path / "data"), tusimple_lines(2)
        result = score(self.save(tmp_path / "p.json", lines), folder)
        assert result.rows == {"all": (1, 0, 0, 1)} and result.frames == 2
        lines[0]["lanes"] = []
        assert score(self.save(tmp_path / "p.json", lines), folder).rows["all"][:3] == (0.5, 0, 0.5)
        slow = [line | {"run_time": 500} for line in tusimple_lines(2)]
        assert score(self.save(tmp_path / "p.json", slow), folder).rows["all"][:3] == (0, 0, 1)

    def test_bad_predictions(self, tmp_path):
        folder, lines = MAKERS["tusimple"](tmp_path / "data"), tusimple_lines(2)
        check = lambda changed, *words: refused(lambda: score(self.save(tmp_path / "p.json", changed), folder), *words)
        check(lines[:1], "1 of 2 predictions", "clips/0313-1/1")
        lines[1]["h_samples"] = [row + 1 for row in ROWS]
        check(lines, "h_samples differ", "clips/0313-1/1/20.jpg")
        del lines[1]["h_samples"]
        lines[1]["lanes"] = [[5, 5]]
        check(lines, "2 values for 12 rows")


class TestOpenLane:
    def test_scores(self, tmp_path):
        folder = MAKERS["openlanev2"](tmp_path / "data")
        shutil.rmtree(folder / "val/00001/image")  # labels alone are needed
        values = results()
        assert score(write(tmp_path / "r.json", values), folder).rows["all"] == pytest.approx([1] * 5)
        first = next(iter(values["results"].values()))["predictions"]
        first["topology_lclc"] = [[0, 0], [1, 0]]
        row = score(write(tmp_path / "r.json", values), folder, rule="v1.1").to_dict()["scores"]["all"]
        assert row["DET_l"] == row["DET_t"] == row["TOP_lt"] == 1 and row["TOP_ll"] < 0.8 and row["OLS"] < 1

    def test_labels_of_201_points_are_scored_with_every_twentieth_and_others_with_all(self, tmp_path):
        """As the devkit does. 10 m lie between the points of a prediction: with all labels, 5 m to the nearest."""
        folder, values = MAKERS["openlanev2"](tmp_path / "data"), results()
        line = lambda y, count: [[x, y, 0.0] for x in np.linspace(-50, 50, count)]
        thinned = {}
        for count in (201, 200):
            for number, name in enumerate(values["results"]):
                _, segment, time = name.split("/")
                info = folder / f"val/{segment}/info/{time}.json"
                record = json.loads(info.read_text())
                guesses = values["results"][name]["predictions"]["lane_centerline"]
                for place, guess in enumerate(guesses):
                    y = 4.0 * place + number
                    record["annotation"]["lane_centerline"][place]["points"] = line(y, count)
                    guess["points"] = line(y, 11)
                write(info, record)
            thinned[count] = score(write(tmp_path / "r.json", values), folder).to_dict()["scores"]["all"]["DET_l"]
        assert thinned == {201: pytest.approx(1), 200: 0}

    @pytest.mark.parametrize(("change", "words"), [
        (lambda r: r["results"].popitem(), ("1 of 2 predictions", "the result of val/00001/315970276749927221")),
        (lambda r: r.pop("results"), ("has no 'results'",)),
        (lambda r: r["results"]["val/00001/315970276749927220"].pop("predictions"), ("has no 'predictions'",)),
        (lambda r: predicted(r)["lane_centerline"][1].pop("confidence"), ("lane_centerline has no 'confidence'",)),
        (lambda r: predicted(r)["traffic_element"][0].update(confidence=1.5), ("confidence = 1.5: a number from 0",)),
        (lambda r: predicted(r).update(topology_lclc=[[0, 7], [0, 0]]), ("edges from 0 to 7: 0 to 1 is valid",)),
        (lambda r: predicted(r).update(topology_lcte=[[0, 1]]), ("lane_element of a road with 2 lanes",)),
    ])  # fmt: skip
    def test_bad_results(self, tmp_path, change, words):
        folder, values = MAKERS["openlanev2"](tmp_path / "data"), results()
        change(values)
        refused(lambda: score(write(tmp_path / "r.json", values), folder), *words)

    def test_refusals(self, tmp_path):
        folder = MAKERS["openlanev2"](tmp_path / "data")
        path = tmp_path / "r.pkl"
        path.write_bytes(pickle.dumps(results()))
        refused(lambda: score(path, folder), "is a pickle")
        refused(lambda: score(folder, folder), "is a folder: a file of results")
        refused(lambda: score(write(tmp_path / "r.json", results()), folder, rule="v3"), "unknown rule 'v3'")
        for info in (folder / "val/00001/info").glob("*.json"):
            write(info, {key: value for key, value in json.loads(info.read_text()).items() if key != "annotation"})
        refused(lambda: score(write(tmp_path / "r.json", results()), folder), "no public labels")


def predicted(values):
    return values["results"]["val/00001/315970276749927220"]["predictions"]


CAMERAS = {"ddad": ("000150/{:06d}/CAMERA_01", "CAMERA_01"), "nuscenes": ("scene-0001/sample{}/CAM_FRONT", "CAM_FRONT")}


@pytest.mark.parametrize("layout", CAMERAS)
class TestDepth:
    @pytest.fixture
    def made(self, tmp_path, layout):
        """The folder, and a perfect prediction of every frame by name."""
        depth = np.where(lidar_image() > 0, lidar_image(), 3.0).astype(np.float32)
        name, _ = CAMERAS[layout]
        return MAKERS[layout](tmp_path / "data"), {name.format(number): depth for number in range(2)}

    @pytest.mark.parametrize("form", ["npz", "safetensors", "folder npz", "folder safetensors", "folder npy"])
    def test_scores(self, tmp_path, made, layout, form):
        folder, depths = made
        path = save(tmp_path, depths, form)
        result = score(path, folder)
        camera, rows = CAMERAS[layout][1], result.rows
        assert set(rows) == {f"{who}, {scale} scale" for who in ("all", camera) for scale in ("metric", "median")}
        assert rows["all, metric scale"] == pytest.approx((0, 0, 0, 0, 1, 1, 1)) and result.frames == 2
        double = save(tmp_path, {name: 2 * depth for name, depth in depths.items()}, form)
        rows = score(double, folder).rows
        assert rows["all, metric scale"][0] == pytest.approx(1) and rows["all, median scale"][0] == pytest.approx(0)

    def test_bad_maps(self, tmp_path, made, layout):
        folder, depths = made
        first, second = depths
        check = lambda changed, *words: refused(lambda: score(save(tmp_path, changed, "npz"), folder), *words)
        check({first: depths[first]}, f"has no '{second}' among its 1 maps")
        check(depths | {first: depths[first][0]}, f"{first} holds float32 of shape (40,)")
        check(depths | {first: depths[first].astype(int)}, "floats (height, width) in metres")
        check(depths | {first: depths[first] * 0}, first, "not a number above 0")
        check(depths | {first: depths[first] * np.nan}, "not a number above 0")
        check(depths | {first: np.zeros((0, 3), np.float32)}, "holds float32 of shape (0, 3)")
        broken = tmp_path / "broken.npz"
        broken.write_bytes(b"no archive")
        refused(lambda: score(broken, folder), "broken.npz cannot be read")
        refused(lambda: score(write(tmp_path / "maps.txt", ""), folder), "depth maps are read from a folder")
        (tmp_path / "empty").mkdir()
        refused(lambda: score(tmp_path / "empty", folder), f"has no {first} with an ending of .npz")
        np.savez(tmp_path / "pickled.npz", **{first: np.array([{}], dtype=object)})
        refused(lambda: score(tmp_path / "pickled.npz", folder), first)

    def test_depths_beyond_the_range_do_not_count(self, tmp_path, made, layout):
        """A point 100 m away counts for DDAD, which scores up to 200 m, and not for nuScenes, up to 80 m."""
        folder, depths = made
        cloud = sorted(path for path in folder.rglob("*") if path.suffix in (".bin", ".npz"))[0]
        point = np.array([[102.5, 0, 1.6, 0, 0]], np.float32)  # the camera is 2.5 m ahead
        if layout == "ddad":
            np.savez(cloud, data=point)
        else:
            cloud.write_bytes(point.tobytes())
        result = score(save(tmp_path, depths, "npz"), folder)
        far = next(iter(depths))
        assert result.left_out == ([] if layout == "ddad" else [far])
        error = (100 - depths[far][12, 20]) / 100
        expected = error / 2 if layout == "ddad" else 0  # the mean of two frames
        assert result.rows["all, metric scale"][0] == pytest.approx(expected)

    def test_frames_without_true_depth(self, tmp_path, made, layout):
        folder, depths = made
        cloud = sorted(path for path in folder.rglob("*") if path.suffix in (".bin", ".npz"))[0]
        if layout == "ddad":
            np.savez(cloud, data=np.zeros((0, 4), np.float32))
        else:
            cloud.write_bytes(b"")
        result = score(save(tmp_path, depths, "npz"), folder)
        assert result.left_out == [next(iter(depths))] and result.rows["all, metric scale"][0] == 0


def save(folder, depths, form):
    """Save depth maps in one of the forms; a single map has the name depth."""
    path = folder / (form.replace(" ", "-") if " " in form else f"maps.{form}")
    if form == "npz":
        np.savez(path, **depths)
    elif form == "safetensors":
        save_file({name: torch.from_numpy(depth.copy()) for name, depth in depths.items()}, path)
    for name, depth in depths.items() if form.startswith("folder") else ():
        file = path / f"{name}.{form.split()[1]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".npy":
            np.save(file, depth)
        elif file.suffix == ".npz":
            np.savez(file, depth=depth)
        else:
            save_file({"depth": torch.from_numpy(depth)}, file)
    return path
