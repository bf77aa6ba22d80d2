"""benchmarks.vision.depth: every method gets the same number of blocks and epochs, and is compared seed by seed."""

import pytest

from benchmarks.vision.depth import FIRST, MODELS, Bench
from benchmarks.vision.depth_claims import curve, paired
from jettison.methods.depth.updp import updp


class Planned(Bench):
    """Plans the cells without training: a search chooses the first blocks, gates the last ones."""

    def pruned(self, name, key, step, seed=0, then=()):
        count, total = MODELS[name]["blocks"], 20
        first = {"updp": 0, "depthshrinker": total - count, "drop": 5}.get(step["method"])
        blocks = step["blocks"] if first is None else list(range(first, first + count))
        return {"step": step, "depth": {"pruned": blocks}, "accuracy": 0.5 + 0.01 * seed + 0.1 * (key == "progressive")}


@pytest.fixture
def rows():
    bench = Planned("train", "test", "classes")
    return lambda name, full=True: {(method, seed): row for method, seed, row in bench.rows(name, full)}


@pytest.mark.parametrize("name", MODELS)
def test_all_train_as_long_and_prune_as_many(rows, name):
    for row in rows(name).values():
        assert row["step"]["epochs"] == MODELS[name]["epochs"]
        assert len(row["depth"]["pruned"]) == MODELS[name]["blocks"]


def test_abrupt_removal_differs_by_the_fading_alone(rows):
    table = rows("deit8")
    for seed in range(3):
        fading, abrupt = table["progressive", seed], table["abrupt", seed]
        assert fading["depth"]["pruned"] == abrupt["depth"]["pruned"]
        assert abrupt["step"]["method"] == "chosen" and abrupt["step"]["fade"] == 0
    # The later seeds of a method fade as its first one does, by the default of the method.
    assert table["progressive", 1]["step"]["fade"] == updp.__kwdefaults__["fade"]
    assert "fade" not in table["progressive", 0]["step"]


def test_gates_choose_their_own_blocks(rows):
    table = rows("resnet20")
    assert table["depthshrinker", 2]["depth"]["pruned"] == table["depthshrinker", 0]["depth"]["pruned"]
    assert table["depthshrinker", 2]["depth"]["pruned"] != table["progressive", 2]["depth"]["pruned"]
    assert table["depthshrinker", 2]["step"]["fade"] == 0


def test_the_first_attempt_is_of_one_model_with_its_own_settings(rows):
    table = rows("resnet20")
    assert FIRST.items() <= table["progressive, first attempt", 0]["step"].items()
    assert table["progressive, first attempt", 1]["step"]["fade"] == FIRST["fade"]
    assert table["abrupt, first attempt", 2]["step"]["fade"] == 0
    assert not any("first attempt" in method for method, _ in rows("deit8"))
    points = {name: {"ms": {"onnxruntime": 1.0}, "accuracy": 0.5} for name, _ in table}
    assert not any("first" in point["name"] for point in curve(points))


def test_methods_are_compared_seed_by_seed(rows):
    table = [(method, seed, row) for (method, seed), row in rows("deit8").items()]
    assert paired(table, "drop") == pytest.approx([10, 10, 10])


def test_few_models_have_all_baselines(rows):
    assert {method for method, _ in rows("convnext9", full=False)} == {"progressive", "abrupt"}
