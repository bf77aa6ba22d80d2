"""Recipes are read, checked, changed and written."""

import pytest
import yaml

from jettison.core.errors import UsageError
from jettison.recipe.recipe import load_recipe, preset_names

STEP = {"quantize": {"method": "rtn", "bits": 4}}


def recipe(*steps, **fields):
    return load_recipe({"steps": list(steps) or [STEP], **fields})


@pytest.mark.parametrize("name", preset_names())
def test_presets_say_when_to_use_them_and_survive_a_round_trip(name):
    preset = load_recipe(name)
    assert len(preset.use) > 40
    assert preset.loss is not None
    assert preset.of("quantize")
    again = load_recipe(yaml.safe_load(preset.to_yaml()))
    assert again == preset


def test_the_six_presets_are_there():
    assert set(preset_names()) >= {"w8", "w4", "w3", "w2", "gateup-w4w2", "w2-mlp"}


def test_options_come_from_the_signature():
    step = recipe({"quantize": {"method": "gptq", "bits": 3, "damp": 0.05}}).steps[0]
    assert step.options == {"damp": 0.05, "act_order": False, "clip": True, "block_size": 0}
    assert (step.grid.bits, step.grid.group_size, step.grid.symmetric) == (3, 128, True)


def test_where_selects_by_role_and_block():
    where = recipe(STEP | {"where": {"role": ["gate", "up"], "block": ["0-2", 5]}}).steps[0].where
    assert where.block == (0, 1, 2, 5)
    assert where.matches(("gate", "expert"), 2)
    assert not where.matches(("gate",), 4)
    assert not where.matches(("down",), 2)
    assert not where.matches(("head",), None)


def test_no_where_means_all_linears_but_not_the_embedding():
    where = recipe().steps[0].where
    assert where.matches(("head",), None)
    assert where.matches(("linear",), 3)
    assert not where.matches(("embed",), None)


def test_changes_reach_every_step_of_their_verb():
    changed = load_recipe("gateup-w4w2", ["quantize.group_size=32", "recover.samples=7", "calibration.samples=3"])
    assert [step.grid.group_size for step in changed.of("quantize")] == [32, 32]
    assert changed.of("recover")[0].options["samples"] == 7
    assert changed.calibration["samples"] == 3


def test_a_change_of_method_brings_its_options():
    changed = load_recipe({"steps": [STEP]}, ["quantize.method=gptq", "quantize.damp=0.1"])
    assert changed.steps[0].method == "gptq"
    assert changed.steps[0].options["damp"] == 0.1


def test_a_change_of_method_drops_what_the_other_does_not_know():
    steps = load_recipe("gateup-w4w2", ["quantize.method=rtn"]).of("quantize")
    assert [step.method for step in steps] == ["rtn", "rtn"]
    assert steps[1].options == {"clip": True}


BAD = [
    ({"steps": [{"quantize": {"method": "gtpq", "bits": 4}}]}, r"'gtpq' \(did you mean 'gptq'\?\)"),
    ({"steps": [{"quantize": {"method": "gptq", "bits": 4, "dampp": 1}}]}, "'dampp'.*valid: act_order, block_size"),
    ({"steps": [{"quantize": {"method": "gptq", "bits": 4, "damp": -1}}]}, "damp = -1: .*greater than 0"),
    ({"steps": [{"quantize": {"method": "gptq", "bits": 4, "damp": "much"}}]}, "damp = 'much'"),
    ({"steps": [{"quantize": {"method": "rtn"}}]}, "needs 'bits'"),
    ({"steps": [{"quantize": {"method": "rtn", "bits": "four"}}]}, "bits = 'four'"),
    ({"steps": [{"quantize": {"method": "rtn", "bits": True}}]}, "bits = True"),
    ({"steps": [{"quantize": {"method": "rtn", "bits": 17}}]}, "bits = 17"),
    ({"steps": [{"squash": {}}]}, "unknown step 'squash'.*quantize, recover"),
    ({"steps": [STEP | {"where": {"role": ["gates"]}}]}, "unknown role 'gates'.*did you mean 'gate'"),
    ({"steps": [STEP | {"where": {"rol": ["gate"]}}]}, "unknown field of where 'rol'"),
    ({"steps": [STEP | {"where": {"block": ["a-b"]}}]}, "block 'a-b'"),
    ({"steps": [{"recover": {"train": ["loras"]}}]}, "train.0 = 'loras'"),
    ({"steps": [{"quantize": "rtn"}]}, "options of quantize are a mapping.*'rtn'"),
    ({"steps": [STEP | {"where": {"role": 5}}]}, "unknown role 5"),
    ({"steps": [{"recover": {"train": []}}]}, "train"),
    ({"steps": [STEP], "calibration": "books"}, "calibration is a mapping.*'books'"),
    ({"steps": []}, "at least one step"),
    ({"steps": [STEP], "stepz": []}, "unknown recipe field 'stepz'"),
    ({"steps": [STEP], "calibration": {"sample": 1}}, "unknown calibration option 'sample'"),
    ({"steps": [STEP], "calibration": {"samples": 0}}, "samples = 0"),
    ("w5", "unknown recipe 'w5'.*valid: gateup-w4w2"),
    ("missing.yaml", "cannot read recipe: missing.yaml does not exist"),
    ([1], "a recipe is a mapping"),
]


@pytest.mark.parametrize(("source", "words"), BAD, ids=[words[:30] for _, words in BAD])
def test_bad_recipes_are_named(source, words):
    with pytest.raises(UsageError, match=words):
        load_recipe(source)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("quantize.bitz=4", "unknown change 'quantize.bitz'.*did you mean 'quantize.bits'"),
        ("recover.rank=4", "unknown change 'recover.rank'"),
        ("bits=4", "form verb.option=value"),
        ("quantize.bits=[4", "is not valid YAML"),
    ],
)
def test_bad_changes_are_named(change, words):
    with pytest.raises(UsageError, match=words):
        load_recipe({"steps": [STEP]}, [change])


def test_broken_yaml_is_one_line(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("steps: [\n- {")
    with pytest.raises(UsageError, match="not valid YAML") as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)
