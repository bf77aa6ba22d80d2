"""Recipes and other files that people write: a mistake gives an error of one line, quickly."""

import os
import time

import pytest
import yaml

from jettison.core.errors import UsageError
from jettison.devices.device import find_device
from jettison.graph.folder import ModelFolder
from jettison.pipeline.jobs import assign
from jettison.planning.planner import make_plan
from jettison.recipe.recipe import load_recipe, with_windows
from jettison.xr.definitions import find_scenario
from jettison.xr.results import compare
from jettison.xr.sources import read_costs

STEP = {"quantize": {"method": "rtn", "bits": 4}}
QUICK = 3.0  # seconds, on a busy machine


def with_fields(**fields):
    return {"steps": [STEP]} | fields


def where(**fields):
    return {"steps": [STEP | {"where": fields}]}


def gptq(**options):
    return {"steps": [{"quantize": {"method": "gptq", "bits": 4} | options}]}


def prune(**options):
    return {"steps": [{"prune": {"method": "wanda"} | options}]}


def recover(**options):
    return {"steps": [STEP, {"recover": options}]}


NAN, INF = float("nan"), float("inf")
HUGE = 16**5000  # has more digits than Python converts to text
WRONG = [
    (where(block=["3-1"]), "block '3-1' of where: .*lower number, 1-3"),
    (where(block=[]), "block of where is an empty"),
    (where(role=[]), "role of where is an empty list"),
    (where(block=None), "block None"),
    (where(role=None), "role None"),
    (where(block=[0, "0-3"]), "block 0 of where is listed twice"),
    (where(role=["q", "q"]), "role q .* twice"),
    (where(block=-1), "block -1 of where: a number from 0 to 9999"),
    (where(block=[1.5]), "block 1.5"),
    (where(block=True), "block True"),
    (where(block={"a": 1}), "block {'a': 1}"),
    (where(block="0-999999999"), "0-9999"),
    (where(role=[["q"]]), r"unknown role \['q'\]"),
    (where(role={"q": 1}), "unknown role {'q': 1}"),
    ({"steps": [STEP | {"where": None}]}, "'where' is a mapping"),
    ({"steps": [STEP | {"where": {}}]}, "'where' is a"),
    ({"steps": [STEP | {"where": [None]}]}, "'where' is a mapping"),
    ({"steps": [STEP | {"where": []}]}, "'where' is a"),
    ({"steps": [STEP | {"where": [[{"role": "q"}]]}]}, "'where' is a mapping"),
    ({"steps": [5]}, "one verb"),
    ({"steps": {"a": 1}}, "list with at least one step"),
    ({"steps": [{5: {}}]}, "unknown step 5"),
    ({"steps": [{"quantize": False}]}, "options of quantize are a mapping"),
    (with_fields(name=["x"]), r"name = \['x'\]: a text"),
    (with_fields(name=4), "name = 4: a text"),
    (with_fields(use=5), "use = 5"),
    (with_fields(why=5), "why = 5: a list of texts"),
    (with_fields(why="text"), "why = 'text': a list of texts"),
    (with_fields(why=[5]), "why = 5: a text"),
    (with_fields(loss="x"), "loss = 'x'"),
    (with_fields(loss=NAN), "loss = nan"),
    (with_fields(loss=-1), "loss = -1"),
    (with_fields(calibration={"text": 5}), "text = 5: a text"),
    (with_fields(calibration={"text": ""}), "text = ''"),
    (with_fields(calibration={"samples": True}), "samples = True"),
    (with_fields(calibration={"length": 1.5}), "length = 1.5"),
    (with_fields(calibration=False), "calibration is a mapping"),
    (with_fields(**{"stepps": []}), "unknown recipe field 'stepps' .did you mean 'steps'"),
    ({5: 5}, "unknown recipe field 5"),
    (gptq(method=["rtn"]), r"unknown quantize method \['rtn'\]"),
    (gptq(method=None), "method None"),
    (gptq(damp="8"), "damp = '8'"),
    (gptq(damp=True), "damp = True"),
    (gptq(damp=NAN), "damp = nan"),
    (gptq(damp=INF), "damp = inf"),
    (gptq(clip=1), "clip = 1"),
    (gptq(clip="yes"), "clip = 'yes'"),
    (gptq(block_size=8.0), "block_size = 8.0"),
    (gptq(block_size="8"), "block_size = '8'"),
    (gptq(block_size=10**30), "block_size = 1000"),
    (gptq(**{"bits": "4"}), "bits = '4'"),
    (gptq(bits=True), "bits = True"),
    (gptq(bits=HUGE), "bits = a int: a grid has 2 to 8 bits"),
    (gptq(group_size=-HUGE), "group_size = a int: it must be positive"),
    (gptq(method=HUGE), "unknown quantize method a int"),
    (where(block=HUGE), "block a int of where"),
    (prune(pattern=HUGE, allocation="owl"), "a int is the same everywhere"),
    (with_fields(loss=10**400), "loss = 1000"),
    (with_fields(loss=HUGE), "loss = a int"),
    ({HUGE: 5}, "unknown recipe field a int"),
    (gptq(group_size=-2), "group_size = -2"),
    (gptq(group_size=1.5), "group_size = 1.5"),
    (gptq(symmetric=1), "symmetric = 1"),
    (prune(sparsity=NAN), "sparsity = nan"),
    (prune(sparsity="half"), "sparsity = 'half'"),
    (prune(sparsity=1), "sparsity = 1"),
    (prune(pattern=[2, 4]), r"pattern = \[2, 4\]: N:M"),
    (prune(sparsity=0.5, scope=5), "scope = 5"),
    (prune(sparsity=0.5, allocation=["owl"]), r"allocation = \['owl'\]"),
    (prune(sparsity=0.5, spread="x"), "spread = 'x'"),
    (recover(rank="8"), "rank = '8'"),
    (recover(seed=2**64), "seed = "),
    (recover(train="lora"), "train = 'lora'"),
    (recover(lr=INF), "lr = inf"),
    (recover(rank=10**6), "rank = 1000000"),
    (5, "a recipe is a mapping"),
    (None, "a recipe is a mapping"),
    ("", "unknown recipe ''"),
    (".yaml", "unknown recipe '.yaml'"),
]


@pytest.mark.parametrize(("source", "words"), WRONG, ids=[words[:40] for _, words in WRONG])
def test_wrong_values_are_named(source, words):
    with pytest.raises(UsageError, match=words) as caught:
        load_recipe(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_number_that_yaml_takes_for_a_text():
    assert load_recipe("w4", ["quantize.damp=1e-3"]).steps[0].options["damp"] == 0.001
    assert load_recipe(recover(lr="5E-4", alpha=16)).of("recover")[0].options["lr"] == 0.0005


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(10 * [f'*{before}'])}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
DOCUMENTS = {
    "deep": ("[" * 30_000, "nested too deeply"),
    "deep by lines": ("\n".join("  " * depth + "a:" for depth in range(300)), "nested too deeply"),
    "alias bomb": (BOMB, "more than 100,000 entries"),
    "itself": ("a: &a [*a]", "refers to itself"),
    "twice": ("steps: []\nsteps: [1]", "has 'steps' twice"),
    "no key": ("? [a]\n: b", "not valid YAML"),
    "tag": ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
    "date": ("a: 2000-13-01", "not valid YAML"),
    "digits": ("a: " + "9" * 5000, "not valid YAML: it has a number of 5,000 digits; at most 100 are read"),
    "digits to the base 16": ("a: 0x" + "f" * 5000, "not valid YAML: it has a number of 5,002 digits"),
    "digits of a key": ("? 0x" + "f" * 5000 + "\n: a", "not valid YAML: it has a number of 5,002 digits"),
    "two": ("a: 1\n---\nb: 2", "not valid YAML"),
    "zero": ("a: \0", "not valid YAML"),
    "nothing": ("", "a mapping"),
    "a number": ("5", "a mapping"),
    "long": ("a: " + "b" * 2_000_000, "bytes"),
}
READERS = {
    "recipe": load_recipe, "device": find_device, "scenario": find_scenario, "costs": read_costs,
}  # fmt: skip


@pytest.mark.parametrize("what", READERS)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_that_are_none(tmp_path, what, name):
    text, words = DOCUMENTS[name]
    file = tmp_path / "file.yaml"
    file.write_text(text)
    start = time.process_time()
    with pytest.raises(UsageError, match=words if what != "costs" or words != "a mapping" else "costs are") as caught:
        READERS[what](file)
    assert time.process_time() - start < QUICK and "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
@pytest.mark.parametrize("what", READERS)
def test_files_that_are_none(tmp_path, what):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nowhere")
    (tmp_path / "latin.yaml").write_bytes(b"title: \xe9\xff")
    start = time.process_time()
    for name in ("pipe", "folder", "gone", "latin"):
        with pytest.raises(UsageError, match=f"{name}.yaml"):
            READERS[what](tmp_path / f"{name}.yaml")
    assert time.process_time() - start < QUICK


GOOD = {"bandwidth": 5e10, "memory": 4e9, "flops": 1e12}
LISTS = [
    (find_device, GOOD | {"title": 5}, "title = 5; valid: a text"),
    (find_device, GOOD | {"memory": NAN}, "memory = nan"), (find_device, GOOD | {"overhead": INF}, "overhead = inf"),
    (find_device, GOOD | {"source": ["x"]}, r"\['x'\]; valid: a text"), (find_device, GOOD | {5: 5}, "unknown field 5"),
    (find_device, GOOD | {"bandwidth": [1]}, r"bandwidth = \[1\]"), (find_device, GOOD | {"flops": {5: 1}}, "flops 5"),
    (find_scenario, {1: {}, "a": {}}, "has several"), (find_scenario, {"a": {"tasks": [5]}}, "a task is a mapping"),
    (find_scenario, {"a": {"title": 5, "tasks": [{"model": "HT", "fps": 30}]}}, "title of scenario 'a' = 5"),
    (find_scenario, {"a": {"official": [5], "tasks": [{"model": "HT", "fps": 30}]}}, "official of scenario 'a'"),
    (find_scenario, {"a": {"models": False, "tasks": [{"model": "HT", "fps": 30}]}}, "models are a mapping"),
    (find_scenario, {"a": {"tasks": [{"model": ["HT"], "fps": 30}]}}, "unknown model"),
    (find_scenario, {"a": {"tasks": [{"model": "HT", "fps": NAN}]}}, "fps = nan"),
    (find_scenario, {"a": {"tasks": [{"model": "X", "fps": 1}], "models": {"X": {"input": [10**12]}}}}, "input = "),
    (read_costs, {"A": {"HT": {"latency_ms": NAN, "energy_mj": 1}}}, "latency_ms = nan"),
    (read_costs, {"A": {"HT": {"latency_ms": 10**400, "energy_mj": 1}}}, "a number of 401 digits"),
    (read_costs, {"A": {"HT": {"latency_ms": "5", "energy_mj": 1}}}, "latency_ms = '5'"),
    (read_costs, {}, "at least one unit"),
]  # fmt: skip


@pytest.mark.parametrize(("read", "data", "words"), LISTS, ids=[words[:30] for *_, words in LISTS])
def test_other_files(tmp_path, read, data, words):
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(UsageError, match=words):
        read(tmp_path / "file.yaml")


RUN = {"scenario": "vr-gaming", "units": ["u"], "horizon_ms": 100.0, "scheduler": "edf", "seed": 0, "compat": None,
       "live": False, "columns": ["task", "number", "arrival", "deadline", "status", "energy", "spans"],
       "frames": [["HT", 0, 0.0, 10.0, "done", 1.0, [[0, 1.0, 2.0]]]]}  # fmt: skip
FRAMES = [
    ["HT", 0, "a", 10.0, "done", 1.0, []],
    ["HT", 0, 0.0, 10.0, "done", 1.0, []],
    ["HT", 0, 0, 1, "lost", 1.0, []],
    ["HT", 0, 0.0, 10.0, "done", 1.0, [[7, 1.0, 2.0]]],
    ["HT", 0, 0.0, 10.0, "done", 1.0, [[0, "x", 2.0]]],
    ["HT", 0, 0.0, 10.0, "done", 1.0, 5],
    [],
    5,
]
CHANGES = [{"frames": [frame]} for frame in FRAMES] + [
    {"scenario": []},
    {"units": 5},
    {"units": [5]},
    {"horizon_ms": "x"},
    {"horizon_ms": -1},
    {"frames": 5},
    {"columns": []},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_runs_of_xrbench_that_are_none(tmp_path, change):
    import json

    (tmp_path / "a.json").write_text(json.dumps({"run": RUN}))
    (tmp_path / "b.json").write_text(json.dumps({"run": RUN | change}))
    with pytest.raises(UsageError):
        compare([tmp_path / "a.json", tmp_path / "b.json"])
    (tmp_path / "b.json").write_text(json.dumps({"run": RUN}))
    assert len(compare([tmp_path / "a.json", tmp_path / "b.json"])["rows"]) == 2


class TestWhatAModelHas:
    def test_blocks_beyond_the_model(self, tiny):
        source = ModelFolder(tiny("llama"))
        for recipe in (
            where(block=[0, 2]),
            where(block="1-9"),
            recover() | {"steps": [STEP, {"recover": {}, "where": {"block": 2}}]},
        ):
            with pytest.raises(UsageError, match="block . of .*llama has blocks 0 to 1"):
                assign(source, load_recipe(recipe))

    def test_a_step_for_what_the_model_lacks(self, tiny):
        recipe = {"steps": [STEP, {"recover": {}, "where": {"role": ["expert"]}}]}
        with pytest.raises(UsageError, match="«recover distill: expert» fits nothing in"):
            assign(ModelFolder(tiny("llama")), load_recipe(recipe))


def test_what_a_plan_writes_is_a_recipe(tiny, monkeypatch):
    """For every budget and runtime, a plan with steps is read back unchanged and fits the model."""
    monkeypatch.setattr("jettison.devices.device.measure", lambda: GOOD)
    source = ModelFolder(tiny("llama"))
    for runtime in (None, "jettison", "transformers", "vllm"):
        for memory in (650e3, 800e3):
            plan = make_plan(source, memory=memory, context=0, losses="prior", runtime=runtime)
            assert plan.recipe.steps and load_recipe(yaml.safe_load(plan.recipe.to_yaml())) == plan.recipe
            assert assign(source, with_windows(plan.recipe, source.positions), runtime)
