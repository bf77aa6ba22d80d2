"""The planner, which chooses bits under a budget."""

import importlib
import itertools
import json
import re

import pytest
from problems import problem

import jettison
from jettison.core.errors import UsageError
from jettison.devices.device import find_device
from jettison.encodings.uniform import UniformGrid
from jettison.graph.folder import ModelFolder, open_shape
from jettison.planning.baselines import usual_group
from jettison.planning.cost import Setting, planned
from jettison.planning.groups import Choice, Unit, choices, find_units, tie
from jettison.planning.picture import plan_data
from jettison.planning.planner import _infeasible, make_plan, plan
from jettison.planning.refine import refine
from jettison.planning.search import Problem, greedy, least, pareto, random_plan, search
from jettison.recipe.recipe import load_recipe
from jettison.reports.plan_page import write_plan

ROW = {"bandwidth": 50e9, "memory": 4e9, "flops": {"fp32": 1e12}, "share": 1.0}


@pytest.fixture(autouse=True, scope="module")
def this_machine(tmp_path_factory):
    """Give the device ``this`` fixed figures and a new cache, so that no test depends on the machine."""
    patch = pytest.MonkeyPatch()
    patch.setattr("jettison.devices.device.measure", lambda: ROW)
    patch.setenv("JETTISON_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


class TestUnits:
    def test_what_engines_fuse_is_one_unit(self, tiny):
        roles = [(unit.role, unit.block, len(unit.linears)) for unit in find_units(ModelFolder(tiny("llama")).anatomy)]
        assert roles[:5] == [("embed", None, 1), ("qkv", 0, 3), ("o", 0, 1), ("gate_up", 0, 2), ("down", 0, 1)]
        assert roles[-1] == ("head", None, 1)

    def test_experts(self, tiny):
        units = {unit.role: unit for unit in find_units(ModelFolder(tiny("qwen3_moe")).anatomy)}
        assert units["expert gate_up"].experts == units["expert down"].experts == 4
        assert len(units["expert gate_up"].linears) == 8 and units["expert gate_up"].roles == ("gate", "up")

    def test_what_a_recipe_cannot_tell_apart_is_decided_together(self):
        units = [
            Unit("a", "linear", 0, ()),
            Unit("b", "linear", 0, ()),
            Unit("c", "linear", 1, ()),
            Unit("d", "o", 0, ()),
        ]
        assert [[unit.name for unit in group] for group in tie(units, None)] == [["a", "b"], ["c"], ["d"]]

    def test_only_group_sizes_that_divide(self, tiny):
        anatomy = ModelFolder(tiny("llama")).anatomy  # row width 64, but 96 in down
        sizes = {unit.role: choices(unit, anatomy.family, bits=(4, 16)) for unit in find_units(anatomy)}
        assert sizes["qkv"] == [Choice(16), Choice(4, 32), Choice(4, 64)]
        assert sizes["down"] == [Choice(16), Choice(4, 32)]
        assert sizes["embed"] == [Choice(16)]


PULLED = Problem(
    groups=tuple((Unit(f"u{number}", "o", number, ()),) for number in range(3)),
    choices=(tuple(Choice(8 - pick, 32) for pick in range(4)),) * 3,
    losses=((0.0, 0.1, 0.2, 0.3),) * 3,
    costs=(tuple((1.0 + pick, 4.0 - pick) for pick in range(4)),) * 3,  # more seconds for fewer bytes
    rest=(0.0, 0.0),
)


class TestSearch:
    @pytest.mark.parametrize("seed", range(6))
    def test_it_finds_the_optimum(self, seed):
        whole = problem(seed)
        limits = whole.cost((1, 2, 1, 2, 1, 2)) * (1.02, 0.97)
        within = whole.within(*limits)
        feasible = [picks for picks in itertools.product(range(4), repeat=6) if within.fits(picks)]
        best = min(map(within.loss, feasible))
        assert within.loss(search(within)) == pytest.approx(best, rel=2e-3)
        greedy_picks = greedy(within)
        assert greedy_picks is None or within.loss(greedy_picks) >= best - 1e-12
        smallest = min(whole.within(time=limits[0]).cost(p)[1] for p in itertools.product(range(4), repeat=6)
                       if whole.within(time=limits[0]).fits(p))  # fmt: skip
        assert within.cost(least(within.within(time=limits[0]), 1))[1] == pytest.approx(smallest, rel=1e-2)

    def test_never_worse_than_greedy(self):
        for seed in range(10):
            within = problem(seed, units=30, of=5, memory=9.0)
            assert within.loss(search(within)) <= within.loss(greedy(within)) + 1e-12

    def test_budgets_that_pull_apart(self):
        """Choices that save bytes cost seconds, and the reverse. The greedy search must still end."""
        assert greedy(PULLED.within(5.0, 5.0)) is None and search(PULLED.within(5.0, 5.0)) is None
        assert PULLED.within(8.0, 7.0).fits(search(PULLED.within(8.0, 7.0)))

    def test_nothing_fits(self):
        assert search(problem(memory=0.3)) is None and greedy(problem(memory=0.3)) is None
        assert pareto(problem(time=0.5)) == []

    def test_without_a_budget_nothing_is_given_up(self):
        assert search(problem()) == greedy(problem()) == (0,) * 6

    def test_the_front_falls(self):
        front = [(problem().cost(picks)[1], problem().loss(picks)) for picks in pareto(problem())]
        assert len(front) > 4 and front == sorted(front)
        assert all(later[1] < earlier[1] for earlier, later in itertools.pairwise(front))

    def test_random_plans_have_the_bytes_asked_for(self):
        within = problem(units=30, memory=15.0)
        plans = {random_plan(within, seed) for seed in range(10)}
        assert len(plans) == 10
        assert all(0.98 * 15 <= within.cost(picks)[1] <= 15 for picks in plans)


class TestPlan:
    def test_it_fits_and_says_why(self):
        result = make_plan("qwen3-4b", device="strix-halo", tps=75, memory="3GB", context=1024)
        assert result.cost.tokens_per_second >= 75 and result.cost.memory <= 3e9 and result.losses == "prior"
        assert result.recipe.why[0].startswith("predicted: ") and "a prior fitted on scribe" in result.recipe.why[0]
        assert any(reason.startswith("w8 would lose less but misses the budget") for reason in result.recipe.why)
        cheaper = make_plan("qwen3-4b", device="strix-halo", tps=60, context=1024)
        assert cheaper.loss < result.loss

    def test_the_recipe_says_what_was_chosen(self):
        result = make_plan("qwen3-4b", device="strix-halo", memory="2.3GB", context=1024)
        assert len({choice.bits for choice in result.assignment.values()}) > 2
        for unit, choice in result.assignment.items():
            assert planned(unit, result.recipe) == choice
        again = load_recipe(result.recipe.to_dict())
        assert again.to_dict() == result.recipe.to_dict()

    def test_it_loses_less_than_the_presets_that_fit(self):
        result = make_plan("scribe", memory="7.5MB", context=512, losses="prior")
        fitting = [other for other in result.alternatives if not other.misses]
        assert fitting and all(result.loss <= other.loss + 1e-9 for other in fitting)

    def test_recovery_can_be_ruled_out(self):
        tight = dict(device="strix-halo", memory="1.85GB", context=0)
        assert make_plan("qwen3-4b", **tight).recipe.of("recover")
        assert not make_plan("qwen3-4b", recovery=False, **tight).recipe.of("recover")

    def test_an_ample_budget_keeps_everything(self):
        assert plan("scribe", memory="1GB").steps == ()

    def test_rows_that_no_group_divides_have_one_each(self, tiny):
        folder = tiny("llama", hidden_size=72, head_dim=18)
        result = make_plan(folder, memory="800KB", context=0, losses="prior")
        narrow = {unit.role: choice for unit, choice in result.assignment.items() if choice.bits < 16}
        assert len(narrow) > 2 and all((c.group_size == -1) == (role != "down") for role, c in narrow.items())
        assert usual_group(result.shape) == 128 and len(plan_data(result)["gains"]["this plan"]) == 7

    def test_what_would_be_feasible(self):
        message = "no plan meets the budget of 1 MB for scribe on this at 2048 tokens of context"
        with pytest.raises(UsageError, match=f"^{message}: the smallest takes .* MB, the fastest runs at .* tokens/s$"):
            plan("scribe", memory="1MB")
        message = "the budget of 1,000,000 tokens/s and 4 GB, which this has, for scribe"
        with pytest.raises(UsageError, match=message.replace(", for", " for")):
            plan("scribe", tps=1e6)
        words = _infeasible(PULLED.within(5.0, 5.0), open_shape("qwen3-4b"), find_device("strix-halo"), Setting())
        assert words.endswith("within 5 B at most 0.1 tokens/s are feasible"), words

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({}, "a plan needs a budget"),
            ({"tps": 0}, "tps = 0"),
            ({"tps": float("nan")}, "tps = nan"),
            ({"tps": 1, "context": -1}, "context = -1"),
            ({"memory": "3 apples"}, "apples"),
            ({"memory": "1GB", "losses": "guess"}, "losses = 'guess': auto, prior, gradients, measured"),
            ({"memory": "1GB", "runtime": "vlm"}, "unknown runtime 'vlm'.*did you mean 'vllm'"),
            ({"memory": "6MB", "context": 0, "changes": ["recover.sampels=64"]}, "unknown change 'recover.sampels'"),
            ({"memory": "6MB", "context": 0, "changes": ["quantize.bits=9"]}, "bits = 9"),
            (
                {"memory": "6MB", "context": 0, "changes": ["quantize.bits=8"]},
                "with quantize.bits=8 the plan misses the budget",
            ),
        ],
    )
    def test_budgets_that_make_no_sense(self, options, words):
        with pytest.raises(UsageError, match=words):
            plan("scribe", **options)

    def test_changes_reach_the_recipe(self):
        budget = {"device": "strix-halo", "memory": "1.85GB", "context": 0}
        chosen = plan("qwen3-4b", changes=["recover.samples=64"], **budget)
        assert chosen.of("recover")[0].options["samples"] == 64
        assert not plan("qwen3-4b", changes=["recover.samples=64"], recovery=False, **budget).of("recover")

    def test_a_shape_has_no_weights_to_measure(self):
        for options in ({"losses": "gradients"}, {"refine": 8}):
            with pytest.raises(UsageError, match="qwen3-4b is a shape without weights"):
                plan("qwen3-4b", device="strix-halo", memory="3GB", **options)

    def test_the_verb_is_the_function_and_the_room_is_still_there(self):
        assert jettison.plan is plan


class TestEngines:
    def test_plans_are_legal_by_construction(self):
        result = make_plan("qwen3-4b", device="rtx-4090", memory="3GB", runtime="sglang", context=0)
        assert {choice.bits for choice in result.assignment.values()} <= {4, 8, 16}
        moe = make_plan("qwen3-30b-a3b", device="rtx-4090", memory="14GB", runtime="vllm", context=0, recovery=False)
        shared = {choice for unit, choice in moe.assignment.items() if unit.experts and unit.block == 3}
        assert len(shared) == 1

    def test_a_format_that_stores_in_its_own_way(self):
        result = make_plan("llama-3.1-8b", device="strix-halo", memory="4GB", runtime="llama.cpp", context=0)
        narrow = [choice for choice in result.assignment.values() if choice.bits < 16]
        assert narrow and all(choice.stored > choice.bits for choice in narrow)


class TestMeasuring:
    def test_refinement_finds_what_a_sum_does_not_see(self):
        """One unit loses much more than the sum of losses expects, unless it keeps its bits; refinement finds it."""
        whole = problem(units=8, memory=4.5)
        start = search(whole)
        sensitive = next(number for number, pick in enumerate(start) if pick > 0)
        truth = lambda of, picks, bench: of.loss(picks) + 5.0 * (picks[sensitive] > 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(importlib.import_module("jettison.planning.refine"), "measure", truth)
            best, history = refine(whole, start, None, 200)
        assert len(history) == 200 and truth(whole, best, None) == min(history) < history[0] - 4
        assert whole.fits(best) and best[sensitive] == 0


def test_choices_are_read_by_people():
    assert [str(choice) for choice in (Choice(16), Choice(2, 64, 8), Choice(4, 32, 0, False))] == [
        "16", "2 g64 r8", "4 g32 asym",
    ]  # fmt: skip
    assert Choice(2, 64).grid == UniformGrid(2, 64) and Choice(16).grid is None


class TestPage:
    @pytest.fixture(scope="class")
    def data(self):
        """Return the data of a plan as jettison.json stores it."""
        result = make_plan("qwen3-0.6b", device="strix-halo", tps=200, context=1024)
        return json.loads(json.dumps(plan_data(result)))

    def test_what_is_drawn_adds_up(self, data):
        assert sum(row["seconds"] for row in data["operators"]["decode"]) == pytest.approx(
            1 / data["tokens_per_second"]
        )
        assert sum(cell["loss"] for cell in data["map"]) == pytest.approx(data["loss"])
        assert sum(sum(row["choices"].values()) for row in data["roles"]) == len(data["map"]) + 1  # plus the embedding
        assert data["gains"]["W4/W2-GateUp"][0] > data["gains"]["W4/W2-GateUp"][-1] > 0

    def test_the_page_stands_alone(self, data, tmp_path):
        page = write_plan(data | {"model": "<script>alert(1)</script>"}, tmp_path / "plan.html").read_text()
        assert "<script>alert" not in page and "http:" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
        for name in ("plan-map", "plan-sensitivity", "plan-roofline", "plan-times", "plan-front", "plan-gains"):
            assert f'id="{name}"' in page
        assert data["verdict"] in page and "200 asked" in page

    def test_a_model_without_what_a_chart_needs(self, data, tmp_path):
        page = write_plan(data | {"gains": None, "front": [], "sensitivity": []}, tmp_path / "plan.html").read_text()
        assert 'id="plan-gains"' not in page and 'id="plan-front"' not in page and 'id="plan-map"' in page


def test_fit_plans_measures_and_shows(tiny, tmp_path):
    options = dict(device="raspberry-pi-5", memory="650KB", context=0, recovery=False, runtime="vllm", tokens=1024)
    results = jettison.fit(tiny("llama"), out=tmp_path / "out", refine=3, **options)
    manifest = json.loads((tmp_path / "out" / "jettison.json").read_text())
    assert manifest["plan"]["losses"] == "gradients" and len(manifest["plan"]["measured"]) == 3
    assert results["quantized"]["size"]["bytes"] <= 651e3  # the files also store the shape of every matrix
    kl = results["quantized"]["texts"]["books-evaluation"]["kl"]
    assert manifest["plan"]["loss"] == pytest.approx(kl, rel=0.5)
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'id="plan-map"' in page and "--runtime vllm" in page and "--no-recovery" in page
    again = jettison.fit(tiny("llama"), out=tmp_path / "out", refine=3, **options)
    assert again["quantized"] == results["quantized"]
