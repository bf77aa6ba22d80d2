"""Run the demo's fit, and write the seconds of each of its steps and the largest memory so far.

proof.py runs this file in a process of its own:

    python -m benchmarks.house.fit_steps OUT TOOK.json recover.samples=1024 ...
"""

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from jettison.core.progress import set_quiet

fit = importlib.import_module("jettison.fitting")


def main() -> None:
    """Run the fit into the folder OUT, and write the steps to TOOK.json."""
    out, took, *changes = sys.argv[1:]
    entries: list[dict] = []

    def timed(step: str, work: Callable) -> Callable:
        def run(*arguments, **options):
            start = time.perf_counter()
            result = work(*arguments, **options)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            entries.append({"step": step, "seconds": time.perf_counter() - start, "memory": memory})
            return result

        return run

    set_quiet(True)
    # Replaces the functions by which fit calls its steps.
    for step, name in (("compress", "compress"), ("recover", "recover"), ("evaluate", "_measure")):
        setattr(fit, name, timed(step, getattr(fit, name)))
    fit.fit("scribe", recipe="gateup-w4w2", changes=changes, out=out, context=512)
    Path(took).write_text(json.dumps(entries))


if __name__ == "__main__":
    main()
