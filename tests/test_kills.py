"""SIGKILL at random moments, as the benchmark does it, with real processes."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def spine(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("spine", BENCHMARKS / "spine.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    patch.setattr(module, "RUNS", tmp_path_factory.mktemp("runs"))
    patch.setattr(module, "KILLS", 4)
    yield module
    patch.undo()
    sys.modules.pop("witness", None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["compress", "recover"])
def test_killed_runs_end_with_the_same_bytes(spine, kind):
    trials = spine.kills(kind)["trials"]
    assert [trial["identical"] for trial in trials] == [True] * 4
    assert any(trial["killed"] for trial in trials)
