"""Mutated inputs through load, compress, plan, report and verify: ``python tests/fuzz_inputs.py --count 20000``.

Every input is one process, forked from one that has everything imported. It may be refused with an error of ours, or be
accepted. A finding is: another exception, a traceback, an exit code that is not 0, 1 or 2, a crash, a hang, a file that
was touched outside the output folder, half a file left behind, something accepted that is known to be wrong.

    --kind KIND         only these kinds; repeatable
    --only KIND:NUMBER  make that input, say what it is, run it, and keep its folder
    --json FILE         write the summary there; the same command goes on where the file ends
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from hashlib import blake2b
from pathlib import Path

SETTINGS = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error", "RAYON_NUM_THREADS": "1", "TERM": "dumb", "COLUMNS": "200",
}  # fmt: skip
HERE = Path(__file__).resolve().parent
SAVED = 30.0  # seconds between summaries


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20_000, help="inputs of all kinds together")
    parser.add_argument("--kind", action="append", help="repeatable")
    parser.add_argument("--only", metavar="KIND:NUMBER")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where to work; else in memory, where there is /dev/shm")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    os.environ.update(SETTINGS)
    sys.path.insert(0, str(HERE))
    from fuzz_child import kinds
    from fuzz_server import Server

    names = [given.only.partition(":")[0]] if given.only else given.kind or list(kinds())
    for name in names:
        if name not in kinds():
            sys.exit(f"unknown kind {name!r}; valid: {', '.join(kinds())}")
    memory = Path("/dev/shm")
    parent = given.folder or (memory if memory.is_dir() and os.access(memory, os.W_OK) else None)
    folder = Path(tempfile.mkdtemp(prefix="jettison-fuzz-", dir=parent))
    server = Server(folder, given.seed, keep=bool(given.only))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder goes
    try:
        server.warm()
        if given.only:
            return one(server, names[0], int(given.only.partition(":")[2]))
        return many(server, names, given)
    finally:
        if not given.only:
            shutil.rmtree(folder, ignore_errors=True)


def one(server, kind: str, number: int) -> int:
    """Prints the change, what came of it, and where the input lies."""
    result = next(iter(server.run([(kind, number)], jobs=1)))
    print(f"{kind}:{number}: {result['note']}\nfolder: {result['folder']}")
    for verb, outcome in result["verbs"].items():
        print(f"{verb}: {outcome}")
    print((Path(result["folder"]) / "stderr").read_text(errors="replace"))
    for found in result["findings"]:
        print(f"FINDING: {found['verb']}: {found['what']}\n  {found['message']}")
    return 1 if result["findings"] else 0


def many(server, names: list[str], given: argparse.Namespace) -> int:
    order = [(names[at % len(names)], at // len(names)) for at in range(given.count)]
    state = begin(given, names)
    done, start, saved = state["done"], time.monotonic() - state["seconds"], time.monotonic()
    waiting: dict[tuple[str, int], dict] = {}
    for result in server.run(order[done:], given.jobs):
        waiting[result["kind"], result["number"]] = result
        while done < len(order) and order[done] in waiting:  # in their order, so that a summary can be gone on from
            count(state, waiting.pop(order[done]), given.seed)
            done += 1
        if given.json and time.monotonic() - saved > SAVED:
            saved = time.monotonic()
            save(state, given.json, done, saved - start)
            print(
                f"{done:,} of {given.count:,}, {len(state['findings'])} kinds of findings", file=sys.stderr, flush=True
            )
    state["finished"] = True
    if given.json:
        save(state, given.json, done, time.monotonic() - start)
    show(state, time.monotonic() - start)
    return 1 if state["findings"] else 0


def begin(given: argparse.Namespace, names: list[str]) -> dict:
    """An empty summary, or the one of the same run that was stopped."""
    identity = {"seed": given.seed, "count": given.count, "kinds": names, "source": source_digest()}
    if given.json and given.json.exists():
        before = json.loads(given.json.read_text())
        if {key: before.get(key) for key in identity} == identity:
            return before
    return identity | {
        "done": 0,
        "finished": False,
        "seconds": 0.0,
        "by_kind": {},
        "skipped": [],
        "slowest": [],
        "findings": [],
    }


def source_digest() -> str:
    found = blake2b(digest_size=8)
    for path in sorted([*(HERE.parent / "src" / "jettison").rglob("*.py"), *HERE.glob("fuzz_*.py")]):
        found.update(path.read_bytes())
    return found.hexdigest()


def count(state: dict, result: dict, seed: int) -> None:
    kind = state["by_kind"].setdefault(
        result["kind"], {"inputs": 0, "accepted": 0, "refused": 0, "findings": 0, "cpu": 0.0}
    )
    kind["inputs"] += 1
    kind["cpu"] = round(kind["cpu"] + result["cpu"], 3)
    outcomes = Counter(result["verbs"].values())
    kind["accepted"] += outcomes["accepted"]
    kind["refused"] += outcomes["refused"]
    kind["findings"] += bool(result["findings"])
    state["skipped"] = sorted({*state["skipped"], *result["skipped"]})
    slow = [*state["slowest"], [round(result["cpu"], 2), f"{result['kind']}:{result['number']}", result["note"]]]
    state["slowest"] = sorted(slow, reverse=True)[:10]
    known = {found["what"]: found for found in state["findings"]}
    for found in result["findings"]:
        name = f"{result['kind']}:{result['number']}"
        if found["what"] in known:
            known[found["what"]]["times"] += 1
            others = known[found["what"]]["also"]
            if len(others) < 5 and name not in others:
                others.append(name)
            continue
        row = {"what": found["what"], "verb": found["verb"], "times": 1, "input": name, "note": result["note"]}
        row |= {"message": found["message"], "also": []}
        row["reproduce"] = f"python tests/fuzz_inputs.py --only {name} --seed {seed}"
        state["findings"].append(row)
        known[found["what"]] = row
        said = row["message"].strip().rpartition("\n")[2][:300]
        print(
            f"FINDING {row['what']} ({row['verb']})\n  {row['note']}\n  {said}\n  {row['reproduce']}", file=sys.stderr
        )


def save(state: dict, file: Path, done: int, seconds: float) -> None:
    state |= {"done": done, "seconds": round(seconds, 1)}
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(state, indent=1) + "\n")
    temporary.replace(file)


def show(state: dict, seconds: float) -> None:
    for kind, row in state["by_kind"].items():
        numbers = ", ".join(f"{row[name]:,} {name}" for name in ("inputs", "accepted", "refused", "findings"))
        print(f"{kind:<12} {numbers}; {1e3 * row['cpu'] / row['inputs']:.0f} ms each")
    for found in sorted(state["findings"], key=lambda found: -found["times"]):
        print(f"{found['times']:>5} × {found['what']} ({found['verb']})\n        {found['reproduce']}")
    total = sum(row["inputs"] for row in state["by_kind"].values())
    rate = total / max(seconds, 1e-9)
    print(f"{total:,} inputs, {len(state['findings'])} kinds of findings, {seconds:.0f} s, {rate:.0f} a second")
    if state["skipped"]:
        print(f"not there, so not tried: {', '.join(state['skipped'])}")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)  # what was imported has much to say at an exit
