"""Ctrl-C and SIGTERM, wherever they come: soon over, one line, no traceback, nobody left behind, nothing lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny as maker
from forking import Parent, Place, alive
from killing import files_of

from jettison.cli.app import COMMANDS
from jettison.cli.stopping import CONTINUES, KEEPS, RESUMED, SIGNALS, STARTS_OVER

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
SOON = 6.0  # seconds: PATIENCE, and what a busy machine adds
RECIPE = """
calibration: {text: books, samples: 4, length: 32}
steps:
- quantize: {method: gptq, bits: 4, group_size: 32}
  where: {role: [gate, up]}
- recover: {samples: 4, length: 32, batch: 1, data: books}
  where: {role: [gate, up]}
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A model, a recipe, and a parent of processes that have imported everything."""
    folder = tmp_path_factory.mktemp("interrupts")
    maker.make("llama", folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "text.txt").write_text("It was a dark night, and nobody was there to see it. " * 60)
    (folder / "pipes").mkdir()
    parent = Parent(folder / "model", folder / "pipes")
    yield folder, parent
    parent.close()


@pytest.fixture(scope="module")
def fitted(room):
    folder, parent = room
    ended = parent.run(*arguments("fit", folder, folder / "fitted"))
    assert ended.code == 0, ended.err
    return folder / "fitted"


def arguments(command: str, folder: Path, out: Path, fitted: Path | None = None) -> list[object]:
    model, recipe, text = folder / "model", folder / "recipe.yaml", folder / "text.txt"
    return {
        "fit": ["fit", model, "--recipe", recipe, "-o", out, "--text", text, "--context", 64],
        "compress": ["compress", model, "--recipe", recipe, "-o", out],
        "recover": ["recover", out],
        "plan": ["plan", model, "--memory", "650KB", "--context", 0, "--device", "raspberry-pi-5"],
        "evaluate": ["evaluate", fitted, "--text", text, "--tokens", 256, "--window", 32],
        "tasks": ["evaluate", fitted, "--text", text, "--tasks", "jettison_books_recall", "--items", 2],
        "generate": ["generate", fitted, "-n", 8],
        "draft": ["draft", fitted, "--text", text, "-n", 8, "--prompts", 2, "--ratio", 0],
        "report": ["report", fitted, "-o", out / "page.html"],
        "compare": ["compare", fitted, fitted, "-o", out / "page.html"],
        "verify": ["verify", fitted],
        "bench": ["bench", "decode", fitted, "--context", 16, "--rounds", 1],
        "devices": ["devices", "measure"],
        "recipes": ["recipes"],
        "xr": ["xr", "sweep", "ar-gaming", "-a", "A", "-a", "J", "--seeds", 2, "--workers", 2],
        "xr live": ["xr", "live", "ar-gaming", "--size", "tiny", "--seconds", 1, "--units", 2, "--rounds", 2],
    }[command]


def assert_stopped(ended, number=signal.SIGINT, line=STARTS_OVER):
    said = ended.err.splitlines()
    assert said and said[-1] == line, ended.err
    assert sum(each.startswith("stopped") for each in said) == 1
    assert ended.code == 128 + number
    assert "Traceback" not in ended.err + ended.out and "Exception ignored" not in ended.err
    assert ended.seconds < SOON
    assert not alive(ended.session)


def line_of(command: str) -> str:
    """Each says what is true of it."""
    if command in ("fit", "compress", "recover"):
        return CONTINUES
    return KEEPS if command in ("plan", "draft") else STARTS_OVER


# Where exceptions of our own were caught, where C++ works, where other processes do.
PLACES = {
    "fit": Place("jettison.fitting:show"),
    "compress": Place("jettison.formats.check:check_shard", call=2),
    "recover": Place("jettison.training.loop:sample_indices", call=3),
    "plan": Place("jettison.planning.search:_solve"),
    "evaluate": Place("jettison.domains.text.domain:compare"),
    "generate": Place("jettison.formats.tiled:_read"),
    "draft": Place("jettison.runtime.views:write_tiled"),
    "report": Place("jettison.reports.error_map:ModelFolder"),
    "compare": Place("jettison.reports.compare:read_run", call=2),
    "verify": Place("jettison.pipeline.verification:load"),
    "bench": Place("jettison.bench.decoding:_steps"),
    "devices": Place("jettison.devices.machine:_kept"),
    "recipes": Place("jettison.recipe.recipe:load_recipe", call=2),
    "xr": Place("jettison.core.parallel:as_completed"),
}


def test_every_command_has_a_place():
    assert set(PLACES) == set(COMMANDS)


@pytest.mark.parametrize("command", PLACES)
def test_ctrl_c(room, fitted, tmp_path, command):
    folder, parent = room
    out = tmp_path / "out"
    if command == "recover":
        shutil.copytree(fitted, out)
        assert_stopped(parent.run(*arguments(command, folder, out), "--restart", place=PLACES[command]), line=CONTINUES)
    ended = parent.run(*arguments(command, folder, out, fitted), place=PLACES[command])
    assert_stopped(ended, line=line_of(command))
    assert ended.after.count("\n") == 1  # nothing caught it and went on
    if command in RESUMED:
        assert parent.run(*arguments(command, folder, out)).code == 0
        assert_same(command, out, fitted)


def assert_same(command: str, out: Path, fitted: Path) -> None:
    """What is there of weights, adapter, training and, of a whole fit, results."""
    names = [name for name in files_of(out) if name.endswith(".safetensors") and ".tiles" not in name]
    names += ["jettison.json"] * (command == "fit")
    assert len(names) >= 3
    assert [name for name in names if (out / name).read_bytes() != (fitted / name).read_bytes()] == []


@pytest.mark.slow
@pytest.mark.parametrize("command", [*PLACES, "tasks", "xr live"])
def test_ctrl_c_at_ten_moments(room, fitted, tmp_path, command):
    """Spread over the time that the command takes; where it was over before, nothing is to be seen."""
    folder, parent = room
    stopped, took = 0, 0.0
    for number in (-1, *range(11)):  # the first one reads files that then are in memory
        out, start = tmp_path / str(number), time.monotonic()
        if command == "recover":
            shutil.copytree(fitted, out)
        given = [*arguments(command, folder, out, fitted), *(["--restart"] if command == "recover" else [])]
        place = number > 0 and Place("jettison.cli.app:_prepare", "later", after=took * (number - 0.5) / 10)
        ended = parent.run(*given, place=place or None)
        if not place or ended.code in (0, -signal.SIGINT):  # the latter: all was done, and Python about to end
            assert (ended.code == 0 or place) and "Traceback" not in ended.err, ended.err
        else:
            assert_stopped(ended, line=line_of(command))
            stopped += 1
        took = took if place else time.monotonic() - start
        if command in RESUMED:
            assert parent.run(*arguments(command, folder, out)).code == 0
            assert_same(command, out, fitted)
    assert stopped >= (5 if took > 1 else 1)  # a part of so short a time is to start and to end the process


@pytest.mark.parametrize("how", ["in C++", "swallowed", "twice", "in a finalizer"])
def test_where_an_exception_does_not_help(room, fitted, how):
    folder, parent = room
    assert_stopped(
        parent.run(
            *arguments("verify", folder, folder, fitted), place=Place("jettison.pipeline.verification:load", how)
        )
    )


def test_sigterm(room, tmp_path):
    folder, parent = room
    place = Place("jettison.formats.check:check_shard")
    ended = parent.run(*arguments("compress", folder, tmp_path / "out"), place=place, signal=signal.SIGTERM)
    assert_stopped(ended, signal.SIGTERM, CONTINUES)
    ended = parent.run("compress", folder / "model", "--recipe", "w8", "-o", tmp_path / "no", "--dry-run",
                       "--set", "quantize.group_size=32", place=Place("jettison.pipeline.trial:try_block"))  # fmt: skip
    assert_stopped(ended, line=STARTS_OVER)


def test_what_the_caller_ignores_stays_ignored(room):
    """As under nohup, or in the background of a script."""
    place = Place("jettison.recipe.recipe:load_recipe")
    ended = room[1].run("recipes", place=place, ignored=[int(signal.SIGINT)])
    assert ended.code == 0 and ended.seconds is not None and "gateup-w4w2" in ended.out


def test_while_modules_are_imported(room, fitted):
    command = [sys.executable, "-m", "jettison", *map(str, arguments("generate", room[0], room[0], fitted))]
    listen = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    maps, until = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 60
    while "libtorch" not in maps.read_text() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", STARTS_OVER + "\n")


def test_what_cannot_be_printed(room):
    parent = room[1]
    ended = parent.run("recipes", out="closed")
    assert (ended.code, ended.err) == (141, "")
    ended = parent.run("recipes", out="/dev/full")
    assert (ended.code, ended.err) == (1, "error: cannot write the output: No space left on device\n")
    ended = parent.run("devices", "show", "strix-point", environment={"PYTHONIOENCODING": "ascii"})
    assert ended.code == 0


def test_in_a_process_that_goes_on_signals_are_its_own(jettison, monkeypatch):
    """``main`` with arguments."""
    handlers = [signal.getsignal(number) for number in SIGNALS]

    def interrupted(name):
        assert [signal.getsignal(number) for number in SIGNALS] == handlers
        raise KeyboardInterrupt

    monkeypatch.setattr("jettison.recipe.recipe.load_recipe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        jettison("recipes")
