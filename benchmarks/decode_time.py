"""Predicted against measured time of decoding, on this machine.

    python benchmarks/decode_time.py               # scribe under three presets, about two minutes
    python benchmarks/decode_time.py DIR [DIR ...] # checkpoints of your own

Decoding runs in the engine where it serves. No claim is made yet: scribe fits into the last cache of most machines,
where memory, which the roofline reckons with, is not what limits; larger checkpoints say more.
"""

import argparse
from pathlib import Path

from witness import RUNS, cell

from jettison.compress import compress
from jettison.devices import find_device
from jettison.evaluate import measure_generation, sample_prompts
from jettison.formats.manifest import read_manifest
from jettison.models import ModelFolder
from jettison.plan import Setting, predict
from jettison.recipe import load_recipe

NAME = "decode_time"
PRESETS = ("w8", "w4", "w3")
CONTEXT = 64


def folders() -> list[Path]:
    found = []
    for preset in PRESETS:
        found.append(RUNS / NAME / preset)
        compress("scribe", preset, found[-1])
    return found


def measure(folder: Path) -> dict:
    manifest = read_manifest(folder)
    source, recipe = ModelFolder(manifest["teacher"]["folder"]), load_recipe(manifest["recipe"])
    predicted = predict(source, recipe, find_device("this"), Setting(CONTEXT)).seconds
    prompts = sample_prompts(source.folder, "books-evaluation")
    measured = 1 / measure_generation(folder, prompts=prompts)["speed"]["decode_tokens_per_second"]
    return {"predicted": predicted, "measured": measured, "ratio": measured / predicted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    given = parser.parse_args().folders
    print("checkpoint             predicted   measured   ratio")
    for folder in given or folders():
        found = measure(folder) if given else cell(NAME, f"cell-{folder.name}", lambda folder=folder: measure(folder))
        print(
            f"{folder.name:<20} {1e3 * found['predicted']:>8.3f} ms {1e3 * found['measured']:>7.2f} ms "
            f"{found['ratio']:>7.1f}"
        )


if __name__ == "__main__":
    main()
