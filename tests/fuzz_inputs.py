"""Mutated inputs through load, compress, plan, report and verify: ``python tests/fuzz_inputs.py --count 20000``.

Every input gets a process of its own, forked from a process that has imported everything. The input may be refused
with an error of ours, or be accepted. A finding is one of these:

- another exception, a traceback, or an exit code that is not 0, 1 or 2
- a crash or a hang
- a file that was touched outside the output folder, or a half-written file left behind
- an input that was accepted although it is known to be wrong

    --kind KIND         only these kinds; repeatable
    --only KIND:NUMBER  make that input, print the change, run it, and keep its folder
    --json FILE         write the summary there; the same command continues where the file ends
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
SAVED = 30.0  # seconds between two writes of the summary


def arguments() -> argparse.Namespace:
    """Parse the command line."""
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
    """Fuzz as the command line asks. Returns 1 if there are findings, else 0."""
    options = arguments()
    os.environ.update(SETTINGS)
    sys.path.insert(0, str(HERE))
    from fuzz_child import kinds
    from fuzz_server import Server

    names = [options.only.partition(":")[0]] if options.only else options.kind or list(kinds())
    for name in names:
        if name not in kinds():
            sys.exit(f"unknown kind {name!r}; valid: {', '.join(kinds())}")
    memory = Path("/dev/shm")
    parent = options.folder or (memory if memory.is_dir() and os.access(memory, os.W_OK) else None)
    folder = Path(tempfile.mkdtemp(prefix="jettison-fuzz-", dir=parent))
    server = Server(folder, options.seed, keep=bool(options.only))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs the finally below, which deletes the folder
    try:
        server.warm()
        if options.only:
            return one(server, names[0], int(options.only.partition(":")[2]))
        return many(server, names, options)
    finally:
        if not options.only:
            shutil.rmtree(folder, ignore_errors=True)


def one(server, kind: str, number: int) -> int:
    """Run one input; print its change, its outcome and its folder. Returns 1 if there are findings, else 0."""
    result = next(iter(server.run([(kind, number)], jobs=1)))
    print(f"{kind}:{number}: {result['note']}\nfolder: {result['folder']}")
    for verb, outcome in result["verbs"].items():
        print(f"{verb}: {outcome}")
    print((Path(result["folder"]) / "stderr").read_text(errors="replace"))
    for finding in result["findings"]:
        print(f"FINDING: {finding['verb']}: {finding['what']}\n  {finding['message']}")
    return 1 if result["findings"] else 0


def many(server, names: list[str], options: argparse.Namespace) -> int:
    """Run inputs of all kinds in turn and write the summary. Returns 1 if there are findings, else 0."""
    order = [(names[at % len(names)], at // len(names)) for at in range(options.count)]
    state = begin(options, names)
    done, start, saved = state["done"], time.monotonic() - state["seconds"], time.monotonic()
    results: dict[tuple[str, int], dict] = {}
    for result in server.run(order[done:], options.jobs):
        results[result["kind"], result["number"]] = result
        while done < len(order) and order[done] in results:  # counted in order, so that a later run can continue
            count(state, results.pop(order[done]), options.seed)
            done += 1
        if options.json and time.monotonic() - saved > SAVED:
            saved = time.monotonic()
            save(state, options.json, done, saved - start)
            print(
                f"{done:,} of {options.count:,}, {len(state['findings'])} kinds of findings",
                file=sys.stderr,
                flush=True,
            )
    state["finished"] = True
    if options.json:
        save(state, options.json, done, time.monotonic() - start)
    show(state, time.monotonic() - start)
    return 1 if state["findings"] else 0


def begin(options: argparse.Namespace, names: list[str]) -> dict:
    """Return the summary that an earlier, stopped call of the same command saved, or else an empty one."""
    identity = {"seed": options.seed, "count": options.count, "kinds": names, "source": source_digest()}
    if options.json and options.json.exists():
        saved = json.loads(options.json.read_text())
        if {key: saved.get(key) for key in identity} == identity:
            return saved
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
    """Return a digest of the package and of the fuzzers: a summary continues only with the same source."""
    digest = blake2b(digest_size=8)
    for path in sorted([*(HERE.parent / "src" / "jettison").rglob("*.py"), *HERE.glob("fuzz_*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def count(state: dict, result: dict, seed: int) -> None:
    """Add the result of one input to the summary, and print findings that are new."""
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
    known = {finding["what"]: finding for finding in state["findings"]}
    for finding in result["findings"]:
        name = f"{result['kind']}:{result['number']}"
        if finding["what"] in known:
            known[finding["what"]]["times"] += 1
            others = known[finding["what"]]["also"]
            if len(others) < 5 and name not in others:
                others.append(name)
            continue
        row = {"what": finding["what"], "verb": finding["verb"], "times": 1, "input": name, "note": result["note"]}
        row |= {"message": finding["message"], "also": []}
        row["reproduce"] = f"python tests/fuzz_inputs.py --only {name} --seed {seed}"
        state["findings"].append(row)
        known[finding["what"]] = row
        last_line = row["message"].strip().rpartition("\n")[2][:300]
        print(
            f"FINDING {row['what']} ({row['verb']})\n  {row['note']}\n  {last_line}\n  {row['reproduce']}",
            file=sys.stderr,
        )


def save(state: dict, file: Path, done: int, seconds: float) -> None:
    """Write the summary to ``file``."""
    state |= {"done": done, "seconds": round(seconds, 1)}
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(state, indent=1) + "\n")
    temporary.replace(file)


def show(state: dict, seconds: float) -> None:
    """Print the summary."""
    for kind, row in state["by_kind"].items():
        numbers = ", ".join(f"{row[name]:,} {name}" for name in ("inputs", "accepted", "refused", "findings"))
        print(f"{kind:<12} {numbers}; {1e3 * row['cpu'] / row['inputs']:.0f} ms each")
    for row in sorted(state["findings"], key=lambda row: -row["times"]):
        print(f"{row['times']:>5} × {row['what']} ({row['verb']})\n        {row['reproduce']}")
    total = sum(row["inputs"] for row in state["by_kind"].values())
    rate = total / max(seconds, 1e-9)
    print(f"{total:,} inputs, {len(state['findings'])} kinds of findings, {seconds:.0f} s, {rate:.0f} a second")
    if state["skipped"]:
        print(f"not there, so not tried: {', '.join(state['skipped'])}")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)  # imported packages print a lot at a normal exit
