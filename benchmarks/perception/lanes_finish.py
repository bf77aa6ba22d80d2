"""The end of benchmarks.perception.lanes: MACs, 8 and 4 bits with their latency, and the result file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.calm import calm
from benchmarks.witness import cell, claim, origin, show, write_result
from jettison import compress, load
from jettison.core.files import size_of
from jettison.domains.diffusion.tracing import flop_counter
from jettison.domains.domain import find_domain
from jettison.domains.perception.models.sparse_laneformer import PAPER
from jettison.graph.folder import ModelFolder
from jettison.graph.own_models import build_skeleton, make_config
from jettison.recipe.recipe import load_recipe, with_images
from jettison.runtime.latency import latencies, ratio

RECIPES = ("w8", "w4")
RUNTIMES = ("pytorch", "onnxruntime")
ROUNDS, SECONDS = 200, 120
PAPER_MACS = 18.1e9  # of the ResNet-34 configuration, arXiv:2404.07821


def count_macs(module: Any, pixels: Any) -> float:
    """Return the multiply-adds of a network for an image: matrix products, convolutions and attention."""
    with flop_counter() as counter:
        module.eval()(pixels)
    return counter.get_total_flops() / 2


def macs_of(folder: Path) -> float:
    """Return the multiply-adds of the model in a folder for one image."""
    source = ModelFolder(folder)
    example, _ = find_domain(source).example(source)
    return count_macs(build_skeleton(source.config)[0].to("meta"), example.to("meta"))


def paper_macs() -> dict[str, float]:
    """Return the multiply-adds of the paper's configuration with ResNet-34, and of its backbone alone."""
    module = build_skeleton(make_config("jettison_sparse_laneformer", PAPER, "paper"))[0].to("meta")
    pixels = torch.zeros(1, *module.inputs["pixels"], device="meta")
    return {"all": count_macs(module, pixels), "backbone": count_macs(module.backbone, pixels)}


def compressed(bench: Any, recipe: str) -> dict[str, Any]:
    """Compress the main model, and return its scores and its bytes."""
    original, out = bench.folder / "sparse-0", bench.folder / f"sparse-0-{recipe}"

    def work() -> dict[str, Any]:
        compress(original, with_images(load_recipe(recipe), str(bench.world)), out)
        return bench.scores(out) | {"folder": str(out), "bytes": size_of(out.glob("*.safetensors"))}

    return cell(bench.name, f"sparse-0-{recipe}", work)


def times(folders: Mapping[str, str], rounds: int) -> dict[str, Any]:
    """Time models in turns, in PyTorch and ONNX Runtime, for one sample, on one thread.

    folders: by name, of models that read the same inputs. Gains are those over the first one.
    Returns runtime -> model -> median in ms and gain, and what other programs disturbed.
    """
    models = {name: load(folder).model for name, folder in folders.items()}
    base = next(iter(folders))
    source = ModelFolder(folders[base])
    example = find_domain(source).example(source)[0]
    work = lambda: {
        name: latencies(models, example, name, threads=1, rounds=rounds, seconds=SECONDS) for name in RUNTIMES
    }
    taken, disturbance = calm(work)
    result: dict[str, Any] = {}
    for runtime, rows in taken.items():
        first = rows[base]["samples_ms"]
        result[runtime] = {
            name: {"ms": round(row["median_ms"], 3), "gain": round(ratio(first, row["samples_ms"])["ratio"], 3)}
            for name, row in rows.items()
        }
    return result | disturbance


def finish(bench: Any, cells: Mapping[str, Any], seen: Mapping[str, Any], script: str) -> None:
    """Compress and time the main model, and write benchmarks/results/lanes.json.

    seen: see ``lanes.summary``. script: that the result names.
    """
    small = {recipe: compressed(bench, recipe) for recipe in RECIPES}
    folders = {"sparse": cells["sparse-0"]["folder"], "dense": cells["dense-0"]["folder"]}
    folders |= {recipe: row["folder"] for recipe, row in small.items()}
    timed = cell(bench.name, "times", lambda: times(folders, max(5, ROUNDS // bench.scale)))
    paper = cell(bench.name, "paper", paper_macs)
    rows = [[name, row["f1"], *(timed[runtime][name]["ms"] for runtime in RUNTIMES),
             size_of(Path(folders[name]).glob("*.safetensors"))]
            for name, row in {"sparse": cells["sparse-0"], "dense": cells["dense-0"], **small}.items()]  # fmt: skip
    tables = seen["tables"] | {
        "bits": {"columns": ["", "F1", *(f"{name} ms" for name in RUNTIMES), "bytes"], "rows": rows}
    }
    details = {
        "tables": tables,
        "gaps of sparse to dense, by seed": seen["gaps"],
        "ablations": seen["ablations"],
        "paper": {"macs": paper["all"], "backbone_macs": paper["backbone"], "stated": PAPER_MACS},
        "timed": timed,
        "world": f"{bench.scenes:,} scenes; {bench.steps:,} steps",
    }
    seconds = sum(row["seconds"] for row in [*cells.values(), *small.values(), timed])
    if bench.scale == 1:
        write_result("lanes", claims(cells, seen, small), seconds, details, script=script)
    else:  # of a small plan nothing is written
        show(claims(cells, seen, small))


def claims(cells: Mapping[str, Any], seen: Mapping[str, Any], small: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the claims. The targets of ablations are the paper's direction: each part helps."""
    means, gaps = seen["f1"], seen["gaps"]
    note = origin(cells["sparse-0"])
    listed = ", ".join(f"{gap['gap']:+.4f}" for gap in gaps)
    mean = round(sum(gap["gap"] for gap in gaps) / len(gaps), 4)
    share = round(cells["sparse-0"]["macs"] / cells["dense-0"]["macs"], 4)
    entries = [
        claim(
            "f1_sparse", means["sparse"], "", "higher", 0.7, f"mean of three seeds, unseen worlds; {note}".rstrip("; ")
        ),
        claim("f1_sparse_minus_dense", mean, "", "higher", 0.0, f"by seed: {listed}"),
        claim("macs_sparse_vs_dense", share, "x", "lower", 1.0, "the same backbone; dense anchors without attention"),
    ]
    for part in ("hpa", "laca", "lpa"):
        gap = seen["ablations"][f"no-{part}"]
        note = f"one seed, paired images; 95 % from {gap['low']:+.4f} to {gap['high']:+.4f}"
        entries.append(claim(f"f1_drop_without_{part}", gap["gap"], "", "higher", 0.0, note))
    for recipe, most in (("w8", 0.005), ("w4", 0.02)):
        drop = round(cells["sparse-0"]["f1"] - small[recipe]["f1"], 4)
        entries.append(claim(f"{recipe}_f1_drop", drop, "", "lower", most, "seed 0"))
    return entries
