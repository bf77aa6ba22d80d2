"""compat v0.1 against the official XRBench program: schedules by event, all outcomes of the coins, published scores."""

import csv
import itertools
from pathlib import Path

import pytest

from jettison.core.errors import UsageError
from jettison.xr.costs import Cost, Costs, table_costs
from jettison.xr.definitions import accelerator_names, find_accelerator, find_scenario, scenario_names
from jettison.xr.official import COLUMNS, patterns, requests, simulate_official, write_schedule
from jettison.xr.scores import benchmark_score, expected_score, score
from jettison.xr.simulator import simulate

GOLDEN = Path(__file__).parents[1] / "golden" / "xrbench"


def rows(name: str) -> list[dict[str, str]]:
    """Return the rows of a golden CSV file."""
    with open(GOLDEN / name, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(scenario: str, accelerator: str, coins: str = ""):
    """Simulate as the official program does. coins: the outcomes for SR, as a text of 0 and 1."""
    outcomes = {"SR": [coin == "1" for coin in coins]} if coins else {}
    return simulate_official(find_scenario(scenario), table_costs(find_accelerator(accelerator)), coins=outcomes)


@pytest.mark.parametrize("accelerator", accelerator_names())
def test_every_outcome(accelerator):
    """Every accelerator has 16 outcomes: four scenarios without coins (4 x 1), three with two coins (3 x 4)."""
    outcomes = [row for row in rows("outcomes.csv") if row["accelerator"] == accelerator]
    assert len(outcomes) == 16
    for row in outcomes:
        scored = score(run(row["scenario"], accelerator, row["coins"]))
        assert scored.overall == pytest.approx(float(row["overall_fig"]), abs=1e-4)
        assert scored.overall_logged == pytest.approx(float(row["overall"]), abs=1e-4)
        for part in ("rt", "en", "qoe"):
            assert getattr(scored, part) == pytest.approx(float(row[part]), abs=1e-5)
        for part in ("executed", "dropped"):
            counts = dict(pair.split(":") for pair in row[part].split())
            assert {name: getattr(scored.models[name], part) for name in counts} == {
                name: int(count) for name, count in counts.items()
            }
            assert all(getattr(m, part) == 0 for name, m in scored.models.items() if name not in counts)
        assert sum(model.logged for model in scored.models.values()) == int(row["models_logged"])


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*__4K.csv")), ids=lambda file: file.stem)
def test_schedules_event_by_event(file, tmp_path):
    scenario, accelerator, _ = file.stem.split("__")
    ours = write_schedule(run(scenario, accelerator), tmp_path / "schedule.csv")
    with open(ours, encoding="utf-8") as lines:
        actual = list(csv.DictReader(lines))
    expected = rows(file.name)
    assert len(actual) == len(expected)
    for mine, official in zip(actual, expected, strict=True):
        for column in COLUMNS:
            assert mine[column] == official[column], (mine, official)


def test_published_scores():
    """Published scores are within 0.01 of an outcome; exact means and deviations agree with the enumeration."""
    for row in rows("published.csv"):
        if row["scenario"] == "gross_average":
            continue
        exact = expected_score(find_scenario(row["scenario"]), table_costs(find_accelerator(row["accelerator"])))
        published = float(row["overall"])
        assert min(abs(outcome.overall - published) for _, _, outcome in exact.outcomes) < 0.01
        assert sum(probability for _, probability, _ in exact.outcomes) == pytest.approx(1)
        if row["exact_mean"]:
            assert exact.mean == pytest.approx(float(row["exact_mean"]), abs=0.001)
            assert exact.std == pytest.approx(float(row["exact_std"]), abs=0.001)
        else:
            assert (len(exact.outcomes), exact.std) == (1, 0.0)


def test_check_vector():
    """VR Gaming on A has a real-time score of 0.7437 for hand tracking and of 1 for both eye tasks."""
    scored = score(run("VR_gaming", "A"))
    assert scored.overall == pytest.approx(86.466, abs=0.001)
    assert {name: round(model.rt, 4) for name, model in scored.models.items()} == {"HT": 0.7437, "ES": 1.0, "GE": 1.0}
    assert {name: round(model.en, 4) for name, model in scored.models.items()} == {
        "HT": 0.8617,
        "ES": 0.9764,
        "GE": 0.9767,
    }
    assert all(model.qoe == 1 for model in scored.models.values())


def test_8k_is_the_same_code():
    """The official tables have costs for 8K, but no scores. Twice the elements raise the mean over all accelerators."""
    means = {
        size: benchmark_score(
            expected_score(find_scenario(scenario), table_costs(find_accelerator(name, size))).mean
            for scenario in scenario_names()
            for name in accelerator_names()
        )
        for size in ("4K", "8K")
    }
    assert 42 < means["4K"] < means["8K"] < 100


def test_schedules_are_appended_to(tmp_path):
    timeline, file = run("VR_gaming", "A"), tmp_path / "schedule.csv"
    once = write_schedule(timeline, file).read_text()
    assert write_schedule(timeline, file).read_text() == once + once
    assert write_schedule(timeline, file, append=False).read_text() == once


def test_seeds_draw_outcomes():
    """40 seeds reach all four outcomes; without a seed, the clock is the seed."""
    scenario, costs = find_scenario("ar-assistant"), table_costs(find_accelerator("A"))
    enumerated = {round(outcome.overall, 6) for _, _, outcome in expected_score(scenario, costs).outcomes}
    drawn = {round(score(simulate(scenario, costs, compat="v0.1", seed=seed)).overall, 6) for seed in range(40)}
    assert drawn == enumerated
    assert simulate(scenario, costs, compat="v0.1", seed=None).seed > 1e9


def test_patterns():
    scenario = find_scenario("outdoor-activity-a")
    probabilities = {tuple(coins["SR"]): probability for probability, coins in patterns(scenario)}
    assert probabilities == pytest.approx(
        {(a, b): (0.2 if a else 0.8) * (0.2 if b else 0.8) for a, b in itertools.product((False, True), repeat=2)}
    )
    with pytest.raises(UsageError, match="43 coins"):
        list(patterns(find_scenario("vr-gaming").changed("GE", probability=0.5)))


def test_integer_intervals():
    fps = {"ES": 60, "HT": 45, "DR": 30, "PD": 15, "SS": 10, "KD": 3}
    tasks = {t.name: t for name in scenario_names() for t in find_scenario(name).tasks if t.fps == fps.get(t.name)}
    assert {name: requests(task) for name, task in tasks.items()} == {
        "ES": 43, "HT": 31, "DR": 21, "PD": 10, "SS": 7, "KD": 2,
    }  # fmt: skip


class TestOneQuirkEach:
    """Quirks of the official program, with costs for which a single rule decides."""

    def costs(self, *units, **latencies):
        """Return costs by unit from latencies in ms, with an energy of 1 mJ."""
        rows = tuple({name: Cost(latency, 1.0) for name, latency in (unit or latencies).items()} for unit in units)
        return Costs(tuple(f"unit {n}" for n in range(len(units))), rows)

    def frames(self, scenario, costs, task, **options):
        """Return the frames of a task in a simulated run."""
        return [f for f in simulate_official(find_scenario(scenario), costs, **options).frames if f.task == task]

    def test_injection_waits_for_an_event(self):
        """AR Gaming ticks every 22 ms. A frame due at 33 ms is injected only at the completion at 40 ms."""
        frames = self.frames("ar-gaming", self.costs({"HT": 1.0, "DE": 1.0, "PD": 38.0}), "DE")
        assert [frame.arrival for frame in frames[:2]] == [0.0, 40.0]

    def test_names_decide(self):
        """DE runs before HT, although HT comes first in the file: the order of names decides."""
        costs = self.costs({"HT": 1.0, "DE": 1.0, "PD": 1.0})
        assert self.frames("ar-gaming", costs, "HT")[0].start == 1.0
        costs = self.costs({"KD": 1.0, "SR": 1.0, "OD": 1.0})
        assert self.frames("outdoor-activity-b", costs, "KD", coins={"SR": [0, 0]})[0].start == 1.0  # after D2go
        costs = self.costs({"KD": 1.0, "SR": 1.0, "OD": 1.0, "SS": 1.0})
        assert self.frames("outdoor-activity-a", costs, "KD", coins={"SR": [0, 0]})[0].start == 0.0  # before OD

    def test_the_end_is_unlogged(self):
        """Frame 42 of both eye tasks is injected at 672 ms, and the program stops."""
        for task in ("ES", "GE"):
            last = self.frames("vr-gaming", self.costs({"HT": 1.0, "ES": 1.0, "GE": 1.0}), task)[-1]
            assert (last.number, last.arrival, last.status) == (42, 672.0, "unlogged")

    def test_dependencies_count_completions(self):
        """After one dropped ES frame, all later GE frames lack one completion and expire."""
        costs = self.costs({"ES": 1.0, "GE": 1.0}, {"HT": 1.0})
        scenario = find_scenario("vr-gaming")
        slow = Costs(costs.units, ({"ES": Cost(17.5, 1), "GE": Cost(0.1, 1)}, {"HT": Cost(1.0, 1)}))
        timeline = simulate_official(scenario, slow)
        first = next(frame.number for frame in timeline.of("ES") if frame.status == "dropped")
        late = [frame for frame in timeline.of("GE") if frame.number > first + 1 and frame.status != "unlogged"]
        assert late and all(frame.status == "dropped" for frame in late)

    def test_a_unit_is_free_a_moment_early(self):
        """HT ends at 22.005 ms. Its unit takes the next frame at 22 ms, but the true end is logged."""
        costs = self.costs({"HT": 22.005, "DE": 999.0, "PD": 999.0}, {"DE": 1.0, "PD": 1.0})
        frames = self.frames("ar-gaming", Costs(costs.units, ({"HT": Cost(22.005, 1)}, costs.rows[1])), "HT")
        assert frames[1].start == 22.0 and frames[0].end == pytest.approx(22.005)

    def test_never_waits_for_a_faster_unit(self):
        costs = self.costs({"HT": 2.0, "DE": 1.0, "PD": 1.0}, {"HT": 300.0, "DE": 300.0, "PD": 300.0})
        timeline = simulate_official(find_scenario("ar-gaming"), costs)
        assert [(frame.task, frame.unit) for frame in timeline.frames[:3]] == [("DE", 0), ("HT", 1), ("PD", 0)]

    def test_failed_coins_are_neither_run_nor_dropped(self):
        costs = self.costs({"KD": 1.0, "SR": 1.0, "OD": 1.0})
        timeline = simulate_official(find_scenario("outdoor-activity-b"), costs, coins={"SR": [False, False]})
        scored = score(timeline).models["SR"]
        assert (scored.executed, scored.dropped, scored.skipped, scored.logged) == (0, 0, 2, False)

    def test_both_penalties(self):
        """With half of the frames dropped, earned / asked × QoE is 25; the paper's earned / executed × QoE is 50."""
        costs = Costs(("unit",), ({"HT": Cost(0.0, 0.0), "ES": Cost(0.0, 0.0), "GE": Cost(0.0, 0.0)},))
        timeline = simulate_official(find_scenario("vr-gaming"), costs)
        for frame in timeline.of("HT"):
            frame.status, frame.end = ("done", frame.arrival) if frame.number < 15 else ("dropped", None)
        for frame in timeline.of("HT")[30:]:
            frame.status = "unlogged"
        assert score(timeline).models["HT"].score == pytest.approx(25)
        assert score(timeline, drop_penalty="paper").models["HT"].score == pytest.approx(50)

    def test_edp_greedy(self):
        row = lambda latency, energy: {name: Cost(latency, energy) for name in ("HT", "DE", "PD")}
        costs = Costs(("fast", "frugal"), (row(1.0, 100.0), row(2.0, 10.0)))
        first = lambda scheduler: simulate_official(find_scenario("ar-gaming"), costs, scheduler).frames[0].unit
        assert (first("latency-greedy"), first("edp-greedy")) == (0, 1)


def test_bad_options():
    scenario, costs = find_scenario("ar-gaming"), table_costs(find_accelerator("A"))
    with pytest.raises(UsageError, match="'edf' of compat v0.1"):
        simulate(scenario, costs, compat="v0.1", scheduler="edf")
    with pytest.raises(UsageError, match="valid: v0.1"):
        simulate(scenario, costs, compat="v0.2")
    with pytest.raises(UsageError, match="preempt"):
        simulate(scenario, costs, compat="v0.1", preempt=True)
    with pytest.raises(UsageError, match="no scenarios"):
        benchmark_score([])
