"""Reader of the golden vectors of perception metrics, in tests/golden/perception."""

import json
from functools import cache
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden" / "perception"


@cache
def vectors(name: str) -> dict:
    """Return the content of a JSON file."""
    return json.loads((FOLDER / f"{name}.json").read_text())


@cache
def depth_maps() -> dict[str, np.ndarray]:
    """Return the depth maps by name."""
    with np.load(FOLDER / "depth_maps.npz") as maps:
        return dict(maps)
