"""``fit`` and ``plan`` make a diffusion pipeline faster by a speedup, and the page shows what was found."""

import json

import pytest
import yaml
from runs import Page, drawn

from jettison import compress, fit, plan
from jettison.core.errors import UsageError
from jettison.formats.manifest import read_manifest

pytest.importorskip("diffusers")

from programs import STEPS, replace_clock, save

from jettison.domains.diffusion.program import read_program

CHANGES = ["program.search_steps=4", "program.width=16", "program.rate=1.0", f"program.steps={STEPS}"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return save("dit", tmp_path_factory.mktemp("pipelines") / "dit")


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    return replace_clock(monkeypatch)


@pytest.fixture(scope="module")
def fitted(pipeline, tmp_path_factory):
    """Return the folder and the result of a run for a speedup."""
    out = tmp_path_factory.mktemp("fitted") / "out"
    with pytest.MonkeyPatch.context() as patch:
        replace_clock(patch)
        return out, fit(pipeline, out=out, speedup="2x", changes=CHANGES, count=3)


def test_a_speedup_is_reached(fitted, pipeline):
    out, result = fitted
    [step] = result["plan"]["recipe"]["steps"]
    assert step["program"]["speedup"] == 2.0 and step["program"]["method"] == "dip_go"
    assert len(result["plan"]["recipe"]["why"]) == 2
    figures = result["program"]
    assert figures["timed"]["speedup"] >= 2
    assert figures["timed"]["milliseconds"] == {"full": 24.0, "program": float(figures["computed"])}
    assert read_manifest(out)["request"]["speedup"] == 2.0
    assert list(result["quantized"]["denoising"]) == [f"3 seeds, {STEPS} steps, guidance 4"]  # DiT's own guidance


def test_a_continued_run_measures_nothing_again(fitted, pipeline, clock):
    out, result = fitted
    before = (out / "jettison.json").read_bytes()
    again = fit(pipeline, out=out, speedup="2x", changes=CHANGES, count=3)
    assert again == result and not clock and (out / "jettison.json").read_bytes() == before
    with pytest.raises(UsageError, match="holds another run: its step speedup is 2.0, this one's is 3.0"):
        fit(pipeline, out=out, speedup=3, changes=CHANGES, count=3)
    for count, now in ((2, "2 seeds"), (None, "the usual number of seeds")):
        with pytest.raises(UsageError, match=f"was measured on 3 seeds, not on {now}: continue with the same"):
            fit(pipeline, out=out, speedup="2x", changes=CHANGES, count=count)
    assert (out / "jettison.json").read_bytes() == before


def test_the_curve_is_cut_from_the_same_scores(fitted):
    _, result = fitted
    curve = result["program"]["curve"]
    methods = {point["method"] for point in curve}
    assert methods == {"dip_go", "interval", "fewer_steps"}
    own = [point for point in curve if point["method"] == "dip_go"]
    assert result["program"]["flops"] in [point["flops"] for point in own] and len(own) >= 2
    for point in curve:
        assert len(point["samples"]) == 4 and point["ssim"] == pytest.approx(sum(point["samples"]) / 4, abs=1e-5)
        assert 0 < point["flops"] < 1 and -1 <= point["ssim"] <= 1
    assert min(point["ssim"] for point in curve) < 0.9


def test_its_page_shows_gates_images_curve_and_loss(fitted):
    out, result = fitted
    file, program = out / "report.html", read_program(out / "program.json")
    page = Page(file.read_text())
    assert {"program", "scores"} <= page.sections and "so the budget is met" in page.text
    [cells] = drawn(file, "program-map")
    assert cells["z"] == [[int(row[unit]) for row in program.gates] for unit in range(4)]
    lines = drawn(file, "program-quality")
    curve = result["program"]["curve"]
    assert sorted(x for line in lines for x in line["x"]) == pytest.approx(sorted(100 * p["flops"] for p in curve))
    losses, _ = drawn(file, "program-loss")
    steps = [json.loads(line) for line in (out / "program/search/search.jsonl").read_text().splitlines()]
    assert losses["y"] == [entry["loss"] for entry in steps if "loss" in entry]
    assert file.read_text().count('<img src="data:image/png;base64,') == 6 and "seed 2, program, SSIM" in page.text
    assert page.text.count("smaller") == 0 and "times as fast" in page.text and "blocks computed" in page.text
    card = (out / "README.md").read_text()
    assert "## Program" in card and "program=False" in card and "| compressed |" in card


def test_weights_packed_later_have_no_curve(fitted, tmp_path):
    """It was measured on the weights of the original."""
    out, result = fitted
    later = compress(out, {"steps": [{"quantize": {"method": "rtn", "bits": 8, "group_size": -1}}]}, tmp_path / "later")
    assert "curve" not in later["program"] and later["program"]["flops"] == result["program"]["flops"]


def test_a_recipe_without_a_budget_is_not_timed(pipeline, tmp_path, clock):
    recipe = {"steps": [{"program": {"method": "interval", "ratio": 0.5, "steps": STEPS}}]}
    result = fit(pipeline, out=tmp_path / "out", recipe=recipe, count=1)
    assert not clock and result["program"]["timed"] is None and "was not measured" in result["program"]["line"]
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "as counted" in page.text and "the time was not measured" in page.text
    assert "program-loss" not in (tmp_path / "out" / "report.html").read_text(), "there was no search"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"speedup": 1}, "speedup = 1: how many times as fast, a number above 1"),
        ({"speedup": 0.5}, "speedup = 0.5: how many"),
        ({"speedup": -2}, "speedup = -2: how many"),
        ({"speedup": "fast"}, "speedup = 'fast': how many"),
        ({"speedup": "nan"}, "speedup = 'nan': how many"),
        ({"speedup": "inf"}, "speedup = 'inf': how many"),
        ({"speedup": 1e9}, "above 1 and at most 1000"),
        ({"speedup": 6}, "calls the denoiser 6 times, and the first call is always computed: ask for less than 6"),
        (
            {"speedup": 2, "latency": 0.5},
            "latency is a budget of image classifiers and perception models; .* a diffusion pipeline: give speedup",
        ),
        ({"speedup": 2, "device": "raspberry-pi-5"}, "times are measured, so the plan is for this machine"),
        ({"speedup": 2, "recipe": "w8"}, "speedup is for a plan, and there is a recipe: .* --set program.speedup=2.5"),
        (
            {"latency": "0.7x"},
            "latency is a budget of image classifiers and perception models; .* is a diffusion pipeline: give speedup",
        ),
        ({"tps": 40}, "tps is a budget of language models; .* is a diffusion pipeline: give speedup, or a recipe"),
        ({"memory": "1GB"}, "memory is a budget of language models"),
        ({}, r"is a diffusion pipeline: give a budget in speedup \(such as 2.5\), or a recipe"),
        ({"speedup": 2, "changes": ["program.method=dipgo"]}, "unknown program method 'dipgo'"),
        ({"speedup": 2, "changes": ["program.steps=1"]}, "steps = 1: a whole number of at least 2"),
    ],
)
def test_what_is_refused_before_any_work(pipeline, tmp_path, asked, words, clock):
    with pytest.raises(UsageError, match=words) as error:
        fit(pipeline, out=tmp_path / "out", **({"changes": CHANGES} | asked))
    assert "\n" not in str(error.value) and not clock and not (tmp_path / "out").exists()


def test_speedups_are_for_pipelines(tiny, tmp_path):
    kinds = {"scribe": "a language model: give tps or memory", tiny("resnet"): "an image classifier: give latency or"}
    for model, kind in kinds.items():
        for call in (lambda model: fit(model, out=tmp_path / "out", speedup=2), lambda model: plan(model, speedup=2)):
            with pytest.raises(UsageError, match=f"speedup is a budget of diffusion pipelines; .* is {kind}"):
                call(model)


def test_a_dry_run_counts_the_search(pipeline, tmp_path, clock):
    ask = lambda steps: fit(
        pipeline, out=tmp_path / "out", speedup=2, changes=[*CHANGES[1:], f"program.search_steps={steps}"], dry_run=True
    )["forecast"]
    short, long = ask(1), ask(100_000_000)
    assert [step["step"] for step in short["steps"]] == ["program", "compress"]
    assert long["steps"][0]["seconds"] > 1000 * short["steps"][0]["seconds"] > 0
    assert "rough estimate" in short["warnings"][0] and not (tmp_path / "out").exists() and not clock
    assert any("program would take" in warning and "search_steps" in warning for warning in long["warnings"])


def test_a_plan_is_a_recipe_to_run(pipeline, tmp_path, jettison, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = [word for change in CHANGES for word in ("--set", change)]
    code, out, _ = jettison("plan", pipeline, "--speedup", "2.5", *changes, "-o", "r.yaml", "--json", "plan.json")
    assert code == 0 and "60% of the FLOPs" in " ".join(out.split())
    written = yaml.safe_load((tmp_path / "r.yaml").read_text())
    assert written["steps"] == plan(pipeline, speedup=2.5, changes=CHANGES).to_dict()["steps"]
    assert json.loads((tmp_path / "plan.json").read_text())["recipe"]["steps"] == written["steps"]
    code, out, err = jettison("compress", pipeline, "--recipe", "r.yaml", "--out", "out", "--json", "c.json")
    assert code == 0 and "blocks are computed" in out, err
    assert json.loads((tmp_path / "c.json").read_text())["program"]["asked"] == {"speedup": 2.5}
    code, out, _ = jettison("evaluate", "out", "--count", "1")
    assert code == 0 and "share_of_flops" in out and "image_error" in out
    code, _, err = jettison("plan", pipeline, "--speedup", "2.5", "--report", "plan.html")
    assert code == 2 and "--report draws plans of bits" in err
