"""SIGKILL at every write of a run, and inside it: ``python tests/kill_trials.py compress recover fit``.

A child, forked from a process that has everything imported, does the work in a folder and kills itself at event number
n: before a file is renamed, synced, cut or deleted, after it is opened, when half of what is written to it is written;
of a journal also when zeros stand where the line should be, as a machine that loses power leaves it. A second child
then does the same again, and must end with the bytes of a run that nothing disturbed.

    --most N     so many events of each verb, spread over all, those of journals first; else every one
    --pairs N    also so many times two processes at once in one folder
    --json FILE  what came of every trial
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from killing import Trap

HERE = Path(__file__).resolve().parent
LIMIT = 120.0  # seconds of a child
# What differs from run to run, caches, and what is a log: the last is compared line by line.
DIFFER = {
    "speed.json",
    "report.html",
    ".lock",
    ".lock-holder",
    ".tiles",
    "progress.log",
    "journal.jsonl",
}
SETTINGS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


class Work:
    """The verbs, each on a folder of its own, which for some begins as a copy of what another verb left."""

    def __init__(self, folder: Path):
        import fuzz_bases as bases

        self.folder, self.model, self.whole = folder, folder / "model", {}
        self.recipe = bases.placed(bases.WHOLE, folder)
        self.pruned = bases.placed(bases.PRUNED, folder)

    def make_model(self) -> None:
        import fuzz_bases as bases

        bases.make_model("llama", self.model)
        (self.folder / "text.txt").write_text(bases.TEXT)

    def compress(self, folder: Path) -> None:
        from jettison.pipeline.compression import compress

        compress(self.model, self.recipe, folder)

    def prune(self, folder: Path) -> None:
        from jettison.pipeline.compression import compress

        compress(self.model, self.pruned, folder, spill=True)

    def recover(self, folder: Path) -> None:
        from jettison.pipeline.recovery import recover

        recover(folder, save_every=0)

    def fit(self, folder: Path) -> None:
        from jettison.fitting import fit
        from jettison.recipe.recipe import load_recipe

        options = {"texts": [self.folder / "text.txt"], "tokens": 1024, "device": "raspberry-pi-5"}
        fit(self.model, out=folder, recipe=load_recipe(self.recipe), **options)

    def begin(self, verb: str, folder: Path) -> Path:
        if verb == "recover":
            shutil.copytree(self.undisturbed("compress"), folder)
        return folder

    def undisturbed(self, verb: str) -> Path:
        """The folder of a run that nothing disturbed. It is made here, so that children have everything imported."""
        import fuzz_bases as bases

        if verb not in self.whole:
            folder = self.begin(verb, self.folder / f"{verb}-whole")
            getattr(self, verb)(folder)
            bases.wait_for_threads()
            self.whole[verb] = folder
        return self.whole[verb]


def child(work: Callable[[], None], told: Path, trap: Trap | None = None, events: Path | None = None) -> int:
    """The process id of a child that does the work: it ends with 0 when done, 1 when it was refused."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        from jettison.core.errors import JettisonError

        with open(told, "w") as handle:
            os.dup2(handle.fileno(), 1), os.dup2(handle.fileno(), 2)
        if trap:
            trap.set()
        try:
            work()
            code = 0
        except JettisonError as error:
            print(f"error: {error}", flush=True)
            code = 1
        except BaseException:
            traceback.print_exc()
        if events:
            os.write(os.open(events, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), json.dumps(trap.events).encode())
        sys.stdout.flush(), sys.stderr.flush()
    finally:
        os._exit(code)


def wait(pid: int) -> int | str:
    """The exit code, ``SIGKILL``, or ``hang``."""
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hang"


def difference(folder: Path, whole: Path) -> str:
    """What two runs do not have in common; empty if nothing. Journals: each line of one is in the other."""
    names = sorted({str(path.relative_to(root)) for root in (folder, whole) for path in root.rglob("*")})
    for name in names:
        mine, other = folder / name, whole / name
        if name.endswith(".tmp"):
            if mine.exists():
                return f"half a file is left: {name}"
        elif not {Path(name).name, name.partition("/")[0]} & DIFFER and not mine.is_dir():
            if not (mine.is_file() and other.is_file()):
                return f"{name} is only {'here' if mine.is_file() else 'there'}"
            if mine.read_bytes() != other.read_bytes():
                return f"{name} differs"
        elif name.endswith(".jsonl") and (said := _journals_differ(mine, other)):
            return f"{name}: {said}"
    return ""


def _journals_differ(mine: Path, other: Path) -> str:
    try:
        pair = [[json.loads(line) for line in path.read_bytes().splitlines()] for path in (mine, other)]
    except (OSError, ValueError) as error:
        return str(error)
    if pair[0][:1] != pair[1][:1]:
        return "another first line"
    found, wanted = ({json.dumps(entry, sort_keys=True) for entry in entries} for entries in pair)
    return "" if found == wanted else f"other entries: {sorted(found ^ wanted)[0][:200]}"


def chosen(events: list[str], most: int | None, rng: random.Random) -> list[tuple[int, str]]:
    """(event, mode). Journals' writes in every mode."""
    journal = [at for at, event in enumerate(events) if event.startswith("write journal")]
    others = [at for at in range(len(events)) if at not in journal]
    if most is not None:
        journal = sorted(rng.sample(journal, min(len(journal), max(1, most // 4))))
        others = sorted(rng.sample(others, min(len(others), max(0, most - 2 * len(journal)))))
    pairs = [
        (at, mode) for at in journal for mode in (("half", "zeros") if most is not None else ("none", "half", "zeros"))
    ]
    return pairs + [(at, "half") for at in others]


def trials(work: Work, verb: str, most: int | None, seed: int) -> list[dict]:
    call, told, events = getattr(work, verb), work.folder / "told.txt", work.folder / "events.json"
    whole, folder = work.undisturbed(verb), work.folder / f"{verb}-killed"
    work.begin(verb, folder)
    code = wait(child(lambda: call(folder), told, Trap(folder), events))
    if code != 0 or (said := difference(folder, whole)):
        raise RuntimeError(f"{verb}: a second undisturbed run ended with {code}: {told.read_text() if code else said}")
    names, found = json.loads(events.read_text()), []
    for at, mode in chosen(names, most, random.Random(seed)):
        shutil.rmtree(folder)
        work.begin(verb, folder)
        first = wait(child(lambda: call(folder), told, Trap(folder, at, mode)))
        then = wait(child(lambda: call(folder), told))
        said = told.read_text()[-2000:] if then != 0 else difference(folder, whole)
        row = {"verb": verb, "event": at, "of": len(names), "at": names[at], "mode": mode, "killed": first == "SIGKILL"}
        found.append(row | {"identical": first == "SIGKILL" and then == 0 and not said, "why": said})
    shutil.rmtree(folder)
    return found


def pairs(work: Work, count: int, seed: int) -> list[dict]:
    """Two processes at once in one folder: one finishes; the other is told, or finds it finished."""
    found, rng = [], random.Random(seed)
    whole = work.undisturbed("compress") if count else None
    for number in range(count):
        folder, told = work.folder / "pair", [work.folder / f"told-{each}.txt" for each in range(2)]
        first = child(lambda folder=folder: work.compress(folder), told[0])
        time.sleep(rng.uniform(0, 0.3))
        second = child(lambda folder=folder: work.compress(folder), told[1])
        codes = [wait(first), wait(second)]
        said = [each.read_text() for each in told]
        known = all(
            code == 0 or (code == 1 and "another process works on" in text)
            for code, text in zip(codes, said, strict=True)
        )
        why = difference(folder, whole) if 0 in codes and known else f"exit codes {codes}: {' | '.join(said)}"[-2000:]
        found.append({"verb": "pair", "event": number, "told": codes.count(1), "identical": not why, "why": why})
        shutil.rmtree(folder, ignore_errors=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verbs", nargs="*", help="compress, recover, prune, fit")
    parser.add_argument("--most", type=int)
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ.update(SETTINGS)
    sys.path.insert(0, str(HERE))
    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="jettison-kills-", dir=memory if os.access(memory, os.W_OK) else None))
    os.environ["JETTISON_CACHE"] = str(folder / "cache")
    try:
        found = run(folder, given)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for row in found:
        if not row["identical"]:
            print(f"{row['verb']} {row['event']} ({row.get('at')}, {row.get('mode')}): {row['why'].strip()[-300:]}")
    identical = sum(row["identical"] for row in found)
    print(f"{identical} of {len(found)} identical")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if identical == len(found) else 1


def run(folder: Path, given: argparse.Namespace) -> list[dict]:
    from jettison.core.progress import set_quiet

    set_quiet(True)
    work = Work(folder)
    pid = os.fork()
    if pid == 0:  # to make a model starts threads, which a process that forks must not have
        with contextlib.suppress(BaseException):
            work.make_model()
            os._exit(0)
        os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the model cannot be made")
    found = [row for verb in given.verbs for row in trials(work, verb, given.most, given.seed)]
    return found + pairs(work, given.pairs, given.seed)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)
