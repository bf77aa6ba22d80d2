"""Trust: inputs that are wrong in any way, and runs that are killed anywhere.

    python -m benchmarks.house.trust          # an hour on two cores; continues cell by cell, and within the fuzzing
    python -m benchmarks.house.trust --check  # 440 inputs of another seed and some kills, in a few minutes
    python -m benchmarks.house.trust --small  # the same, shorter still; writes nothing, to see that the script works

An input is one file of eleven kinds that is changed and then taken through the commands that read it, in a child
process: tests/fuzz_inputs.py says what counts as a finding. A kill is SIGKILL at one event of a run, as
tests/kill_trials.py says.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.witness import ROOT, RUNS, cell, claim, compare, origin, show, write_result

NAME = "trust"
COUNT, SEED, JOBS = 20_000, 0, 2
VERBS, PAIRS = ("compress", "recover", "prune", "fit"), 10
SHOWN = 20  # findings in the result file


def fuzz(count: int, seed: int, file: Path) -> dict:
    """Goes on where ``file`` ends, if the code is the same."""
    file.parent.mkdir(parents=True, exist_ok=True)
    script(file, "fuzz_inputs.py", "--count", count, "--seed", seed, "--jobs", JOBS)
    found = json.loads(file.read_text())
    if not found["finished"]:
        raise RuntimeError(f"the fuzzer stopped after {found['done']} inputs")
    return {
        "by_kind": found["by_kind"],
        "not_there": found["skipped"],
        "findings": [{key: each[key] for key in ("what", "times", "reproduce")} for each in found["findings"]],
        "work_seconds": found["seconds"],
    }


def still_there(finding: dict) -> bool:
    """Whether the input that a finding was first seen with still shows anything, on the code as it is now."""
    words = finding["reproduce"].split()
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{finding['reproduce']}: {done.stderr[-2000:]}")
    return done.returncode == 1


def kills(verb: str, most: int | None = None, pairs: int = 0) -> dict:
    """Every event of a verb; with ``most``, so many. Without a verb: pairs of processes in one folder."""
    file = RUNS / NAME / f"trials-{verb or 'pairs'}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    script(file, "kill_trials.py", *([verb] if verb else []), *(["--most", most] if most else []), "--pairs", pairs)
    rows = json.loads(file.read_text())
    return {
        "trials": len(rows),
        "identical": sum(row["identical"] for row in rows),
        "events": Counter(row["at"].partition(" ")[0] for row in rows if "at" in row),
        "told": sum(row.get("told", 0) for row in rows),
        "different": [{key: row.get(key) for key in ("at", "mode", "why")} for row in rows if not row["identical"]][:5],
    }


def script(file: Path, name: str, *arguments: object) -> None:
    command = [sys.executable, ROOT / "tests" / name, *map(str, arguments), "--json", file]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1) or not file.exists():  # 1: something was found
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")


def totals(fuzzed: dict, killed: dict[str, dict]) -> tuple[int, int, int, int]:
    """inputs, findings that are still there, trials, identical trials."""
    inputs = sum(row["inputs"] for row in fuzzed["by_kind"].values())
    trials, identical = (sum(row[key] for row in killed.values()) for key in ("trials", "identical"))
    return inputs, sum(map(still_there, fuzzed["findings"])), trials, identical


def claims_of(fuzzed: dict, killed: dict[str, dict], count: int) -> list[dict]:
    inputs, findings, trials, identical = totals(fuzzed, killed)
    note = lambda result: origin(result) if "commit" in result else ""
    missing = f"; not there, so not tried: {', '.join(fuzzed['not_there'])}" if fuzzed["not_there"] else ""
    what = ", ".join(f"{row['trials']} of {name}" for name, row in killed.items())
    return [
        claim("inputs_fuzzed", inputs, "", "higher", count, note(fuzzed) + missing),
        claim("fuzz_findings_open", findings, "", "lower", 0, found_and_mended(fuzzed)),
        claim("kills_identical", identical, f"of {trials}", "equal", trials, what),
    ]


def found_and_mended(fuzzed: dict) -> str:
    """What the run found; each was tried again on the present code to count those that are open."""
    found = "; ".join(f"{finding['what']} ({finding['times']} times)" for finding in fuzzed["findings"])
    return f"found by the run, then tried again: {found}" if found else "none found"


def tables(fuzzed: dict, killed: dict[str, dict]) -> dict:
    rows = [
        [kind, *(f"{row[key]:,}" for key in ("inputs", "accepted", "refused", "findings"))]
        for kind, row in fuzzed["by_kind"].items()
    ]
    columns = ["kind", "inputs", "verbs that accepted one", "verbs that refused one", "inputs with a finding"]
    events = [
        [
            name,
            f"{row['trials']:,}",
            f"{row['identical']:,}",
            ", ".join(f"{n} {what}" for what, n in row["events"].items()),
        ]
        for name, row in killed.items()
    ]
    return {
        "Mutated inputs": {"columns": columns, "rows": rows},
        "Kills": {"columns": ["of", "trials", "identical afterwards", "events"], "rows": events},
    }


def short(count: int, most: int, seed: int) -> tuple[dict, dict[str, dict]]:
    file = RUNS / NAME / f"short-{count}-{seed}.json"
    file.unlink(missing_ok=True)
    return fuzz(count, seed, file), {verb: kills(verb, most) for verb in VERBS} | {"pairs": kills("", pairs=2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    if given.small:
        fuzzed, killed = short(110, 4, 1)
        show(claims_of(fuzzed, killed, 110))
        return print(json.dumps(tables(fuzzed, killed), indent=1))
    if given.check:
        seed = int(time.time())
        print(f"seed {seed}", flush=True)
        _, findings, trials, identical = totals(*short(440, 8, seed))
        return compare({"findings": (findings, 0, 0), "kills that differ": (trials - identical, 0, 0)})
    fuzzed = cell(NAME, "fuzz", lambda: fuzz(COUNT, SEED, RUNS / NAME / "inputs.json"))
    killed = {verb: cell(NAME, f"kills-{verb}", lambda verb=verb: kills(verb)) for verb in VERBS}
    killed["pairs"] = cell(NAME, "kills-pairs", lambda: kills("", pairs=PAIRS))
    seconds = sum(each["seconds"] for each in (fuzzed, *killed.values()))
    details = {"tables": tables(fuzzed, killed), "findings": fuzzed["findings"][:SHOWN], "kills": killed}
    return write_result(NAME, claims_of(fuzzed, killed, COUNT), seconds, details, script=__file__, seed=SEED)


if __name__ == "__main__":
    main()
