"""The format safetensors: for grids and layouts that no other format can hold. Only Jettison reads it.

- ``quantization_config`` describes every matrix in config.json:
  {"quant_method": "jettison", "matrices": {module: {"encoding": ..., ...}}}.
- It holds every grid, also value tables, and every layout, also convolutions (as matrices of out by in x height x
  width).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jettison.core.errors import JettisonError, UsageError
from jettison.encodings.grid import Grid
from jettison.encodings.kinds import describe, read_description
from jettison.formats.parts import SCALE, check_parts, read_weight, stored, tensors
from jettison.graph.anatomy import Anatomy, Linear
from jettison.graph.folder import ModelFolder

__all__ = ["SCALE", "detects", "packs", "problems", "read_grids", "read_weight", "refuses", "section"]
__all__ += ["stored", "tensors"]

LIBRARIES = ("safetensors",)
METHOD = "jettison"
PACKED = ("linear", "embedding", "conv2d")


def detects(quantization: Mapping[str, Any]) -> bool:
    """Whether a section ``quantization_config`` says that a checkpoint is in this format."""
    return quantization.get("quant_method") == METHOD


def packs(linear: Linear) -> bool:
    """Whether a matrix is stored packed: linears, embeddings and convolutions are. Conv1D of GPT-2 is not."""
    return linear.layout in PACKED


def refuses(anatomy: Anatomy, grids: Mapping[str, Grid]) -> list[str]:
    """Refuse nothing: the format holds every grid."""
    return []


def section(
    anatomy: Anatomy, grids: Mapping[str, Grid], dense: Sequence[str] = (), extra: Sequence[Linear] = ()
) -> dict[str, Any]:
    """Return ``quantization_config`` for config.json. grids: linear name -> grid of the packed linears.

    dense: not needed, since every packed matrix is named.
    extra: packed matrices of blocks that the model does not have; they are described apart, under ``extra``.
    """
    described = {linear.name: describe(grids[linear.name]) for linear in anatomy if linear.name in grids}
    others = {linear.name: describe(grids[linear.name]) for linear in extra}
    return {"quant_method": METHOD, "matrices": described} | ({"extra": others} if others else {})


def read_grids(source: ModelFolder) -> dict[str, Grid]:
    """Return linear name -> grid of every packed matrix, from config.json.

    Raises JettisonError for a section that is not valid, and for tensors whose shapes or types are not those of their
    grid.
    """
    matrices = (source.quantization or {}).get("matrices", {})
    invalid = f"{source.folder}: quantization_config is not valid"
    if not isinstance(matrices, dict):
        raise JettisonError(f"{invalid}: matrices is {type(matrices).__name__}; an object is needed")
    linears = {linear.name: linear for linear in source.anatomy if packs(linear)}
    grids = {}
    for name, row in matrices.items():
        if name not in linears:
            raise JettisonError(f"{invalid}: the model has no matrix {name!r:.80}")
        try:
            grids[name] = read_description(row)
        except UsageError as error:
            raise JettisonError(f"{invalid}: {name}: {error}") from None
        check_parts(source, linears[name], grids[name])
    return grids


def problems(anatomy: Anatomy, grids: Mapping[str, Grid]) -> list[str]:
    """Say that transformers cannot load this checkpoint, if any matrix is packed."""
    if not grids:
        return []
    return ["this checkpoint is in a format of Jettison's own, which transformers does not load; jettison.load does"]
