"""The quantized types of GGUF that are grids of Jettison's: they stay packed, without loss.

This file reads them; formats/gguf_file.py writes whole models. encodings/gguf_blocks.py has the layout of their bytes.
"""

from collections.abc import Mapping
from typing import Any

import torch

from jettison.core.errors import JettisonError
from jettison.encodings.gguf_blocks import TYPES, WIDTH, unpack_blocks
from jettison.encodings.grid import Grid
from jettison.encodings.quantized import QuantizedWeight
from jettison.formats.format import Reader
from jettison.graph.folder import ModelFolder
from jettison.graph.gguf.checkpoint import BLOCKS

SCALE = ""  # the name of a tensor of scales, which the format lacks


def detects(quantization: Mapping[str, Any]) -> bool:
    """Whether a section ``quantization_config`` is that of a GGUF file."""
    return quantization.get("quant_method") == "gguf"


def stored(rows: int, columns: int, grid: Grid) -> dict[str, torch.Tensor]:
    """Return the bytes of a weight on the meta device."""
    size = next(kind.size for kind in TYPES.values() if kind.grid == grid)
    return {BLOCKS: torch.empty(rows, columns // WIDTH * size, dtype=torch.uint8, device="meta")}


def read_grids(source: ModelFolder) -> dict[str, Grid]:
    """Return linear name -> grid of every linear and embedding whose type is a grid.

    Raises JettisonError if the shape of one is not that of the config.
    """
    grids = {}
    for linear in source.anatomy:
        if linear.layout not in ("linear", "embedding") or (place := source.find(f"{linear.name}.{BLOCKS}")) is None:
            continue
        tensor = place[0]
        if source.checkpoint.shape(tensor.removesuffix(BLOCKS) + "weight") != (linear.rows, linear.columns):
            raise JettisonError(
                f"{source.folder}: {linear.name} is not {linear.rows} x {linear.columns}, as the metadata says"
            )
        grids[linear.name] = TYPES[source.checkpoint.kind(tensor)].grid
    return grids


def read_weight(read: Reader, name: str, grid: Grid, rows: slice = slice(None)) -> QuantizedWeight:
    """Read a packed linear, or some of its rows."""
    kind = next(kind for kind in TYPES.values() if kind.grid == grid)
    return unpack_blocks(read(f"{name}.{BLOCKS}")[rows], kind)
