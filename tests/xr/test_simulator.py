"""The simulator: invariants of every run, and the effect of every rule."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jettison.core.errors import UsageError
from jettison.domains.perception.xr.catalog import UnitModel
from jettison.xr.costs import Cost, Costs, table_costs
from jettison.xr.definitions import Scenario, Task, find_accelerator, find_scenario, scenario_names
from jettison.xr.dispatch import SCHEDULERS
from jettison.xr.frames import make_frames
from jettison.xr.scores import energy_score, inference_score, real_time_score, score, summary
from jettison.xr.simulator import simulate

EPS = 1e-9
latency = st.floats(0.1, 60.0)


def plain(name: str, fps: float, after=(), **fields) -> Task:
    """Return a task of a made-up model."""
    return Task(UnitModel(name, name, name), fps, tuple(after), **fields)


def alone(fps: float) -> Scenario:
    """Return a scenario of one task, m."""
    return Scenario("alone", "Alone", (plain("m", fps),))


def one(latency_ms: float, energy_mj: float = 0.0, **models: float) -> Costs:
    """Return costs on one unit. models: latencies of other models than m, in ms."""
    rows = {"m": Cost(latency_ms, energy_mj)} | {name: Cost(value, energy_mj) for name, value in models.items()}
    return Costs(("unit",), (rows,))


@st.composite
def runs(draw):
    """Draw a known scenario, costs on one to three units, and all options. Returns the run and the costs."""
    scenario = find_scenario(draw(st.sampled_from(scenario_names())))
    ends = draw(st.sampled_from([(1.0,), (0.3, 1.0), (0.1, 0.2, 0.5, 0.8, 1.0)]))
    rows = tuple(
        {task.name: Cost(draw(latency), draw(st.floats(0, 2000)), ends) for task in scenario.tasks}
        for _ in range(draw(st.integers(1, 3)))
    )
    costs = Costs(tuple(f"unit {number}" for number in range(len(rows))), rows)
    return simulate(
        scenario,
        costs,
        horizon_ms=draw(st.sampled_from([50.0, 333.0, 1000.0])),
        scheduler=draw(st.sampled_from(sorted(SCHEDULERS))),
        seed=draw(st.integers(0, 99)),
        jitter=draw(st.booleans()),
        preempt=draw(st.booleans()),
    ), costs


@settings(max_examples=150, deadline=None)
@given(runs())
def test_every_run(run):
    timeline, costs = run
    busy = [[] for _ in costs.units]
    for frame in timeline.frames:
        assert frame.status in ("done", "dropped", "skipped")
        assert (frame.end is not None) == (frame.status == "done"), "no frame is both dropped and run"
        assert (not frame.spans) == (frame.status != "done")
        if frame.status == "done":
            first, cost = frame.spans[0], costs.rows[frame.spans[0][0]][frame.task]
            assert first[1] >= frame.arrival - EPS and first[1] <= frame.deadline + EPS
            assert all(parent.status == "done" and parent.end <= first[1] + EPS for parent in frame.parents)
            done = sum((end - start) / costs.rows[unit][frame.task].latency_ms for unit, start, end in frame.spans)
            assert done == pytest.approx(1), "work is conserved"
            if len(frame.spans) == 1:
                assert frame.energy == pytest.approx(cost.energy_mj)
        for unit, start, end in frame.spans:
            busy[unit].append((start, end))
    for spans in busy:
        spans.sort()
        assert all(a[1] <= b[0] + EPS for a, b in pairwise(spans)), "one frame of a unit at a time"
    asked = len([frame for frame in timeline.frames if frame.status != "skipped"])
    counted = score(timeline).models.values()
    assert sum(model.executed + model.dropped for model in counted) == asked
    assert sum(timeline.busy_ms) == pytest.approx(sum(end - start for spans in busy for start, end in spans))


@settings(max_examples=60, deadline=None)
@given(runs())
def test_no_unit_rests_while_a_frame_could_run(run):
    timeline, costs = run
    for frame in timeline.frames:
        if frame.status == "dropped" and all(parent.status == "done" for parent in frame.parents):
            ready = max([frame.arrival, *(parent.end for parent in frame.parents)])
            for unit in range(len(costs.units)):
                busy = [s for f in timeline.frames for s in f.spans if s[0] == unit and s[2] > ready + EPS]
                busy = sorted((max(start, ready), min(end, frame.deadline)) for _, start, end in busy)
                assert sum(end - start for start, end in busy if end > start) >= frame.deadline - ready - 1e-6


@settings(max_examples=200, deadline=None)
@given(st.floats(1, 120), latency, st.floats(1.0, 10.0))
def test_speed_never_costs_a_deadline(fps, slow, factor):
    """A faster unit never has a lower score, for one model on one unit.

    This is exact if the faster unit keeps up. If neither does, all frames are late, and the delay of the first frame
    after a drop depends on the phase. The score may then be lower by at most a thousandth.
    """
    fast = slow / factor
    scores = [score(simulate(alone(fps), one(value), horizon_ms=2000)).models["m"] for value in (fast, slow)]
    fits = fast <= 1000 / fps - 0.5
    assert scores[0].rt >= scores[1].rt - (1e-12 if fits else 1e-3)
    assert not fits or scores[0].qoe == 1


@settings(max_examples=60, deadline=None)
@given(st.floats(5, 120), st.floats(0.01, 0.95))
def test_a_model_that_fits_is_never_late(fps, load):
    """A model with a latency below its period runs every frame on arrival, without waiting or drops."""
    timeline = simulate(alone(fps), one(load * 1000 / fps), horizon_ms=1000)
    assert all(frame.status == "done" and frame.start == frame.arrival for frame in timeline.frames)
    assert score(timeline).models["m"].qoe == 1


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_the_same_seed_gives_the_same_run(scheduler):
    scenario, costs = find_scenario("ar-assistant"), table_costs(find_accelerator("J"))
    events = lambda seed: [
        (f.task, f.number, f.status, f.start, f.end)
        for f in simulate(scenario, costs, horizon_ms=3000, scheduler=scheduler, seed=seed).frames
    ]
    assert events(3) == events(3) != events(4)


def test_schedulers_differ_as_they_say():
    """When block ends at 110.5 ms, two frames wait: long (older, due later) and short (newer, due sooner)."""
    tasks = (plain("block", 1), plain("long", 4, ["block"]), plain("short", 10))
    costs = one(0, block=100.5, long=30.0, short=10.0)
    first = {}
    for name in SCHEDULERS:
        run = simulate(Scenario("s", "S", tasks), costs, horizon_ms=250, scheduler=name, jitter=False)
        after = [f for f in run.frames if f.task != "block" and f.start is not None and f.start >= 110]
        first[name] = min(after, key=lambda frame: frame.start).task
    assert first == {"fifo": "long", "edf": "short", "latency-greedy": "short", "edp-greedy": "short"}


def test_edp_prefers_the_frugal_unit():
    costs = Costs(("fast", "frugal"), ({"m": Cost(1.0, 100.0)}, {"m": Cost(2.0, 10.0)}))
    units = lambda name: {f.unit for f in simulate(alone(10), costs, scheduler=name).frames}
    assert (units("latency-greedy"), units("edp-greedy")) == ({0}, {1})


def test_a_drop_of_the_parent_is_a_drop_of_the_child():
    tasks = (plain("up", 10), plain("down", 10, ["up"]))
    run = simulate(Scenario("s", "S", tasks), one(0, up=150.0, down=1.0), horizon_ms=1000, jitter=False)
    for frame in run.of("down"):
        assert frame.status == "dropped" or frame.parents[0].status == "done"
    assert any(f.status == "dropped" and f.parents[0].status == "dropped" for f in run.of("down"))


def test_control_asks_only_through_an_output():
    tasks = (plain("up", 10), plain("down", 10, ["up"], through="control", probability=0.5))
    scenario = Scenario("s", "S", tasks)
    run = simulate(scenario, one(0, up=1.0, down=1.0), horizon_ms=10_000)
    statuses = [frame.status for frame in run.of("down")]
    assert set(statuses) == {"done", "skipped"} and 30 < statuses.count("done") < 70
    slow = simulate(scenario, one(0, up=150.0, down=1.0), horizon_ms=10_000)
    assert all(f.status == "skipped" for f in slow.of("down") if f.parents[0].status == "dropped")


def test_dependencies_across_rates():
    """A task depends on the last frame of the other task that was due when its own frame arrived, at any rates."""
    down = Scenario("s", "S", (plain("up", 30), plain("down", 10, ["up"])))
    assert [f.parents[0].number for f in make_frames(down, 400, 0) if f.task == "down"] == [0, 3, 6, 9]
    up = Scenario("s", "S", (plain("up", 10), plain("down", 30, ["up"])))
    assert [f.parents[0].number for f in make_frames(up, 190, 0) if f.task == "down"] == [0, 0, 0, 1, 1, 1]


def test_jitter_is_applied():
    scenario = find_scenario("vr-gaming")
    exact, shaken = make_frames(scenario, 500, 0, jitter=False), make_frames(scenario, 500, 0)
    assert [frame.arrival for frame in exact if frame.task == "ES"][:2] == [0.0, pytest.approx(1000 / 60)]
    shifts = [b.arrival - b.number * 1000 / 60 for b in shaken if b.task == "ES"]
    assert 0.02 < max(map(abs, shifts)) <= 0.05
    by_number = {(frame.task, frame.number): frame for frame in shaken}
    assert all(
        frame.deadline == by_number[frame.task, frame.number + 1].arrival
        for frame in shaken
        if (frame.task, frame.number + 1) in by_number
    )


def test_preemption_at_layer_boundaries():
    """long begins at 0 and has layers of 25 ms; short is due every 20 ms. EDF preempts only at the ends of layers."""
    tasks = (plain("long", 4), plain("short", 50))
    costs = Costs(("unit",), ({"long": Cost(100.0, 8.0, (0.25, 0.5, 0.75, 1.0)), "short": Cost(1.0, 1.0)},))
    results = {}
    for preempt in (False, True):
        run = simulate(Scenario("s", "S", tasks), costs, horizon_ms=240, scheduler="edf", preempt=preempt, jitter=False)
        results[preempt] = run, score(run).models
    long = results[True][0].of("long")[0]
    assert len(long.spans) > 2 and long.energy == pytest.approx(8.0)
    assert all((end - start) % 25 == pytest.approx(0, abs=1e-6) for _, start, end in long.spans)
    assert results[True][1]["short"].dropped < results[False][1]["short"].dropped


def test_models_may_be_tied_to_units():
    costs = Costs(("a", "b"), ({"HT": Cost(1, 1), "DE": Cost(1, 1)}, {"PD": Cost(1, 1)}))
    run = simulate(find_scenario("ar-gaming"), costs)
    assert {(frame.task, frame.unit) for frame in run.frames} == {("HT", 0), ("DE", 0), ("PD", 1)}


def test_scores_by_hand():
    assert real_time_score(0) == 0.5 and real_time_score(-1) > 0.9999 and real_time_score(1e9) < 1e-300
    assert energy_score(150) == 0.9 and energy_score(3000) == 0 and energy_score(3000, clamp=False) == -1
    run = simulate(alone(10), one(1.0, 300.0), horizon_ms=1000)
    assert inference_score(run.frames[0], 0.5) == pytest.approx(0.4)
    assert score(run).overall == pytest.approx(80) and score(run, accuracy={"m": 0.5}).overall == pytest.approx(40)
    model = find_scenario("vr-gaming").task("GE").model
    assert model.accuracy_score(3.39) == 1 and model.accuracy_score(6.78) == 0.5  # for GE, lower is better
    assert find_scenario("vr-gaming").task("HT").model.accuracy_score(0.474) == pytest.approx(0.5)


def test_summary():
    result = summary([1.0, 2.0, 3.0])
    assert (result.mean, result.std, result.count) == (2.0, 1.0, 3)
    assert result.high - result.mean == pytest.approx(4.3027 / 3**0.5, abs=1e-4)  # Student's t, two degrees of freedom
    assert summary([5.0]).low == 5.0


class TestBadInput:
    def file(self, tmp_path, tasks: str) -> str:
        """Write a scenario file and return its path."""
        (tmp_path / "mine.yaml").write_text(f"mine: {{title: Mine, tasks: [{tasks}]}}", encoding="utf-8")
        return str(tmp_path / "mine.yaml")

    @pytest.mark.parametrize(
        ("tasks", "message"),
        [
            ("{model: ES, fps: 60, after: [GE]}, {model: GE, fps: 60, after: [ES]}", "ES, GE are circular"),
            ("{model: ES, fps: 60, after: [ES]}", "are circular"),
            ("{model: ES, fps: 0}", "ES fps = 0; valid: a rate from"),
            ("{model: ES, fps: fast}", "ES fps = 'fast'"),
            ("{model: ES, fps: .inf}", "ES fps = inf"),
            ("{model: EX, fps: 60}", "unknown model 'EX' of scenario 'mine'; valid: AS"),
            ("{model: ES, fps: 60, after: [HT]}", "unknown model 'HT', which ES comes after"),
            ("{model: ES, fps: 60, probability: 1.5}", "probability = 1.5; valid: from 0 to 1"),
            ("{model: ES, fps: 60, through: wire}", "unknown value of through 'wire'"),
            ("{model: ES, fps: 60, rate: 3}", "unknown field 'rate' of a task"),
            ("{model: ES, fps: 60}, {model: ES, fps: 30}", "ES is listed twice"),
            ("{model: ES}", "a task is a mapping with model and fps"),
            ("{model: ES, fps: 5, after: 3}", "after of ES in scenario 'mine' = 3: a name or a list"),
            ("{model: ES, fps: 5, after: [[ES]]}", "a name or a list of names is needed"),
            ("{model: ES, fps: 5, network: 3}", "network of ES in scenario 'mine' = 3: a text"),
        ],
    )
    def test_scenarios(self, tmp_path, tasks, message):
        with pytest.raises(UsageError, match=message):
            find_scenario(self.file(tmp_path, tasks))

    @pytest.mark.parametrize(
        ("models", "message"),
        [
            ("[det]", "models are a mapping"),
            ("{det: }", "model 'det': a mapping of fields is needed"),
            ("{det: {input: 5}}", "input = 5; a list of whole numbers"),
            ("{det: {input: [3, 0]}}", "input = \\[3, 0\\]"),
            ("{det: {target: high}}", "target = 'high'"),
            ("{det: {better: larger}}", "unknown value of better 'larger'"),
            ("{det: {sensor: radar}}", "unknown sensor 'radar' of model 'det'"),
            ("{det: {file: 3}}", "file of model 'det' = 3: a text"),
            ("{det: {jitter: 3}}", "unknown field 'jitter' of model 'det'"),
        ],
    )
    def test_models_of_ones_own(self, tmp_path, models, message):
        (tmp_path / "mine.yaml").write_text(f"mine: {{tasks: [{{model: det, fps: 5}}], models: {models}}}")
        with pytest.raises(UsageError, match=message):
            find_scenario(tmp_path / "mine.yaml")

    def test_files(self, tmp_path):
        assert find_scenario(self.file(tmp_path, "{model: ES, fps: 5}")).kind == "concurrent"
        for text in ("[1, 2]", "", "a: {tasks: []}", "a: 3", "a: {tasks: [{model: ES, fps: 5}], colour: red}"):
            (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
            with pytest.raises(UsageError):
                find_scenario(tmp_path / "bad.yaml")
        with pytest.raises(UsageError, match="cannot read scenario file"):
            find_scenario(tmp_path / "none.yaml")
        with pytest.raises(UsageError, match="did you mean 'vr-gaming'"):
            find_scenario("vr-gamin")

    def test_costs(self):
        scenario, full = find_scenario("vr-gaming"), table_costs(find_accelerator("A"))
        without = Costs(full.units, ({name: cost for name, cost in full.rows[0].items() if name != "GE"},))
        for compat in (None, "v0.1"):
            with pytest.raises(UsageError, match="no cost of model 'GE' on any of WS 4096"):
                simulate(scenario, without, compat=compat)
        for bad in (-1.0, float("nan"), float("inf"), "fast", True, None):
            with pytest.raises(UsageError, match="latency_ms"):
                Cost(bad, 1.0)
        with pytest.raises(UsageError, match="unit -> model"):
            Costs.from_dict([1])
        with pytest.raises(UsageError, match="latency_ms and energy_mj are needed"):
            Costs.from_dict({"cpu": {"ES": 3}})
        with pytest.raises(UsageError, match="cost of 'ES' on 'cpu': latency_ms = 'fast'"):
            Costs.from_dict({"cpu": {"ES": {"latency_ms": "fast", "energy_mj": 1}}})
        assert Costs.from_dict(full.to_dict()).rows[0]["ES"].latency_ms == full.rows[0]["ES"].latency_ms

    def test_options(self):
        scenario, costs = find_scenario("vr-gaming"), table_costs(find_accelerator("A"))
        for options in ({"horizon_ms": 0}, {"horizon_ms": float("nan")}, {"seed": -1}, {"scheduler": "lifo"}):
            with pytest.raises(UsageError, match=str(next(iter(options.values())))):
                simulate(scenario, costs, **options)
        run = simulate(scenario, costs)
        for options in ({"drop_penalty": "none"}, {"accuracy": {"KD": 1.0}}, {"accuracy": {"ES": 2.0}}):
            with pytest.raises(UsageError):
                score(run, **options)
        with pytest.raises(UsageError, match="unknown accelerator 'Z'"):
            find_accelerator("Z")
        with pytest.raises(UsageError, match="unknown size '2K'"):
            find_accelerator("A/2K")


def test_classes():
    assert {name: find_scenario(name).kind for name in scenario_names()} == {
        **dict.fromkeys(scenario_names(), "cascaded-concurrent"),
        "ar-gaming": "concurrent",
    }
    speech = find_scenario("outdoor-activity-a")
    assert replace(speech, tasks=speech.tasks[:2]).kind == "cascaded"


def test_a_dispatcher_that_takes_its_time_sees_what_comes_meanwhile():
    """late (8 ms) arrives just before quick (1 ms). Dispatched at once, late goes first; 0.5 ms later, quick does."""
    tasks = (plain("late", 10), plain("quick", 10))
    rows = one(0, late=8.0, quick=1.0)
    frames = {}
    for reaction in (0.0, 0.5):
        run = simulate(Scenario("s", "S", tasks), replace(rows, reaction_ms=reaction), horizon_ms=90, jitter=False)
        frames[reaction] = {frame.task: frame for frame in run.frames}
    assert frames[0.5]["quick"].start == 0.5 and frames[0.5]["late"].start == pytest.approx(2.0)
    assert all(frame.status == "done" for frame in frames[0.5].values())


def test_measured_latencies_are_drawn_from():
    costs = Costs(("unit",), ({"m": Cost(2.0, 0.0, samples=(1.0, 2.0, 6.0))},))
    latencies = lambda seed: [round(f.end - f.start, 9) for f in simulate(alone(100), costs, seed=seed).frames]
    assert set(latencies(0)) == {1.0, 2.0, 6.0} and latencies(0) == latencies(0) != latencies(1)
    assert 2.5 < sum(latencies(0)) / len(latencies(0)) < 3.5
