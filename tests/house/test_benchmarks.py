"""Results of benchmarks are small, complete, and written by scripts that exist. No test measures a figure."""

import ast
import json
from importlib import import_module
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
SCRIPTS = sorted((ROOT / "benchmarks").rglob("*.py"))
CLAIM = {"id", "value", "unit", "better", "target", "holds", "note"}
HOLDS = {"higher": lambda value, target: value >= target, "lower": lambda value, target: value <= target}
HOLDS["equal"] = lambda value, target: value == target


@pytest.fixture
def witness(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return import_module("benchmarks.witness")


def sample_lists(value):
    """Yield all lists under a key named samples."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if key == "samples" and isinstance(item, list):
            yield item
        yield from sample_lists(item)


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
class TestResults:
    def test_small_without_raw_samples_and_by_a_script_that_is_there(self, file, witness):
        assert file.stat().st_size <= witness.MOST_BYTES == 60_000
        result = json.loads(file.read_text("utf-8"))
        assert (ROOT / result["script"]).is_file()
        assert result["command"] == "python -m " + result["script"].removesuffix(".py").replace("/", ".")
        assert len(result["commit"]) == 40 and result["machine"]["processor"] and result["versions"]["torch"]
        assert list(sample_lists(result["details"])) == []

    def test_claims_say_what_was_wanted_and_whether_it_holds(self, file, witness):
        claims = json.loads(file.read_text("utf-8"))["claims"]
        assert len({claim["id"] for claim in claims}) == len(claims)
        for claim in claims:
            assert set(claim) == CLAIM
            assert claim["holds"] is HOLDS[claim["better"]](claim["value"], claim["target"]), claim["id"]

    def test_laid_out_as_written(self, file, witness):
        text = file.read_text("utf-8")
        assert witness.result_text(file.stem, json.loads(text)) == text


def test_there_are_results():
    assert len(RESULTS) >= 12


class TestWriting:
    def test_samples_are_summarized(self, witness):
        details = {"run": {1: {"samples": [3.0, 1.0, 2.0]}}}
        summary = json.loads(witness.result_text("some", {"claims": [], "details": details}))["details"]
        assert summary == {"run": {"1": {"samples": {"median": 2.0, "least": 1.0, "most": 3.0, "count": 3}}}}

    def test_a_table_has_a_row_a_line(self, witness):
        rows = [[number, "x" * 30] for number in range(9)]
        lines = witness.lay_out({"tables": {"of all": {"columns": ["a", "b"], "rows": rows}}}).splitlines()
        assert [json.loads(line.strip(" ,")) for line in lines if "xxx" in line] == rows

    def test_a_large_result_is_refused(self, witness):
        result = {"claims": [], "details": {"cells": [[0.123456789] * 1000] * 10}}
        with pytest.raises(
            ValueError, match="result some has 1.*,.* bytes, more than 60,000: keep raw samples in runs/"
        ):
            witness.result_text("some", result)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.relative_to(ROOT / "benchmarks")))
def test_what_scripts_import_is_there(script):
    """The scripts are not run: they need GPUs, packages of extras, or much time."""
    text = script.read_text("utf-8")
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom):
            continue
        top, path = node.module.partition(".")[0], ROOT.joinpath(*node.module.split("."))
        if top == "benchmarks":
            files = [path / alias.name for alias in node.names] if path.is_dir() else [path]
            assert all(file.with_suffix(".py").is_file() for file in files), f"{script.name} imports {node.module}"
        if top == "jettison":
            room = import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(room, alias.name)]
            assert not missing, f"{script.name} imports {missing} from {node.module}"
