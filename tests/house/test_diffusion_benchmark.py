"""The benchmark of diffusion programs: its baselines at equal cost, and a whole run on a random model."""

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("diffusers")

from jettison.core.errors import JettisonError, UsageError

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())


@pytest.fixture
def module(monkeypatch):
    """Return a function from the name of a module of benchmarks to the module."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: import_module(f"benchmarks.{name}")


@pytest.fixture
def small(module, monkeypatch, tmp_path, tiny, pictures):
    """Return the module of the benchmark, words of its command line for a random DiT, and the folder of its files."""
    fixture, programs = module("fixtures.diffusion"), module("diffusion.programs")
    model = module("diffusion.speed").random_sampling(20, 2, 16, 2).target
    fixture.save(model.eval(), tmp_path / "dit", list("abcdefghij"))
    for name in ("witness", "diffusion.sets"):
        monkeypatch.setattr(module(name), "RUNS", tmp_path / "runs")
    for name in ("witness", "diffusion.programs"):
        monkeypatch.setattr(module(name), "RESULTS", tmp_path)
    monkeypatch.setattr(module("witness"), "git", lambda *arguments: "0" * 40)
    monkeypatch.setattr(programs, "RATIOS", (0.6,))
    monkeypatch.setattr(programs, "ABLATIONS", dict(list(programs.ABLATIONS.items())[:2]))
    searches = {key: programs.SEARCHES[key] for key in ("first", "second")}
    monkeypatch.setattr(programs, "SEARCHES", searches)
    monkeypatch.setattr(programs.Bench, "searches", searches)
    monkeypatch.setattr(module("diffusion.sets").Sets, "resamples", 20)
    for name, value in (("TUNED", 2), ("HALVINGS", 2), ("MOST", 1.0)):
        monkeypatch.setattr(module("diffusion.baselines"), name, value)
    claims, speed = module("diffusion.claims"), module("diffusion.speed")
    monkeypatch.setattr(claims, "PICTURE", tmp_path / "samples.webp")
    monkeypatch.setattr(claims, "growth", lambda: speed.growth(sizes=()))
    monkeypatch.setattr(claims, "latency", lambda sets, made: speed.latency(sets, made, rounds=6))
    monkeypatch.setattr(speed, "calm", lambda work: (work(), {}))  # a test may be disturbed
    for part in (claims, speed):
        monkeypatch.setattr(part, "BATCHES", (1,))
    words = ["--data", str(pictures), "--test", str(pictures), "--model", str(tmp_path / "dit"), "--threads", "1"]
    words += ["--classifier", str(tiny("resnet")), "--seeds", "6", "--search-steps", "2", "--short-steps", "1"]
    return programs, words, tmp_path


def test_a_run_from_search_to_claims(small, capsys, monkeypatch):
    programs, words, folder = small
    programs.main(words)
    cells = {file: file.stat().st_mtime_ns for file in (folder / "runs").rglob("*.*")}
    programs.main([*words, "--finish"])
    assert all(file.stat().st_mtime_ns == time for file, time in cells.items())  # nothing is computed twice
    result = json.loads((folder / "diffusion.json").read_text())
    assert [claim["id"] for claim in result["claims"]] == [
        "frechet_wins_vs_fewer_steps", "frechet_wins_vs_uniform_cache", "frechet_ratio_vs_full_at_0_6",
        "latency_gain_at_0_6", "latency_share_of_computed",
    ]  # fmt: skip
    rows = {row[0]: row for row in result["details"]["tables"]["quality at pruning 0.6"]["rows"]}
    cost = {name: float(row[1].removesuffix(" %")) for name, row in rows.items()}
    assert cost["fewer steps"] == 40.0 and len(rows) == 11
    assert 0 < cost["DiP-GO"] <= 40.0  # counted while the images were made, not taken from the program
    assert all(cost[name] >= 40.0 for name in cost if name.startswith("uniform"))
    program = result["details"]["programs"]["0.6"]
    assert len(program["gates"]) == 20 and {len(row) for row in program["gates"]} == {2}
    assert (folder / "samples.webp").stat().st_size > 500
    page = module_of_docs(monkeypatch, folder)
    assert "### Quality at pruning 0.6" in page and "block 1</text>" in page and "diffusion-samples.webp" in page
    with pytest.raises(SystemExit) as end:
        programs.main([*words, "--check"])
    assert end.value.code == 0, capsys.readouterr().out
    next((folder / "runs" / "diffusion" / "sets").glob("fewer-0.6-*")).unlink()
    with pytest.raises(JettisonError, match="has no set fewer-0.6"):
        programs.main([*words, "--check"])
    with pytest.raises(UsageError, match="has cells for seeds = 6; this is 7"):
        programs.main([*words, "--seeds", "7"])


def module_of_docs(monkeypatch, folder):
    """Return the study page made from the result in a folder."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    pages = import_module("study_pages")
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "results").symlink_to(folder)
    monkeypatch.setattr(pages, "ROOT", folder)
    return pages.diffusion()


def test_steps_are_spread_evenly_and_the_first_is_computed(module):
    baselines = module("diffusion.baselines")
    assert baselines.Spread(10, 20).steps == set(range(0, 20, 2))
    assert sorted(baselines.Spread(8, 20).steps) == [0, 2, 5, 7, 10, 12, 15, 17]
    assert [baselines.steps_at(ratio, 20) for ratio in (0.4, 0.6, 0.75, 0.61)] == [12, 8, 5, 8]


def test_a_limit_costs_at_least_the_target(module):
    limit = module("diffusion.baselines").limit_at(lambda limit: 1 / (1 + 10 * limit), 0.4)
    assert 0.149 < limit < 0.15 + 1e-9


def test_the_steps_of_a_search_are_timed(module, monkeypatch):
    speed, searches = module("diffusion.speed"), []

    def search(sampling, options, folder, count, **more):
        searches.append((options.steps, options.checkpointing, sampling.images([0]).shape, folder.parent.exists()))

    monkeypatch.setattr(speed, "search", search)
    clock = iter([0.0, 9.0, 10.0, 12.0, 20.0, 30.0])  # of a search of 1 step that is not counted, of 1, of 5
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    seconds, _ = speed.measured_search(3, 2, True, 16, 2)
    assert seconds == 2.0 and [steps for steps, *_ in searches] == [1, 1, 5]
    assert searches[0][1:] == (True, (1, 3, 32, 32), True)
    assert speed.peak_memory() > 50e6
