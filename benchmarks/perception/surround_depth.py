"""SA-FSM on the synthetic world: what neighbour attention, a second round and filters bring; its scale; W8 and W4.

    pip install -r benchmarks/perception/requirements.txt
    OMP_NUM_THREADS=1 python -m benchmarks.perception.surround_depth --world               # render the world
    OMP_NUM_THREADS=1 python -m benchmarks.perception.surround_depth                       # all trainings, some hours
    OMP_NUM_THREADS=1 python -m benchmarks.perception.surround_depth --only full-0 one-0   # some, in this process
    python -m benchmarks.perception.surround_depth --finish    # W8, W4, latency on an idle machine, and the result
    python -m benchmarks.perception.surround_depth --check     # the scores of one model again

Every training is a cell in runs/surround_depth that is computed once; a killed one continues. Two processes may compute
different cells at once, after the world is rendered: give each a core, and the variants of a seed that share a first
round (full, one) to the same one.

Variants, each differing from the full system by one thing:

- full: neighbour-enhanced attention (NCA), geometric filters, two rounds, SIFT.
- cvt: attention to all cameras alone, with twice as many blocks, which cost about as much; a first round of its own.
- one: the second round, as long, keeps all matches of the first. The first round is that of ``full``.
- raw: matches without the geometric filters, in both rounds; a first round of its own.

The model of a training is the best one on the split val by delta < 1.25 in metric scale; all scores are on test.
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.witness import RESULTS, RUNS, cell, claim, compare, origin, write_result
from jettison.core.documents import read_json
from jettison.domains.perception.domain import open_samples, shapes_of
from jettison.domains.perception.judging import predict
from jettison.domains.perception.learning import train
from jettison.domains.perception.world.order import Order
from jettison.domains.perception.world.store import write_world
from jettison.formats.onnx_file import open_onnx, run_onnx
from jettison.graph.folder import ModelFolder
from jettison.metrics.depth import RANGES, resized
from jettison.pipeline.compression import compress
from jettison.pipeline.exporting import export
from jettison.pipeline.perceiving import evaluate_perception
from jettison.runtime.latency import in_turns
from jettison.runtime.load import load

NAME, MODEL = "surround_depth", "sa_fsm"
CELLS = RUNS / NAME
SEEDS = (0, 1, 2)
SCENES, WORLD = 60, Order(seed=2900, size=(160, 400), frames=3, interval=0.25)
FIRST, REST = ("round-1",), ("round-2", "photometric")
STEPS = {FIRST: 500, REST: 300}  # of every stage
BATCH = 4
# changes: of the config. first: the variant whose first round is continued.
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"changes": (), "first": "full", "seeds": SEEDS},
    "cvt": {"changes": ("neighbours=false", "blocks=4"), "first": "cvt", "seeds": SEEDS},
    "one": {"changes": ("rounds=1",), "first": "full", "seeds": SEEDS},
    "raw": {"changes": ("filters=false",), "first": "raw", "seeds": SEEDS[:1]},
}
FOUR = {"quantize": {"method": "gptaq", "bits": 4, "group_size": 32},
        "where": {"role": ["q", "k", "v", "o", "up", "down", "conv"]}}  # fmt: skip
RECIPES: dict[str, Any] = {"w8": "w8", "w4": FOUR}
MOST_DROP = 2.0  # percent of delta < 1.25
METRIC, MEDIAN = "all, metric scale", "all, median scale"


class Bench:
    """The cells of the benchmark."""

    base: tuple[str, ...] = ()  # changes of the config that all variants have
    steps, batch, scenes, world = STEPS, BATCH, SCENES, WORLD
    cells, name = CELLS, NAME

    @property
    def data(self) -> Path:
        """The folder of the worlds, rendered if they are not there."""
        folder = self.cells / "world"
        cell(self.name, "world", lambda: write_world(folder, self.world, self.scenes))
        return folder

    def first(self, variant: str, seed: int) -> dict[str, Any]:
        """Train the first round of a variant; return its record."""
        out = self.cells / f"first-{variant}-{seed}"
        work = lambda: self.train(variant, seed, out, FIRST, None)
        return cell(self.name, out.name, work)

    def row(self, variant: str, seed: int) -> dict[str, Any]:
        """Train a variant to the end; return its scores on test, and the records of its matches."""
        before, out = VARIANTS[variant]["first"], self.cells / f"{variant}-{seed}"

        def work() -> dict[str, Any]:
            first = self.first(before, seed)
            made = self.train(variant, seed, out, REST, self.cells / f"first-{before}-{seed}")
            return {"stages": [*first["stages"], *made["stages"]]} | self.scores(out)

        return cell(self.name, out.name, work)

    def train(self, variant: str, seed: int, out: Path, stages: tuple[str, ...], start: Path | None) -> dict[str, Any]:
        """Train stages; return their records."""
        result = train(
            MODEL, self.data, out, steps=self.steps[stages], batch=self.batch, seed=seed,
            changes=(*self.base, *VARIANTS[variant]["changes"]), layout="ddad", start=start, stages=stages,
            cache=self.cells / "cache",
        )  # fmt: skip
        return {"folder": out.name, "stages": result["stages"]}

    def scores(self, folder: Path) -> dict[str, Any]:
        """Return the scores on test, in metric and in median scale, and the error of the scale in percent."""
        scores = evaluate_perception(folder, self.data, layout="ddad")
        rows = {name: dict(zip(scores.columns, map(float, row), strict=True)) for name, row in scores.rows.items()}
        return {"delta": rows[METRIC]["a1"], "delta_median": rows[MEDIAN]["a1"], "rows": rows} | self.scale(folder)

    def scale(self, folder: Path) -> dict[str, Any]:
        """Return by how many percent the median depth of an image is wrong, the mean over images."""
        source, loaded = ModelFolder(folder), load(folder)
        samples, (least, most) = open_samples(source, self.data, "test", "ddad"), RANGES["ddad"]
        off = []
        numbers = samples.spread()
        for sample, prediction in predict(samples, loaded.logits, shapes_of(source), numbers):
            for camera, made in prediction.depth.items():
                true = sample.frame.views[camera].depth()
                inside = (true > least) & (true < most)
                if inside.any():
                    off.append(abs(np.median(resized(made, true.shape)[inside]) / np.median(true[inside]) - 1))
        return {"scale_error_pct": round(100 * float(np.mean(off)), 4)}

    def small(self, recipe: str, seed: int = 0) -> dict[str, Any]:
        """Compress the full system; return its scores."""
        out = self.cells / f"{recipe}-{seed}"

        def work() -> dict[str, Any]:
            step = RECIPES[recipe]
            chosen = step if isinstance(step, str) else {"steps": [step], "calibration": {"images": str(self.data)}}
            compress(self.cells / f"full-{seed}", chosen, out, seed=seed)
            return {"folder": out.name, "recipe": step} | self.scores(out)

        return cell(self.name, out.name, work)

    def times(self, threads: int = 1) -> dict[str, Any]:
        """Measure the latency of a frame of six cameras in ONNX Runtime, before and after."""

        def work() -> dict[str, Any]:
            files, runs = {}, {}
            for name in ("full-0", *(f"{recipe}-0" for recipe in RECIPES)):
                files[name] = self.cells / f"{name}.onnx"
                export(self.cells / name, files[name])
                session = open_onnx(files[name], threads)
                example = torch.zeros(1, session.get_inputs()[0].shape[1])  # all inputs of a frame in a row
                runs[name] = partial(run_onnx, session, example)
            measured = in_turns(runs)
            return {
                name: {"median_ms": row["median_ms"], "bytes": files[name].stat().st_size}
                for name, row in measured.items()
            } | {"threads": threads}

        return cell(self.name, f"latency-{threads}", work)


def every() -> list[tuple[str, int]]:
    """Return all variants with their seeds; those that share a first round follow each other."""
    return [(variant, seed) for seed in SEEDS for variant, plan in VARIANTS.items() if seed in plan["seeds"]]


def parse_cells(names: Iterable[str] | None) -> list[tuple[str, int]]:
    """Return variants and seeds from names such as full-0; all for None. Exits for an unknown name."""
    known = {f"{variant}-{seed}": (variant, seed) for variant, seed in every()}
    if wrong := [name for name in names or () if name not in known]:
        raise SystemExit(f"unknown cell {wrong[0]}; valid: {', '.join(known)}")
    return [known[name] for name in names or known]


def gain(rows: dict[tuple[str, int], dict[str, Any]], other: str) -> list[float]:
    """Return by how many points of delta < 1.25 the full system is better than a variant, seed by seed."""
    return [
        100 * (rows["full", seed]["delta"] - rows[other, seed]["delta"]) for seed in VARIANTS[other]["seeds"]
    ]  # fmt: skip


def removed(row: dict[str, Any]) -> float:
    """Return which share of all mismatches the filters and the second round removed together."""
    first, second = (stage["targets"] for stage in row["stages"][:2])
    left = second["mismatches"] * (1 - second["mismatches_removed_share"])
    return 1 - left / max(1, first["mismatches"])


def finish(bench: Bench, rows: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Compress, time, and write the result."""
    small, times = {name: bench.small(name) for name in RECIPES}, bench.times()
    full = [rows["full", seed] for seed in SEEDS]
    drop = {name: 100 * (1 - made["delta"] / full[0]["delta"]) for name, made in small.items()}
    near, second, raw = (gain(rows, other) for other in ("cvt", "one", "raw"))
    spread = lambda values: f"seed by seed {', '.join(f'{value:+.2f}' for value in values)}"
    old = origin(full[0])
    claims = [
        claim("delta_gain_neighbour_attention", statistics.mean(near), "points", "higher", 0.0,
              f"delta < 1.25 in metric scale against attention to all cameras alone at equal cost; {spread(near)}"),
        claim("delta_gain_second_round", statistics.mean(second), "points", "higher", 0.0,
              f"against as many steps on all matches of the first round; {spread(second)}"),
        claim("mismatches_removed_share", statistics.mean(map(removed, full)), "", "higher", 0.5,
              "by the filters and the second round, of the mismatches of SIFT in the strips that neighbours share"),
        claim("scale_error_pct", statistics.mean(row["scale_error_pct"] for row in full), "%", "lower", 10.0,
              "of the median depth of an image, without any lidar"),
        claim("w8_delta_drop", drop["w8"], "%", "lower", MOST_DROP, "of delta < 1.25, seed 0"),
        claim("w4_delta_drop", drop["w4"], "%", "lower", MOST_DROP, "of delta < 1.25, seed 0"),
    ]  # fmt: skip
    details = {
        "tables": {"variants": table(rows)},
        "gain_against_no_filters_points": raw,
        "matches": {f"{variant}-{seed}": matches(row) for (variant, seed), row in rows.items()},
        "compressed": {name: {key: made[key] for key in ("delta", "delta_median", "scale_error_pct")}
                       for name, made in small.items()},
        "latency": times,
        "setting": {"scenes": bench.scenes, "frames": bench.world.frames, "batch": bench.batch}
        | {f"steps of {' and '.join(stages)}": steps for stages, steps in bench.steps.items()},
        "note": old,
    }  # fmt: skip
    seconds = sum(part["seconds"] for part in (*rows.values(), *small.values(), times))
    write_result(bench.name, claims, seconds, details, script=__file__)


def table(rows: dict[tuple[str, int], dict[str, Any]]) -> dict[str, Any]:
    """Return the scores of all variants as a table."""
    columns = ["variant", "seed", "delta<1.25", "abs_rel", "delta<1.25, median scale", "scale error, %"]
    cells = [
        [variant, seed, round(row["delta"], 4), round(row["rows"][METRIC]["abs_rel"], 4),
         round(row["delta_median"], 4), round(row["scale_error_pct"], 2)]
        for (variant, seed), row in rows.items()
    ]  # fmt: skip
    return {"columns": columns, "rows": cells}


def matches(row: dict[str, Any]) -> dict[str, Any]:
    """Return what was kept of the matches in each round."""
    wanted = ("matches", "kept_ratio", "mismatches", "mismatches_removed_share", "true_matches_removed_share")
    return {
        stage["stage"]: {key: stage["targets"].get(key) for key in wanted}
        for stage in row["stages"] if "targets" in stage
    }  # fmt: skip


def main() -> None:
    """Compute the cells, or with --finish compress, time, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", action="store_true", help="render the world, and end")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="train these, such as full-0; no result is written")
    parser.add_argument("--finish", action="store_true", help="compress and time the models, and write the result")
    parser.add_argument("--check", action="store_true", help="compute the scores of full-0 again and compare")
    args = parser.parse_args()
    bench, chosen = Bench(), parse_cells(args.only)
    if args.world:
        print(bench.data)
        return
    if args.check:
        first = read_json(RESULTS / f"{NAME}.json")["details"]["tables"]["variants"]["rows"][0]
        made = bench.scores(CELLS / "full-0")
        scale = (made["scale_error_pct"], first[5], 0.05)
        compare({"delta": (made["delta"], first[2], 5e-4), "scale_error_pct": scale})
    rows = {(variant, seed): bench.row(variant, seed) for variant, seed in chosen}
    for (variant, seed), row in rows.items():
        print(f"{variant}-{seed}", json.dumps({key: row[key] for key in ("delta", "delta_median", "scale_error_pct")}))
    if args.finish and not args.only:
        finish(bench, rows)


if __name__ == "__main__":
    main()
