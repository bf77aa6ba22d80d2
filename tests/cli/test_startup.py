"""Modules that commands must not import, checked in new interpreters: torch and transformers take seconds to import.

No time is measured in these tests; benchmarks/house/startup.py does that.
"""

import json
import os
import subprocess
import sys

import pytest

from jettison.cli.app import COMMANDS
from jettison.devices.machine import measure
from jettison.graph.shape import shapes

HEAVY = {"torch", "transformers", "compressed_tensors", "accelerate", "plotly", "jinja2"}
RUN = """
import json, sys
from jettison.cli.app import main
codes = []
for command in json.loads(sys.argv[1]):
    try:
        main(command)
        codes.append(0)
    except SystemExit as end:
        codes.append(end.code or 0)
print("\\n" + json.dumps([codes, sorted(name for name in sys.modules if "." not in name)]))
"""


@pytest.fixture
def run(cache, tmp_path):
    """Return run(*commands), which runs them in one interpreter and returns exit codes and imported packages."""

    def run_commands(*commands):
        measure()  # fills the cache that `jettison devices` reads
        words = json.dumps([[str(word) for word in command] for command in commands])
        done = subprocess.run(
            [sys.executable, "-c", RUN, words], capture_output=True, text=True, cwd=tmp_path, env=os.environ, check=True
        )
        codes, modules = json.loads(done.stdout.splitlines()[-1])
        return codes, set(modules)

    return run_commands


def test_help(run):
    codes, modules = run(["--help"], ["--version"], *([command, "--help"] for command in COMMANDS))
    assert set(codes) == {0} and not modules & (HEAVY | {"numpy", "scipy", "yaml"})


def test_bad_usage(run):
    wrong = (["plann"], ["plan"], ["fit", "scribe"], ["plan", ""], ["compress", "scribe", "--recipe"])
    codes, modules = run(*wrong)
    assert set(codes) == {2} and not modules & (HEAVY | {"numpy", "scipy", "yaml"})


def test_lists(run):
    codes, modules = run(["devices"], ["devices", "show", "quest-3"], ["recipes"])
    assert codes == [0, 0, 0] and not modules & HEAVY


def test_plans_that_are_refused(run):
    """Plans with invalid values, unknown names, or budgets that nothing meets."""
    codes, modules = run(
        ["plan", "qwen3-4b"],
        ["plan", "qwen3-4b", "--memory", "much"],
        ["plan", "qwen3-4b", "--memory", "3GB", "--device", "toaster"],
        ["plan", "qwen3-4b", "--memory", "3GB", "--set", "recover.rank=-1"],
        ["plan", "nowhere", "--memory", "3GB"],
        ["plan", "opt-125m", "--memory", "1MB", "--device", "quest-3"],
    )
    assert set(codes) == {2} and not modules & HEAVY


def test_plans_of_known_shapes(run, tmp_path):
    codes, modules = run(
        ["plan", "qwen3-0.6b", "--memory", "900MB"],
        ["plan", "gemma-3-1b", "--memory", "900MB", "--device", "quest-3", "--set", "recover.rank=4", "-o", "r.yaml"],
        ["plan", "opt-125m", "--memory", "500MB", "--context", "0", "--runtime", "vllm", "--json", "p.json"],
    )
    assert codes == [0, 0, 0] and not modules & HEAVY
    assert (tmp_path / "r.yaml").exists() and (tmp_path / "p.json").exists()


def test_plans_of_folders_and_of_a_config(run, tiny, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(shapes()["qwen3-0.6b"]["config"]))
    families = ["llama", "qwen3", "qwen3_moe", "gpt_oss", "gpt2", "opt", "phi3"]
    plans = [["plan", model, "--memory", "1GB", "--device", "quest-3"] for model in map(tiny, families)]
    codes, modules = run(*plans, ["plan", "mine.json", "--memory", "900MB", "--device", "quest-3"])
    assert codes == [0] * 8 and not modules & HEAVY


def test_transformers_is_asked_about_a_family_that_no_row_knows(run, tiny):
    codes, modules = run(["plan", tiny("stablelm"), "--memory", "1GB", "--device", "quest-3"])
    assert codes == [0] and "transformers" in modules
