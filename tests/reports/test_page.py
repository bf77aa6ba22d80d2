"""The page of a run shows what the manifest says, and nothing else; and the commands report and compare."""

import copy
import json
import shlex
from functools import partial

import pytest
from runs import EVIL, FULL, SPEED, Page, drawn, linear, make_run, without_stage

from jettison.core.errors import UsageError
from jettison.core.kept import write_record
from jettison.reports import charts
from jettison.reports.error_map import WHOLE, read_error_map
from jettison.reports.page import write_report
from jettison.reports.run import read_run

SECTIONS = {"asked", "recipe", "size", "quality", "tasks", "errors", "recovery", "samples", "check", "reproduce"}
NEEDED = {"recipe", "errors", "reproduce"}  # sections made from fields that every manifest has


@pytest.fixture
def made(tmp_path):
    """Return made(name, ...), which makes a run in the temporary folder."""
    return partial(make_run, tmp_path)


def page(folder):
    """Write the report of a run and parse it."""
    return Page(write_report(folder).read_text(encoding="utf-8"))


class TestPage:
    def test_a_full_run_has_every_section(self, made):
        assert page(made(speed=SPEED)).sections == SECTIONS

    @pytest.mark.parametrize(
        ("missing", "gone"),
        [
            (["request"], ["asked"]),
            (["recovery"], ["recovery"]),
            (["check"], ["check"]),
            (["results", "tasks"], ["quality", "tasks", "samples"]),  # size stays, since a speed was predicted
            (["results", "tasks", "request"], ["asked", "size", "quality", "tasks", "samples"]),
        ],
        ids=str,
    )
    def test_a_section_without_data_is_left_out(self, made, missing, gone):
        assert page(made(without=missing)).sections == SECTIONS - set(gone)

    def test_the_smallest_manifest(self, made):
        folder = made(without=set(FULL) - {"recipe", "teacher", "blocks", "hashes"})
        parsed = page(folder)
        assert parsed.sections == NEEDED
        assert "small, compressed by the recipe mine" in parsed.text
        assert "jettison compress owner/small --recipe recipe.yaml --out run" in parsed.text

    def test_stages_without_samples_and_tasks(self, made):
        results = copy.deepcopy(FULL["results"])
        for result in results.values():
            del result["samples"], result["tasks"]
        assert page(made(results=results, tasks=None)).sections == SECTIONS - {"samples", "tasks"}

    def test_it_needs_nothing_else(self, made):
        parsed = page(made(speed=SPEED))
        assert parsed.outside == []
        assert any("plotly.js v" in script for script in parsed.scripts)

    def test_same_run_same_bytes(self, made):
        folder = made(speed=SPEED)
        first = write_report(folder).read_bytes()
        other = write_report(folder, folder / "again.html")
        assert other.read_bytes() == first and other.name == "again.html"

    def test_text_of_models_and_names_is_escaped(self, made):
        results = copy.deepcopy(FULL["results"])
        for result in results.values():
            result["texts"] = {EVIL: result["texts"]["books-evaluation"]}
            result["tasks"] = {EVIL: result["tasks"]["piqa"]}
        request = FULL["request"] | {"device": EVIL, "changes": [EVIL]}
        blocks = [{"error": 0.1, "linears": {EVIL.replace(".", ""): linear(f"int2 {EVIL}", 0.1)}}, FULL["blocks"][-1]]
        harmless = page(made(speed=SPEED))
        parsed = page(made("evil", results=results, request=request, blocks=blocks, speed=SPEED | {"machine": EVIL}))
        assert parsed.outside == []
        assert len(parsed.scripts) == len(harmless.scripts) - 1  # one text fewer
        assert parsed.text.count(EVIL) >= 6

    def test_drafts_are_told_whether_they_pay_or_not(self, made):
        folder, row = made(), {"draft": EVIL, "acceptance": 0.83, "step": 0.4, "expected": 1.21}
        measured = {"rows": [row], "tried": [row | {"measured": 1.17}]}
        recorded = {"draft": {"lookup": 3}, "reason": "1.17 times as fast", "measured": measured}
        for changed, text in ((recorded, "1.17 times as fast. Draft"), (recorded | {"draft": None}, "No draft pays: ")):
            write_record(folder / "draft.json", changed)
            page = write_report(folder).read_text()
            assert 'id="drafts"' in page and text in page and "83" in page and "1.21" in page
            assert EVIL not in page

    def test_headline_says_what_was_gained_and_kept(self, made):
        text = page(made()).text.replace("\N{NO-BREAK SPACE}", " ")
        assert "small: 14 MB → 5.6 MB, perplexity on books-evaluation 37.50 → 39.50" in text

    def test_headline_without_recovery(self, made):
        text = page(made(results=without_stage("recovered"))).text.replace("\N{NO-BREAK SPACE}", " ")
        assert "small: 14 MB → 5 MB, perplexity on books-evaluation 37.50 → 53.50" in text
        assert "is recovered" not in text

    def test_a_share_of_next_to_nothing_is_not_given(self, made):
        results = copy.deepcopy(FULL["results"])
        results["quantized"]["texts"]["books-evaluation"]["log_perplexity"] = 3.6049
        run = read_run(made(results=results))
        assert run.share("books-evaluation") is None and run.share("wikitext2") == pytest.approx(0.75)

    def test_shares_of_tasks_only_where_the_loss_counts(self, made):
        text = page(made()).text.replace("\N{NO-BREAK SPACE}", " ")
        assert "10.0 ± 1.0" in text and "80 ± 9 %" in text
        assert "no share is given: arc" in text and "50 ± 90" not in text

    def test_budget_that_is_met_and_one_that_is_missed(self, made):
        text = " ".join(page(made()).text.replace("\N{NO-BREAK SPACE}", " ").split())
        assert "tokens per secondat least 4020.555.5met" in text
        assert "memoryat most 8 MB20 MB9 MBmissed" in text

    def test_the_command_is_the_one_that_was_given(self, made):
        command = next(line for line in page(made()).text.splitlines() if line.startswith("jettison fit"))
        assert shlex.split(command)[2:] == [
            "owner/small", "--device", "raspberry-pi-5", "--tps", "40", "--memory", "8MB", "--context", "512",
            "--set", "recover.rank=8", "--text", "books-evaluation", "--text", "my text.txt", "--tasks", "piqa",
            "--seed", "7", "--out", "run",
        ]  # fmt: skip

    def test_a_folder_that_is_not_ours(self, tmp_path):
        with pytest.raises(UsageError, match=r"jettison\.json"):
            write_report(tmp_path)


class TestCharts:
    @pytest.fixture
    def folder(self, made):
        folder = made(speed=SPEED)
        write_report(folder)
        return folder

    @pytest.mark.parametrize(
        ("chart", "values"),
        [
            ("size-chart", {"original": 14_000_000, "quantized": 5_000_000, "recovered": 5_600_000}),
            ("speed-predicted", {"asked": 40, "original": 20.5, "recovered": 55.5}),
            ("speed-decode", {"original": 31.5, "recovered": 62.5}),
            ("speed-prefill", {"original": 501.5, "recovered": 402.5}),
            ("perplexity-0", {"original": 37.5, "quantized": 53.5, "recovered": 39.5}),
            ("perplexity-1", {"original": 75.0, "quantized": 107.0, "recovered": 79.0}),
        ],
    )
    def test_bars_are_the_figures_of_the_stages(self, folder, chart, values):
        (bars,) = drawn(folder / "report.html", chart)
        assert dict(zip(bars["y"], bars["x"], strict=True)) == values

    def test_distances(self, folder):
        bars = {trace["name"]: trace["x"] for trace in drawn(folder / "report.html", "distance-chart")}
        assert bars == {"quantized": [0.4, 0.4], "recovered": [0.05, 0.05]}

    def test_accuracies(self, folder):
        bars = {trace["name"]: trace["x"] for trace in drawn(folder / "report.html", "task-chart")}
        assert bars == {"guessing": [0.5], "original": [0.7], "quantized": [0.6], "recovered": [0.68]}

    def test_heat_map(self, folder):
        (heat,) = drawn(folder / "report.html", "errors-chart")
        assert heat["y"] == ["gate_proj", "q_proj", WHOLE]
        assert heat["z"][0] == [pytest.approx(-0.5229, abs=1e-4), None]  # log10 of 0.3, the mean of two experts
        assert heat["customdata"][1] == [["0.001", "int4 g128 sym"], ["0.002", "int4 g128 sym"]]
        assert heat["text"] == [["2/3", ""], ["4", "4"], ["", ""]]
        assert "lm_head, int4 g128 sym, error 0.0123" in page(folder).text

    def test_recovery(self, folder):
        every, mean = drawn(folder / "report.html", "recovery-chart")
        assert every["x"] == [1, 2, 3] and every["y"] == [0.5, 0.25, 0.125] == mean["y"]

    def test_roles_come_from_the_model_where_it_is_one(self, tiny, tmp_path):
        (tmp_path / "config.json").write_bytes((tiny("phi3") / "config.json").read_bytes())
        names = {"model.layers.0.mlp.down_proj": "down", "model.layers.0.self_attn.qkv_proj": "q_k_v"}
        block = {"error": None, "linears": dict.fromkeys(names, linear("int4 g32 sym", 0.1))}
        manifest = FULL | {"blocks": [block, {"error": None, "linears": {}}]}
        (tmp_path / "jettison.json").write_text(json.dumps(manifest))
        assert read_error_map(read_run(tmp_path)).roles == ["q_k_v", "down"]  # in order of computation

    def test_nothing_quantized_in_blocks(self, made):
        folder = made(blocks=[{"error": None, "linears": {}}, FULL["blocks"][-1]])
        assert page(folder).sections == SECTIONS - {"errors"}

    def test_labels_are_short_and_escaped(self):
        assert charts.label("<b>a") == "&lt;b&gt;a"
        assert charts.label("x" * 100) == "x" * (charts.LABEL - 1) + "…"

    def test_long_curves_are_thinned_with_both_ends(self):
        steps = charts.thin(12_345)
        assert len(steps) == len(set(steps)) == charts.POINTS and (steps[0], steps[-1]) == (0, 12_344)
        assert charts.thin(3) == [0, 1, 2]

    def test_running_mean(self):
        losses = [float(step) for step in range(40)]  # the mean is over two steps
        assert charts.running_mean(losses)[:4] == [0.0, 0.5, 1.5, 2.5]

    @pytest.mark.parametrize(
        ("low", "high", "ticks"),
        [
            (0.06, 0.1, [0.06, 0.07, 0.08, 0.09, 0.1]),
            (0.04, 1, [0.05, 0.1, 0.2, 0.5, 1]),
            (1e-3, 1, [1e-3, 0.01, 0.1, 1]),
        ],
    )
    def test_ticks_of_a_log_axis(self, low, high, ticks):
        assert charts.log_ticks(low, high) == ticks


class TestCommands:
    def test_report(self, jettison, made, tmp_path):
        folder, out = made(), tmp_path / "page.html"
        code, printed, _ = jettison("report", folder, "--json", tmp_path / "r.json")
        assert code == 0 and printed.strip() == str(folder / "report.html") and (folder / "report.html").exists()
        assert json.loads((tmp_path / "r.json").read_text()) == {"page": str(folder / "report.html")}
        assert jettison("report", folder, "--out", out)[0] == 0 and out.exists()

    def test_compare(self, jettison, made, tmp_path):
        out = tmp_path / "c.html"
        code, printed, _ = jettison("compare", made("a"), made("b"), "-o", out, "--json", tmp_path / "c.json")
        assert code == 0 and out.exists() and "39.50" in printed and "75.0%" in printed
        assert [row["name"] for row in json.loads((tmp_path / "c.json").read_text())["rows"]] == ["a", "b"]

    def test_bad_usage(self, jettison, made, tmp_path):
        code, _, error = jettison("compare", made(), "-o", tmp_path / "c.html")
        assert code == 2 and "two folders" in error
        code, _, error = jettison("report", tmp_path)
        assert code == 2 and "jettison.json" in error
