"""XRBench: live runs on real units, written runs, sweeps, tuning, and the commands."""

import json
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from jettison.core.errors import UsageError
from jettison.reports.xr_charts import heat_map, score_bars
from jettison.xr.costs import table_costs
from jettison.xr.definitions import find_accelerator, find_scenario
from jettison.xr.live import run_live, scenario_variants
from jettison.xr.results import compare, write_page
from jettison.xr.scores import score
from jettison.xr.simulator import simulate
from jettison.xr.sweep import sweep, table, vary
from jettison.xr.trace import from_dict, to_dict, write_trace
from jettison.xr.tune import check_runs, tune
from jettison.xr.units import Units


@pytest.fixture(scope="module")
def slow_hands(tmp_path_factory):
    """Return a scenario that any machine keeps up with: two eye tasks and keyword detection a few times a second."""
    path = tmp_path_factory.mktemp("xr") / "calm.yaml"
    path.write_text(
        "calm: {title: Calm, tasks: [{model: ES, fps: 8}, {model: GE, fps: 8, after: [ES]}, {model: KD, fps: 3}]}"
    )
    return find_scenario(path)


@pytest.fixture(scope="module")
def lived(slow_hands):
    with Units(scenario_variants(slow_hands, "tiny", {"*": "folded"} | {"KD": "original"}), 2, 1) as units:
        costs = units.measure(3)
        return run_live(slow_hands, units, costs, horizon_ms=1000), costs


class TestLive:
    def test_frames_run_by_the_clock(self, lived, slow_hands):
        run, costs = lived
        assert run.live and len(run.frames) == 8 + 8 + 3 and len(costs.units) == 2
        assert [f.status for f in run.frames].count("done") >= 15
        for frame in run.frames:
            if frame.status == "done":
                assert frame.arrival <= frame.start < frame.end and frame.energy > 0
                assert all(parent.end <= frame.start for parent in frame.parents)
        spans = [sorted(s[1:] for f in run.frames for s in f.spans if s[0] == unit) for unit in range(2)]
        assert all(a[1] <= b[0] for unit in spans for a, b in pairwise(unit))

    def test_the_same_frames_as_simulated(self, lived, slow_hands):
        run, costs = lived
        simulated = simulate(slow_hands, costs, horizon_ms=1000)
        requests = lambda timeline: [(f.task, f.number, f.arrival, f.deadline) for f in timeline.frames]
        assert requests(run) == requests(simulated)
        assert abs(score(run).overall - score(simulated).overall) < 35  # the machine may be busy with other work

    def test_what_goes_wrong_in_a_unit_is_told(self, slow_hands):
        with pytest.raises(UsageError, match="unknown size 'none'"), Units(scenario_variants(slow_hands, "none")):
            pass
        with pytest.raises(UsageError, match="units = 0"):
            Units({}, 0)
        with pytest.raises(UsageError, match="rounds = 0"):
            Units({}).measure(0)
        with pytest.raises(UsageError, match="unknown model 'HT'"):
            scenario_variants(slow_hands, "tiny", {"HT": "folded"})


class TestWritten:
    def run(self):
        """Return a simulated run with preemption."""
        return simulate(
            find_scenario("ar-assistant"), table_costs(find_accelerator("J")), preempt=True, scheduler="edf"
        )

    def test_round_trip(self):
        run = self.run()
        again = from_dict(json.loads(json.dumps(to_dict(run))))
        assert score(again) == score(run) and again.busy_ms == pytest.approx(run.busy_ms)
        assert any(frame.pieces for frame in again.frames)
        with pytest.raises(UsageError, match=r"mine.json is no run"):
            from_dict({"scenario": "vr-gaming"}, "mine.json")

    def test_trace(self, tmp_path):
        run = self.run()
        events = json.loads(write_trace(run, tmp_path / "trace.json").read_text())["traceEvents"]
        spans = [event for event in events if event["ph"] == "X"]
        assert len(spans) == sum(len(frame.spans) for frame in run.frames)
        assert sum(event["dur"] for event in spans) == pytest.approx(1e3 * sum(run.busy_ms))
        drops = [event for event in events if event["ph"] == "i"]
        assert len(drops) == sum(frame.status == "dropped" for frame in run.frames)
        assert {event["args"]["name"] for event in events if event["name"] == "thread_name"} >= {
            "0: WS 2048",
            "1: OS 2048",
        }

    def test_arrows_of_a_trace(self, tmp_path):
        """Arrows lead from every ES frame to the GE frame that waited for it. Perfetto needs both ends within a bar."""
        run = simulate(find_scenario("vr-gaming"), table_costs(find_accelerator("D")))
        events = json.loads(write_trace(run, tmp_path / "trace.json").read_text())["traceEvents"]
        flows = {kind: [e["id"] for e in events if e["ph"] == kind] for kind in "sf"}
        assert flows["s"] == flows["f"] and len(flows["s"]) == sum(f.status == "done" for f in run.of("GE")) > 50
        spans = [event for event in events if event["ph"] == "X"]
        within = lambda e, s: s["tid"] == e["tid"] and s["ts"] <= e["ts"] < s["ts"] + s["dur"]
        assert all(any(within(event, span) for span in spans) for event in events if event["ph"] in "sf")

    def test_page(self, tmp_path):
        run = self.run()
        page = write_page(tmp_path / "page.html", "A <title>", {"one": (run, score(run)), "two": (run, score(run))})
        text = page.read_text()
        assert "A &lt;title&gt;" in text and "timeline-1" in text and f"{score(run).overall:.2f}" in text
        again = write_page(tmp_path / "again.html", "A <title>", {"one": (run, score(run)), "two": (run, score(run))})
        assert again.read_text() == text


def test_long_names_stay_apart():
    names = ["a-run-with-a-very-long-name-1", "a-run-with-a-very-long-name-2"]
    assert list(score_bars(names, [1.0, 2.0]).data[0].y) == names
    rows = ["social-interaction-a, GE 0.25", "social-interaction-a, GE 0.5"]
    figure = heat_map(rows, ["A"], [[1.0], [2.0]])
    assert list(figure.data[0].y) == list(figure.layout.yaxis.tickvals) == rows
    assert list(figure.layout.yaxis.ticktext) == ["social-interaction-a<br>GE 0.25", "social-interaction-a<br>GE 0.5"]


class TestSweep:
    scenarios = ("ar-gaming", "outdoor-activity-b")

    def columns(self, *names):
        """Return the costs of the scenarios on these accelerators."""
        return {name: {s: table_costs(find_accelerator(name)) for s in self.scenarios} for name in names}

    def test_workers_do_not_matter(self):
        scenarios = [find_scenario(name) for name in self.scenarios]
        one, two = (sweep(scenarios, self.columns("A", "J"), seeds=60, workers=workers) for workers in (1, 2))
        assert one == two and len(one) == 4 and all(len(cell.scores) == 60 for cell in one)
        direct = score(simulate(scenarios[1], table_costs(find_accelerator("J")), seed=59)).overall
        assert one[3].scores[59] == direct and one[3].summary.low < one[3].mean < one[3].summary.high

    def test_probabilities(self):
        """Every combination of probabilities is a row, with its own costs and random draws."""
        scenario, other = find_scenario("ar-assistant"), find_scenario("ar-gaming")
        rows = vary([scenario, other], {"SR": [0, 1], "PD": [0.5]})
        names = ["ar-assistant, SR 0, PD 0.5", "ar-assistant, SR 1, PD 0.5", "ar-gaming, PD 0.5"]
        assert [row.name for row in rows] == names
        assert [row.task("PD").probability for row in rows] == [0.5] * 3 and rows[1].task("SR").probability == 1
        costs = table_costs(find_accelerator("J"))
        cells = sweep(rows, {"J": dict.fromkeys(names, costs)}, seeds=2, horizon_ms=2000)
        direct = simulate(scenario.changed("SR", probability=1).changed("PD", probability=0.5), costs, horizon_ms=2000)
        assert cells[1].scores[0] == score(direct).overall != cells[0].scores[0]
        assert table(cells)[0] == [*names, "mean"] and table(cells, mean=False)[0] == names
        assert vary([scenario], {}) == [scenario]
        with pytest.raises(UsageError, match="unknown model 'HT' of ar-assistant"):
            vary([scenario], {"HT": [0.5]})
        with pytest.raises(UsageError, match="SR probability = 2"):
            vary([scenario], {"SR": [2]})

    def test_exact(self):
        scenarios = [find_scenario(name) for name in self.scenarios]
        rows, columns, means = table(sweep(scenarios, self.columns("A", "J"), exact=True, compat="v0.1"))
        assert (rows, columns) == ([*self.scenarios, "mean"], ["A", "J"])
        assert means[1] == [pytest.approx(59.8535, abs=1e-3), pytest.approx(71.9867, abs=1e-3)]
        assert means[2][0] == pytest.approx((means[0][0] + means[1][0]) / 2)
        with pytest.raises(UsageError, match="exact"):
            sweep(scenarios, self.columns("A"), exact=True)
        with pytest.raises(UsageError, match="seeds = 0"):
            sweep(scenarios, self.columns("A"), seeds=0)


class TestTune:
    def test_by_a_roofline(self, tmp_path):
        """On a slow device, the search never lowers the score, and reports the effect of every change alone."""
        path = tmp_path / "fast.yaml"
        path.write_text("fast: {tasks: [{model: DE, fps: 120}, {model: KD, fps: 30}]}")
        (tmp_path / "slow.yaml").write_text("{bandwidth: 2.0e+8, memory: 1.0e+9, flops: {fp32: 1.0e+9, fp16: 4.0e+9}}")
        scenario = find_scenario(path)
        result = tune(
            scenario, device=str(tmp_path / "slow.yaml"), size="tiny", recipes=("bfloat16", "w8", "half"), floor=0
        )
        values = [result.before, *(value for *_, value in result.steps)]
        assert values == sorted(values) and values[-1] == result.after > result.before
        assert result.choice["DE"] != "original" and set(result.choice) == {"DE", "KD"}
        assert "DE w8" in result.left_out and "no linear layers" in result.left_out["DE w8"]
        assert result.singles[0][2] == max(value for *_, value in result.singles)
        runs = check_runs(scenario, result, page=tmp_path / "page.html")
        assert runs["before"]["score"]["overall"] < runs["after"]["score"]["overall"]
        assert "What was changed" in (tmp_path / "page.html").read_text()

    def test_the_floor_and_what_was_measured(self, tmp_path):
        scenario = find_scenario("ar-gaming").changed("HT", fps=1)
        options = {"device": "raspberry-pi-5", "size": "tiny", "recipes": ("half",), "floor": 0.95}
        result = tune(scenario, **options, quality={"DE": {"half": 22.9}, "PD": {"half": 0.2}})
        kinds = {(o.model, o.recipe): (o.accuracy, o.kind) for o in result.options}
        assert kinds["DE", "half"] == (1.0, "quality")
        assert "quality 0.541 is below 0.95" in result.left_out["PD half"]
        with pytest.raises(UsageError, match="floor = 2"):
            tune(scenario, **options | {"floor": 2})
        with pytest.raises(UsageError, match="unknown part 'w9'"):
            tune(scenario, **options | {"recipes": ("w9",)})
        for quality, message in (
            ([], "quality is a mapping"),
            ({"DE": 3}, "quality is a mapping"),
            ({"DE": {"half": "good"}}, "quality of model 'DE' = 'good'"),
            ({"DE": {"halve": 22.9}}, "unknown part 'halve'"),
            ({"ES": {"half": 90.0}}, "unknown model 'ES'"),
        ):
            with pytest.raises(UsageError, match=message):
                tune(scenario, **options, quality=quality)


class TestDocs:
    @pytest.fixture(autouse=True)
    def docs(self, monkeypatch):
        folder = Path(__file__).parents[2] / "docs"
        monkeypatch.syspath_prepend(str(folder))
        return folder

    def test_timelines(self):
        """One frame in time, one late, one dropped, on two units.

        Every frame that ran has a bar in the row of its unit and in the row of its task.
        """
        from pictures import timelines

        frames = [
            ["HT", 0, 100, "done", [[0, 10, 50]]],
            ["HT", 100, 200, "done", [[1, 150, 250]]],
            ["<b>", 0, 150, "dropped", []],
        ]
        svg = timelines({"a < b": frames}, ["HT", "<b>"], 2, 300)
        root = ElementTree.fromstring(svg)  # texts are escaped
        kinds = [element.tag.rpartition("}")[2] for element in root.iter()]
        assert kinds.count("rect") == 1 + 3 + 2 * 2 and svg.count('stroke-width="1.5"') == 2
        crosses = [element for element in root.iter() if "l6 6" in element.get("d", "")]
        assert len(crosses) == 1 and kinds.count("path") == 3
        bars = [element for element in root.iter() if element.get("height") == "14"]
        assert {float(bar.get("width")) for bar in bars} == {104.0, 260.0}, "40 and 100 of 300 ms on 780"


class TestCommands:
    def test_run_and_compare(self, jettison, tmp_path):
        a, b = tmp_path / "a.json", tmp_path / "b.json"
        code, out, _ = jettison(
            "xr", "run", "vr-gaming", "-a", "A", "--compat", "v0.1", "--json", a, "--csv", tmp_path / "s.csv"
        )
        assert code == 0 and "86.466" in out and (tmp_path / "s.csv").read_text().count("\n") == 116
        files = ("--page", tmp_path / "p.html", "--trace", tmp_path / "t.json")
        code, out, _ = jettison("xr", "run", "vr-gaming", "-a", "J", "--seeds", 3, "--preempt", "--json", b, *files)
        assert (
            code == 0 and "95 % interval" in out and (tmp_path / "p.html").exists() and (tmp_path / "t.json").exists()
        )
        code, out, _ = jettison("xr", "compare", a, b, "--page", tmp_path / "c.html", "--json", tmp_path / "c.json")
        assert code == 0 and "86.47" in out
        rows = json.loads((tmp_path / "c.json").read_text())["rows"]
        assert [row["name"] for row in rows] == ["a", "b"] and len(compare([a, b])["rows"]) == 2

    def test_sweep(self, jettison, tmp_path):
        code, out, _ = jettison("xr", "sweep", "--compat", "v0.1", "--exact", "--page", tmp_path / "s.html")
        assert code == 0 and "mean" in out and "map-0" in (tmp_path / "s.html").read_text()
        rates = ("--probability", "GE=0.25", "--probability", "GE=1")
        code, _, _ = jettison("xr", "sweep", "vr-gaming", "vr-gaming", "-a", "J", *rates, "--json", tmp_path / "s.json")
        rows = json.loads((tmp_path / "s.json").read_text())["rows"]
        assert code == 0 and rows == ["vr-gaming, GE 0.25", "vr-gaming, GE 1"], "no mean of one scenario, none twice"

    def test_costs_of_ones_own(self, jettison, tmp_path):
        (tmp_path / "costs.yaml").write_text("cpu: {HT: {latency_ms: 5, energy_mj: 3}}")
        (tmp_path / "mine.yaml").write_text("mine: {tasks: [{model: HT, fps: 30}]}")
        code, out, _ = jettison("xr", "run", tmp_path / "mine.yaml", "--costs", tmp_path / "costs.yaml")
        assert code == 0 and "99.80" in out
        code, _, err = jettison("xr", "run", "vr-gaming", "--costs", tmp_path / "costs.yaml")
        assert code == 2 and "no cost of model 'ES' on any of cpu" in err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("run", "vr-gaming", "-a", "Q"), "unknown accelerator 'Q'"),
            (("run", "vr-gaming", "--seconds", "0"), "horizon = 0.0 ms"),
            (("run", "nowhere"), "unknown scenario 'nowhere'"),
            (("compare", "one.json"), "two runs at least"),
            (("sweep", "--exact"), "exact = True"),
            (("run", "vr-gaming", "--recipe", "folded"), "recipe = folded: only native models"),
            (("run", "vr-gaming", "--drop-penalty", "none"), "unknown drop penalty"),
            (("compare", "one.json", "./one.json"), "the same file is named twice"),
            (("sweep", "-a", "A", "--device", "raspberry-pi-5"), "one of them"),
            (("sweep", "-a", "A", "--recipe", "folded"), "table without recipes"),
            (("sweep", "vr-gaming", "--probability", "GE"), "MODEL=P is needed"),
            (("sweep", "vr-gaming", "--probability", "SR=0.5"), "unknown model 'SR' of vr-gaming"),
            (("live", "vr-gaming", "--model", "ES"), "MODEL=VALUE is needed"),
            (("live", "vr-gaming", "--scheduler", "lifo"), "unknown scheduler 'lifo'"),
            (("live", "vr-gaming", "--rounds", "0"), "rounds = 0"),
            (("tune", "vr-gaming", "--device", "nowhere"), "unknown device 'nowhere'"),
            (("tune", "vr-gaming", "--device", "raspberry-pi-5", "--live", "1"), "only this machine can run live"),
            (("tune", "vr-gaming", "--recipe", "tiny"), "unknown part 'tiny'"),
        ],
    )
    def test_bad_usage(self, jettison, arguments, message):
        code, _, err = jettison("xr", *arguments)
        assert code == 2 and message in err

    @pytest.mark.slow
    def test_live_and_tune(self, jettison, tmp_path):
        code, out, _ = jettison(
            "xr", "live", "vr-gaming", "--size", "tiny", "--seconds", 2, "--units", 2, "--page", tmp_path / "l.html"
        )
        assert code == 0 and "simulated" in out and (tmp_path / "l.html").exists()
        arguments = (
            "--size",
            "tiny",
            "--recipe",
            "folded",
            "--live",
            1,
            "--page",
            tmp_path / "t.html",
            "--json",
            tmp_path / "t.json",
        )
        code, out, _ = jettison("xr", "tune", "vr-gaming", *arguments)
        assert code == 0 and "before" in out
        assert set(json.loads((tmp_path / "t.json").read_text())["runs"]) == {
            "before",
            "after",
            "live before",
            "live after",
        }
