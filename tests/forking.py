"""Run jettison commands in forked processes, without the start-up time of a new interpreter.

Run as a program (``python forking.py MODEL``), this file is the parent process: it imports everything, then forks one
child per command. Tests talk to the parent through ``Parent``. A child is a session of its own, as if started in its
own terminal, and sends itself a signal at a ``Place``: when a chosen function is called for the n-th time.
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
    """Where and how a child signals itself.

    target: the function, as ``module:name``.
    how: a key of ``HOW``.
    call: the number of the call to ``target``, from 1.
    after: seconds between the call and the signal; only ``later`` uses it.
    """

    target: str
    how: str = "interrupt"
    call: int = 1
    after: float = 0.0


@dataclass
class Ended:
    """Exit code and output of a child that has ended."""

    code: int
    out: str
    err: str
    session: int
    seconds: float | None = None  # from the signal to the end
    after: str | None = None  # what was written to stdout and stderr after the signal


@dataclass
class Parent:
    """The parent process, as the tests use it. scratch: the folder for the output of the children."""

    model: Path
    scratch: Path
    process: subprocess.Popen = field(init=False)

    def __post_init__(self):
        command = [sys.executable, __file__, str(self.model)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, **pipes, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def close(self) -> None:
        """End the parent process."""
        self.process.stdin.close()
        self.process.wait(60)

    def start(self, *arguments: Any, place: Place | None = None, signal: int = signal.SIGINT, **more: Any) -> int:
        """Start a child and return its process id; ``end`` waits for it. more: see ``_child``."""
        job = {"arguments": [str(word) for word in arguments], "place": place and asdict(place), "signal": signal}
        job |= {"scratch": str(self.scratch)} | more
        for name in ("out", "err", "struck"):
            (self.scratch / name).unlink(missing_ok=True)
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self, session: int) -> Ended:
        """Wait until the child ends and return how it ended."""
        code, moment = json.loads(self.process.stdout.readline())
        texts = [(self.scratch / name).read_text() if (self.scratch / name).exists() else "" for name in ("out", "err")]
        ended, struck = Ended(code, *texts, session), self.scratch / "struck"
        if struck.exists():
            began, *written = json.loads(struck.read_text())
            parts = [(self.scratch / name).read_bytes()[at:] for name, at in zip(("out", "err"), written, strict=True)]
            ended.seconds, ended.after = moment - began, b"".join(parts).decode()
        return ended

    def run(self, *arguments: Any, **options: Any) -> Ended:
        """Start a child and wait until it ends; options as of ``start``."""
        return self.end(self.start(*arguments, **options))


def alive(session: int, patience: float = 5.0) -> list[str]:
    """Return the command lines of a session's processes that still run after ``patience`` seconds."""
    until = time.monotonic() + patience
    while (running := _processes(session)) and time.monotonic() < until:
        time.sleep(0.05)
    return running


def _processes(session: int) -> list[str]:
    commands = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(status[3]) == session and status[0] != "Z":
                commands.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:  # the process has ended meanwhile
            continue
    return commands


def _strike(job: dict) -> None:
    """Note the time and how much was written to stdout and stderr, then signal the whole process group."""
    written = [os.lseek(stream, 0, os.SEEK_CUR) for stream in (1, 2)]
    Path(job["scratch"], "struck").write_text(json.dumps([time.monotonic(), *written]))
    os.killpg(0, job["signal"])


def _later(job: dict, seconds: float) -> None:
    """Send the signal after ``seconds``, from another thread."""
    timer = threading.Timer(seconds, _strike, (job,))
    timer.daemon = True
    timer.start()


def _interrupt(job: dict) -> None:
    """Signal as Ctrl-C in a terminal does, which reaches child processes, too.

    The patience is long, so that only the exception in Python can end the process in time.
    """
    import jettison.cli.stopping

    jettison.cli.stopping.PATIENCE = 20
    _strike(job)


def _in_cpp(job: dict) -> None:
    """Signal during a long matrix product, while Python cannot raise an exception."""
    import torch

    matrix = torch.ones(6000, 6000)
    _later(job, 0.2)
    matrix @ matrix


def _swallowed(job: dict) -> None:
    """Signal in a loop that catches every exception and goes on, as some libraries do."""
    _later(job, 0.1)
    _endure()


def _twice(job: dict) -> None:
    """Signal twice: the first does not end the process, since the patience is long; the second must."""
    import jettison.cli.stopping

    jettison.cli.stopping.PATIENCE = 300
    threading.Timer(0.1, os.killpg, (0, job["signal"])).start()
    _later(job, 1.0)
    _endure()


def _endure() -> None:
    """Catch every exception for 60 seconds."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(BaseException):
            time.sleep(0.05)


def _in_a_finalizer(job: dict) -> None:
    """Signal in ``__del__``, where Python only prints an exception and goes on."""

    class Finalized:
        def __del__(self):
            _strike(job)
            for _ in range(1000):
                pass

    Finalized()


HOW = {
    "interrupt": _interrupt,
    "later": lambda job: _later(job, job["place"]["after"]),
    "in C++": _in_cpp,
    "swallowed": _swallowed,
    "twice": _twice,
    "in a finalizer": _in_a_finalizer,
}


def _set_up(job: dict) -> None:
    """Replace the target by a function that sends the signal at the chosen call."""
    module, _, path = job["place"]["target"].partition(":")
    *owners, name = path.split(".")
    owner = import_module(module)
    for attribute in owners:
        owner = getattr(owner, attribute)
    real, calls_left = getattr(owner, name), job["place"]["call"]

    def wrapper(*arguments, **options):
        nonlocal calls_left
        calls_left -= 1
        if calls_left == 0:
            HOW[job["place"]["how"]](job)
        return real(*arguments, **options)

    setattr(owner, name, wrapper)


def _child(job: dict) -> None:
    """Run the command of a job in this process, a fresh fork, and end the process.

    job: fields of ``Parent.start``, and optionally:
        environment: variables to add.
        ignored: signals that are ignored from the start.
        out: path for stdout, or ``closed`` for a pipe that nobody reads.
    """
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
    os._exit(code)  # a normal exit would tear down all modules, which takes seconds


def _serve(model: str) -> None:
    """Import everything, then fork one child for every job that arrives on stdin."""
    import pkgutil

    import torch

    import jettison
    from jettison.devices import measuring
    from jettison.graph.folder import ModelFolder

    torch.set_num_threads(1)  # no worker threads start: a forked child would lack them
    # Small sizes: measuring this machine then takes almost no time.
    measuring.READ_BYTES, measuring.MATRIX, measuring.ENOUGH = 1 << 22, 256, 0.0
    for module in pkgutil.walk_packages(jettison.__path__, "jettison."):
        if not module.name.startswith(("jettison.kernels.gpu", "jettison.__main__")):
            import_module(module.name)
    ModelFolder(model).skeleton, ModelFolder(model).tokenizer  # transformers imports more modules at first use
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        job = json.loads(line)
        if (pid := os.fork()) == 0:
            try:
                _child(job)
            finally:
                sys.excepthook(*sys.exc_info())
                os._exit(99)
        answers.write(f"{pid}\n")
        status = os.waitpid(pid, 0)[1]
        answers.write(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic()]) + "\n")
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
