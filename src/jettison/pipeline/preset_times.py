"""Times a model beside its compressed forms on this machine, to plan for a latency."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jettison.domains.domain import find_domain
from jettison.graph.folder import ModelFolder
from jettison.pipeline.compression import compress
from jettison.recipe.recipe import load_recipe
from jettison.runtime.latency import latencies
from jettison.runtime.load import load

ROUNDS, SECONDS = 100, 30.0


def preset_times(source: ModelFolder, presets: Sequence[str]) -> dict[str, float]:
    """Return the milliseconds of ``original`` and of every preset for one input, measured in turns.

    Values do not matter for times, so the presets round to nearest and need no data.
    """
    with TemporaryDirectory() as scratch:
        models: dict[str, Any] = {"original": load(source.folder).model}
        for name in presets:
            compress(source.folder, load_recipe(name, ["quantize.method=rtn"]), Path(scratch, name))
            models[name] = load(Path(scratch, name)).model
        example, _ = find_domain(source).example(source)
        taken = latencies(models, example, rounds=ROUNDS, seconds=SECONDS)
    return {name: round(row["median_ms"], 4) for name, row in taken.items()}
