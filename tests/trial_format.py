"""A checkpoint format that the package does not have, as a user would add one: 8-bit integers with its own names.

``NAME.q`` holds int8 codes, ``NAME.s`` scales.
"""

from collections.abc import Mapping
from typing import Any

import torch

from jettison.core.errors import JettisonError, UsageError
from jettison.encodings.grid import Grid
from jettison.encodings.quantized import QuantizedWeight
from jettison.encodings.uniform import UniformGrid
from jettison.formats.format import Reader
from jettison.graph.anatomy import Anatomy, Linear
from jettison.graph.folder import ModelFolder

LIBRARIES = ("safetensors",)
SCALE = "s"
METHOD = "trial"
TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def detects(quantization: Mapping[str, Any]) -> bool:
    return quantization.get("quant_method") == METHOD


def packs(linear: Linear) -> bool:
    return linear.layout in ("linear", "embedding")


def refuses(anatomy: Anatomy, grids: Mapping[str, Grid]) -> list[str]:
    wrong = [name for name, grid in grids.items() if grid.values != "int" or grid.bits != 8 or not grid.symmetric]
    return [f"trial holds symmetric 8-bit integers only ({len(wrong)} others, first {wrong[0]})"] if wrong else []


def tensors(name: str, weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    codes = (weight.codes.to(torch.int16) - weight.grid.zero_code).to(torch.int8)
    return {f"{name}.q": codes, f"{name}.s": weight.scale.contiguous()}


def stored(rows: int, columns: int, grid: Grid) -> dict[str, torch.Tensor]:
    scales = torch.empty(rows, grid.groups(columns), dtype=grid.scale_dtype, device="meta")
    return {"q": torch.empty(rows, columns, dtype=torch.int8, device="meta"), "s": scales}


def section(anatomy: Anatomy, grids: Mapping[str, Grid], dense=(), extra=()) -> dict[str, Any]:
    rows = {name: {"group_size": grid.group_size, "scale_type": grid.scale_type} for name, grid in grids.items()}
    return {"quant_method": METHOD, "matrices": rows}


def read_grids(source: ModelFolder) -> dict[str, Grid]:
    invalid = f"{source.folder}: quantization_config is not valid"
    linears, grids = {linear.name: linear for linear in source.anatomy if packs(linear)}, {}
    rows = source.quantization.get("matrices")
    if not isinstance(rows, dict):
        raise JettisonError(f"{invalid}: matrices must be an object")
    for name, row in rows.items():
        if name not in linears:
            raise JettisonError(f"{invalid}: the model has no matrix {name!r:.80}")
        try:
            grids[name] = grid = UniformGrid(8, row["group_size"], True, row["scale_type"])
            groups = grid.groups(linears[name].columns)
        except (UsageError, TypeError, KeyError) as error:
            raise JettisonError(f"{invalid}: {name}: {error}") from None
        layout = {"q": ("I8", (linears[name].rows, linears[name].columns))}
        layout["s"] = (TYPES[grid.scale_type], (linears[name].rows, groups))
        for part, expected in layout.items():
            tensor = source.locate(f"{name}.{part}")[0]
            if (actual := (source.checkpoint.dtype(tensor), source.checkpoint.shape(tensor))) != expected:
                raise JettisonError(f"{source.folder}: {tensor} is {actual}; a weight of {grid} has {expected}")
    return grids


def read_weight(read: Reader, name: str, grid: Grid, rows: slice = slice(None)) -> QuantizedWeight:
    codes = (read(f"{name}.q")[rows].to(torch.int16) + grid.zero_code).to(torch.uint8)
    return QuantizedWeight(codes, read(f"{name}.s")[rows], None, grid)


def problems(anatomy: Anatomy, grids: Mapping[str, Grid]) -> list[str]:
    return ["transformers does not load the format trial; jettison.load does"] if grids else []
