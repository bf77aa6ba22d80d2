"""The program step of a recipe on tiny pipelines: found, written, run, measured, killed, and what is asked wrongly."""

import json
import shutil
from functools import partial

import pytest
import torch
from killing import check_kills

import jettison
from jettison.core.errors import JettisonError, UsageError
from jettison.core.journal import Journal

pytest.importorskip("diffusers")

import tiny_diffusion as tiny
from programs import NAMES, SEARCH, STEPS, replace_clock, save, step

from jettison.domains.diffusion.program import attach_program, read_program
from jettison.graph.dense import load_dense
from jettison.graph.folder import ModelFolder
from jettison.pipeline import program
from jettison.pipeline.first_step import first_step
from jettison.pipeline.verification import verify
from jettison.recipe.recipe import load_recipe

RTN = {"quantize": {"method": "rtn", "bits": 4, "group_size": -1}}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """Return a function from an architecture to the folder of its pipeline."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = save(name, tmp_path_factory.mktemp("pipelines") / name)
        return made[name]

    return folder


@pytest.fixture(scope="module")
def found(pipelines, tmp_path_factory):
    """Return a function from an architecture to the folder that a program step wrote."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("found") / name
            jettison.compress(pipelines(name), step(), made[name])
        return made[name]

    return folder


def drawing(pipe, name, steps=STEPS):
    pipe.set_progress_bar_config(disable=True)
    return tiny.images(pipe, tiny.make(name)[1], steps=steps)


@pytest.mark.parametrize("name", NAMES)
class TestFolder:
    def test_the_weights_are_untouched(self, pipelines, found, name):
        before, after = (load_dense(ModelFolder(folder)).state_dict() for folder in (pipelines(name), found(name)))
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
        for file in ("scheduler/scheduler_config.json", "model_index.json"):
            assert (found(name) / file).read_bytes() == (pipelines(name) / file).read_bytes()

    def test_it_runs_by_default_and_can_be_switched_off(self, found, name):
        loaded, own = jettison.load(found(name)), tiny.make(name)[0]
        full = drawing(own, name)
        with attach_program(own, found(name) / "program.json"):
            expected = drawing(own, name)
        assert torch.allclose(drawing(loaded.pipeline(), name), expected, atol=1e-5)
        gates = read_program(found(name) / "program.json").gates
        assert loaded.running.counts()["computed"] == sum(row.count("1") for row in gates)
        assert torch.allclose(drawing(loaded.pipeline(program=False), name), full, atol=1e-5)
        assert loaded.running is None and not torch.allclose(expected, full, atol=1e-4)
        loaded.pipeline()
        with pytest.raises(UsageError, match=f"is for {STEPS} steps; this run has 9: ask for {STEPS}"):
            drawing(loaded.pipeline(), name, steps=9)

    def test_what_is_recorded(self, found, name):
        section = json.loads((found(name) / "jettison.json").read_text())["program"]
        written = read_program(found(name) / "program.json")
        assert section["flops"] == pytest.approx(1 - written.costs.pruned, abs=1e-6)
        assert section["speedup"] == pytest.approx(1 / section["flops"], abs=1e-3) and section["asked"] == {
            "ratio": 0.4
        }
        assert (section["steps"], section["guidance"], section["method"]) == (STEPS, 3.0, "dip_go")
        assert "## Program" in (found(name) / "README.md").read_text()
        assert not list(found(name).rglob("search.safetensors")), "the state of a search is removed"

    def test_it_is_verified_and_measured(self, found, name):
        checks = verify(found(name))
        assert checks["ok"] and f"a program for {STEPS} steps" in str(checks)
        measured = jettison.evaluate(found(name), count=2)
        [(row, scores)] = measured["denoising"].items()
        assert row == f"2 seeds, {STEPS} steps, guidance 3" and scores.keys() == {"image_error", "ssim"}
        assert scores["image_error"] > 0 and scores["ssim"] < 1
        [cost] = measured["program"].values()
        gates = read_program(found(name) / "program.json").gates
        assert cost["computed_blocks"] == sum(row.count("1") for row in gates)
        assert cost["blocks"] == len("".join(gates)) and 0 < cost["share_of_flops"] < 1

    def test_quantized_after(self, pipelines, name, tmp_path):
        """The program was found on the original, and runs in the packed model, also where the original is gone."""
        original = shutil.copytree(pipelines(name), tmp_path / "original")
        jettison.compress(original, {"steps": [*step("random")["steps"], RTN]}, tmp_path / "out")
        [_, *rows] = jettison.evaluate(tmp_path / "out", count=2)["denoising"].values()
        assert len(rows) == STEPS and all(row["noise_error"] > 0 for row in rows)
        original.rename(tmp_path / "moved")
        loaded = jettison.load(tmp_path / "out")
        assert drawing(loaded.pipeline(), name).isfinite().all() and loaded.running.counts()["computed"] > 0
        assert verify(tmp_path / "out")["ok"]


def test_an_exact_run_has_no_error(pipelines, tmp_path):
    """Evaluated are the program's runs against full runs of the original, from the same seeds."""
    jettison.compress(pipelines("dit"), step("interval", ratio=1e-6), tmp_path / "out")
    measured = jettison.evaluate(tmp_path / "out", count=2)
    assert list(measured["denoising"].values()) == [{"image_error": 0.0, "ssim": 1.0}]
    assert [cost["share_of_flops"] for cost in measured["program"].values()] == [1.0]


def test_fewer_steps_are_compared_with_all(pipelines, tmp_path):
    jettison.compress(pipelines("dit"), step("fewer_steps", ratio=0.5), tmp_path / "out")
    measured = jettison.evaluate(tmp_path / "out", count=2)
    assert list(measured["denoising"]) == [f"2 seeds, {STEPS // 2} steps, guidance 3"]
    assert [score["image_error"] > 0 for score in measured["denoising"].values()] == [True]
    assert jettison.load(tmp_path / "out").pipeline().scheduler and verify(tmp_path / "out")["ok"]


@pytest.mark.parametrize("method", ["dip_go", pytest.param("greedy", marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_bytes(pipelines, tmp_path, monkeypatch, method):
    """Also in the middle of a search, whose state is saved after every step here."""
    monkeypatch.setattr(program, "find_program", partial(program.find_program, save_every=0.0))
    recipe = {"steps": [*step(method)["steps"], RTN]}
    check_kills(lambda out: jettison.compress(pipelines("dit"), recipe, out), tmp_path, 4)


def test_a_lost_file_is_written_again(pipelines, tmp_path):
    jettison.compress(pipelines("dit"), step("random"), tmp_path / "out")
    whole = (tmp_path / "out" / "program.json").read_bytes()
    (tmp_path / "out" / "program.json").write_text("{}")
    assert not verify(tmp_path / "out")["ok"]
    jettison.compress(pipelines("dit"), step("random"), tmp_path / "out")
    assert (tmp_path / "out" / "program.json").read_bytes() == whole and verify(tmp_path / "out")["ok"]
    with pytest.raises(UsageError, match="holds another run: its step ratio is 0.4, this one's is 0.2"):
        jettison.compress(pipelines("dit"), step("random", ratio=0.2), tmp_path / "out")


def test_weights_packed_later_keep_the_program(found, tmp_path):
    manifest = jettison.compress(found("dit"), {"steps": [RTN]}, tmp_path / "later")
    assert (tmp_path / "later" / "program.json").read_bytes() == (found("dit") / "program.json").read_bytes()
    assert manifest["program"]["method"] == "dip_go" and verify(tmp_path / "later")["ok"]
    loaded = jettison.load(tmp_path / "later")
    assert drawing(loaded.pipeline(), "dit").isfinite().all() and loaded.running is not None
    changed = shutil.copytree(found("dit"), tmp_path / "changed")
    (changed / "program.json").write_text((changed / "program.json").read_text().replace('"1111"', '"0111"', 2))
    with pytest.raises(JettisonError):
        jettison.compress(changed, {"steps": [RTN]}, tmp_path / "never")


class TestSpeedup:
    """A speedup is measured; here a run takes as long as it has computed blocks, and a share of the full run beside."""

    def test_is_reached_at_once_where_time_is_flops(self, pipelines, tmp_path, monkeypatch):
        timed = replace_clock(monkeypatch)
        manifest = jettison.compress(pipelines("dit"), step("random", speedup=2.0), tmp_path / "out")
        assert len(timed) == 1 or timed[-1] <= 12 < timed[-2]
        assert manifest["program"]["asked"] == {"speedup": 2.0} and manifest["program"]["computed"] == timed[-1] <= 12

    def test_is_cut_again_from_the_same_scores(self, pipelines, tmp_path, monkeypatch):
        """A quarter of the time is no block's: for 1.5 times as fast, 58 % of the blocks must go, not 33 %."""
        timed = replace_clock(monkeypatch, rest=0.25 / 0.75)
        recipe = step("dip_go", speedup=1.5)
        jettison.compress(pipelines("dit"), recipe, tmp_path / "out")
        assert 1 < len(timed) <= 4 and timed == sorted(timed, reverse=True)
        entries = [json.loads(line) for line in (tmp_path / "out/program/journal.jsonl").read_text().splitlines()]
        measured = [entry["speedup"] for entry in entries if "timed" in entry]
        assert measured[-1] >= 1.5 > max(measured[:-1]) and sum("searched" in entry for entry in entries) == 1
        before = len(timed)
        jettison.compress(pipelines("dit"), recipe, tmp_path / "out")
        assert len(timed) == before, "what was timed is not timed again"

    def test_that_is_missed_is_told(self, pipelines, tmp_path, monkeypatch):
        timed = replace_clock(monkeypatch, rest=9.0)
        jettison.compress(pipelines("dit"), step("random", speedup=3.0), tmp_path / "out")
        assert 2 <= len(timed) <= 4
        assert "no program that was tried is 3 times as fast" in (tmp_path / "out" / "progress.log").read_text()

    def test_a_cut_halves_what_is_left_at_most(self, pipelines, tmp_path, monkeypatch):
        """A time in which other work hides what was saved does not lead to the smallest program at once."""
        timed = replace_clock(monkeypatch, rest=9.0)
        jettison.compress(pipelines("dit"), step("random", speedup=1.5), tmp_path / "out")
        assert timed[0] // 2 <= timed[1] < timed[0] and timed[-1] == 4

    def test_the_next_share(self):
        again = program.next_share
        assert again(0.5, 0.5, 1.5, 2.0) == pytest.approx(0.75) == again(0.5, 0.5, 1.01, 2.0) == again(0.5, 0.5, 0.9, 2)
        assert again(0.5, 0.5, 1.8, 2.0) == pytest.approx(0.5 * 0.5 / (1 - 1 / 1.8))
        assert again(0.5, 0.6, 1.99, 2.0) == pytest.approx(0.603, abs=1e-3)
        assert again(0.5, 0.45, 1.99, 2.0) == pytest.approx(0.51), "the next program is another one"

    def test_beyond_all_programs_is_refused_before_the_search(self, pipelines, tmp_path, monkeypatch):
        timed = replace_clock(monkeypatch)
        beyond = ({"speedup": 50.0}, "speedup = 50: at most 4.81"), ({"ratio": 0.97}, "ratio = 0.97: at most 0.79")
        for asked, words in beyond:
            with pytest.raises(UsageError, match=words) as error:
                jettison.compress(pipelines("dit"), step(**asked), tmp_path / "out")
            assert "6 calls of the denoiser" in str(error.value) and not timed
            assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("[!.]*"))


REFUSED = {
    "no ratio": ({"ratio": None}, "needs one of 'ratio'"),
    "two of them": ({"ratio": 0.4, "speedup": 2.0}, "needs one of 'ratio'"),
    "ratio 0": ({"ratio": 0.0}, "ratio = 0.0: a number between 0 and 1"),
    "ratio 1": ({"ratio": 1}, "ratio = 1: a number between 0 and 1"),
    "a word": ({"ratio": "half"}, "ratio = 'half': a number between"),
    "speedup 1": ({"ratio": None, "speedup": 1.0}, "speedup = 1.0: a number above 1"),
    "one step": ({"steps": 1}, "steps = 1: a whole number of at least 2"),
    "guidance": ({"guidance": 0.5}, "guidance = 0.5: a number of at least 1"),
    "a typo": ({"search_step": 3}, "did you mean 'search_steps'"),
    "no such method": ({"method": "dipgo"}, "unknown program method 'dipgo'.*dip_go"),
    "more steps than times": ({"steps": 5000}, "the scheduler of .* cannot run 5000 steps"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(pipelines, tmp_path, case):
    change, message = REFUSED[case]
    options = step()["steps"][0]["program"] | change
    with pytest.raises(UsageError, match=message) as error:
        jettison.compress(pipelines("dit"), {"steps": [{"program": options}]}, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out" / "jettison.json").exists()


def test_where_it_may_stand(pipelines, tiny, tmp_path):
    own = step("random")["steps"]
    for steps, message in (
        ([RTN, *own], "at most one program step, and it comes first"),
        ([*own, *own], "at most one program step"),
        ([own[0] | {"where": {"role": "q"}}], "leave out 'where'"),
    ):
        with pytest.raises(UsageError, match=message):
            jettison.compress(pipelines("dit"), {"steps": steps}, tmp_path / "out")
    for family, kind in (("llama", "a language model"), ("resnet", "an image classifier")):
        with pytest.raises(UsageError, match=f"{kind}: steps such as .* and quantize are for it"):
            jettison.compress(tiny(family), {"steps": own}, tmp_path / "out")


def test_residuals_are_for_transformers(pipelines, tmp_path):
    jettison.compress(pipelines("dit"), step(reuse="residual"), tmp_path / "dit")
    assert read_program(tmp_path / "dit" / "program.json").reuse == "residual" and verify(tmp_path / "dit")["ok"]
    with pytest.raises(UsageError, match="UNet2DConditionModel have no residual"):
        jettison.compress(pipelines("sd"), step(reuse="residual"), tmp_path / "sd")


def test_a_part_missing(pipelines, found, tmp_path):
    broken = shutil.copytree(pipelines("dit"), tmp_path / "broken")
    shutil.rmtree(broken / "scheduler")
    with pytest.raises(UsageError, match="has no part scheduler"):
        jettison.compress(broken, step("random"), tmp_path / "out")
    without = shutil.copytree(found("dit"), tmp_path / "without")
    (without / "program.json").unlink()
    with pytest.raises(JettisonError, match="program.json does not exist"):
        jettison.load(without).pipeline()
    assert not verify(without)["ok"]
    assert jettison.load(without).pipeline(program=False) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda program: program.update(sampler="PNDMScheduler"), "another scheduler"),
        (lambda program: program.update(units=["a", "b", "c", "d"]), "another blocks"),
        (lambda program: program["model"].update(config="0"), "another config"),
        (lambda program: program["model"].update(class_name="SD3Transformer2DModel"), "another class"),
        (lambda program: program.update(steps=5), "its 5 steps need 5"),
    ],
)
def test_verify_finds_a_program_of_another_model(found, tmp_path, change, message):
    folder = shutil.copytree(found("dit"), tmp_path / "changed")
    data = json.loads((folder / "program.json").read_text())
    change(data)
    (folder / "program.json").write_text(json.dumps(data))
    checks = {check["check"]: check for check in verify(folder)["checks"]}
    assert not checks["reader"]["ok"] and message in checks["reader"]["found"]
    with pytest.raises(UsageError):
        jettison.evaluate(folder, count=1)


def test_a_search_draws_no_noise_of_an_evaluation(pipelines, tmp_path):
    source, own = ModelFolder(pipelines("dit")), first_step(load_recipe(step("random")), "program")
    journal = Journal(tmp_path / "journal.jsonl", {})
    seeds = [program.open_task(source, own, tmp_path, journal, seed).sampler.seed for seed in (0, 1)]
    assert min(seeds) >= 1_000_000 and seeds[0] != seeds[1]


def test_options_are_in_the_record(found):
    [entry] = json.loads((found("dit") / "jettison.json").read_text())["recipe"]["steps"]
    assert SEARCH.items() <= entry["program"].items() and entry["program"]["ratio"] == 0.4
