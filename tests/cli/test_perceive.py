"""The commands of ``jettison perceive``: tables, JSON, exit codes."""

import json

from driving import MAKERS, results, write


def test_score_prints_a_table_and_writes_json(jettison, tmp_path):
    folder, file = MAKERS["openlanev2"](tmp_path / "data"), write(tmp_path / "r.json", results())
    code, out, err = jettison("perceive", "score", file, folder, "--subset", "A", "--json", tmp_path / "s.json", "-q")
    assert (code, err) == (0, "") and "TOP_ll" in out and "1.0000" in out and "2 frames of openlanev2" in out
    saved = json.loads((tmp_path / "s.json").read_text())
    assert saved["scores"]["all"]["OLS"] == 1 and saved["frames"] == 2 and saved["layout"] == "openlanev2"


def test_errors_are_one_line(jettison, tmp_path):
    folder = MAKERS["culane"](tmp_path / "data")
    for arguments, words in (
        ((tmp_path / "no", folder), "do not exist"),
        ((folder, tmp_path), "has the layout of no known dataset"),
        ((folder, folder, "--layout", "kitti"), "unknown layout 'kitti'"),
        ((folder, folder, "--split", "train"), "has no list/train_gt.txt"),
        ((folder, folder, "--json", folder), "is not the name of a file"),
    ):
        code, out, err = jettison("perceive", "score", *arguments)
        assert code == 2 and not out and words in err and len(err.splitlines()) == 1, err


def test_incomplete(jettison, tmp_path):
    folder = MAKERS["culane"](tmp_path / "data")
    next(folder.rglob("00001.lines.txt")).unlink()
    code, _, err = jettison("perceive", "score", folder, folder)
    assert code == 2 and "2 of 3 frames" in err
    code, out, _ = jettison("perceive", "score", folder, folder, "--incomplete")
    assert code == 0 and "2 frames of culane" in out and "night" in out
