"""A child of the fuzz server: it confines itself, makes its input, tries verbs on it, and writes its findings."""

import contextlib
import faulthandler
import functools
import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import fuzz_bases as bases
import fuzz_kinds
import fuzz_verbs
import fuzz_yaml
import yaml

PACKAGE = "/jettison/"
CPU = 20.0  # limit on processor time, in seconds
MEMORY = 4 << 30  # bytes, in addition to what is already mapped
ALLOWED = (".tiles", ".lock")  # name starts of caches and locks in a run folder
LONGEST = 10_000  # characters of an error message


def kinds() -> dict[str, Callable]:
    """Return the functions that make an input of each kind, by name."""
    functions = (fuzz_kinds.safetensors, fuzz_kinds.index, fuzz_kinds.config, fuzz_kinds.tokenizer)
    functions += (fuzz_yaml.recipe, fuzz_yaml.device, fuzz_yaml.scenario)
    functions += (fuzz_kinds.journal, fuzz_kinds.manifest, fuzz_kinds.tiles, fuzz_kinds.adapter, fuzz_kinds.program)
    return {kind.__name__: kind for kind in functions}


def make_healthy(folder: Path, base: Path) -> None:
    """Make the healthy inputs in ``base``, log to ``folder``, and end the process."""
    code = 1
    try:
        with logging_to(folder / "warm.txt"):
            bases.make_bases(base)
        code = 0
    finally:
        os._exit(code)


def try_healthy(folder: Path, base: Path) -> None:
    """Try every verb on the healthy inputs it must accept. Raises what a verb raises."""
    with logging_to(folder / "warm.txt"):
        _command()
        for name, verbs in fuzz_verbs.HEALTHY.items():
            for verb in verbs:
                print(f"{name}: {verb.__name__}", flush=True)
                _healthy(folder / "warm", base, name, verb)


@contextlib.contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """Write what is printed inside the context, and the traceback of an exception, to ``file``."""
    with open(file, "a") as handle, contextlib.redirect_stdout(handle), contextlib.redirect_stderr(handle):
        try:
            yield
        except BaseException:
            traceback.print_exc()
            raise


def _healthy(folder: Path, base: Path, name: str, verb: Callable) -> None:
    """Run a verb on the healthy input ``name``, in a room that is deleted afterwards."""
    room = fuzz_verbs.Room(folder, base)
    if name == "files":
        room.given.mkdir()
        values = {"recipe": bases.placed(bases.WHOLE, base), "device": bases.DEVICE, "scenario": bases.SCENARIO}
        for file, value in (values | {"costs": bases.COSTS}).items():
            (room.given / f"{file}.yaml").write_text(yaml.safe_dump(value))
    else:
        room.take(name)
    room.out.mkdir()
    verb(room)
    shutil.rmtree(folder)


def run_one(folder: Path, base: Path, kind: str, number: int, seed: int) -> None:
    """Make input ``number`` of a kind, try its verbs, write result.json, and end the process.

    The exit code is 0, whatever the findings, unless this function itself fails.
    """
    room = fuzz_verbs.Room(folder, base)
    _confine(folder, room.here)
    result = {"note": "", "verbs": {}, "findings": [], "skipped": [], "doing": "mutate"}

    def save() -> None:
        result["skipped"] = sorted(room.skipped)
        (folder / "result.json").write_text(json.dumps(result))

    error_origin = _note_refusals()
    case = kinds()[kind](room, random.Random(f"{seed}:{kind}:{number}"))
    result["note"] = case.note
    for verb in case.verbs:
        result["doing"] = verb.__name__
        save()
        shutil.rmtree(room.out, ignore_errors=True)
        room.out.mkdir()
        writes = verb.__name__.startswith("continue_")
        before, stderr_size = _watched(room, writes), (folder / "stderr").stat().st_size
        outcome, findings = _try(verb, room, case)
        sys.stdout.flush(), sys.stderr.flush()
        with open(folder / "stderr", "rb") as handle:
            handle.seek(stderr_size)
            findings += _complaints(handle.read().decode(errors="replace"), outcome, error_origin)
        findings += _strays(room, before, _watched(room, writes))
        result["verbs"][verb.__name__] = outcome
        result["findings"] += [{"verb": verb.__name__, "what": what, "message": message} for what, message in findings]
    result["doing"] = ""
    save()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0)


def _confine(folder: Path, here: Path) -> None:
    """Confine this process: output to files, its own caches, limits on memory, processor time and file size."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    stack = open(folder / "stack.txt", "w")  # noqa: SIM115 (open until the process ends)
    faulthandler.enable(stack)
    faulthandler.register(signal.SIGUSR1, stack)
    os.chdir(here)
    os.environ |= {"JETTISON_CACHE": str(folder / "cache"), "HOME": str(folder / "home")}
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 36, 1 << 36))  # generous, since some inputs are large sparse files
    resource.setrlimit(resource.RLIMIT_CPU, (int(CPU) + 10, int(CPU) + 10))


@functools.cache
def _command() -> Callable:
    """Build the command line program once: building takes longer than most inputs."""
    import typer

    from jettison.cli.app import build

    return typer.main.get_command(build())


def _note_refusals() -> list[str]:
    """Patch the command line to note which function raised the last of our errors.

    Returns a list of one string, ``file:function``, updated in place; the error message does not say it.
    """
    from jettison.cli import app
    from jettison.core.errors import JettisonError

    origin, command = [""], _command()

    def call(arguments: list[str]) -> object:
        try:
            return command(arguments)
        except JettisonError as error:
            origin[0] = _innermost(error.__traceback__)
            raise

    app.build = lambda: call
    return origin


def _try(verb: Callable, room, case) -> tuple[str, list[tuple[str, str]]]:
    """Run a verb. Returns the outcome, and the findings as (what, message)."""
    from jettison.core.errors import JettisonError

    try:
        verb(room)
    except (fuzz_verbs.Refused, JettisonError):
        return "refused", []
    except fuzz_verbs.Complaint as complaint:
        return "complaint", [(complaint.args[0], "; ".join([*map(str, complaint.args[1:]), case.note]))]
    except BaseException as error:
        what = f"{type(error).__name__} in {_innermost(error.__traceback__)}"
        return "exception", [(what, "".join(traceback.format_exception(error))[-3000:])]
    if verb.__name__ in case.wrong and verb.__name__ not in room.skipped:
        return "accepted", [(f"{verb.__name__} accepts: {case.why}", case.note)]
    return "skipped" if verb.__name__ in room.skipped else "accepted", []


def _innermost(trace: TracebackType | None) -> str:
    """Return the innermost frame of our package, as ``file:function``."""
    frames = [frame for frame in traceback.extract_tb(trace) if PACKAGE in frame.filename]
    frames = [frame for frame in frames if "/site-packages/" not in frame.filename.partition("/src/jettison/")[0]]
    return _named(frames[-1].filename, frames[-1].name) if frames else "no code of ours"


def _named(file: str, function: str) -> str:
    return f"{file.rpartition(PACKAGE)[2]}:{function}"


def frame_of(stack: str) -> str:
    """Return our innermost frame in the output of faulthandler, which lists the most recent call first."""
    for line in stack.splitlines():
        parts = line.strip().split('"')
        if len(parts) == 3 and f"src{PACKAGE}" in parts[1]:
            return _named(parts[1], parts[2].rpartition(" in ")[2])
    return "no code of ours"


def _complaints(stderr: str, outcome: str, origin: list[str]) -> list[tuple[str, str]]:
    """Return findings about the text on stderr."""
    if "Traceback" in stderr or "panicked at" in stderr:
        return [("a traceback on stderr", stderr[-2000:])]
    _, error, text = stderr.partition("error: ")
    if outcome == "refused" and error:
        if "\n" in text.strip("\n"):
            return [(f"an error of several lines from {origin[0]}", stderr[-2000:])]
        if not text.strip() or len(text) > LONGEST:
            return [(f"an error of {len(text)} characters from {origin[0]}", stderr[:500])]
    return []


def _watched(room, writes: bool) -> dict[str, tuple]:
    """Return a listing of the files that the verb must not touch. writes: the verb may change the input folder."""
    folders = [room.outside, room.here, room.folder / "home"] + ([] if writes else [room.given])
    return {name: status for place in folders for name, status in listing(place).items()}


def listing(folder: Path) -> dict[str, tuple]:
    """List everything in a folder, with the change times (ctime), which no program can reset."""
    statuses, folders = {}, [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    statuses[entry.path] = (status.st_mode,)
                else:
                    statuses[entry.path] = (status.st_mode, status.st_size, status.st_ctime_ns, status.st_ino)
    return statuses


def _strays(room, before: dict[str, tuple], after: dict[str, tuple]) -> list[tuple[str, str]]:
    """Return findings about files touched outside the output folder, left half written, or copied from outside."""
    findings = []
    for path in sorted({*before, *after}):
        name = Path(path).relative_to(room.folder)
        if before.get(path) == after.get(path) or any(part.startswith(ALLOWED) for part in name.parts):
            continue
        if ".cache" not in name.parts:  # .cache holds files of other packages in their home folder
            place = fuzz_verbs.nameless(name if name.parts[0] == "given" else name.parts[0])
            findings.append((f"a file was touched outside the output folder: {place}", str(name)))
    outputs = [room.out, room.given] if not any(str(room.given) in path for path in before) else [room.out]
    for path in (path for folder in outputs for path in folder.rglob("*") if not path.is_symlink() and path.is_file()):
        if path.suffix == ".tmp":
            findings.append(("half a file is left", str(path.relative_to(room.folder))))
        elif path.stat().st_size < 1 << 22 and fuzz_verbs.SECRET.encode() in path.read_bytes():
            findings.append((f"a file from outside was copied to {path.name}", str(path.relative_to(room.folder))))
    return findings


def read_text(path: Path) -> str:
    """Return the text of a file; empty if it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
