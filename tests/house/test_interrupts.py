"""Ctrl-C and SIGTERM at any moment: a quick end, one line, no traceback, no process left behind, no work lost."""

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

from jettison import verify
from jettison.cli.app import COMMANDS
from jettison.cli.stopping import CONTINUES, KEEPS, RESUMED, SIGNALS, STARTS_OVER

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
SOON = 6.0  # seconds: PATIENCE plus a margin for a busy machine
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
    """Return a folder with a model and a recipe, and the parent that forks commands without start-up time."""
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
    """Return the words of a command line that runs ``command``."""
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
        "inspect": ["inspect", model],
        "export": ["export", fitted, "--to", "gptq", "-o", out],
        "bench": ["bench", "decode", fitted, "--context", 16, "--rounds", 1],
        "devices": ["devices", "measure"],
        "recipes": ["recipes"],
        "xr": ["xr", "sweep", "ar-gaming", "-a", "A", "-a", "J", "--seeds", 2, "--workers", 2],
        "perceive": ["perceive", "world", "--out", out, "--scenes", 1, "--frames", 4, "--size", "48x120"],
        "offload": ["offload", "attack", "--out", out, "--expressions", 4, "--frames", 40, "--steps", 40],
        "xr live": ["xr", "live", "ar-gaming", "--size", "tiny", "--seconds", 1, "--units", 2, "--rounds", 2],
    }[command]


def assert_stopped(ended, number=signal.SIGINT, line=STARTS_OVER):
    """Check that a command ended soon after signal ``number``, with ``line`` last and no process left."""
    lines = ended.err.splitlines()
    assert lines and lines[-1] == line, ended.err
    assert sum(text.startswith("stopped") for text in lines) == 1
    assert ended.code == 128 + number
    assert "Traceback" not in ended.err + ended.out and "Exception ignored" not in ended.err
    assert ended.seconds < SOON
    assert not alive(ended.session)


def line_of(command: str) -> str:
    """Return the line that a stopped command prints: what becomes of its work."""
    if command in ("fit", "compress", "recover", "export", "perceive", "offload"):
        return CONTINUES
    return KEEPS if command in ("plan", "draft") else STARTS_OVER


# Places where our code catches exceptions, where C++ code runs, or where other processes work.
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
    "inspect": Place("jettison.pipeline.inspection:read_grids"),
    "export": Place("jettison.formats.check:check_shard", call=2),
    "bench": Place("jettison.bench.decoding:_steps"),
    "devices": Place("jettison.devices.machine:_kept"),
    "recipes": Place("jettison.recipe.recipe:load_recipe", call=2),
    "xr": Place("jettison.core.parallel:as_completed"),
    "perceive": Place("jettison.domains.perception.world.store:render_frame", call=2),
    "offload": Place("jettison.training.loop:sample_indices", call=3),
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
    assert ended.after.count("\n") == 1  # nothing caught the exception and went on
    if command in RESUMED:
        assert parent.run(*arguments(command, folder, out, fitted)).code == 0
        assert_same(command, out, fitted)


def assert_same(command: str, out: Path, fitted: Path) -> None:
    """Check that weights, adapter, training state and, for fit, the manifest are those of the undisturbed run."""
    if command == "export":  # of the undisturbed run, in another format
        assert verify(out / "gptq", original=fitted.parent / "model")["ok"]
        return
    names = [name for name in files_of(out) if name.endswith(".safetensors") and ".tiles" not in name]
    names += ["jettison.json"] * (command == "fit")
    assert len(names) >= 3
    assert [name for name in names if (out / name).read_bytes() != (fitted / name).read_bytes()] == []


@pytest.mark.slow
@pytest.mark.parametrize("command", [*PLACES, "tasks", "xr live"])
def test_ctrl_c_at_ten_moments(room, fitted, tmp_path, command):
    """The moments are spread over the duration of the command. If it ends before, nothing is checked."""
    folder, parent = room
    stopped, duration = 0, 0.0
    for number in (-1, *range(11)):  # the first run loads files into the page cache
        out, start = tmp_path / str(number), time.monotonic()
        if command == "recover":
            shutil.copytree(fitted, out)
        words = [*arguments(command, folder, out, fitted), *(["--restart"] if command == "recover" else [])]
        place = number > 0 and Place("jettison.cli.app:_prepare", "later", after=duration * (number - 0.5) / 10)
        ended = parent.run(*words, place=place or None)
        if not place or ended.code in (0, -signal.SIGINT):  # -SIGINT: the work was done and Python about to exit
            assert (ended.code == 0 or place) and "Traceback" not in ended.err, ended.err
        else:
            assert_stopped(ended, line=line_of(command))
            stopped += 1
        duration = duration if place else time.monotonic() - start
        if command in RESUMED:
            assert parent.run(*arguments(command, folder, out, fitted)).code == 0
            assert_same(command, out, fitted)
    assert stopped >= (5 if duration > 1 else 1)  # a short command spends much of its time on start and exit


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
    """Signals are ignored under nohup, for example, or in the background of a script."""
    place = Place("jettison.recipe.recipe:load_recipe")
    ended = room[1].run("recipes", place=place, ignored=[int(signal.SIGINT)])
    assert ended.code == 0 and ended.seconds is not None and "gateup-w4w2" in ended.out


def test_while_modules_are_imported(room, fitted):
    command = [sys.executable, "-m", "jettison", *map(str, arguments("generate", room[0], room[0], fitted))]
    unmask = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=unmask)
    maps, deadline = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 60
    while "libtorch" not in maps.read_text() and time.monotonic() < deadline:
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
    """``main`` with arguments is called from a process that goes on, so it sets no handlers."""
    handlers = [signal.getsignal(number) for number in SIGNALS]

    def interrupted(name):
        assert [signal.getsignal(number) for number in SIGNALS] == handlers
        raise KeyboardInterrupt

    monkeypatch.setattr("jettison.recipe.recipe.load_recipe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        jettison("recipes")
