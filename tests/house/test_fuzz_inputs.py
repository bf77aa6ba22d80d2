"""Mutated inputs end in one of our errors or in a correct result; see tests/fuzz_inputs.py."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import fuzz_bases
import fuzz_kinds
import fuzz_mutations
import fuzz_yaml
import pytest

TESTS = Path(__file__).parents[1]
KINDS = ["safetensors", "index", "config", "tokenizer", "recipe", "device", "scenario"]
KINDS += ["journal", "manifest", "tiles", "adapter", "program"]


def fuzz(file, *arguments):
    """Run the fuzzer. Returns its exit code and the summary that it wrote to ``file``."""
    command = [sys.executable, TESTS / "fuzz_inputs.py", "--json", file, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert file.exists(), done.stderr[-3000:]
    return done.returncode, json.loads(file.read_text())


def findings_text(summary):
    """Return the findings of a summary as text."""
    return "\n".join(f"{row['what']} ({row['verb']}): {row['reproduce']}" for row in summary["findings"])


def test_some_inputs_of_every_kind(tmp_path):
    code, summary = fuzz(tmp_path / "f.json", "--count", len(KINDS) * 12, "--seed", 0)
    assert code == 0 and not summary["findings"], findings_text(summary)
    assert list(summary["by_kind"]) == KINDS
    rows = summary["by_kind"].values()
    assert {row["inputs"] for row in rows} == {12}
    assert all(sum(row[outcome] for row in rows) > 24 for outcome in ("refused", "accepted"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_thousands_of_inputs(tmp_path, seed):
    code, summary = fuzz(tmp_path / "f.json", "--count", len(KINDS) * 200, "--seed", seed, "--jobs", 2)
    assert code == 0 and not summary["findings"], findings_text(summary)


BROKEN = """
import os, signal, sys
sys.path.insert(0, {here!r})
import fuzz_inputs, jettison.devices.device as device, jettison.recipe.recipe as recipe
real = recipe.parse_where
def crash(where):
    if not isinstance(where, dict | list | None):
        os.kill(os.getpid(), signal.SIGSEGV)
    return real(where)
recipe.parse_where = crash
device._number = lambda name, figure, value: float(value)  # ValueError, TypeError, or a figure that is absurd
sys.argv = ["fuzz_inputs.py", *{arguments!r}]
sys.exit(fuzz_inputs.main())
"""


@pytest.mark.slow
def test_faults_are_found(tmp_path):
    """A removed check and a process that dies both become findings that name the function."""
    file, arguments = tmp_path / "f.json", ["--kind", "device", "--kind", "recipe", "--count", "80"]
    source = BROKEN.format(here=str(TESTS), arguments=[*arguments, "--json", str(file)])
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert file.exists(), done.stderr[-3000:]
    findings = {row["what"]: row for row in json.loads(file.read_text())["findings"]}
    assert "SIGSEGV in recipe/recipe.py:_parse_step" in findings, done.stderr[-3000:]
    assert any("Error in devices/device.py" in what for what in findings), list(findings)


@pytest.mark.parametrize("kind", ["tree", "json", "bytes"])
def test_mutations_follow_their_seed(kind):
    data = json.dumps(fuzz_bases.WHOLE).encode()
    change = {
        "tree": lambda rng: fuzz_mutations.tree(rng, fuzz_bases.WHOLE),
        "json": lambda rng: fuzz_mutations.change_json(rng, data),
        "bytes": lambda rng: fuzz_mutations.change_bytes(rng, data),
    }[kind]
    one, two = ([repr(change(random.Random(seed))) for seed in range(50)] for _ in range(2))
    assert one == two and len(set(one)) > 30
    assert json.dumps(fuzz_bases.WHOLE).encode() == data, "the healthy input was changed"


def test_what_is_no_file_says_nothing_of_what_must_be_refused(tmp_path):
    """Sixty seeds cover all kinds of replacement. Reading a pipe or a device never ends; a sparse file has 32 GB."""

    def late(*_):
        raise AssertionError("it is read")

    (tmp_path / "secret").write_text("secret")
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    try:
        for seed in range(60):
            file = tmp_path / f"{seed}.json"
            file.write_text('{"hidden_size": 64}')
            fuzz_mutations.change_place(random.Random(seed), file, tmp_path / "secret")
            assert not fuzz_kinds.sizes_differ({"hidden_size": 64}, file) | fuzz_kinds.rank_differs({"r": 1}, file)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def test_kinds_are_those_that_are_asked_for():
    import fuzz_child

    assert list(fuzz_child.kinds()) == KINDS
    assert {fuzz_child.kinds()[kind].__module__ for kind in KINDS} == {fuzz_kinds.__name__, fuzz_yaml.__name__}
