"""DiP-GO on a small DiT: programs against fewer steps and other caches at equal cost, and the paper's ablations.

    python -m benchmarks.fixtures.diffusion --data TRAIN --test TEST --classes CLASSES --steps 14000 \\
        --out runs/fixtures/dit-cifar10
    python -m benchmarks.fixtures.images --model resnet --data TRAIN --test TEST --out runs/fixtures/resnet-cifar10
    python -m benchmarks.diffusion.programs --data TRAIN --test TEST           # searches and images, over an hour
    python -m benchmarks.diffusion.programs --data TRAIN --test TEST --finish  # on an idle machine: times, the result
    python -m benchmarks.diffusion.programs --data TRAIN --test TEST --check   # scores again, from the kept images

TRAIN and TEST are CIFAR-10 as parquet files. One search gives scores; programs of all ratios are cut from them. Every
search and every set of images is a cell in runs/diffusion, computed once; a killed search continues. Searches gain
little from a second thread: two processes with --threads 1 and --only, for different searches, take half the time.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.diffusion.baselines import program_of, scored_baselines
from benchmarks.diffusion.claims import write
from benchmarks.diffusion.sets import GUIDANCE, VALIDATION, Sets
from benchmarks.witness import RESULTS, RUNS, compare
from jettison.core.errors import UsageError
from jettison.core.journal import read_records
from jettison.domains.diffusion.identity import weights_digest
from jettison.domains.diffusion.search import JOURNAL, SearchOptions, SearchResult, describe, search
from jettison.metrics.frechet import frechet

NAME = "diffusion"
RATIOS = (0.4, 0.6, 0.75)
# Three searches are tried: with the paper's gates, which reuse outputs; with ours, which reuse residuals; and with the
# paper's without FLOP weights, since the ablations spoke for that, on some of the seeds of the comparison. (Residuals
# have no cascades: all of their weights are equal.) Which one the claims are about is decided on seeds of its own, see
# ``chosen``.
SEARCHES: dict[str, dict[str, Any]] = {"first": {}, "second": {"reuse": "residual"}, "third": {"weighted": False}}
# Ablations, each one change: name -> (option, CLIP score in the paper's table at ratio 0.8).
ABLATIONS: dict[str, tuple[dict[str, Any], float]] = {
    "as in the paper": ({}, 30.29),
    "L1 in place of SSIM": ({"likeness": "l1"}, 29.94),
    "L2 in place of SSIM": ({"likeness": "l2"}, 29.71),
    "no FLOP weights": ({"weighted": False}, 29.50),
    "alpha 0.1": ({"alpha": 0.1}, 29.77),
    "alpha 0.5": ({"alpha": 0.5}, 29.93),
    "alpha 2": ({"alpha": 2.0}, 30.17),
}
ABLATED = 512  # images of an ablation
CHECKED = 1e-3  # tolerance of a check, relative


class Bench:
    """The searches of the benchmark, and the sets of their programs.

    options, short: of the main searches; steps of those of ablations. count: samples of a search.
    """

    searches = SEARCHES

    def __init__(self, sets: Sets, options: SearchOptions, short: int, count: int):
        self.sets, self.options, self.short, self.count = sets, options, short, count

    def searched(self, key: str, steps: int | None = None, **changes: Any) -> tuple[SearchResult, dict[str, Any]]:
        """Run a search. Returns its result, and its cell: scores, options, the last lines of its journal.

        steps: of the search; None means those of the main searches.
        """
        options = SearchOptions(**(asdict(self.options) | ({"steps": steps} if steps else {}) | changes))
        folder, sampling = self.sets.folder / "searches" / key, self.sets.sampling()

        def work() -> dict[str, Any]:
            result = search(sampling, options, folder, self.count)
            lines = [row for row in read_records(folder / JOURNAL)[0] if row and "loss" in row]
            every = max(1, len(lines) // 20)
            curve = [{name: row[name] for name in ("step", "loss", "unlike", "kept")} for row in lines[::every]]
            return {"scores": result.scores, "options": asdict(options), "curve": curve}

        done = self.sets.cell(f"search-{key}", work)
        source = f"DiP-GO, {options.steps} steps"
        return describe(sampling, done["scores"], options.reuse, source), done

    def programs(self, key: str, how: str = "bisection", **more: Any) -> Iterator[tuple[float, dict[str, Any]]]:
        """Yield ratio and scores of the programs of a main search. more: arguments of ``Sets.scored``."""
        result, _ = self.searched(key, **SEARCHES[key])
        for ratio in RATIOS:
            make = lambda ratio=ratio: program_of(result, ratio, how)
            yield ratio, self.sets.scored(f"{key}-{how}-{ratio}", make, **more)

    def chosen(self) -> dict[str, Any]:
        """Return which search the claims are about: the nearer one to full runs, on seeds that nothing else uses."""

        def work() -> dict[str, Any]:
            seeds = range(VALIDATION, VALIDATION + max(self.sets.count // 2, 2))
            distances = {key: [row["full"][0] for _, row in self.programs(key, seeds=seeds)] for key in SEARCHES}
            mean = {key: math.prod(values) ** (1 / len(values)) for key, values in distances.items()}
            return {"search": min(mean, key=mean.get), "distances": distances, "seeds": len(seeds)}

        return self.sets.cell("chosen", work)

    def compared(self) -> dict[float, dict[str, dict[str, Any]]]:
        """Return ratio -> method -> scores, for the programs of all searches and all baselines."""
        key = self.chosen()["search"]
        reuse = SEARCHES[key].get("reuse", "output")
        table: dict[float, dict[str, dict[str, Any]]] = {ratio: {} for ratio in RATIOS}
        named = {"DiP-GO": (key, "bisection"), "DiP-GO, published cut": (key, "published")}
        named |= {f"DiP-GO, the {other} search": (other, "bisection") for other in SEARCHES if other != key}
        for name, (which, how) in named.items():
            for ratio, row in self.programs(which, how):
                table[ratio][name] = row
        for ratio in RATIOS:
            table[ratio] |= dict(scored_baselines(self.sets, ratio, reuse))
        return table

    def ablated(self, number: int) -> tuple[SearchResult, dict[str, Any]]:
        """Run the search of an ablation: short, with the paper's gates."""
        change, _ = list(ABLATIONS.values())[number]
        return self.searched(f"ablation-{number}", self.short, **change)

    def ablations(self, ratio: float = 0.6) -> Iterator[tuple[str, float, dict[str, Any]]]:
        """Yield name, the paper's score, and the scores of the program of every ablation."""
        for number, (name, (_, paper)) in enumerate(ABLATIONS.items()):
            result, _ = self.ablated(number)
            make = lambda result=result: program_of(result, ratio)
            seeds = range(min(ABLATED, self.sets.count))
            yield name, paper, self.sets.scored(f"ablation-{number}-{ratio}", make, seeds)


def check(sets: Sets) -> None:
    """Compute the distances of all kept images again, and compare them with the recorded ones."""
    recorded = json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))["details"]["sets"]
    checks, full = {}, sets.full(sets.unseen)[0]["images"]
    for key, row in recorded.items():
        features = sets.features(sets.kept(key)["images"])
        for name, reference in (("real", sets.real()), ("full", sets.features(full))):
            if name in row:
                checks[f"{key}, {name}"] = (frechet(features, reference), row[name], 0.001 + CHECKED * row[name])
    compare(checks)


def settle(sets: Sets, args: argparse.Namespace) -> None:
    """Raise UsageError if the cells are of other settings."""
    now = {"model": Path(args.model).name, "seeds": args.seeds, "search": args.search_steps, "short": args.short_steps}
    now |= {"batch": args.batch, "guidance": args.guidance, "weights": weights_digest(sets.denoiser, torch.float32)}
    kept = sets.cell("settings", lambda: now)
    if differ := [name for name, value in now.items() if kept[name] != value]:
        raise UsageError(f"{sets.folder} has cells for {differ[0]} = {kept[differ[0]]}; this is {now[differ[0]]}")


def main(words: list[str] | None = None) -> None:
    """Compute the cells; with --finish also measure times and write the result.

    words: of the command line; None for those of this process.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="training images")
    parser.add_argument("--test", required=True, help="real images to compare with")
    parser.add_argument("--model", default=str(RUNS / "fixtures" / "dit-cifar10"), help="folder of the DiT pipeline")
    parser.add_argument("--classifier", default=str(RUNS / "fixtures" / "resnet-cifar10"))
    parser.add_argument("--seeds", type=int, default=1000, help="unseen seeds")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--search-steps", type=int, default=1000)
    parser.add_argument("--short-steps", type=int, default=300, help="of the searches of ablations")
    parser.add_argument("--batch", type=int, default=1, help="samples in a step of a search")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=[*SEARCHES, *map(str, range(len(ABLATIONS)))], metavar="SEARCH",
                        help="run these searches alone: first, second, third, or numbers of ablations")  # fmt: skip
    parser.add_argument("--name", default=NAME, help="folder in runs; another one for a trial")
    parser.add_argument("--finish", action="store_true", help="measure times and write the result")
    parser.add_argument("--check", action="store_true", help="compute scores again")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    sets = Sets(args.name, args.model, args.classifier, args.data, args.test, args.seeds, args.guidance)
    settle(sets, args)
    if args.check:
        return check(sets)
    # Without checkpointing a search takes a fourth less time, with the same gates; this model needs little memory.
    options = SearchOptions(steps=args.search_steps, batch=args.batch, checkpointing=False)
    bench = Bench(sets, options, args.short_steps, max(1000, args.search_steps))
    if args.only:
        for key in args.only:
            bench.searched(key, **SEARCHES[key]) if key in SEARCHES else bench.ablated(int(key))
        return None
    for ratio, rows in bench.compared().items():
        for method, row in rows.items():
            print(f"{ratio} {method}: {json.dumps({key: row[key] for key in ('cost', 'real', 'full', 'ssim')})}")
    for name, _, row in bench.ablations():
        print(f"{name}: {json.dumps({key: row[key] for key in ('cost', 'real', 'full', 'ssim')})}")
    if args.finish:
        write(bench)
    return None


if __name__ == "__main__":
    main()
