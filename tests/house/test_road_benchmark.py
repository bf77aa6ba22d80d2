"""benchmarks.perception.road_topology: the plan of its cells, gaps by seed, the claims that follow, and its command."""

import json
import sys

import pytest
import torch
from roads import JUNCTIONS, changes, junctions
from roads import SCENES as SCENES_OF_JUNCTIONS
from safetensors.torch import load_file

from benchmarks.perception import road_topology
from benchmarks.perception.road_topology import (
    CELLS,
    MAIN,
    ORDER,
    PARTS,
    SCENES,
    SEEDS,
    STEPS,
    VARIANTS,
    Bench,
    claims,
    finish,
    summary,
)
from jettison.domains.perception.learning import _parse
from jettison.domains.perception.models import road_topoformer
from jettison.domains.perception.models.road_topoformer import BATCH, stages
from jettison.graph.own_models import make_config
from jettison.metrics.openlanev2 import RULES

IDS = {"ols_separated_minus_joint", "ols_finetuned_minus_separated", "ols_main", "w4_ols_drop"}
OLS = {"joint": 0.30, "separated": 0.35, MAIN: 0.42, "plain": 0.33, "shared": 0.2}


def scored(ols):
    """Return the scores of a cell: the rules differ, and so do the parts of a score."""
    rules = {rule: {part: round(ols + 0.01 * place + 0.1 * number, 4) for place, part in enumerate(PARTS)}
             for number, rule in enumerate(reversed(RULES))}  # v2.1 has the numbers themselves  # fmt: skip
    return {"rules": rules, "ols": ols, "folder": "", "seconds": 1.0, "commit": "0" * 40}


def made_up(key):
    """Return the result of a cell: every seed is 0.01 better than the one before."""
    variant, seed = CELLS[key]
    return scored(round(OLS[variant] + 0.01 * seed, 4)) | {"macs": 1e6, "stages": {"lanes": {"steps": 1, "score": 0.1}}}


CELLS_MADE_UP = {key: made_up(key) for key in CELLS}


def config_of(variant):
    return make_config("jettison_road_topoformer", _parse([*VARIANTS[variant][0], f"steps={STEPS}"]), "test")


def test_there_are_thirteen_trainings_of_configs_that_can_be():
    assert len(CELLS) == 13 and all(VARIANTS[name][1] == SEEDS for name in OLS if name != "shared")
    assert CELLS["plain-2"] == ("plain", 2) and VARIANTS["shared"][1] == (0,)
    for variant in VARIANTS:
        for part in ("lanes.", "elements.", "relations."):
            assert sum(stage.steps for stage in stages(config_of(variant)) if part.startswith(stage.trains)) == STEPS
    assert ORDER.size == (160, 400) and ORDER.frames == 1 and ORDER.cameras == "all"
    assert SCENES * 3 // 5 > BATCH


def test_variants_differ_by_one_thing():
    fields = {variant: config_of(variant).fields.model_dump() for variant in VARIANTS}
    differ = lambda one, other: {name for name in fields[one] if fields[one][name] != fields[other][name]}
    assert differ("joint", "separated") == differ("separated", MAIN) == {"schedule"}
    assert differ("plain", "separated") == {"geometry"} and differ("shared", "joint") == {"shared"}


def test_a_small_plan_is_kept_apart():
    assert Bench().folder.name == "road_topology" and Bench(100).folder.name == "road_topology-100"
    assert Bench(10**6).steps >= 4 and Bench(10**6).scenes >= 10


def test_gaps_are_those_of_equal_seeds_and_tables_have_all_rules():
    seen = summary(CELLS_MADE_UP)
    assert seen["gaps"]["separated minus joint"]["OLS"] == [0.05, 0.05, 0.05]
    assert seen["gaps"]["finetuned minus joint"]["TOP_lt"] == [0.12, 0.12, 0.12]
    assert seen["gaps"]["separated minus plain"]["OLS"] == [0.02, 0.02, 0.02]
    assert seen["ols"] == {"joint": 0.31, "separated": 0.36, MAIN: 0.43, "plain": 0.34, "shared": 0.2}
    assert set(seen["tables"]) == {f"rule {rule}" for rule in RULES}
    rows = {rule: {row[0]: row[1:] for row in seen["tables"][f"rule {rule}"]["rows"]} for rule in RULES}
    assert list(rows["v1.0"]) == list(VARIANTS)
    assert rows["v2.1"]["joint"] == [0.31, 0.32, 0.33, 0.34, 0.35, "0.3, 0.31, 0.32"]
    assert rows["v1.0"]["joint"][0] == pytest.approx(0.51)


def test_claims_follow_from_the_cells():
    small = {"w8": scored(0.42), "w4": scored(0.399)}
    made = {entry["id"]: entry for entry in claims(summary(CELLS_MADE_UP), CELLS_MADE_UP[f"{MAIN}-0"], small)}
    assert set(made) == IDS
    assert made["ols_separated_minus_joint"]["value"] == 0.05 and made["ols_separated_minus_joint"]["holds"]
    assert made["ols_finetuned_minus_separated"]["value"] == 0.07
    assert made["ols_main"]["value"] == 0.43 and made["ols_main"]["holds"]
    assert made["w4_ols_drop"]["value"] == 0.05 and not made["w4_ols_drop"]["holds"]
    assert "w8: +0.0000" in made["w4_ols_drop"]["note"]
    worse = {key: scored(0.2 if CELLS[key][0] == MAIN else 0.3) for key in CELLS}
    made = {entry["id"]: entry for entry in claims(summary(worse), worse[f"{MAIN}-0"], small)}
    assert made["ols_finetuned_minus_separated"]["value"] == -0.1
    assert not made["ols_finetuned_minus_separated"]["holds"] and made["ols_separated_minus_joint"]["holds"]
    assert not made["ols_main"]["holds"]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Runs of a folder of their own, and cells that are made up in place of trained ones."""
    trained = []
    monkeypatch.setattr("benchmarks.witness.RUNS", tmp_path / "runs")
    monkeypatch.setattr("benchmarks.witness.RESULTS", tmp_path)
    monkeypatch.setattr(Bench, "train", lambda self, key: trained.append(key) or made_up(key))
    monkeypatch.setattr(Bench, "compressed", lambda self, recipe: scored(0.41))
    row = {"ms": 2.0, "gain": 1.0}
    times = lambda folders, rounds: dict.fromkeys(road_topology.RUNTIMES, dict.fromkeys(folders, row))
    monkeypatch.setattr(road_topology, "times", times)
    return trained


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["road_topology", *arguments])
    road_topology.main()


def test_some_cells_alone_are_trained(bench, monkeypatch, capsys):
    run(monkeypatch, "--only", "plain-1", "joint-0")
    assert bench == ["plain-1", "joint-0"]
    assert "plain-1: OLS 0.34, DET_l 0.35" in capsys.readouterr().out
    run(monkeypatch)
    assert bench[2:] == list(CELLS)
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "--only", "plain-3")
    assert stopped.value.code == 2 and "plain-3" in capsys.readouterr().err


def test_finish_writes_the_result_of_the_whole_plan_and_shows_that_of_a_small_one(bench, monkeypatch, tmp_path, capsys):
    run(monkeypatch, "--finish", "--scale", "100")
    assert "ols_main" in capsys.readouterr().out and not list(tmp_path.glob("*.json"))
    finish(Bench(), CELLS_MADE_UP)
    (file,) = tmp_path.glob("*.json")
    result = json.loads(file.read_text())
    assert file.name == "road_topology.json" and {entry["id"] for entry in result["claims"]} == IDS
    assert result["script"] == "benchmarks/perception/road_topology.py"
    table = result["details"]["tables"]["bits"]
    assert [row[0] for row in table["rows"]] == [MAIN, "w8", "w4"]
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert set(result["details"]["stages"]) == set(VARIANTS)


def test_plain_has_the_detectors_of_separated_byte_for_byte(made_once, tmp_path, monkeypatch):
    """Geometry draws other weights; the stages before the relations must not see it."""
    monkeypatch.setattr("benchmarks.witness.RUNS", tmp_path)
    monkeypatch.setattr(road_topology, "RUNS", tmp_path)
    monkeypatch.setattr(road_topology, "ORDER", JUNCTIONS)
    monkeypatch.setattr(road_topoformer, "BATCH", 2)
    monkeypatch.setattr(road_topology, "VARIANTS", {
        name: ((*own, *changes()), seeds) for name, (own, seeds) in VARIANTS.items()
    })  # fmt: skip
    bench = Bench(10**6)
    bench.world, bench.scenes = made_once("junctions", junctions), SCENES_OF_JUNCTIONS
    made = {variant: bench.train(f"{variant}-1") for variant in ("separated", "plain")}
    weights = {variant: load_file(f"{row['folder']}/model.safetensors") for variant, row in made.items()}
    detectors = {name for name in weights["plain"] if not name.startswith("relations.")}
    assert detectors == {name for name in weights["separated"] if not name.startswith("relations.")}
    for name in detectors:
        assert torch.equal(weights["plain"][name], weights["separated"][name]), name
    for row in made.values():
        assert set(row["rules"]) == set(RULES) and set(row["rules"]["v1.0"]) == set(PARTS)
        assert [(name, stage["steps"]) for name, stage in row["stages"].items()] == [
            ("lanes", bench.steps), ("elements", bench.steps), ("relations", bench.steps),
        ]  # fmt: skip
