"""Depth pruning of CNNs and vision transformers on CIFAR-10: UPDP against its baselines, accuracy against latency.

    python -m benchmarks.vision.depth --data train.parquet --test test.parquet --classes classes.txt
    python -m benchmarks.vision.depth --data train.parquet --test test.parquet --classes classes.txt --finish

The first command trains: the dense models, UPDP with its search, and every baseline from the same dense model, each
as a cell in runs/depth that is computed once; a killed training continues. The second times all models in turns, in
PyTorch and ONNX Runtime, on an idle machine, and writes the result. The images are JPEGs of CIFAR-10.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.fixtures import images as fixture
from benchmarks.vision.depth_claims import write
from benchmarks.witness import RUNS, cell
from jettison import compress, evaluate
from jettison.core.journal import read_records
from jettison.formats.manifest import read_manifest

NAME = "depth"
CELLS = RUNS / NAME
SEEDS = (0, 1, 2)
# dense: epochs of the dense model. blocks: pruned by all methods. epochs: of each method's training.
MODELS: dict[str, dict[str, Any]] = {
    "resnet20": {"dense": 16, "blocks": 5, "epochs": 4, "supernet": 2, "others": (3, 7), "widths": (0.75, 0.5)},
    "deit8": {"dense": 16, "blocks": 4, "epochs": 3, "supernet": 1, "others": (6,), "widths": ()},
    "mobilenet_v2": {"dense": 8, "blocks": 8, "epochs": 3, "supernet": 1, "others": (), "widths": ()},
    "convnext9": {"dense": 8, "blocks": 5, "epochs": 3, "supernet": 1, "others": (), "widths": ()},
}
FADE = 0.2
# The first attempt: the defaults of then. The second, now the defaults, searches by loss, which varies less, and fades
# out in half the time.
FIRST = {"fitness": "accuracy", "fade": 0.4}
IN_FULL = ("resnet20", "deit8")  # all baselines, three seeds; the others: progressive against abrupt, one seed


class Bench:
    """The cells of the benchmark, on some images."""

    def __init__(self, data: str, test: str, classes: str):
        self.data, self.test, self.classes = data, test, classes

    def dense(self, name: str, width: float = 1.0) -> dict[str, Any]:
        """Train a dense model; return its accuracy on all test images."""
        key = name if width == 1 else f"{name}-{width:g}"
        out = CELLS / "dense" / key

        def work() -> dict[str, Any]:
            if not (out / "done").exists():
                words = ["--data", self.data, "--test", self.test, "--classes", self.classes, "--model", name]
                fixture.main([*words, "--width", str(width), "--epochs", str(MODELS[name]["dense"]), "--out", str(out)])
            return self.scores(out) | {"folder": str(out)}

        return cell(NAME, f"dense-{key}", work)

    def scores(self, folder: Path) -> dict[str, Any]:
        """Return accuracy and its standard error on all test images."""
        measured = next(iter(evaluate(folder, images=self.test)["images"].values()))
        return {key: measured[key] for key in ("accuracy", "standard_error", "images")}

    def pruned(self, name: str, key: str, step: dict[str, Any], seed: int = 0, then: tuple = ()) -> dict[str, Any]:
        """Prune the dense model by a depth step, and perhaps apply further steps; return the scores of the result."""
        out = CELLS / f"{name}-{key}-{seed}"

        def work() -> dict[str, Any]:
            recipe = {"steps": [{"depth": step}, *then], "calibration": {"images": self.data}}
            compress(CELLS / "dense" / name, recipe, out, seed=seed)
            depth = read_manifest(out)["depth"]
            return self.scores(out) | {"folder": str(out), "step": step, "depth": depth, "search": searched(out)}

        return cell(NAME, f"{name}-{key}-{seed}", work)

    def rows(self, name: str, full: bool) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Yield method, seed and result of every cell of a model. full: all baselines and seeds."""
        plan = MODELS[name]
        rest = {"epochs": plan["epochs"]}
        search = {"method": "updp", "blocks": plan["blocks"], "supernet_epochs": plan["supernet"], **rest}
        gates = {"method": "depthshrinker", "blocks": plan["blocks"], "gate_epochs": plan["supernet"], **rest}
        seeds = SEEDS if full else SEEDS[:1]
        yield from self.seeds(name, "progressive", "progressive", search, FADE, seeds)
        chosen = self.chosen(self.pruned(name, "progressive", search), 0.0)
        yield from self.seeds(name, "abrupt", "abrupt", chosen, 0.0, seeds)
        if full:
            yield from self.seeds(name, "depthshrinker", "depthshrinker", gates, 0.0, seeds)
            for seed in seeds:
                step = {"method": "drop", "blocks": plan["blocks"], **rest}
                yield "drop", seed, self.pruned(name, "drop", step, seed)
        if name == "resnet20":
            yield from self.seeds(name, "progressive, first attempt", "first", search | FIRST, FIRST["fade"], seeds)
            chosen = self.chosen(self.pruned(name, "first", search | FIRST), 0.0)
            yield from self.seeds(name, "abrupt, first attempt", "first_abrupt", chosen, 0.0, seeds)

    def seeds(
        self, name: str, method: str, key: str, step: dict[str, Any], fade: float, seeds: tuple[int, ...]
    ) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Yield the results of a step: the first seed chooses the blocks, the others only train."""
        for seed in seeds:
            if seed == 0:
                first = self.pruned(name, key, step)
            yield method, seed, first if seed == 0 else self.pruned(name, key, self.chosen(first, fade), seed)

    def chosen(self, row: dict[str, Any], fade: float) -> dict[str, Any]:
        """Return a step that prunes the blocks of a result, in as many epochs."""
        epochs = row["step"]["epochs"]
        return {"method": "chosen", "blocks": row["depth"]["pruned"], "fade": fade, "epochs": epochs}

    def others(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the points of the curve: subnets with other numbers of blocks, narrower dense models, and w8 on top."""
        plan = MODELS[name]
        for blocks in plan["others"]:
            step = {"method": "updp", "blocks": blocks, "supernet_epochs": plan["supernet"], "epochs": plan["epochs"]}
            yield f"{blocks} blocks", self.pruned(name, f"updp{blocks}", step)
        for width in plan["widths"]:
            yield f"width {width:g}", self.dense(name, width)


def searched(out: Path) -> list[dict[str, Any]]:
    """Return the subnets that a search looked at, with their accuracy; [] if there was no search."""
    records, _ = read_records(out / "depth" / "journal.jsonl")
    return [{key: row[key] for key in ("genome", "accuracy")} for row in records if row and "genome" in row]


def main() -> None:
    """Compute the cells, or with --finish time the models and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="images to learn from")
    parser.add_argument("--test", required=True, help="images to measure accuracy on")
    parser.add_argument("--classes", required=True, help="a file with the names of the classes, one per line")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--finish", action="store_true", help="time the models and write the result")
    args = parser.parse_args()
    bench = Bench(args.data, args.test, args.classes)
    tables = {}
    for name in args.models:
        bench.dense(name)
        tables[name] = [*bench.rows(name, name in IN_FULL)]
    curves = {name: [*bench.others(name)] for name in args.models}
    for name, rows in tables.items():
        print(name, json.dumps(summary(bench.dense(name), rows)))
    if args.finish:
        write(bench, tables, curves)


def summary(dense: dict[str, Any], rows: list[tuple[str, int, dict[str, Any]]]) -> dict[str, Any]:
    """Return the mean accuracy of every method, and its seeds."""
    methods = dict.fromkeys(method for method, _, _ in rows)
    of = lambda method: [row["accuracy"] for name, _, row in rows if name == method]
    table = {method: {"accuracy": round(statistics.mean(of(method)), 4), "seeds": of(method)} for method in methods}
    return {"dense": {"accuracy": dense["accuracy"]}} | table


if __name__ == "__main__":
    main()
