"""Sparse Laneformer against dense anchors on the synthetic world: F1, MACs, ablations, 8 and 4 bits, latency.

    pip install -r benchmarks/perception/requirements.txt
    OMP_NUM_THREADS=1 python -m benchmarks.perception.lanes --world --processes 2      # render the world: some minutes
    OMP_NUM_THREADS=1 python -m benchmarks.perception.lanes                            # train all cells, one by one
    OMP_NUM_THREADS=1 python -m benchmarks.perception.lanes --only sparse-0 dense-0    # some cells
    python -m benchmarks.perception.lanes --finish    # compress, time, write the result
    python -m benchmarks.perception.lanes --check     # the scores of the main model and the paper's MACs again

A cell is one training with its scores on unseen scenes, kept in runs/lanes; a training that was killed continues. Two
processes with other cells may run at the same time, once ``--world`` has rendered the world. ``--finish`` needs all
cells and an idle machine. ``--scale`` divides scenes and steps, to try the plan; its cells are kept elsewhere.

- World: 3,000 scenes, one frame of the front camera each, 160 x 400 pixels: 1,800 to learn from, 600 to choose the best
  parameters (64 of them), 600 to score on.
- All models see the lower 96 rows and have the same backbone (0.4 M parameters), steps, batch and learning rate.
- F1 is CULane's, at the size of its images. Differences of two models are of the same seed and the same images; their
  intervals come from resampling the images.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.perception.lanes_finish import finish, macs_of, paper_macs
from benchmarks.witness import RESULTS, RUNS, cell, compare
from jettison.core.documents import read_json
from jettison.domains.perception.domain import open_samples, shapes_of
from jettison.domains.perception.images import front_view
from jettison.domains.perception.judging import predict
from jettison.domains.perception.learning import train
from jettison.domains.perception.scoring import CULANE_SIZE
from jettison.domains.perception.world.loading import world_size
from jettison.domains.perception.world.order import Order
from jettison.domains.perception.world.store import write_world
from jettison.graph.folder import ModelFolder
from jettison.metrics.culane import culane_counts
from jettison.runtime.load import load

NAME = "lanes"
ORDER = Order(seed=24_040_000, size=(160, 400), frames=1, cameras="front")
SCENES, STEPS, BATCH, RATE = 3000, 4000, 16, 1e-3
SEEDS = (0, 1, 2)
SPARSE, DENSE = "sparse_laneformer", "dense_anchors"
# Variant -> model, changes of its config, seeds.
VARIANTS: dict[str, tuple[str, tuple[str, ...], tuple[int, ...]]] = {
    "sparse": (SPARSE, (), SEEDS),
    "dense": (DENSE, (), SEEDS),
    "no-hpa": (SPARSE, ("hpa=false",), SEEDS[:1]),
    "no-laca": (SPARSE, ("laca=false",), SEEDS[:1]),
    "no-lpa": (SPARSE, ("lpa=false",), SEEDS[:1]),
    "anchors-10": (SPARSE, ("anchors=10",), SEEDS[:1]),
    "anchors-40": (SPARSE, ("anchors=40",), SEEDS[:1]),
}
CELLS = {f"{name}-{seed}": (name, seed) for name, (_, _, seeds) in VARIANTS.items() for seed in seeds}
Counts = Sequence[Sequence[int]]  # of every image: lanes found, wrongly predicted, missed


class Bench:
    """The cells of the benchmark. scale: divides the numbers of scenes and steps."""

    def __init__(self, scale: int = 1):
        self.scale = scale
        self.name = NAME if scale == 1 else f"{NAME}-{scale}"
        self.folder = RUNS / self.name
        self.world = self.folder / "world"
        self.scenes, self.steps = max(10, SCENES // scale), max(4, STEPS // scale)

    def train(self, key: str) -> dict[str, Any]:
        """Train the model of a cell, and return its scores on the test split."""
        variant, seed = CELLS[key]
        model, changes, _ = VARIANTS[variant]
        out = self.folder / key

        def work() -> dict[str, Any]:
            write_world(self.world, ORDER, self.scenes)
            learned = train(
                model, self.world, out, steps=self.steps, batch=BATCH, rate=RATE, seed=seed, changes=changes
            )
            result = {"folder": str(out), "score_on_val": learned["stages"][0]["score"], "macs": macs_of(out)}
            return result | self.scores(out)

        return cell(self.name, key, work)

    def scores(self, folder: Path) -> dict[str, Any]:
        """Return F1 on the test split, of all images, by weather and by place, and the counts of every image."""
        source, run = ModelFolder(folder), load(folder).logits
        samples = open_samples(source, self.world, "test", "culane")
        scale = np.array(CULANE_SIZE) / world_size(self.world)[::-1]
        counts, groups = [], []
        for sample, prediction in predict(samples, run, shapes_of(source), samples.spread()):
            pair = front_view(sample.frame).lanes, prediction.lanes
            true, made = ([lane.points * scale for lane in lanes] for lanes in pair)
            counts.append([*culane_counts(true, made)[0.5]])
            groups.append(kind(self.world / sample.frame.name))
        kinds = {group: [row for row, own in zip(counts, groups, strict=True) if group in own]
                 for group in sorted({group for own in groups for group in own})}  # fmt: skip
        return {
            "f1": f1(counts),
            "f1_of": {group: [f1(rows), len(rows)] for group, rows in kinds.items()},
            "counts": {"samples": np.ravel(counts).tolist()},
        }

    def cells(self) -> dict[str, dict[str, Any]]:
        """Return all cells; those that are missing are computed."""
        return {key: self.train(key) for key in CELLS}


def kind(image: Path) -> tuple[str, str]:
    """Return place and weather of an image of a world."""
    info = read_json(image.parents[2] / "info" / f"{image.stem}.json")
    place, weather = info["meta_data"]["source_id"].partition(": ")[2].split(", ")
    return place, weather


def f1(counts: Counts) -> float:
    """Return the F1 of all images together; 0 if nothing is found."""
    found, wrong, missed = np.sum(counts, 0)
    return round(float(2 * found / max(1, 2 * found + wrong + missed)), 4)


def counts_of(row: Mapping[str, Any]) -> np.ndarray:
    """Return the counts of every image of a cell, (images, 3)."""
    return np.reshape(row["counts"]["samples"], (-1, 3))


def difference(one: Mapping[str, Any], other: Mapping[str, Any], draws: int = 2000) -> dict[str, float]:
    """Return F1 of a cell minus F1 of another, on the same images, with the interval that holds 95 % of resamplings."""
    first, second = counts_of(one), counts_of(other)
    rng, gaps = np.random.default_rng(0), []
    for _ in range(draws):
        chosen = rng.integers(0, len(first), len(first))
        gaps.append(f1(first[chosen]) - f1(second[chosen]))
    low, high = np.percentile(gaps, (2.5, 97.5))
    return {"gap": round(f1(first) - f1(second), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def summary(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the cells say: means, gaps by seed, ablations, and tables for readers."""
    values = {name: [cells[f"{name}-{seed}"]["f1"] for seed in seeds] for name, (_, _, seeds) in VARIANTS.items()}
    of = lambda name, seed=0: cells[f"{name}-{seed}"]
    gaps = [difference(of("sparse", seed), of("dense", seed)) for seed in SEEDS]
    ablations = {name: difference(of("sparse"), of(name)) for name in VARIANTS if name not in ("sparse", "dense")}
    rows = [[name, round(statistics.mean(values[name]), 4), ", ".join(map(str, values[name])),
             round(of(name)["macs"] / 1e6, 1)] for name in VARIANTS]  # fmt: skip
    return {
        "f1": {name: round(statistics.mean(own), 4) for name, own in values.items()},
        "gaps": gaps,
        "ablations": ablations,
        "tables": {
            "all": {"columns": ["", "F1", "seeds", "million MACs"], "rows": rows},
            "by place and weather": {
                "columns": ["", *of("sparse")["f1_of"]],
                "rows": [[name, *(value for value, _ in of(name)["f1_of"].values())] for name in ("sparse", "dense")],
            },
        },
    }


def check(bench: Bench) -> None:
    """Compute the F1 of sparse-0 and the MACs of the paper's configuration again, and compare them with the result."""
    details = read_json(RESULTS / f"{NAME}.json")["details"]
    recorded = next(row for row in details["tables"]["bits"]["rows"] if row[0] == "sparse")
    f1 = bench.scores(bench.folder / "sparse-0")["f1"]
    compare({"f1": (f1, recorded[1], 5e-4), "macs": (paper_macs()["all"], details["paper"]["macs"], 0.5)})


def main() -> None:
    """Train the cells, or with --finish compress and time the main model, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CELLS, help="train only these cells")
    parser.add_argument("--world", action="store_true", help="only render the world")
    parser.add_argument("--processes", type=int, default=1, help="that render at the same time")
    parser.add_argument("--scale", type=int, default=1, help="divide scenes and steps by this, to try the plan")
    parser.add_argument("--finish", action="store_true", help="compress, time, and write the result")
    parser.add_argument("--check", action="store_true", help="compute a part again and compare it with the result")
    args = parser.parse_args()
    bench = Bench(args.scale)
    if args.check:
        check(bench)
    elif args.world:
        write_world(bench.world, ORDER, bench.scenes, args.processes)
    elif args.finish:
        cells = bench.cells()
        finish(bench, cells, summary(cells), script=__file__)
    else:
        for key in args.only or CELLS:
            row = bench.train(key)
            print(f"{key}: F1 {row['f1']}, {row['macs'] / 1e6:.1f} million MACs, {row['seconds']:,.0f} s", flush=True)


if __name__ == "__main__":
    main()
