"""Image classifiers in fewer bits, through the same commands as language models: accuracy, KL, size, latency.

    python -m benchmarks.fixtures.images --model resnet --epochs 5 --data train.parquet --test test.parquet --out RESNET
    python -m benchmarks.fixtures.images --model deit --epochs 4 --data train.parquet --test test.parquet --out DEIT
    python -m benchmarks.vision.classifiers --models RESNET DEIT --data train.parquet --test test.parquet

Both are trained on CIFAR-10 for some minutes. Calibrated on 128 training images, measured on all test images. A cell is
kept for each model and recipe; the pages of the runs lie in runs/classifiers.
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
    out = RUNS / NAME / f"{model.name}-{name}"
    shutil.rmtree(out, ignore_errors=True)
    result = fit(model, out=out, recipe=RECIPES[name], images=test, changes=[f"calibration.images={data}"])
    run, found = read_run(out), {}
    for stage in ("original", "quantized"):
        scores = next(iter(result[stage]["images"].values()))
        kept = {key: scores[key] for key in ("accuracy", "standard_error", "loss", "kl", "agreement", "images")}
        size = {key: result[stage]["size"][key] for key in ("bytes", "bits_per_weight")}
        found[stage] = kept | size | {"latency_ms": run.speed["stages"][stage]["latency_ms"]}
    return {"stages": found, "format": run.manifest["format"]}


def main() -> None:
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
        for stage, found in row["stages"].items():
            print(
                f"{key:28} {stage:10} {found['accuracy']:.2%} KL {found['kl']:.4f} same {found['agreement']:.1%} "
                f"{found['bits_per_weight']:.2f} bits {found['latency_ms']:.2f} ms"
            )


if __name__ == "__main__":
    main()
