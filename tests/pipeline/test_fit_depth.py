"""``fit`` prunes the depth of an image classifier for a latency or frames per second, and reports it."""

import json

import pytest
import yaml
from clock import latency, replace_clock
from runs import Page, drawn
from tiny import make_images

from jettison import plan
from jettison.core.errors import UsageError
from jettison.fitting import fit
from jettison.formats.manifest import read_manifest

SHORT = [f"depth.{option}" for option in ("epochs=1", "supernet_epochs=1", "batch=16")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images") / "photos", 20)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    return replace_clock(monkeypatch)


@pytest.fixture(scope="module")
def fitted(tiny, photos, tmp_path_factory):
    """Return the folder and the result of a run for a latency."""
    out = tmp_path_factory.mktemp("fitted") / "out"
    with pytest.MonkeyPatch.context() as patch:
        replace_clock(patch)
        return out, fit(tiny("resnet"), out=out, latency="0.8x", images=photos, changes=SHORT)


def test_a_latency_is_reached(fitted, tiny):
    """A recipe with one step is planned and run; the result is as fast as it was asked to be."""
    out, result = fitted
    [step] = result["plan"]["recipe"]["steps"]
    assert step["depth"]["latency"] == 0.8 and step["depth"]["epochs"] == 1 and result["plan"]["recipe"]["why"]
    times = result["depth"]["milliseconds"]
    assert times == {"original": round(latency(tiny("resnet")), 4), "pruned": round(latency(out), 4)}
    assert times["pruned"] <= 0.8 * times["original"]
    manifest = read_manifest(out)
    assert manifest["request"]["latency"] == 0.8 and manifest["depth"]["pruned"] == result["depth"]["pruned"]
    assert "losses" not in manifest["request"], "the words of plans for language models"


def test_its_page_and_card_tell_of_depth(fitted):
    out, _ = fitted
    page = Page((out / "report.html").read_text())
    assert "depth" in page.sections and "so the budget is met" in page.text
    assert "compressed" in page.text and "quantized" not in page.text and "Before and after the merge" in page.text
    records = [json.loads(line) for line in (out / "depth" / "journal.jsonl").read_text().splitlines()]
    subnets, chosen, trained = drawn(out / "report.html", "depth-search")
    assert len(subnets["x"]) + len(chosen["x"]) == sum("genome" in record for record in records)
    [searched] = [record for record in records if record.get("searched")]
    assert chosen["y"] == pytest.approx([100 * searched["accuracy"]], abs=1e-3)
    assert chosen["x"] == [searched["latency"]]
    assert trained["x"][0] == 1.0
    card = (out / "README.md").read_text()
    assert "## Depth" in card and "| compressed |" in card and "quantized" not in card


def test_runs_on_images_are_compared(fitted, tiny, photos, tmp_path, jettison):
    out, result = fitted
    other = fit(tiny("resnet"), out=tmp_path / "w8", recipe="w8", images=photos)
    code, text, err = jettison("compare", out, tmp_path / "w8", "--out", tmp_path / "c.html")
    accuracies = [run["quantized"]["images"][str(photos)]["accuracy"] for run in (result, other)]
    assert code == 0 and all(f"{accuracy:.1%}" in text for accuracy in accuracies), err
    page = Page((tmp_path / "c.html").read_text())
    assert page.sections == {"runs", "images-1"} and "compressed" in page.text and "quantized" in page.text


def test_images_per_second_are_measured_once(tiny, photos, tmp_path, clock, monkeypatch):
    """The share follows from the measured original. A continued run keeps it: another recipe would be another run."""
    own = latency(tiny("resnet"))
    asked = {"fps": 1250 / own, "images": photos, "changes": SHORT, "out": tmp_path / "out"}
    result = fit(tiny("resnet"), **asked)
    [step] = result["plan"]["recipe"]["steps"]
    assert step["depth"]["latency"] == pytest.approx(0.8, abs=1e-4)
    assert read_manifest(tmp_path / "out")["request"]["fps"] == asked["fps"]
    monkeypatch.setattr("jettison.pipeline.depth.milliseconds", lambda models, example: dict.fromkeys(models, 99.0))
    assert fit(tiny("resnet"), **asked)["plan"] == result["plan"]
    with pytest.raises(UsageError, match="meets this budget as it is"):
        fit(tiny("resnet"), **(asked | {"fps": 5, "out": tmp_path / "other"}))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"latency": "1.5x"}, "latency = '1.5x': a share of the original's between 0 and 1"),
        ({"latency": "0"}, "latency = '0': a share"),
        ({"latency": "abc"}, "latency = 'abc': a share"),
        ({"latency": "nan"}, "latency = 'nan': a share"),
        ({"latency": None, "fps": 0}, "fps = 0"),
        ({"latency": "0.7x", "fps": 9}, "give one of them"),
        ({"latency": "0.7x", "device": "raspberry-pi-5"}, "times are measured"),
        ({"latency": "0.7x", "recipe": "w8"}, "latency is for a plan, and there is a recipe"),
        ({"latency": "0.7x", "changes": ["depth.method=drop"]}, "'drop' does not search for a latency"),
        ({"latency": "0.7x", "changes": ["depth.epohs=1"]}, "did you mean 'depth.epochs'"),
        ({"latency": None, "tps": 40}, "tps is a budget of language models"),
        ({"latency": None, "memory": "1MB"}, "memory is a budget of language models"),
        ({"latency": None}, "give a budget in latency"),
        ({"latency": "0.7x", "images": None}, "name the images to measure it on"),
    ],
)
def test_what_is_refused_before_any_work(tiny, photos, tmp_path, asked, words, clock):
    with pytest.raises(UsageError, match=words):
        fit(tiny("resnet"), **({"out": tmp_path / "out", "images": photos} | asked))
    assert not clock and not (tmp_path / "out").exists()


def test_a_budget_below_the_smallest_subnet_trains_nothing(tiny, photos, tmp_path):
    with pytest.raises(UsageError, match="the smallest subnet"):
        fit(tiny("resnet"), out=tmp_path / "out", latency=0.1, images=photos, changes=SHORT)
    assert not (tmp_path / "out" / "depth").exists(), "a run that is refused leaves nothing"


@pytest.mark.parametrize("asked", [{"latency": 0.7}, {"fps": 100}])
def test_budgets_of_images_are_not_for_language_models(tmp_path, asked):
    with pytest.raises(
        UsageError, match="is a budget of image classifiers and perception models; scribe is a language model"
    ):
        fit("scribe", out=tmp_path / "out", **asked)


def test_a_dry_run_counts_the_training(tiny, photos, tmp_path):
    ask = lambda epochs: fit(
        tiny("resnet"), out=tmp_path / "out", latency=0.8, images=photos, dry_run=True,
        changes=["depth.batch=16", f"depth.epochs={epochs}"],
    )["forecast"]  # fmt: skip
    short, long = ask(1), ask(1_000_000)
    assert [step["step"] for step in short["steps"]] == ["depth", "compress", "evaluate"]
    assert long["steps"][0]["seconds"] > 10 * short["steps"][0]["seconds"] > 0  # timing the blocks is in both
    assert "rough estimate" in short["warnings"][0] and not (tmp_path / "out").exists()


def test_a_plan_is_a_recipe_to_run(tiny, tmp_path, jettison, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = jettison("plan", tiny("resnet"), "--latency", "0.7x", "--set", "depth.epochs=3", "-o", "r.yaml")
    assert code == 0 and "0.7 of the original's latency" in out
    written = yaml.safe_load((tmp_path / "r.yaml").read_text())
    assert written["steps"] == plan(tiny("resnet"), latency=0.7, changes=["depth.epochs=3"]).to_dict()["steps"]
    code, out, err = jettison("plan", tiny("resnet"), "--fps", "1", "-o", "none.yaml")
    assert code == 0 and "meets this budget as it is" in out and not (tmp_path / "none.yaml").exists()
    code, _, err = jettison("plan", tiny("resnet"), "--latency", "0.7x", "--report", "plan.html")
    assert code != 0 and "--report draws plans of bits" in err
