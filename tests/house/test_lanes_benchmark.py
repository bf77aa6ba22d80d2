"""benchmarks.perception.lanes: the plan of its cells, paired differences, and the claims that follow."""

import numpy as np
import pytest

from benchmarks.perception.lanes import BATCH, CELLS, ORDER, SCENES, SEEDS, VARIANTS, Bench, difference, f1, summary
from benchmarks.perception.lanes_finish import claims
from jettison.domains.perception.learning import _parse
from jettison.graph.own_models import make_config

IDS = {"f1_sparse", "f1_sparse_minus_dense", "macs_sparse_vs_dense", "f1_drop_without_hpa", "f1_drop_without_laca",
       "f1_drop_without_lpa", "w8_f1_drop", "w4_f1_drop"}  # fmt: skip


def cell_of(found, macs=2e6, images=40):
    counts = np.tile([found, 4 - found, 4 - found], (images, 1))
    row = {"f1": f1(counts), "f1_of": {"day": [f1(counts), images]}, "counts": {"samples": counts.ravel().tolist()}}
    return row | {"macs": macs, "commit": "0" * 40, "seconds": 1.0, "folder": ""}


def test_there_are_eleven_trainings_of_configs_that_can_be():
    assert len(CELLS) == 11 and VARIANTS["sparse"][2] == VARIANTS["dense"][2] == SEEDS
    for model, changes, seeds in VARIANTS.values():
        make_config(f"jettison_{model}", _parse(changes), "test")
        assert seeds[0] == 0, "paired with the first seed of the main model"
    assert ORDER.size == (160, 400) and ORDER.cameras == "front"
    assert SCENES % 5 == 0 and SCENES * 3 // 5 > BATCH


def test_a_small_plan_is_kept_apart():
    assert Bench().folder.name == "lanes" and Bench(100).folder.name == "lanes-100"
    assert Bench(10**6).steps >= 4 and Bench(10**6).scenes >= 10


def test_f1_is_that_of_all_images_together():
    assert f1([[4, 0, 0], [0, 4, 4]]) == 0.5 and f1([[0, 0, 0]]) == 0 and f1([[3, 0, 0]]) == 1


def test_differences_are_paired():
    better, worse = cell_of(4), cell_of(2)
    gap = difference(better, worse)
    assert gap["gap"] == pytest.approx(0.5) and gap["low"] == gap["high"] == pytest.approx(0.5)
    assert difference(better, better) == {"gap": 0.0, "low": 0.0, "high": 0.0}


def test_claims_follow_from_the_cells():
    cells = {key: cell_of(3 if name == "sparse" else 2, 3e6 if name == "sparse" else 2e6)
             for key, (name, _) in CELLS.items()}  # fmt: skip
    seen = summary(cells)
    made = {entry["id"]: entry for entry in claims(cells, seen, {"w8": cell_of(3), "w4": cell_of(2)})}
    assert set(made) == IDS
    assert made["f1_sparse"]["value"] == 0.75 and made["f1_sparse"]["holds"]
    assert made["f1_sparse_minus_dense"]["value"] == pytest.approx(0.25)
    assert made["macs_sparse_vs_dense"]["value"] == 1.5 and not made["macs_sparse_vs_dense"]["holds"]
    assert made["w8_f1_drop"]["holds"] and not made["w4_f1_drop"]["holds"]
    assert all(made[f"f1_drop_without_{part}"]["holds"] for part in ("hpa", "laca", "lpa"))
    assert [row[0] for row in seen["tables"]["all"]["rows"]] == list(VARIANTS)
