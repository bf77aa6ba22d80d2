"""Separated RoadTopoFormer on the synthetic world: schedules at equal steps, geometry, 8 and 4 bits, latency.

    pip install -r benchmarks/perception/requirements.txt
    OMP_NUM_THREADS=1 python -m benchmarks.perception.road_topology                          # all cells, one by one
    OMP_NUM_THREADS=1 python -m benchmarks.perception.road_topology --only joint-0 plain-0   # some cells
    python -m benchmarks.perception.road_topology --finish    # compress, time, write the result

A cell is one training with its scores on unseen scenes, kept in runs/road_topology; a training that was killed
continues. Two processes with other cells may run at the same time: render the world first, with ``--world``.
``--finish`` needs all cells and an idle machine. ``--scale`` divides scenes and steps, to try the plan; its cells are
kept elsewhere, and its claims are shown, not written.

- World: 1,200 scenes, one frame of six cameras each, 160 x 400 pixels: 720 to learn from, 240 to choose the best
  parameters (64 of them), 240 to score on. The lane detector sees 96 x 240 of each camera.
- ``joint`` trains all together, ``separated`` one part after another, ``finetuned`` spends the last tenth of the steps
  on all together. Every part has the same number of steps in all of them, with the same batch and learning rate.
- ``plain`` is ``separated`` whose relation heads read features alone, no end points and boxes: its detectors are the
  same, byte for byte. ``shared`` is ``joint`` with one backbone for both detectors, as in the official baseline.
- The presets leave matrices of the role ``stem`` as they are: pyramids, the networks that predict curves and boxes, and
  relation heads.
- OLS is that of rule v2.1; details have all rules. The numbers of other datasets cannot be compared with these.
"""

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.perception.lanes_finish import ROUNDS, RUNTIMES, macs_of, times
from benchmarks.witness import RUNS, cell, claim, origin, show, write_result
from jettison import compress
from jettison.core.files import size_of
from jettison.domains.perception.domain import open_samples, shapes_of
from jettison.domains.perception.judging import predict
from jettison.domains.perception.learning import train
from jettison.domains.perception.scoring import road_graph
from jettison.domains.perception.world.order import Order
from jettison.domains.perception.world.store import write_world
from jettison.graph.folder import ModelFolder
from jettison.metrics.openlanev2 import RULES, openlanev2_score
from jettison.recipe.recipe import load_recipe, with_images
from jettison.runtime.load import load

NAME, MODEL = "road_topology", "road_topoformer"
ORDER = Order(seed=23_070_000, size=(160, 400), frames=1)
SCENES, STEPS = 1200, 1200
SEEDS = (0, 1, 2)
# Variant -> changes of the config, seeds.
VARIANTS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "joint": (("schedule=joint",), SEEDS),
    "separated": (("schedule=separated",), SEEDS),
    "finetuned": (("schedule=finetuned",), SEEDS),
    "plain": (("schedule=separated", "geometry=false"), SEEDS),
    "shared": (("schedule=joint", "shared=true"), SEEDS[:1]),
}
CELLS = {f"{name}-{seed}": (name, seed) for name, (_, seeds) in VARIANTS.items() for seed in seeds}
MAIN = "finetuned"
PARTS = ("OLS", "DET_l", "DET_t", "TOP_ll", "TOP_lt")
RECIPES = ("w8", "w4")


class Bench:
    """The cells of the benchmark. scale: divides the numbers of scenes and steps."""

    def __init__(self, scale: int = 1):
        self.scale = scale
        self.name = NAME if scale == 1 else f"{NAME}-{scale}"
        self.folder = RUNS / self.name
        self.world = self.folder / "world"
        self.scenes, self.steps = max(10, SCENES // scale), max(4, STEPS // scale)
        self.rounds = max(3, ROUNDS // scale)

    def train(self, key: str) -> dict[str, Any]:
        """Train the model of a cell, and return its scores on the test split."""
        variant, seed = CELLS[key]
        out = self.folder / key

        def work() -> dict[str, Any]:
            write_world(self.world, ORDER, self.scenes)
            changes = [*VARIANTS[variant][0], f"steps={self.steps}"]
            learned = train(MODEL, self.world, out, seed=seed, changes=changes)
            stages = {row["stage"]: {"steps": row["steps"], "score": row["score"]} for row in learned["stages"]}
            return {"folder": str(out), "stages": stages, "macs": macs_of(out)} | self.scores(out)

        return cell(self.name, key, work)

    def scores(self, folder: Path) -> dict[str, Any]:
        """Return the scores on the test split: rule -> OLS and its four parts."""
        source, run = ModelFolder(folder), load(folder).logits
        samples = open_samples(source, self.world, "test", "openlanev2")
        true, made = [], []
        for sample, prediction in predict(samples, run, shapes_of(source), samples.spread()):
            true.append(road_graph(sample.frame.road))
            made.append(road_graph(prediction.road))
        rules = {}
        for rule in RULES:
            score = openlanev2_score(true, made, rule)
            values = (score.ols, score.det_l, score.det_t, score.top_ll, score.top_lt)
            rules[rule] = dict(zip(PARTS, (round(value, 4) for value in values), strict=True))
        return {"rules": rules, "ols": rules["v2.1"]["OLS"]}

    def compressed(self, recipe: str) -> dict[str, Any]:
        """Compress the main model, and return its scores and its bytes."""
        original, out = self.folder / f"{MAIN}-0", self.folder / f"{MAIN}-0-{recipe}"

        def work() -> dict[str, Any]:
            compress(original, with_images(load_recipe(recipe), str(self.world)), out)
            return self.scores(out) | {"folder": str(out)}

        return cell(self.name, f"{MAIN}-0-{recipe}", work)


def summary(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the cells say: the gaps between variants by seed, and tables for readers."""
    of = lambda name, rule="v2.1": [cells[f"{name}-{seed}"]["rules"][rule] for seed in VARIANTS[name][1]]
    mean = lambda rows, part: round(statistics.mean(row[part] for row in rows), 4)
    gaps = {
        f"{name} minus {base}": {
            part: [round(one[part] - other[part], 4) for one, other in zip(of(name), of(base), strict=True)]
            for part in PARTS
        }
        for name, base in (("separated", "joint"), (MAIN, "separated"), (MAIN, "joint"), ("separated", "plain"))
    }
    tables = {
        f"rule {rule}": {
            "columns": ["", *PARTS, "OLS of seeds"],
            "rows": [[name, *(mean(of(name, rule), part) for part in PARTS),
                      ", ".join(str(row["OLS"]) for row in of(name, rule))] for name in VARIANTS],
        }
        for rule in RULES
    }  # fmt: skip
    return {"ols": {name: mean(of(name), "OLS") for name in VARIANTS}, "gaps": gaps, "tables": tables}


def finish(bench: Bench, cells: Mapping[str, Any]) -> None:
    """Compress and time the main model, and write benchmarks/results/road_topology.json, of the whole plan alone."""
    seen, main = summary(cells), cells[f"{MAIN}-0"]
    small = {recipe: bench.compressed(recipe) for recipe in RECIPES}
    folders = {MAIN: main["folder"]} | {recipe: row["folder"] for recipe, row in small.items()}
    timed = cell(bench.name, "times", lambda: times(folders, bench.rounds))
    stored = {name: size_of(Path(folder).glob("*.safetensors")) for name, folder in folders.items()}
    taken = lambda name: [timed[runtime][name]["ms"] for runtime in RUNTIMES]
    rows = [
        [name, *row["rules"]["v2.1"].values(), *taken(name), stored[name]]
        for name, row in {MAIN: main, **small}.items()
    ]
    bits = {"columns": ["", *PARTS, *(f"{name} ms" for name in RUNTIMES), "bytes"], "rows": rows}
    details = {
        "tables": seen["tables"] | {"bits": bits},
        "gaps by seed": seen["gaps"],
        "timed": timed,
        "macs": main["macs"],
        "stages": {name: cells[f"{name}-0"]["stages"] for name in VARIANTS},
        "training_hours": round(sum(row["seconds"] for row in cells.values()) / 3600, 2),
        "world": f"{bench.scenes:,} scenes; {bench.steps:,} steps of every part",
    }
    seconds = sum(row["seconds"] for row in [*cells.values(), *small.values(), timed])
    if bench.scale == 1:
        write_result(NAME, claims(seen, main, small), seconds, details, script=__file__)
    else:  # of a small plan nothing is written
        show(claims(seen, main, small))


def claims(seen: Mapping[str, Any], main: Mapping[str, Any], small: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the claims. The targets of the schedules are the paper's direction: separation and finetuning help."""
    gap = lambda name: seen["gaps"][name]["OLS"]
    by_seed = lambda name: "by seed: " + ", ".join(f"{value:+.4f}" for value in gap(name))
    mean = lambda name: round(statistics.mean(gap(name)), 4)
    drop = lambda recipe: round(1 - small[recipe]["ols"] / max(main["ols"], 1e-9), 4)
    note = "mean of three seeds, unseen worlds, rule v2.1; the paper has 0.445 on OpenLane-V2 by rule v1.0"
    one, other = "separated minus joint", f"{MAIN} minus separated"
    return [
        claim("ols_separated_minus_joint", mean(one), "", "higher", 0.0, by_seed(one)),
        claim("ols_finetuned_minus_separated", mean(other), "", "higher", 0.0, by_seed(other)),
        claim("ols_main", seen["ols"][MAIN], "", "higher", 0.4, "; ".join(filter(None, [note, origin(main)]))),
        claim("w4_ols_drop", drop("w4"), "share", "lower", 0.02, f"seed 0, no stem; w8: {drop('w8'):+.4f}"),
    ]


def main() -> None:
    """Train the cells, or with --finish compress and time the main model, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CELLS, help="train only these cells")
    parser.add_argument("--world", action="store_true", help="only render the world")
    parser.add_argument("--scale", type=int, default=1, help="divide scenes and steps by this, to try the plan")
    parser.add_argument("--finish", action="store_true", help="compress, time, and write the result")
    args = parser.parse_args()
    bench = Bench(args.scale)
    if args.world:
        write_world(bench.world, ORDER, bench.scenes)
    elif args.finish:
        finish(bench, {key: bench.train(key) for key in CELLS})
    else:
        for key in args.only or CELLS:
            row = bench.train(key)
            parts = ", ".join(f"{part} {value}" for part, value in row["rules"]["v2.1"].items())
            print(f"{key}: {parts}; {row['seconds']:,.0f} s", flush=True)


if __name__ == "__main__":
    main()
