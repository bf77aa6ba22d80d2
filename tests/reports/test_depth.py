"""The section about depth shows what jettison.json and the journal of the depth step say, and tolerates damage."""

import json

import pytest
from runs import EVIL, FULL, Page, drawn, make_run

from jettison.core.errors import JettisonError
from jettison.core.journal import Journal
from jettison.reports.depth import depth_figures
from jettison.reports.page import write_report
from jettison.reports.run import read_run

MERGED = {
    "path": "stages.0.layers.1",
    "before": {"layers": 2, "multiply_adds": 3_540_000},
    "after": {"layers": 1, "multiply_adds": 1_180_000},
}
DEPTH = {
    "method": "updp", "blocks": 3, "pruned": [1], "merged": [MERGED], "dropped": False, "difference": 2.4e-7,
    "accuracy": {"original": 0.824, "pruned": 0.768, "images": 500},
    "paths": ["stages.0.layers.0", "stages.0.layers.1", "stages.1.layers.0"],
}  # fmt: skip
RECIPE = {"name": "depth", "steps": [{"depth": {"method": "updp", "latency": 0.8, "blocks": None}}]}
SUBNETS = {"010": (0.7, 0.8), "011": (0.6, 0.5), "110": (0.5, 0.55), "111": (0.4, 0.4)}
ENTRIES = [
    *({"training": "supernet", "step": step, "steps": 3, "loss": 1 / (step + 1)} for step in range(3)),
    *({"genome": name, "accuracy": accuracy, "latency": share} for name, (accuracy, share) in SUBNETS.items()),
    {"measured": True, "milliseconds": {"original": 14.0, "pruned": 10.5}},
]


@pytest.fixture
def made(tmp_path):
    """Return made(entries, ...), which makes a run with a depth step, and returns its folder."""

    def make(entries=ENTRIES, depth=DEPTH, recipe=RECIPE, **more):
        folder = make_run(tmp_path, depth=depth, recipe=recipe, blocks=[], without=("recovery", "tasks"), **more)
        journal = Journal(folder / "depth" / "journal.jsonl", {"kind": "depth"})
        for entry in entries:
            journal.add(**entry)
        return folder

    return make


def page(folder):
    return Page(write_report(folder).read_text())


def test_everything_that_was_recorded_is_shown(made):
    folder = made()
    text = page(folder).text
    assert "1 of 3 blocks pruned; accuracy on 500 held-out images 82.4% → 76.8%; one image 14 → 10.5 ms (0.75x)" in text
    assert "0.8 of the original's latency. Measured: 0.750, so the budget is met" in " ".join(text.split())
    assert "1: stages.0.layers.1" in text and "2 → 1" in text and "3.54 → 1.18 M" in text and "2.4e-07" in text
    subnets, chosen, trained = drawn(folder / "report.html", "depth-search")
    assert (chosen["x"], chosen["y"]) == ([0.8], [70.0]) and sorted(subnets["x"]) == [0.4, 0.5, 0.55]
    assert trained["x"] == [1.0, 0.75] and trained["y"] == pytest.approx([82.4, 76.8])
    loss, _ = drawn(folder / "report.html", "depth-loss-0")
    assert loss["x"] == [1, 2, 3] and loss["y"] == pytest.approx([1, 1 / 2, 1 / 3])
    [often] = drawn(folder / "report.html", "depth-often")
    assert often["y"] == pytest.approx([100 / 3, 100, 100 / 3])
    assert depth_figures(folder)["milliseconds"] == {"original": 14.0, "pruned": 10.5}


def test_a_slower_result_misses_the_budget(made):
    folder = made([{"measured": True, "milliseconds": {"original": 10.0, "pruned": 9.0}}])
    assert "so the budget is missed" in page(folder).text
    request = FULL["request"] | {"fps": 200}
    (folder / "jettison.json").write_text(
        json.dumps(read_run(folder).manifest | {"request": request, "recipe": RECIPE})
    )
    assert "200 images/s. Measured: 111 images/s, so the budget is missed" in page(folder).text


@pytest.mark.parametrize(
    ("entries", "chart", "values"),
    [
        ([{"gates": [0.5, -1.0, 0.25], "pruned": [1]}], "depth-gates", [0.5, -1.0, 0.25]),
        ([{"tried": [1], "accuracy": 0.7}, {"tried": [2], "accuracy": 0.6}], "depth-search", [60.0]),
        ([{"genome": "010", "accuracy": 0.7, "latency": None}, {"genome": "001", "accuracy": 0.5}],
         "depth-search", [50.0]),
        ([{"tried": [1], "accuracy": 0.7}, {"tried": [1, 2], "accuracy": 0.4}], "depth-search", [40.0]),
    ],
)  # fmt: skip
def test_other_methods_record_other_things(made, entries, chart, values):
    folder = made(entries)
    page(folder)
    assert drawn(folder / "report.html", chart)[0]["y"] == values


@pytest.mark.parametrize("damage", ["missing", "folder", "torn", "values"])
def test_a_damaged_journal_leaves_the_rest(made, damage):
    """What jettison.json says is shown; entries of wrong types, and lines that were cut off, are left out."""
    wrong = [
        {"genome": "0102", "accuracy": 0.5}, {"genome": "01", "accuracy": 0.5}, {"genome": 7, "accuracy": 1},
        {"training": "supernet", "step": "one", "steps": 3, "loss": 1.0}, {"gates": ["a"], "pruned": []},
        {"milliseconds": {"original": 0.0, "pruned": -1.0}}, {"tried": [-1], "accuracy": 2},
        {"gates": [1.0], "pruned": []},
    ]  # fmt: skip
    folder = made(wrong if damage == "values" else ENTRIES)
    journal = folder / "depth" / "journal.jsonl"
    if damage in ("missing", "folder"):
        journal.unlink()
    if damage == "folder":
        journal.mkdir()
    if damage == "torn":
        journal.write_bytes(journal.read_bytes()[:-40])
    text = page(folder).text
    assert "1 of 3 blocks pruned" in text and "Before and after the merge" in text
    assert ("ms (" in text) is False and ("How often each block" in text) is (damage == "torn")


def test_names_are_escaped(made):
    depth = DEPTH | {"method": EVIL, "paths": [EVIL] * 3, "merged": [MERGED | {"path": EVIL}]}
    parsed = page(made([*ENTRIES, {"training": EVIL[:90], "step": 1, "steps": 2, "loss": 1.0}], depth))
    assert parsed.outside == [] and EVIL in parsed.text


@pytest.mark.parametrize(
    ("change", "field"), [({"pruned": [-1]}, "pruned"), ({"accuracy": {}}, "accuracy"), ({"blocks": "3"}, "blocks")]
)
def test_a_damaged_section_is_an_error(made, change, field):
    with pytest.raises(JettisonError, match=f"depth.{field}"):
        write_report(made(depth=DEPTH | change))


def test_with_a_quantizer_it_is_called_quantized(made):
    steps = [*RECIPE["steps"], {"quantize": {"method": "rtn", "bits": 8}}]
    assert "quantized" in page(made(recipe=RECIPE | {"steps": steps})).text
