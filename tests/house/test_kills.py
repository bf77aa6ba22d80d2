"""Kills of real processes: SIGKILL at and inside every write, at random moments, and two processes in one folder."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
BENCHMARKS = TESTS.parent / "benchmarks"
# A process that holds the lock of a folder until its stdin is closed.
HOLD = """
import sys
from pathlib import Path
from jettison.core.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def trials(file, *arguments):
    """Run kill_trials.py and return the rows that it wrote to ``file``."""
    command = [sys.executable, TESTS / "kill_trials.py", *map(str, arguments), "--json", file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert file.exists(), done.stderr[-3000:]
    return json.loads(file.read_text())


def rows_text(rows):
    """Return rows of trials as text."""
    return "\n".join(f"{row['verb']} {row['event']} ({row.get('at')}): {row['why']}" for row in rows)


def test_kills_and_pairs(tmp_path):
    """Tries five events of every verb, and twice two processes at once in one folder."""
    rows = trials(tmp_path / "t.json", "compress", "recover", "fit", "--most", 5, "--pairs", 2)
    bad = [row for row in rows if not row["identical"]]
    assert not bad, rows_text(bad)
    killed = [row for row in rows if row["verb"] != "pair"]
    assert len(killed) == 15 and all(row["killed"] for row in killed)
    assert {row["mode"] for row in killed if row["at"] == "write journal.jsonl"} == {"half", "zeros"}
    assert len(rows) == 17


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["compress", "recover", "prune", "fit"])
def test_kills_at_every_event(tmp_path, verb):
    rows = trials(tmp_path / "t.json", verb)
    bad = [row for row in rows if not row["identical"]]
    assert not bad, rows_text(bad)
    assert {row["event"] for row in rows} == set(range(rows[0]["of"])) and rows[0]["of"] > 50
    assert {row["mode"] for row in rows if row["at"].startswith("write journal")} == {"none", "half", "zeros"}


def test_the_second_process_is_told_who_works(tiny, tmp_path, jettison):
    folder = tmp_path / "out"
    command = [sys.executable, "-c", HOLD, folder]
    arguments = ("compress", tiny("llama"), "--recipe", "w8", "--set", "quantize.group_size=32", "-o", folder, "-q")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        code, _, err = jettison(*arguments)
        assert code == 1 and f"another process works on {folder}: process {holder.pid} on " in err
        assert not list(folder.glob("*.safetensors"))
        holder.stdin.close()
    assert jettison(*arguments)[0] == 0
    for verb in (("recover", folder), ("fit", *arguments[1:-1])):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout.readline() == "held\n"
            code, _, err = jettison(*verb)
            assert code == 1 and f"another process works on {folder}: process {holder.pid}" in err
            holder.stdin.close()


@pytest.fixture(scope="module")
def spine(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(BENCHMARKS.parent))
    module = import_module("benchmarks.house.spine")
    patch.setattr(module, "RUNS", tmp_path_factory.mktemp("runs"))
    patch.setattr(module, "KILLS", 4)
    yield module
    patch.undo()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["compress", "recover"])
def test_killed_runs_end_with_the_same_bytes(spine, kind):
    trials = spine.kills(kind)["trials"]
    assert [trial["identical"] for trial in trials] == [True] * 4
    assert any(trial["killed"] for trial in trials)
