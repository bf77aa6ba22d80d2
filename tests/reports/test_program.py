"""The section about a program shows what jettison.json, the program and the journals say, and tolerates damage."""

import json
from types import SimpleNamespace

import pytest
from runs import EVIL, Page, drawn, make_run

from jettison.core.errors import JettisonError
from jettison.core.journal import Journal
from jettison.reports.exhibits import score_tables
from jettison.reports.page import write_report
from jettison.reports.program import program_figures

SECTION = {
    "method": "dip_go", "source": "DiP-GO, 3 steps", "sampler": "DDIMScheduler", "steps": 3, "guidance": 4.0,
    "flops": 0.5, "speedup": 2.0, "computed": 3, "blocks": 6, "asked": {"speedup": 1.8},
    "curve": [
        {"method": "dip_go", "flops": 0.5, "ssim": 0.9, "samples": [0.85, 0.95]},
        {"method": "dip_go", "flops": 0.75, "ssim": 0.97, "samples": [0.96, 0.98]},
        {"method": "interval", "flops": 0.5, "ssim": 0.8, "samples": [0.7, 0.9]},
    ],
}  # fmt: skip
PROGRAM = {
    "kind": "jettison-step-program", "version": 1, "sampler": "DDIMScheduler", "steps": 3, "units": ["a.0", "a.1"],
    "model": {"class_name": "DiTTransformer2DModel", "config": "0", "weights": {}}, "gates": ["11", "00", "01"],
    "costs": {"units": [1, 1], "rest": 0, "run": 3, "full": 6},
}  # fmt: skip
RECIPE = {"name": "program", "steps": [{"program": {"method": "dip_go", "speedup": 1.8, "ratio": None, "steps": 3}}]}
TIMED = {"timed": 0, "ratio": 0.5, "speedup": 1.7, "low": 1.6, "high": 1.8, "milliseconds": {"full": 30, "program": 18}}
BETTER = TIMED | {"timed": 1, "speedup": 1.9, "low": 1.85, "high": 2.0, "milliseconds": {"full": 38, "program": 20}}
STEPS = [{"step": step, "loss": 1 / (step + 1), "unlike": 0.1, "sparsity": 0.5, "kept": 0.8} for step in range(3)]


@pytest.fixture
def made(tmp_path):
    """Return made(...), which makes a run with a program, and returns its folder."""

    def make(section=SECTION, program=PROGRAM, entries=(TIMED, BETTER), steps=STEPS):
        folder = make_run(tmp_path, program=section, recipe=RECIPE, blocks=[], without=("recovery", "tasks", "request"))
        if program:
            (folder / "program.json").write_text(json.dumps(program))
        for name, lines in (("program", entries), ("program/search", steps)):
            if lines:
                file = "journal.jsonl" if name == "program" else "search.jsonl"
                (folder / name).mkdir(parents=True, exist_ok=True)
                path = folder / name / file
                path.unlink(missing_ok=True)
                journal = Journal(path, {"kind": "test"}, also=("search", "journal.jsonl"))
                for entry in lines:
                    journal.add(**entry)
        return folder

    return make


def page(folder):
    return Page(write_report(folder).read_text())


def test_everything_that_was_recorded_is_shown(made):
    folder = made()
    parsed = page(folder)
    text = " ".join(parsed.text.split())
    assert "3 of 6 blocks are computed in a run of DDIMScheduler, found by dip_go: 50.0% fewer FLOPs" in text
    assert "measured on the machine of the run: 1.90 times (1.85 to 2.00), 38 → 20 ms" in text
    assert "Asked for: 1.8 times as fast. Measured: 1.90, so the budget is met" in text
    assert "1.90×as fast, measured2.00× as counted" in "".join(parsed.text.splitlines())
    assert "blocks and steps that it chooses" in text and "speedup 1.8, steps 3" in text
    [cells] = drawn(folder / "report.html", "program-map")
    assert cells["z"] == [[1, 0, 0], [1, 0, 1]] and cells["text"] == [["computed", "reused", "reused"],
                                                                     ["computed", "reused", "computed"]]  # fmt: skip
    own, other = drawn(folder / "report.html", "program-quality")
    assert (own["x"], own["y"]) == ([50.0, 75.0], [0.9, 0.97]) and own["marker"]["symbol"] == ["diamond", "circle"]
    assert own["error_y"]["array"] == pytest.approx([0.05, 0.01]) and other["marker"]["symbol"] == ["circle"]
    losses, _ = drawn(folder / "report.html", "program-loss")
    assert losses["y"] == [1, 1 / 2, 1 / 3] and "0.9700" in parsed.text


def test_rows_of_the_original_that_nothing_is_compared_with_are_left_out():
    both, alone = {"2 seeds": {"ssim": 1.0}}, {"t = 901": {"noise_error": 0.0}}
    results = {"original": {"denoising": both | alone}, "quantized": {"denoising": {"2 seeds": {"ssim": 0.9}}}}
    run = SimpleNamespace(results=results)
    [table] = score_tables(run)
    assert table["rows"] == [("original", "2 seeds", ["1"]), ("quantized", "2 seeds", ["0.9"])]
    assert table["columns"] == ["ssim"]
    del results["quantized"]
    assert [name for _, name, _ in score_tables(run)[0]["rows"]] == ["2 seeds", "t = 901"]


@pytest.mark.parametrize(
    ("step", "shown"),
    [
        ({"program": {"method": "dip_go"}}, False),
        ({"quantize": {"method": "rtn", "bits": 8}}, False),
        ({"prune": {"method": "magnitude", "sparsity": 0.5}}, False),
        ({"recover": {"method": "distill"}}, False),
        ({"quantize": {"method": "gptq", "bits": 4}}, True),
        ({"prune": {"method": "magnitude", "sparsity": 0.5, "allocation": "owl"}}, True),
        ({"depth": {"method": "updp"}}, True),
        ({"quantize": {"method": "not_installed", "bits": 4}}, True),
    ],
)
def test_calibration_is_shown_where_a_step_reads_it(tmp_path, step, shown):
    recipe = {"name": "mine", "calibration": {"text": "books", "samples": 8}, "steps": [step]}
    parsed = page(make_run(tmp_path, recipe=recipe, without=("recovery", "tasks", "request")))
    assert ("Calibrated on: text books, samples 8." in parsed.text) == shown


def test_what_is_missing_is_left_out(made):
    folder = made(section=SECTION | {"curve": [], "asked": {"ratio": 0.5}}, program=None, entries=(), steps=())
    parsed = page(folder)
    html = (folder / "report.html").read_text()
    assert "program" in parsed.sections and "its time was not measured" in parsed.text
    assert not any(f'"program-{chart}"' in html for chart in ("map", "quality", "loss"))
    assert "budget" not in parsed.text and program_figures(folder)["timed"] is None


def test_a_run_without_a_program_has_no_section(tmp_path):
    folder = make_run(tmp_path)
    assert "program" not in page(folder).sections and program_figures(folder) is None


def test_damaged_parts_are_left_out(made):
    folder = made(program=PROGRAM | {"gates": ["01"]}, entries=(TIMED, BETTER | {"speedup": "fast"}))
    (folder / "program" / "search" / "search.jsonl").write_text("{broken\n")
    parsed = page(folder)
    assert "1.70 times" in " ".join(parsed.text.split()) and "is missed" in parsed.text
    html = (folder / "report.html").read_text()
    assert '"program-map"' not in html and '"program-loss"' not in html and '"program-quality"' in html


def test_a_step_that_a_killed_run_did_twice_counts_once(made):
    folder = made(steps=[*STEPS, *STEPS[1:]])
    page(folder)
    losses, _ = drawn(folder / "report.html", "program-loss")
    assert len(losses["y"]) == 3


def test_no_text_becomes_code(made):
    section = SECTION | {"sampler": EVIL, "curve": [SECTION["curve"][0] | {"method": EVIL[:90]}]}
    parsed = page(made(section, PROGRAM | {"units": [EVIL, "a.1"]}))
    assert parsed.outside == [] and EVIL in parsed.text


@pytest.mark.parametrize(
    ("change", "field"),
    [({"flops": 2.0}, "flops"), ({"computed": -1}, "computed"), ({"curve": [{"ssim": 1}]}, "curve")],
)
def test_a_damaged_section_is_an_error(made, change, field):
    with pytest.raises(JettisonError, match=f"program.{field}"):
        write_report(made(section=SECTION | change))
