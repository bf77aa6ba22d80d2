"""The cells that ``study.py`` computes, by key. The most important ones come first."""

import re

from benchmarks.sds.block import BASES, STEPS
from benchmarks.witness import RUNS

NAME = "sds"
FOLDER = RUNS / NAME
OPT = RUNS / "fixtures" / "opt"
ITEMS = 40  # items of each task
PATTERNS = {"50 %": {"sparsity": 0.5}, "70 %": {"sparsity": 0.7}, "2:4": {"pattern": "2:4"}, "4:8": {"pattern": "4:8"}}
NAMES = {"scribe": "scribe", "opt": "The OPT-architecture fixture"}
VARIANTS = {
    "plain": None,
    "sds": {"dense_steps": STEPS, "second_steps": STEPS},
    "control": {"dense_steps": 0, "second_steps": 2 * STEPS},
}
HELD = "control, mask held"  # a control that keeps the mask of the base, as masked reconstruction mostly does
CONTROLLED = VARIANTS | {HELD: VARIANTS["control"] | {"rechoose": False}}
ABLATIONS = {
    "no weight regularization": {"l1": 0.0, "l2": 0.0},
    "data of the dense model (DD)": {"data": "dd"},
    "target from the sparse model's inputs": {"share": 0.0},
    "no second adjustment": {"second_steps": 0},
    "mask held in the adjustment": {"rechoose": False},
}
ABLATED = (("wanda", "2:4"), ("sparsegpt", "2:4"))
OPT_CELLS = [(base, pattern) for base in ("wanda", "sparsegpt") for pattern in ("50 %", "2:4")]


def step(base: str, pattern: str, changes: dict | None) -> dict:
    """Return the prune step of a cell. changes: options of SDS; None for the base method alone."""
    if changes is None:
        return {"method": base} | PATTERNS[pattern]
    return {"method": "sds", "base": base} | PATTERNS[pattern] | changes


def cells() -> dict[str, tuple[str, dict | None]]:
    """Return key -> model and prune step, the most important cells first.

    The step is None for the model as it is.
    """
    by_key: dict[str, tuple[str, dict | None]] = {"scribe: dense": ("scribe", None)}
    for variant, changes in CONTROLLED.items():
        for pattern in PATTERNS:
            for base in BASES:
                by_key[f"scribe: {base} {pattern}, {variant}"] = ("scribe", step(base, pattern, changes))
    for base, pattern in ABLATED:
        for name, changes in ABLATIONS.items():
            by_key[f"scribe: {base} {pattern}, {name}"] = ("scribe", step(base, pattern, VARIANTS["sds"] | changes))
    by_key["opt: dense"] = (str(OPT), None)
    for base, pattern in OPT_CELLS:
        for variant, changes in VARIANTS.items():
            by_key[f"opt: {base} {pattern}, {variant}"] = (str(OPT), step(base, pattern, changes))
    return by_key


CELLS = cells()


def slug(key: str) -> str:
    """Return a key as a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", key.lower()).strip("-")


# setting -> variant -> the file name of the cell whose distance from scribe is measured
DISTANT = {
    f"{base} {pattern}": {variant: slug(f"scribe: {base} {pattern}, {variant}") for variant in VARIANTS}
    for pattern in PATTERNS
    for base in BASES
}
