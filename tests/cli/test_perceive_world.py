"""The commands ``world`` and ``show`` of ``jettison perceive``."""

import json

TINY = ("--scenes", 1, "--frames", 1, "--size", "32x80", "--seed", 2, "--place", "junction")


def test_render_and_show(jettison, tmp_path):
    out = tmp_path / "w"
    code, text, err = jettison("perceive", "world", "--out", out, *TINY, "--json", tmp_path / "r.json", "-q")
    assert (code, err) == (0, "") and "1 scenes, 1 frames of six cameras" in text
    assert json.loads((tmp_path / "r.json").read_text()) == {"scenes": 1, "frames": 1, "rendered": 1}
    code, text, _ = jettison("perceive", "world", "--out", out, *TINY, "-q")
    assert code == 0 and "0 rendered now" in text
    code, text, err = jettison("perceive", "show", out, "--json", tmp_path / "s.json", "-q")
    assert (code, err) == (0, "") and "1 of 1 frames" in text
    page = (out / "show.html").read_text()
    assert page.count("<img") == 5 and "The road from above" in page
    assert json.loads((tmp_path / "s.json").read_text())["frames"] == ["train/00000/1600000000000000"]
    code, text, _ = jettison("perceive", "world", "--out", out, *TINY, "-q")
    assert code == 0, "the page does not hinder another run"


def test_errors_are_one_line(jettison, tmp_path):
    new = ("perceive", "world", "--out", tmp_path / "w")
    for arguments, words in (
        ((*new, "--size", "big"), "such as 160x400"),
        ((*new, "--size", "10000x400"), "sides from 16 to 2,048 pixels"),
        ((*new, "--scenes", 0), "scenes = 0"),
        ((*new, "--frames", 0), "frames = 0"),
        ((*new, "--seed", -1), "seed = -1"),
        ((*new, "--weather", "nite"), "did you mean 'night'?"),
        ((*new, "--place", "field"), "valid: fork, junction, road"),
        ((*new, "--processes", 0), "processes = 0"),
        (("perceive", "show", tmp_path), "holds no rendered worlds"),
        (("perceive", "show", tmp_path / "no"), "holds no rendered worlds"),
        (("perceive", "show", __file__), "no folder of a perception model is named"),
        (("perceive", "show", tmp_path, "--out", tmp_path / "a.png"), "must end in .html"),
    ):
        code, out, err = jettison(*arguments)
        assert code == 2 and not out and words in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "w").exists()
