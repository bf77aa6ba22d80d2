"""SIGKILL before, at and inside every write of a run: ``python tests/kill_trials.py compress recover fit``.

A child, forked from a process that has imported everything, does the work in a folder and kills itself at event
number n. An event is:

- a file is about to be renamed, synced, truncated or deleted
- a file has been opened
- half of the data of a write has been written
- zeros have been written in place of a journal line, as a machine that loses power may leave it

A second child then does the same work again and must end with the bytes of a run that nothing disturbed.

    --most N     try only N events of each verb, spread over all, those of journals first; without it, every event
    --pairs N    also run N pairs of processes at once in one folder
    --json FILE  write the result of every trial there
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
LIMIT = 120.0  # time limit of a child, in seconds
# Not compared byte by byte: files that differ from run to run, caches, and logs. Journals are compared line by line.
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
    """The verbs, each on a folder of its own. For recover, the folder begins as a copy of a compressed run.

    whole: the folder of the undisturbed run of each verb.
    """

    def __init__(self, folder: Path):
        import fuzz_bases as bases

        self.folder, self.model, self.whole = folder, folder / "model", {}
        self.recipe = bases.placed(bases.WHOLE, folder)
        self.pruned = bases.placed(bases.PRUNED, folder)

    def make_model(self) -> None:
        """Write the tiny model and the text."""
        import fuzz_bases as bases

        bases.make_model("llama", self.model)
        (self.folder / "text.txt").write_text(bases.TEXT)

    def compress(self, folder: Path) -> None:
        """Compress into ``folder``."""
        from jettison.pipeline.compression import compress

        compress(self.model, self.recipe, folder)

    def prune(self, folder: Path) -> None:
        """Prune and quantize into ``folder``, with activations spilled to disk."""
        from jettison.pipeline.compression import compress

        compress(self.model, self.pruned, folder, spill=True)

    def recover(self, folder: Path) -> None:
        """Recover the run in ``folder``."""
        from jettison.pipeline.recovery import recover

        recover(folder, save_every=0)

    def fit(self, folder: Path) -> None:
        """Fit (compress, recover, evaluate, report) into ``folder``."""
        from jettison.fitting import fit
        from jettison.recipe.recipe import load_recipe

        options = {"texts": [self.folder / "text.txt"], "tokens": 1024, "device": "raspberry-pi-5"}
        fit(self.model, out=folder, recipe=load_recipe(self.recipe), **options)

    def begin(self, verb: str, folder: Path) -> Path:
        """Put into ``folder`` what the verb starts from."""
        if verb == "recover":
            shutil.copytree(self.undisturbed("compress"), folder)
        return folder

    def undisturbed(self, verb: str) -> Path:
        """Return the folder of a run that nothing disturbed.

        The run happens in this process, so that children inherit all imported modules.
        """
        import fuzz_bases as bases

        if verb not in self.whole:
            folder = self.begin(verb, self.folder / f"{verb}-whole")
            getattr(self, verb)(folder)
            bases.wait_for_threads()
            self.whole[verb] = folder
        return self.whole[verb]


def child(work: Callable[[], None], output: Path, trap: Trap | None = None, events: Path | None = None) -> int:
    """Fork a child that does the work, and return its process id.

    The child exits with 0 when done, 1 after one of our errors, 99 after another exception.
    output: file for what it prints.
    events: file for the list of all events of ``trap``.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        from jettison.core.errors import JettisonError

        with open(output, "w") as handle:
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
    """Wait for a child. Returns its exit code, the name of the signal that ended it, or ``hang``."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hang"


def difference(folder: Path, whole: Path) -> str:
    """Return the first difference of two runs, or an empty text. Journals must have the same lines, in any order."""
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
        elif name.endswith(".jsonl") and (how := _journals_differ(mine, other)):
            return f"{name}: {how}"
    return ""


def _journals_differ(mine: Path, other: Path) -> str:
    """Return how two journals differ, or an empty text."""
    try:
        pair = [[json.loads(line) for line in path.read_bytes().splitlines()] for path in (mine, other)]
    except (OSError, ValueError) as error:
        return str(error)
    if pair[0][:1] != pair[1][:1]:
        return "another first line"
    my_entries, other_entries = ({json.dumps(entry, sort_keys=True) for entry in entries} for entries in pair)
    return "" if my_entries == other_entries else f"other entries: {sorted(my_entries ^ other_entries)[0][:200]}"


def chosen(events: list[str], most: int | None, rng: random.Random) -> list[tuple[int, str]]:
    """Choose the events to kill at, as (event, mode). Writes to journals are tried in several modes."""
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
    """Kill a verb at the chosen events, one trial per event. Returns a row per trial."""
    call, output, events = getattr(work, verb), work.folder / "told.txt", work.folder / "events.json"
    whole, folder = work.undisturbed(verb), work.folder / f"{verb}-killed"
    work.begin(verb, folder)
    code = wait(child(lambda: call(folder), output, Trap(folder), events))
    if code != 0 or (why := difference(folder, whole)):
        raise RuntimeError(f"{verb}: a second undisturbed run ended with {code}: {output.read_text() if code else why}")
    names, rows = json.loads(events.read_text()), []
    for at, mode in chosen(names, most, random.Random(seed)):
        shutil.rmtree(folder)
        work.begin(verb, folder)
        first = wait(child(lambda: call(folder), output, Trap(folder, at, mode)))
        second = wait(child(lambda: call(folder), output))
        why = output.read_text()[-2000:] if second != 0 else difference(folder, whole)
        row = {"verb": verb, "event": at, "of": len(names), "at": names[at], "mode": mode, "killed": first == "SIGKILL"}
        rows.append(row | {"identical": first == "SIGKILL" and second == 0 and not why, "why": why})
    shutil.rmtree(folder)
    return rows


def pairs(work: Work, count: int, seed: int) -> list[dict]:
    """Run two processes at once in one folder, ``count`` times.

    One must finish. The other must end with the error that names the lock, or finds the work finished.
    Returns a row per pair.
    """
    rows, rng = [], random.Random(seed)
    whole = work.undisturbed("compress") if count else None
    for number in range(count):
        folder, outputs = work.folder / "pair", [work.folder / f"told-{index}.txt" for index in range(2)]
        first = child(lambda folder=folder: work.compress(folder), outputs[0])
        time.sleep(rng.uniform(0, 0.3))
        second = child(lambda folder=folder: work.compress(folder), outputs[1])
        codes = [wait(first), wait(second)]
        texts = [file.read_text() for file in outputs]
        known = all(
            code == 0 or (code == 1 and "another process works on" in text)
            for code, text in zip(codes, texts, strict=True)
        )
        why = difference(folder, whole) if 0 in codes and known else f"exit codes {codes}: {' | '.join(texts)}"[-2000:]
        rows.append({"verb": "pair", "event": number, "told": codes.count(1), "identical": not why, "why": why})
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def main() -> int:
    """Run all trials that the command line asks for. Returns 0 if all ended identical, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verbs", nargs="*", help="compress, recover, prune, fit")
    parser.add_argument("--most", type=int)
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.update(SETTINGS)
    sys.path.insert(0, str(HERE))
    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="jettison-kills-", dir=memory if os.access(memory, os.W_OK) else None))
    os.environ["JETTISON_CACHE"] = str(folder / "cache")
    try:
        rows = run(folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for row in rows:
        if not row["identical"]:
            print(f"{row['verb']} {row['event']} ({row.get('at')}, {row.get('mode')}): {row['why'].strip()[-300:]}")
    identical = sum(row["identical"] for row in rows)
    print(f"{identical} of {len(rows)} identical")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if identical == len(rows) else 1


def run(folder: Path, options: argparse.Namespace) -> list[dict]:
    """Run the trials in ``folder`` and return their rows."""
    from jettison.core.progress import set_quiet

    set_quiet(True)
    work = Work(folder)
    pid = os.fork()
    if pid == 0:  # making a model starts threads, and a process that forks must have only one
        with contextlib.suppress(BaseException):
            work.make_model()
            os._exit(0)
        os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the model cannot be made")
    rows = [row for verb in options.verbs for row in trials(work, verb, options.most, options.seed)]
    return rows + pairs(work, options.pairs, options.seed)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)
