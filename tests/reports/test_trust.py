"""Pages and tables with unusual names, figures as people read them, and damaged manifests."""

import copy
import html
import importlib
import itertools
import json
import shlex
from functools import partial

import pytest
from runs import FULL, SPEED, Page, drawn, make_run, rates

from jettison.cli.fit_command import show_stages
from jettison.core.bytesize import format_bytes
from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import write_json
from jettison.core.kept import write_record
from jettison.core.numbers import figures, format_rate
from jettison.formats.card import write_card
from jettison.formats.manifest import command_line, read_manifest, update_manifest
from jettison.formats.schema import Plan, checked
from jettison.pipeline.generation import _speed
from jettison.planning.picture import plan_data
from jettison.planning.planner import make_plan
from jettison.reports import charts
from jettison.reports.commands import commands
from jettison.reports.compare import write_comparison
from jettison.reports.page import write_report
from jettison.reports.run import read_run

NAMES = (
    "my-text.txt", "a.b.c", "{{ 7 * 7 }}", "{% if x %}", "%{x}", "%s %d {0}", "[bold]", "[/red]", "items",
    "<b>&amp;</b>", "quotes \" ' `", "two\nlines", "日本語.txt", "caf\udce9.txt", "a|b", "$x$", "x" * 3000, "",
)  # fmt: skip


@pytest.fixture
def made(tmp_path):
    """Return made(name, ...), which makes a run in the temporary folder."""
    return partial(make_run, tmp_path)


def renamed(name):
    """Return the results of FULL with a text and a task of this name."""
    results = copy.deepcopy(FULL["results"])
    for result in results.values():
        result["texts"] = {name: result["texts"]["books-evaluation"]}
        result["tasks"] = {name: result["tasks"]["piqa"]}
    return results


class TestNames:
    @pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:20]))
    def test_of_texts_tasks_and_recipes(self, made, tmp_path, name, jettison):
        recipe = FULL["recipe"] | {"name": name, "use": name, "why": [name]}
        folders = [made(run, results=renamed(name), recipe=recipe, speed=SPEED) for run in "ab"]
        shown = name.encode("utf-8", "backslashreplace").decode()
        assert Page(write_report(folders[0]).read_text(encoding="utf-8")).text.count(shown) > 5
        code, out, err = jettison("compare", *folders, "-o", tmp_path / "c.html", "--json", tmp_path / "c.json")
        assert (code, err) == (0, "") and (name[:20] in out or "\udce9" in name)
        assert Page((tmp_path / "c.html").read_text(encoding="utf-8")).text.count(shown) >= 3
        assert json.loads((tmp_path / "c.json").read_text())["texts"] == [name]

    @pytest.mark.parametrize("name", ["a.b", "[x] y", "[red]", "{{x}}", "it's"])
    def test_of_runs(self, made, tmp_path, name, jettison):
        folders = [made(name), made(f"{name} 2")]
        code, out, _ = jettison("compare", *folders, "-o", tmp_path / "c.html")
        assert code == 0 and f"{name} 2" in out
        assert f"{name} 2" in Page((tmp_path / "c.html").read_text()).text

    def test_columns_of_texts_of_one_name(self, capfd):
        """Two texts have the same file name in different folders, so the columns show the folders."""
        text = FULL["results"]["original"]["texts"]["wikitext2"]
        stage = FULL["results"]["original"] | {"texts": {"a/x.txt": text, "b/x.txt": text}}
        show_stages({"original": stage})
        assert "a/x.txt" in (out := capfd.readouterr().out) and "b/x.txt" in out

    def test_cells_of_the_card(self):
        text = {"a|b\nc": FULL["results"]["original"]["texts"]["wikitext2"]}
        card = write_card(FULL | {"results": {"original": FULL["results"]["original"] | {"texts": text}}})
        assert r"| a\|b c: perplexity |" in card

    @pytest.mark.parametrize(
        "names",
        [
            [f"jettison_{text}_{kind}" for text in ("books", "wikitext") for kind in ("agreement", "next_sentence")],
            ["shelf/texts/part-one.txt", "shelf/texts/part-two.txt"],
            ["x" * 100 + "a" + "y" * 100, "x" * 100 + "b" + "y" * 100, "short"],
            ["<" * 60 + "1", "<" * 60 + "2"],
        ],
    )
    def test_labels_differ(self, names):
        labels = charts.labels(names)
        assert len(set(labels)) == len(names)
        assert all(len(html.unescape(label)) <= charts.LABEL for label in labels)

    def test_labels_say_what_differs(self):
        names = ["jettison_books_agreement", "jettison_books_next_sentence"]
        assert charts.labels(names) == ["…agreement", "…next_sentence"]
        assert charts.labels(["piqa", "arc & <b>"]) == ["piqa", "arc &amp; &lt;b&gt;"]

    def test_labels_of_the_charts(self, made):
        results = renamed("piqa")
        for result in results.values():
            result["tasks"] = {f"jettison_wikitext_{kind}": result["tasks"]["piqa"] for kind in ("word", "sentence")}
        folder = made(results=results)
        page = write_report(folder).read_text()
        assert r"\u2026word" in page and r"\u2026sentence" in page  # the JSON escape of "…"


class TestFigures:
    @pytest.mark.parametrize(
        ("count", "said"),
        [
            (0, "0 B"), (999, "999 B"), (999.6, "1 KB"), (1000, "1 KB"), (999_499, "999 KB"), (999_500, "1 MB"),
            (999.6e6, "1 GB"), (999.4e6, "999 MB"), (1.234e9, "1.23 GB"), (999.9e9, "1 TB"), (1.2345e15, "1,234 TB"),
        ],
    )  # fmt: skip
    def test_bytes(self, count, said):
        assert format_bytes(count) == said

    def test_no_exponents_of_whole_numbers(self):
        assert [format_rate(rate) for rate in (0.1234567, 9.9996, 999.96, 11850, 1e6)] == [
            "0.1235", "10", "1,000", "11,850", "1,000,000",
        ]  # fmt: skip
        assert [figures(value) for value in (0.01234, 12.34, 999.7, 12345)] == ["0.0123", "12.3", "1,000", "12,345"]


class TestSpeeds:
    def test_the_median_of_the_samples(self):
        assert _speed("decode", [10.0, 300.0, 20.0]) == {
            "decode_tokens_per_second": 20.0, "decode_samples": [10.0, 300.0, 20.0],
        }  # fmt: skip
        assert _speed("decode", []) == {"decode_tokens_per_second": 0.0, "decode_samples": []}

    @pytest.mark.parametrize(
        ("found", "tile", "bar"),
        [
            (rates(62.5, 402.5), "62.5 tokens/s decoding, median of 3", "62.5 (61 to 64)"),
            (rates(62.5, 402.5, count=1), "62.5 tokens/s decoding, one sample", "62.5 (one sample)"),
            ({"decode_tokens_per_second": 62.5}, "62.5 tokens/s decoding, one sample", "62.5 (one sample)"),
        ],
        ids=["three", "one", "not recorded"],
    )
    def test_what_a_figure_is_of(self, made, found, tile, bar):
        folder = made(speed=SPEED | {"stages": SPEED["stages"] | {"recovered": found}})
        assert tile in Page(write_report(folder).read_text()).text
        (bars,) = drawn(folder / "report.html", "speed-decode")
        assert bars["text"] == ["31.5 (30 to 33)", bar]

    def test_the_comparison_marks_single_samples(self, made, tmp_path):
        single = SPEED | {"stages": {"recovered": rates(62.5, 402.5, count=1)}}
        notes = write_comparison([made("a", speed=SPEED), made("b", speed=single)], tmp_path / "c.html")["notes"]
        assert notes == ["The speed of b is one sample."]


class TestShares:
    @pytest.mark.parametrize(
        ("recovered", "said"),
        [
            (3.55, "112.5 % of the log-perplexity that the quantized model loses is recovered. More than 100 %: "
                   "on this text the recovered model is better than the original."),
            (4.2, "-50.0 % of the log-perplexity that the quantized model loses is recovered. Less than 0 %: "),
            (3.7, "75.0 % of the log-perplexity that the quantized model loses is recovered.\n"),
        ],
    )  # fmt: skip
    def test_shares_in_words(self, made, tmp_path, recovered, said):
        results = renamed("mine")
        results["recovered"]["texts"]["mine"]["log_perplexity"] = recovered
        folders = [made(run, results=results) for run in "ab"]
        assert said in Page(write_report(folders[0]).read_text()).text.replace("\N{NO-BREAK SPACE}", " ")
        notes = write_comparison(folders, tmp_path / "c.html")["notes"]
        better = [f"{run} recovers more than 100 %: on mine it is better than its original." for run in "ab"]
        assert notes == (better if recovered < 3.6 else [])

    def test_tasks_too(self, made):
        share = FULL["tasks"][0] | {"recovered": 1.2}
        assert "better than the original on piqa" in Page(write_report(made(tasks=[share])).read_text()).text

    def test_fit_prints_the_tasks(self, jettison, tmp_path, monkeypatch):
        result = FULL["results"] | {"tasks": FULL["tasks"], "plan": {}}
        monkeypatch.setattr(importlib.import_module("jettison.fitting"), "fit", lambda *_, **__: result)
        code, out, _ = jettison("fit", "scribe", "--recipe", "w4", "--tasks", "piqa", "-o", tmp_path / "o")
        assert code == 0
        assert " ".join(out.split()).count("piqa 0.700 0.600 0.680 ± 0.010 0.500 100 80 ± 9 %") == 1


class TestCommands:
    def test_only_what_was_given(self):
        options = {"device": "this", "recipe": "my recipes/a.yaml", "set": ["recover.rank=8"], "text": ["-x.txt"]}
        options |= {"recovery": False, "seed": 0, "tps": None, "tasks": []}
        words = command_line("fit", "a model", options, {"device": "this", "seed": 0, "recovery": True, "text": ("y",)})
        assert words == [
            "jettison", "fit", "a model", "--recipe", "my recipes/a.yaml", "--set", "recover.rank=8", "--text=-x.txt",
            "--no-recovery",
        ]  # fmt: skip

    def test_a_recipe_that_is_no_file(self):
        assert command_line("compress", "m", {"recipe": {"steps": []}}, {})[-1] == "recipe.yaml"

    def test_compress_and_recover(self, made):
        """Options of the recovery that differ from the recipe appear as --set."""
        recovery = {
            "method": "distill",
            "train": ["lora", "scales"],
            "rank": 8,
            "samples": 7,
            "loss": [1.0],
            "hashes": {},
        }
        words = ["jettison", "compress", "a model", "--recipe", "my recipes/a.yaml", "--seed", "3"]
        folder = made("my run", without=["request"], command=words, recovery=recovery)
        first, second = commands(read_run(folder))
        assert shlex.split(first) == [*words, "--out", "my run"]
        assert shlex.split(second) == [
            "jettison", "recover", "my run", "--set", 'recover.train=["lora", "scales"]', "--set", "recover.samples=7",
        ]  # fmt: skip
        assert commands(read_run(made("other", command=words))) == [
            shlex.join([*FULL["request"]["command"], "--out", "other"])
        ]

    def test_fit_writes_down_the_file_of_a_recipe(self, tiny, tmp_path, jettison):
        (tmp_path / "a recipe.yaml").write_text("steps: [{quantize: {method: rtn, bits: 4, group_size: 32}}]")
        (tmp_path / "a text.txt").write_text("It was the best of times, it was the worst of times. " * 100)
        words = ["--recipe", str(tmp_path / "a recipe.yaml"), "--text", str(tmp_path / "a text.txt"), "--seed", "2"]
        code, *_ = jettison("fit", tiny("llama"), "-o", tmp_path / "a run", *words, "-q")
        assert code == 0
        (line,) = commands(read_run(tmp_path / "a run"))
        assert shlex.split(line) == ["jettison", "fit", str(tiny("llama")), *words, "--out", "a run"]
        assert line in Page((tmp_path / "a run" / "report.html").read_text()).text
        code, *_ = jettison("compress", tiny("llama"), "-o", tmp_path / "b", *words[:2], "--set", "quantize.bits=8")
        assert shlex.split(commands(read_run(tmp_path / "b"))[0])[3:] == [
            *words[:2], "--set", "quantize.bits=8", "--out", "b",
        ]  # fmt: skip


def paths(value, at=()):
    """Yield the paths of all values in a tree, as tuples of keys."""
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from paths(value[key], (*at, key))


def with_value(data, at, value):
    """Return a copy with another value at a path; with ``...`` the value is deleted."""
    data = copy.deepcopy(data)
    container = data
    for key in at[:-1]:
        container = container[key]
    if value is ...:
        del container[at[-1]]
    else:
        container[at[-1]] = value
    return data


class TestManifests:
    VALUES = (..., None, 5, "x", [], {}, [None], {"a": 5}, True, -1, float("nan"))

    @pytest.mark.parametrize("each", [1, pytest.param(len(VALUES), marks=pytest.mark.slow)])
    @pytest.mark.parametrize("name", ["jettison.json", "speed.json", "draft.json"])
    def test_of_wrong_types_everywhere(self, made, tmp_path, name, each):
        """Replacing any field gives a page or one error. A damaged draft is left out of the page."""
        row = {"draft": "lookup", "acceptance": 0.8, "step": 0.4, "expected": 1.2}
        draft = {"draft": {}, "reason": "why", "measured": {"rows": [row], "tried": [row | {"measured": 1.1}]}}
        folder, values = made("a"), itertools.cycle(self.VALUES)
        data = {"jettison.json": FULL, "speed.json": SPEED, "draft.json": draft}[name]
        tried = refused = 0
        for at in [path for path in paths(data) if path]:
            for value in itertools.islice(values, each):
                tried += 1
                changed = with_value(data, at, value)
                write_record(folder / name, changed) if name == "draft.json" else write_json(folder / name, changed)
                try:
                    write_report(folder, tmp_path / "page.html")
                    if name == "jettison.json":
                        update_manifest(folder, seed=1)
                except JettisonError as error:
                    refused += 1
                    assert "\n" not in str(error)
        assert refused == 0 if name == "draft.json" else refused > tried / 4

    @pytest.mark.parametrize(
        ("at", "value", "words"),
        [
            (("teacher",), None, "teacher: Input should be a valid dictionary.*; it is NoneType None"),
            (
                ("results", "original", "size", "bytes"),
                0,
                "results.original.size.bytes: .* greater than 0; it is int 0",
            ),
            (("results", "original", "size", "bytes"), "14", "results.original.size.bytes: .*; it is str '14'"),
            (("hashes",), ..., "hashes: Field required$"),
            (("recipe", "steps", 0), {}, "recipe.steps: .*a step has one verb"),
        ],
    )
    def test_the_field_is_named(self, made, at, value, words):
        folder = made()
        (folder / "jettison.json").write_text(json.dumps(with_value(FULL, at, value)))
        with pytest.raises(JettisonError, match=rf"jettison\.json is damaged: {words}"):
            read_manifest(folder)

    @pytest.mark.parametrize("verb", ["report", "recover", "evaluate"])
    def test_commands_say_so(self, made, tiny, verb, jettison):
        folder = made()
        for file in tiny("llama").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / "jettison.json").write_text(json.dumps(FULL | {"teacher": "x"}))
        code, _, err = jettison(verb, folder)
        assert code == 1 and err.count("error: ") == 1 and "jettison.json is damaged: teacher" in err
        assert "Traceback" not in err

    def test_results_of_another_version(self, made, tmp_path):
        """An older version did not record on what the results were measured."""
        fit = importlib.import_module("jettison.fitting")
        folder = made(request={"model": "x"})
        with pytest.raises(UsageError, match="does not say on what it was measured"):
            fit._check_measured(folder, FULL["request"] | {"items": None})

    @pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
    def test_what_the_planner_writes_is_read(self, tiny, family):
        result = make_plan(tiny(family), device="raspberry-pi-5", memory="10MB", context=16, losses="prior")
        data = json.loads(json.dumps(plan_data(result)))
        assert checked(data, Plan, "a plan") == data
        assert Plan.model_fields.keys() <= data.keys()
