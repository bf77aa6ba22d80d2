"""The claims and tables of benchmarks.vision.depth: times of all models in turns, and exactness of the merge."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.witness import cell, claim, write_result
from jettison import compress, load
from jettison.core.files import size_of
from jettison.domains.domain import find_domain
from jettison.graph.folder import ModelFolder
from jettison.graph.merge import all_cuts, cost, merge, partitions
from jettison.graph.residual import find_residuals
from jettison.graph.twin import install_twins, set_fades
from jettison.runtime.latency import latencies, ratio

NAME = "depth"
RUNTIMES = ("onnxruntime", "pytorch")
ROUNDS, SECONDS = 300, 120
CNNS = ("resnet20", "mobilenet_v2", "convnext9")
Row = tuple[str, int, dict[str, Any]]
W8 = {"quantize": {"method": "rtn", "bits": 8, "group_size": -1}}


def write(bench: Any, tables: Mapping[str, Sequence[Row]], curves: Mapping[str, Sequence[tuple[str, dict]]]) -> None:
    """Time all models, and write benchmarks/results/depth.json.

    tables: model -> its cells: method, seed, result. curves: model -> further points: name, result.
    """
    timed = {
        name: cell(NAME, f"times-{name}", lambda name=name: times(bench, name, tables[name], curves[name]))
        for name in tables
    }
    exact = cell(
        NAME, "merge", lambda: {"difference": merge_difference([bench.dense(name)["folder"] for name in tables])}
    )
    claims = [claim("merge_fp64_maxdiff", exact["difference"], "of the largest logit", "lower", 1e-10)]
    details: dict[str, Any] = {
        "images": "CIFAR-10 as JPEG; accuracy on its 10,000 test images",
        "tables": {},
        "curves": {},
    }
    full = [name for name, rows in tables.items() if any(method == "drop" for method, _, _ in rows)]
    for other in ("abrupt", "drop", "depthshrinker"):
        gaps = [gap for name in full for gap in paired(tables[name], other)]
        note = ", ".join(f"{name} {statistics.mean(paired(tables[name], other)):+.2f}" for name in full)
        claims.append(
            claim(f"progressive_minus_{other}_points", round(statistics.mean(gaps), 3), "points", "higher", 0.001,
                  f"mean over {note}; three seeds each, from {min(gaps):+.2f} to {max(gaps):+.2f}")
        )  # fmt: skip
    for kind, names, gain, drop in (("cnn", CNNS, 1.3, 1.0), ("transformer", ("deit8",), 1.2, 2.0)):
        name, point = best(names, tables, curves, timed, bench, gain, drop)
        times_of = timed[name]["models"][point]
        claims.append(claim(f"{kind}_latency_gain", times_of["gain"], "x", "higher", gain, f"{name}, {point}"))
        fall = round(100 * (bench.dense(name)["accuracy"] - times_of["accuracy"]), 2)
        claims.append(claim(f"{kind}_accuracy_drop", fall, "points", "lower", drop, f"{name}, {point}"))
    for name in tables:
        details["tables"][f"{name}: accuracy and latency"] = table(bench.dense(name), tables[name], timed[name])
        details["tables"][f"{name}: blocks"] = merged_table(tables[name])
        details["curves"][name] = curve(timed[name]["models"])
        if name in CNNS:
            whole = cell(NAME, f"whole-{name}", lambda name=name: whole_merges(bench.dense(name)["folder"]))
            details["tables"][f"{name}: blocks as one convolution"] = {key: whole[key] for key in ("columns", "rows")}
    seconds = sum(row["seconds"] for rows in tables.values() for _, _, row in rows)
    seconds += sum(row["seconds"] for points in curves.values() for _, row in points)
    seconds += sum(bench.dense(name)["seconds"] for name in tables)
    write_result(NAME, claims, seconds, details, script=str(Path(__file__).with_name("depth.py")))


def paired(rows: Sequence[Row], other: str) -> list[float]:
    """Return progressive minus another method, in points, for every seed that both have."""
    of = {(method, seed): row["accuracy"] for method, seed, row in rows}
    return [100 * (of["progressive", seed] - value) for (method, seed), value in of.items() if method == other]


def points_of(rows: Sequence[Row], curve: Sequence[tuple[str, dict]]) -> dict[str, dict[str, Any]]:
    """Return name -> result of every model to be timed: of the first seed where there are several."""
    return {method: row for method, seed, row in rows if seed == 0} | dict(curve)


def times(bench: Any, name: str, rows: Sequence[Row], curve: Sequence[tuple[str, dict]]) -> dict[str, Any]:
    """Time the dense model and every point in turns, in both runtimes; and the result with 8 bits on top."""
    dense, points = bench.dense(name), points_of(rows, curve)
    top = eight_bits(bench, name, points["progressive"])
    folders = {"dense": dense["folder"]} | {point: row["folder"] for point, row in points.items()}
    models = {point: load(folder).model for point, folder in folders.items()}
    source = ModelFolder(dense["folder"])
    example = find_domain(source).example(source)[0]
    taken = {runtime: latencies(models, example, runtime, rounds=ROUNDS, seconds=SECONDS) for runtime in RUNTIMES}
    result = {}
    for point in folders:
        gains = {
            runtime: ratio(taken[runtime]["dense"]["samples_ms"], taken[runtime][point]["samples_ms"])
            for runtime in RUNTIMES
        }
        accuracy = dense["accuracy"] if point == "dense" else points[point]["accuracy"]
        result[point] = {
            "accuracy": accuracy,
            "gain": round(gains["onnxruntime"]["ratio"], 3),
            "gains": {runtime: {key: round(part, 3) for key, part in of.items()} for runtime, of in gains.items()},
            "ms": {runtime: round(taken[runtime][point]["median_ms"], 4) for runtime in RUNTIMES},
            "bytes": size_of(Path(folders[point]).glob("*.safetensors")),
        }  # fmt: skip
    return {"models": result, "w8": top}


def eight_bits(bench: Any, name: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return the scores of the pruned model with 8 bits on top."""
    folder = Path(row["folder"])
    out = folder.with_name(f"{folder.name}-w8")
    compress(folder / "depth" / "model", {"steps": [W8]}, out)
    return bench.scores(out) | {"bytes": size_of(out.glob("*.safetensors"))}


def best(
    names: Sequence[str], tables: Mapping, curves: Mapping, timed: Mapping, bench: Any, gain: float, drop: float
) -> tuple[str, str]:
    """Return the model and the point with the highest gain among those that lose at most ``drop`` points.

    Where none loses so little, it is the one that loses least among those that reach ``gain``.
    """
    found = []
    for name in (name for name in names if name in tables):
        for point in points_of(tables[name], curves[name]):
            if point == "progressive" or point.endswith("blocks"):
                row = timed[name]["models"][point]
                found.append((100 * (bench.dense(name)["accuracy"] - row["accuracy"]), row["gain"], name, point))
    able = [entry for entry in found if entry[0] <= drop]
    chosen = (
        max(able, key=lambda entry: entry[1]) if able else min(found, key=lambda entry: (entry[1] < gain, entry[0]))
    )
    return chosen[2:]


def table(dense: dict[str, Any], rows: Sequence[Row], timed: dict[str, Any]) -> dict[str, Any]:
    """Return the table of a model: every method and point with its accuracy, times and gains."""
    columns = ["", "accuracy", "seeds", "blocks", "onnxruntime ms", "gain", "pytorch ms", "gain", "MB"]
    lines = []
    for point, row in timed["models"].items():
        seeds = [100 * other["accuracy"] for method, _, other in rows if method == point] or [100 * row["accuracy"]]
        pruned = next((len(other["depth"]["pruned"]) for method, _, other in rows if method == point), "")
        mean = f"{statistics.mean(seeds):.2f} %"
        listed = ", ".join(f"{seed:.2f}" for seed in seeds)
        gains = row["gains"]
        lines.append([
            point, mean, listed, pruned, row["ms"]["onnxruntime"], gains["onnxruntime"]["ratio"], row["ms"]["pytorch"],
            gains["pytorch"]["ratio"], round(row["bytes"] / 1e6, 2),
        ])  # fmt: skip
    top = timed["w8"]
    lines.append(
        [
            "progressive, w8 on top",
            f"{100 * top['accuracy']:.2f} %",
            "",
            "",
            "",
            "",
            "",
            "",
            round(top["bytes"] / 1e6, 2),
        ]
    )
    return {"columns": columns, "rows": lines}


def curve(models: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the points of the curve of a model: its dense widths, its progressive subnets, and the baselines.

    The first attempt stands in the tables only.
    """
    kinds = {"dense": "dense", "progressive": "progressive"}
    kind_of = lambda name: (
        kinds.get(name) or ("dense" if "width" in name else "progressive" if "blocks" in name else name)
    )
    return [
        {"name": name, "kind": kind_of(name), "ms": row["ms"]["onnxruntime"], "accuracy": row["accuracy"]}
        for name, row in models.items()
        if "first attempt" not in name
    ]


def merged_table(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the table of the merged blocks of the first progressive result: layers and multiply-adds."""
    merged = next(row["depth"]["merged"] for method, _, row in rows if method == "progressive")
    columns = ["block", "layers", "merged", "million multiply-adds", "merged", "ratio"]
    lines = [
        [
            block["path"], block["before"]["layers"], block["after"]["layers"],
            round(block["before"]["multiply_adds"] / 1e6, 3), round(block["after"]["multiply_adds"] / 1e6, 3),
            round(block["after"]["multiply_adds"] / block["before"]["multiply_adds"], 2),
        ]
        for block in merged
    ]  # fmt: skip
    return {"columns": columns, "rows": lines}


@torch.no_grad()
def whole_merges(folder: str) -> dict[str, Any]:
    """Time every block of a model against the same block as ONE convolution with all its taps.

    Returns a table; a row where multiply-adds rise and time falls is marked.
    """
    source = ModelFolder(folder)
    model = load(folder).model.eval()
    twins = install_twins(model, find_residuals(model, source.anatomy), kernel=0)
    shapes: list[torch.Size] = []
    for twin in twins:
        twin.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    set_fades(twins, [1] * len(twins))
    model(pixel_values=find_domain(source).example(source)[0])
    rows = []
    for twin, shape in zip(twins, shapes, strict=True):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        pair = {"block": twin.original, "merged": merge(twin, ())}
        work = cost(twin, (), written=0) / cost(twin, all_cuts(twin), written=0, pruned=False)
        taken = [latencies(pair, x, runtime, rounds=100, seconds=10) for runtime in RUNTIMES]
        speed = [ratio(times["block"]["samples_ms"], times["merged"]["samples_ms"])["ratio"] for times in taken]
        mark = "more work, less time" if work > 1 and max(speed) > 1 else ""
        rows.append([twin.residual.path, round(work, 2), *(round(value, 2) for value in speed), mark])
    return {"columns": ["block", "multiply-adds", "onnxruntime gain", "pytorch gain", ""], "rows": rows}


@torch.no_grad()
def merge_difference(folders: Sequence[str]) -> float:
    """Return the largest difference of a merged block from its twin in float64, relative to the largest output.

    Every block of every model, merged in every possible way, on random inputs of the model's size.
    """
    worst = 0.0
    for folder in folders:
        source = ModelFolder(folder)
        model = load(folder).model.double().eval()
        twins = install_twins(model, find_residuals(model, source.anatomy))
        pixels = find_domain(source).example(source)[0].double()
        shapes: list[torch.Size] = []
        for twin in twins:
            twin.register_forward_pre_hook(lambda module, args, shapes=shapes: shapes.append(args[0].shape))
        set_fades(twins, [1] * len(twins))
        model(pixel_values=pixels)
        for number, (twin, shape) in enumerate(zip(twins, shapes, strict=True)):
            x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
            expected = twin.pruned(x)
            for cuts in partitions(twin):
                difference = (merge(twin, cuts)(x) - expected).abs().max() / expected.abs().max()
                worst = max(worst, float(difference))
    return worst
