"""The process that has imported everything and forks one child for every fuzzed input.

Nothing in it may start a thread, since a forked child has only the thread that called fork. PyTorch uses one thread.
"""

import contextlib
import gc
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

torch.set_num_threads(1)
torch.set_num_interop_threads(1)

from fuzz_bases import wait_for_threads  # noqa: E402
from fuzz_child import CPU, frame_of, listing, make_healthy, read_text, run_one, try_healthy  # noqa: E402

STALLED, WALL = 8.0, 240.0  # limits of a child in seconds: without any work, and in total


class Server:
    """Forks the children and collects their results.

    folder: where the rooms of all inputs lie.
    keep: do not delete the rooms.
    """

    def __init__(self, folder: Path, seed: int, keep: bool = False):
        self.folder, self.base, self.seed, self.keep = folder, folder / "bases", seed, keep

    def warm(self) -> None:
        """Make the healthy inputs in a separate process, then try every verb on them in this one.

        The modules and caches that the verbs load are then inherited by all children.
        Raises RuntimeError if a verb fails, or leaves a thread behind.
        """
        os.environ["JETTISON_CACHE"] = str(self.folder / "warm-cache")
        pid = os.fork()
        if pid == 0:
            make_healthy(self.folder, self.base)
        _, status = os.waitpid(pid, 0)
        try:
            if status:
                raise ValueError("they cannot be made")
            try_healthy(self.folder, self.base)
        except BaseException as error:
            log = (self.folder / "warm.txt").read_text()[-4000:]
            raise RuntimeError(f"healthy inputs do not work: {log}") from error
        wait_for_threads()  # the threads of progress displays end soon after their verb
        self.healthy = listing(self.base)
        gc.collect()
        gc.freeze()

    def run(self, inputs: Iterable[tuple[str, int]], jobs: int) -> Iterator[dict]:
        """Run the inputs in up to ``jobs`` children at once. Yields results as they finish, in any order."""
        running: dict[int, Watched] = {}
        waiting = iter(inputs)
        ended = False
        try:
            while running or not ended:
                while len(running) < jobs and not ended:
                    ended = (item := next(waiting, None)) is None
                    if item:
                        watched = self._begin(*item)
                        running[watched.pid] = watched
                for watched in [watched for watched in running.values() if watched.is_over()]:
                    del running[watched.pid]
                    yield self._result(watched)
                if running:
                    time.sleep(0.001)
        finally:
            for watched in running.values():
                watched.kill()

    def _begin(self, kind: str, number: int) -> "Watched":
        """Fork a child for one input."""
        folder = self.folder / f"{kind}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        pid = os.fork()
        if pid == 0:
            try:
                run_one(folder, self.base, kind, number, self.seed)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(99)
        return Watched(pid, folder, kind, number)

    def _result(self, watched: "Watched") -> dict:
        """Return what a child wrote, with a finding added if it crashed or hung."""
        result = {"note": "", "verbs": {}, "findings": [], "skipped": [], "doing": "mutate"}
        with contextlib.suppress(OSError, ValueError):
            result |= json.loads((watched.folder / "result.json").read_text())
        result |= {"kind": watched.kind, "number": watched.number, "folder": str(watched.folder)}
        result["cpu"] = watched.used
        add = lambda what, message: result["findings"].append(
            {"verb": result["doing"], "what": what, "message": message}
        )
        stack = read_text(watched.folder / "stack.txt")
        if watched.hung:
            add(f"{watched.hung} in {frame_of(stack)}", stack[:2000])
        elif watched.status:
            death = os.WTERMSIG(watched.status) if os.WIFSIGNALED(watched.status) else 0
            name = signal.Signals(death).name if death else f"exit {os.WEXITSTATUS(watched.status)}"
            add(f"{name} in {frame_of(stack)}", stack[:2000] or read_text(watched.folder / "stderr")[-2000:])
        if listing(self.base) != self.healthy:
            raise RuntimeError(f"{watched.kind}:{watched.number} changed the healthy inputs: {watched.folder}")
        if not self.keep:
            shutil.rmtree(watched.folder, ignore_errors=True)
        return result


class Watched:
    """A child process, watched for crashes and hangs."""

    def __init__(self, pid: int, folder: Path, kind: str, number: int):
        self.pid, self.folder, self.kind, self.number = pid, folder, kind, number
        self.start = self.looked = self.moved = time.monotonic()
        self.used, self.hung, self.status = 0.0, "", None

    def is_over(self) -> bool:
        """Return whether the child has ended; kill it if it hangs or works too long."""
        pid, status, spent = os.wait4(self.pid, os.WNOHANG)
        if pid:
            self.status, self.used = status, spent.ru_utime + spent.ru_stime
            return True
        now = time.monotonic()
        if now - self.looked > 0.5:
            used, works = self._cpu()
            self.looked = now
            if used > self.used or works:
                self.used, self.moved = used, now
            if used > CPU:
                self.hung = "too long"
            elif now - self.moved > STALLED or now - self.start > WALL:
                self.hung = "waits for ever"
            if self.hung:
                os.kill(self.pid, signal.SIGUSR1)  # faulthandler writes the stack
                time.sleep(0.3)
                self.kill()
                return True
        return False

    def _cpu(self) -> tuple[float, bool]:
        """Return seconds of processor time so far, and whether the child runs or waits for a processor or disk."""
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), fields[0] in "RD"
        return self.used, True

    def kill(self) -> None:
        """Kill the child."""
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
