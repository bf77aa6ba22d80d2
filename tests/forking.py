"""Commands in processes that need no start-up: a parent has imported everything, and forks a child for each.

As a program (``python forking.py MODEL``) it is that parent. In tests, ``Parent`` talks to it. A child is a session, as
if started in a terminal of its own, and strikes at a ``Place``: when a function is called for the n-th time.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass
class Place:
    """target: ``module:name``. how: a function of ``HOW``. call: its number, from 1. after: seconds, of ``later``."""

    target: str
    how: str = "interrupt"
    call: int = 1
    after: float = 0.0


@dataclass
class Ended:
    code: int
    out: str
    err: str
    session: int
    seconds: float | None = None  # from the strike to the end
    after: str | None = None  # what was written to stdout and stderr after the strike


@dataclass
class Parent:
    model: Path
    scratch: Path
    process: subprocess.Popen = field(init=False)

    def __post_init__(self):
        command = [sys.executable, __file__, str(self.model)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, **pipes, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)

    def start(self, *arguments: Any, place: Place | None = None, signal: int = signal.SIGINT, **more: Any) -> int:
        """Returns the process's number; ``end`` waits for it. more: see ``_child``."""
        job = {"arguments": [str(each) for each in arguments], "place": place and asdict(place), "signal": signal}
        job |= {"scratch": str(self.scratch)} | more
        for name in ("out", "err", "struck"):
            (self.scratch / name).unlink(missing_ok=True)
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self, session: int) -> Ended:
        code, moment = json.loads(self.process.stdout.readline())
        texts = [(self.scratch / name).read_text() if (self.scratch / name).exists() else "" for name in ("out", "err")]
        ended, struck = Ended(code, *texts, session), self.scratch / "struck"
        if struck.exists():
            began, *written = json.loads(struck.read_text())
            parts = [(self.scratch / name).read_bytes()[at:] for name, at in zip(("out", "err"), written, strict=True)]
            ended.seconds, ended.after = moment - began, b"".join(parts).decode()
        return ended

    def run(self, *arguments: Any, **options: Any) -> Ended:
        return self.end(self.start(*arguments, **options))


def alive(session: int, patience: float = 5.0) -> list[str]:
    """The command lines of a session's processes that are still there after a while."""
    until = time.monotonic() + patience
    while (found := _processes(session)) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def _processes(session: int) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(status[3]) == session and status[0] != "Z":
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended
            continue
    return found


def _strike(job: dict) -> None:
    written = [os.lseek(stream, 0, os.SEEK_CUR) for stream in (1, 2)]
    Path(job["scratch"], "struck").write_text(json.dumps([time.monotonic(), *written]))
    os.killpg(0, job["signal"])


def _later(job: dict, seconds: float) -> None:
    timer = threading.Timer(seconds, _strike, (job,))
    timer.daemon = True
    timer.start()


def _interrupt(job: dict) -> None:
    """As Ctrl-C in a terminal, which reaches the children, too. The exception alone has to end it."""
    import jettison.cli.stopping

    jettison.cli.stopping.PATIENCE = 20
    _strike(job)


def _in_cpp(job: dict) -> None:
    """In a product that takes long, during which Python raises nothing."""
    import torch

    matrix = torch.ones(6000, 6000)
    _later(job, 0.2)
    matrix @ matrix


def _swallowed(job: dict) -> None:
    """As a library does that catches everything and goes on."""
    _later(job, 0.1)
    _endure()


def _twice(job: dict) -> None:
    """The first signal ends nothing, for patience is long here; the second one does."""
    import jettison.cli.stopping

    jettison.cli.stopping.PATIENCE = 300
    threading.Timer(0.1, os.killpg, (0, job["signal"])).start()
    _later(job, 1.0)
    _endure()


def _endure() -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(BaseException):
            time.sleep(0.05)


def _in_a_finalizer(job: dict) -> None:
    class Held:
        def __del__(self):
            _strike(job)
            for _ in range(1000):
                pass

    Held()


HOW = {
    "interrupt": _interrupt,
    "later": lambda job: _later(job, job["place"]["after"]),
    "in C++": _in_cpp,
    "swallowed": _swallowed,
    "twice": _twice,
    "in a finalizer": _in_a_finalizer,
}


def _set_up(job: dict) -> None:
    module, _, path = job["place"]["target"].partition(":")
    *owners, name = path.split(".")
    owner = import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    real, left = getattr(owner, name), job["place"]["call"]

    def striking(*arguments, **options):
        nonlocal left
        left -= 1
        if left == 0:
            HOW[job["place"]["how"]](job)
        return real(*arguments, **options)

    setattr(owner, name, striking)


def _child(job: dict) -> None:
    """environment: added. ignored: signals that are ignored from the start. out: where stdout goes, a path; ``closed``
    for a pipe that nobody reads."""
    os.setsid()
    scratch = Path(job["scratch"])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN if number in job.get("ignored", []) else signal.SIG_DFL)
    if signal.SIGINT not in job.get("ignored", []):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if job.get("out") == "closed":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(job.get("out", scratch / "out"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(writer, 1)
    os.dup2(os.open(scratch / "err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 2)
    os.environ.update(job.get("environment", {}))
    sys.argv = ["jettison", *job["arguments"]]
    if job["place"]:
        _set_up(job)
    from jettison.cli.app import main

    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    sys.stdout.flush()
    os._exit(code)  # to take all modules apart, the parent's as well, takes seconds


def _serve(model: str) -> None:
    import pkgutil

    import torch

    import jettison
    from jettison.devices import measuring
    from jettison.graph.folder import ModelFolder

    torch.set_num_threads(1)  # none are started here: a fork would lose them
    measuring.READ_BYTES, measuring.MATRIX, measuring.ENOUGH = 1 << 22, 256, 0.0  # to know this machine takes no time
    for module in pkgutil.walk_packages(jettison.__path__, "jettison."):
        if not module.name.startswith(("jettison.kernels.gpu", "jettison.__main__")):
            import_module(module.name)
    ModelFolder(model).skeleton, ModelFolder(model).tokenizer  # what transformers imports when first used
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        job = json.loads(line)
        if (number := os.fork()) == 0:
            try:
                _child(job)
            finally:
                sys.excepthook(*sys.exc_info())
                os._exit(99)
        answers.write(f"{number}\n")
        status = os.waitpid(number, 0)[1]
        answers.write(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic()]) + "\n")
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
