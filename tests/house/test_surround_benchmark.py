"""benchmarks.perception.surround_depth: variants differ by one thing, share first rounds, and train equally long."""

import json
from pathlib import Path

import pytest

from benchmarks.perception import surround_depth
from benchmarks.perception.surround_depth import (
    FIRST,
    METRIC,
    REST,
    SEEDS,
    STEPS,
    VARIANTS,
    Bench,
    every,
    finish,
    gain,
    parse_cells,
    removed,
)
from jettison.domains.perception.models.sa_fsm import STAGES
from jettison.graph.own_models import make_config, make_model

GOOD = {"full": 0.6, "cvt": 0.55, "one": 0.58, "raw": 0.5}


class Planned(Bench):
    """Plans the cells without training."""

    def __init__(self, folder):
        self.cells, self.trained = folder, []

    data = Path("world")

    def train(self, variant, seed, out, stages, start):
        self.trained.append((out.name, stages, start.name if start else None))
        kept = {"matches": 100, "kept_ratio": 0.9, "mismatches": 20, "mismatches_removed_share": 0.5}
        later = kept | {"mismatches": 10, "mismatches_removed_share": 0.4}
        records = {"round-1": {"targets": kept}, "round-2": {"targets": later}, "photometric": {}}
        return {"folder": out.name, "stages": [{"stage": stage} | records[stage] for stage in stages]}

    def scores(self, folder):
        variant, seed = folder.name.split("-")
        delta = GOOD.get(variant, 0.59) + 0.01 * int(seed)
        return {"delta": delta, "delta_median": delta, "scale_error_pct": 5.0, "rows": {METRIC: {"abs_rel": 0.2}}}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.witness.RUNS", tmp_path)
    return Planned(tmp_path / "cells")


def test_first_rounds_are_shared(bench):
    for variant, seed in every():
        bench.row(variant, seed)
    names = [name for name, _, _ in bench.trained]
    assert len(names) == len(set(names)) == 10 + 7
    starts = {name: start for name, stages, start in bench.trained if stages == REST}
    assert starts["one-2"] == starts["full-2"] == "first-full-2" and starts["cvt-0"] == "first-cvt-0"
    before = len(bench.trained)
    bench.row("full", 0)
    assert len(bench.trained) == before, "a cell is computed once"


def test_all_stages_are_trained_and_variants_can_be_built():
    assert (*FIRST, *REST) == tuple(stage.name for stage in STAGES) and set(STEPS) == {FIRST, REST}
    sizes = {}
    for variant, plan in VARIANTS.items():
        changes = {name: json.loads(value) for name, value in (change.split("=") for change in plan["changes"])}
        sizes[variant] = sum(
            p.numel() for p in make_model(make_config("jettison_sa_fsm", changes, variant)).parameters()
        )
        assert len(changes) == (2 if variant == "cvt" else variant != "full"), "one difference"
    assert 0.8 < sizes["cvt"] / sizes["full"] < 1.3, "at about equal cost"


def test_claims_are_the_differences_of_seeds(bench, monkeypatch):
    rows = {(variant, seed): bench.row(variant, seed) for variant, seed in every()}
    assert gain(rows, "cvt") == pytest.approx([5.0] * len(SEEDS)) and len(gain(rows, "raw")) == 1
    assert removed(rows["full", 0]) == pytest.approx(1 - 10 * 0.6 / 20)
    written = {}
    monkeypatch.setattr(
        surround_depth, "write_result", lambda name, claims, seconds, details, script: written.update(
            {entry["id"]: entry for entry in claims}, details=details
        )
    )  # fmt: skip
    monkeypatch.setattr(Bench, "small", lambda self, recipe: self.scores(Path(f"{recipe}-0")) | {"seconds": 1.0})
    monkeypatch.setattr(Bench, "times", lambda self: {"full-0": {"median_ms": 1.0}, "seconds": 1.0})
    finish(bench, rows)
    assert set(written) == {
        "delta_gain_neighbour_attention", "delta_gain_second_round", "mismatches_removed_share", "scale_error_pct",
        "w8_delta_drop", "w4_delta_drop", "details",
    }  # fmt: skip
    assert written["delta_gain_second_round"]["value"] == pytest.approx(2.0)
    assert written["w4_delta_drop"]["value"] == pytest.approx(100 / 60) and written["w4_delta_drop"]["holds"]
    json.dumps(written["details"])


def test_cells_are_chosen_by_name():
    assert parse_cells(["one-1"]) == [("one", 1)] and len(parse_cells(None)) == 10
    with pytest.raises(SystemExit, match="unknown cell raw-2; valid: full-0"):
        parse_cells(["raw-2"])
