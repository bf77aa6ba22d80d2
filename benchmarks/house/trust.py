"""Trust: wrong inputs of every kind, and runs that are killed at any point.

    python -m benchmarks.house.trust          # an hour on two cores; continues cell by cell, and within the fuzzing
    python -m benchmarks.house.trust --check  # 440 inputs of another seed and some kills, in a few minutes
    python -m benchmarks.house.trust --small  # the same, shorter still; writes nothing, to see that the script works

An input is one file of eleven kinds. It is changed, and then the commands that read it run in a child process:
tests/fuzz_inputs.py says what counts as a finding. A kill is SIGKILL at one event of a run, as tests/kill_trials.py
says.
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
    """Fuzz ``count`` inputs. Continues where ``file`` ends, if the code is the same.

    Raises RuntimeError if the fuzzer stops early.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    script(file, "fuzz_inputs.py", "--count", count, "--seed", seed, "--jobs", JOBS)
    report = json.loads(file.read_text())
    if not report["finished"]:
        raise RuntimeError(f"the fuzzer stopped after {report['done']} inputs")
    return {
        "by_kind": report["by_kind"],
        "not_there": report["skipped"],
        "findings": [{key: finding[key] for key in ("what", "times", "reproduce")} for finding in report["findings"]],
        "work_seconds": report["seconds"],
    }


def still_there(finding: dict) -> bool:
    """Return whether the input by which a finding was first seen still shows anything, on the present code."""
    words = finding["reproduce"].split()
    process = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True)
    if process.returncode not in (0, 1):
        raise RuntimeError(f"{finding['reproduce']}: {process.stderr[-2000:]}")
    return process.returncode == 1


def kills(verb: str, most: int | None = None, pairs: int = 0) -> dict:
    """Kill runs of a command at its events, one run for each event, and compare the results.

    verb: the command; empty for none.
    most: events at most; None for all.
    pairs: how often two processes run at once in one folder.
    Returns how many trials end with the bytes of an undisturbed run, and the first that do not.
    """
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
    """Run a script of tests/ that writes ``file``. Raises RuntimeError if it fails."""
    command = [sys.executable, ROOT / "tests" / name, *map(str, arguments), "--json", file]
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if process.returncode not in (0, 1) or not file.exists():  # 1: something was found
        raise RuntimeError(f"{name}: {process.stderr[-2000:]}")


def totals(fuzzed: dict, killed: dict[str, dict]) -> tuple[int, int, int, int]:
    """Return the numbers of inputs, findings that are still there, trials, and identical trials."""
    inputs = sum(row["inputs"] for row in fuzzed["by_kind"].values())
    trials, identical = (sum(row[key] for row in killed.values()) for key in ("trials", "identical"))
    return inputs, sum(map(still_there, fuzzed["findings"])), trials, identical


def claims_of(fuzzed: dict, killed: dict[str, dict], count: int) -> list[dict]:
    """Return the claims."""
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
    """Return a note of what the run found. Each finding was tried again on the present code to count open ones."""
    findings = "; ".join(f"{finding['what']} ({finding['times']} times)" for finding in fuzzed["findings"])
    return f"found by the run, then tried again: {findings}" if findings else "none found"


def tables(fuzzed: dict, killed: dict[str, dict]) -> dict:
    """Return the tables of the results page."""
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
    """Fuzz ``count`` inputs, kill every command at ``most`` events, and run two pairs; nothing is kept."""
    file = RUNS / NAME / f"short-{count}-{seed}.json"
    file.unlink(missing_ok=True)
    return fuzz(count, seed, file), {verb: kills(verb, most) for verb in VERBS} | {"pairs": kills("", pairs=2)}


def main() -> None:
    """Fuzz and kill, and write the result; or run a short trial, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if options.small:
        fuzzed, killed = short(110, 4, 1)
        show(claims_of(fuzzed, killed, 110))
        return print(json.dumps(tables(fuzzed, killed), indent=1))
    if options.check:
        seed = int(time.time())
        print(f"seed {seed}", flush=True)
        _, findings, trials, identical = totals(*short(440, 8, seed))
        return compare({"findings": (findings, 0, 0), "kills that differ": (trials - identical, 0, 0)})
    fuzzed = cell(NAME, "fuzz", lambda: fuzz(COUNT, SEED, RUNS / NAME / "inputs.json"))
    killed = {verb: cell(NAME, f"kills-{verb}", lambda verb=verb: kills(verb)) for verb in VERBS}
    killed["pairs"] = cell(NAME, "kills-pairs", lambda: kills("", pairs=PAIRS))
    seconds = sum(result["seconds"] for result in (fuzzed, *killed.values()))
    details = {"tables": tables(fuzzed, killed), "findings": fuzzed["findings"][:SHOWN], "kills": killed}
    return write_result(NAME, claims_of(fuzzed, killed, COUNT), seconds, details, script=__file__, seed=SEED)


if __name__ == "__main__":
    main()
