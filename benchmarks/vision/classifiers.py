"""Image classifiers in fewer bits, through the same commands as language models: accuracy, KL, size, latency.

    python -m benchmarks.fixtures.images --model resnet --epochs 5 --data train.parquet --test test.parquet --out RESNET
    python -m benchmarks.fixtures.images --model deit --epochs 4 --data train.parquet --test test.parquet --out DEIT
    python -m benchmarks.vision.classifiers --models RESNET DEIT --data train.parquet --test test.parquet

Both models train on CIFAR-10 for some minutes. They are calibrated on 128 training images and measured on all test
images. A cell is kept for each model and recipe; the pages of the runs are in runs/classifiers.
"""

import argparse
import shutil
from pathlib import Path

from benchmarks.witness import RUNS, cell, write_result
from jettison.fitting import fit
from jettison.recipe.recipe import Recipe, load_recipe
from jettison.reports.run import read_run

NAME = "classifiers"
WHERE = {"role": ["q", "k", "v", "o", "up", "down", "conv", "head"]}
NF4 = {"name": "nf4", "steps": [{"quantize": {"method": "gptaq", "values": "nf4", "group_size": 64}, "where": WHERE}]}
RECIPES: dict[str, str | Recipe] = {"w8": "w8", "w4": "w4", "w3": "w3", "nf4": load_recipe(NF4)}


def measured(model: Path, name: str, data: str, test: str) -> dict:
    """Compress a model by the recipe ``name``, and return the scores before and after.

    data: images to calibrate on.
    test: images to measure on.
    """
    out = RUNS / NAME / f"{model.name}-{name}"
    shutil.rmtree(out, ignore_errors=True)
    result = fit(model, out=out, recipe=RECIPES[name], images=test, changes=[f"calibration.images={data}"])
    run, stages = read_run(out), {}
    for stage in ("original", "quantized"):
        scores = next(iter(result[stage]["images"].values()))
        kept = {key: scores[key] for key in ("accuracy", "standard_error", "loss", "kl", "agreement", "images")}
        size = {key: result[stage]["size"][key] for key in ("bytes", "bits_per_weight")}
        stages[stage] = kept | size | {"latency_ms": run.speed["stages"][stage]["latency_ms"]}
    return {"stages": stages, "format": run.manifest["format"]}


def main() -> None:
    """Compute the cells of all models and recipes, write the result, and print it as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, type=Path)
    parser.add_argument("--data", required=True, help="images to calibrate on")
    parser.add_argument("--test", required=True, help="images to measure on")
    args = parser.parse_args()
    table: dict[str, dict] = {}
    for model in args.models:
        for name in RECIPES:
            key = f"{model.name}-{name}"
            table[key] = cell(NAME, key, lambda model=model, name=name: measured(model, name, args.data, args.test))
    seconds = sum(row["seconds"] for row in table.values())
    write_result(NAME, [], seconds, {"models": table}, script=__file__)
    for key, row in table.items():
        for stage, scores in row["stages"].items():
            print(
                f"{key:28} {stage:10} {scores['accuracy']:.2%} KL {scores['kl']:.4f} same {scores['agreement']:.1%} "
                f"{scores['bits_per_weight']:.2f} bits {scores['latency_ms']:.2f} ms"
            )


if __name__ == "__main__":
    main()
