"""The tensors of a packed weight in a file, with the names of compressed-tensors, for formats that use them."""

import torch

from jettison.core.errors import JettisonError
from jettison.encodings.grid import Grid
from jettison.encodings.quantized import QuantizedWeight, empty_parts, unpack, zero_points
from jettison.formats.format import Reader
from jettison.graph.anatomy import Linear
from jettison.graph.folder import ModelFolder

SCALE = "weight_scale"
stored = empty_parts
SCALE_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def tensors(name: str, weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    """Return the tensors of a shard, by name, for a quantized linear called ``name``."""
    parts = {f"{name}.{part}": value for part, value in weight.parts().items()}
    return parts | {f"{name}.weight_shape": torch.tensor(weight.codes.shape)}


def read_weight(read: Reader, name: str, grid: Grid, rows: slice = slice(None)) -> QuantizedWeight:
    """Read a packed linear, or some of its rows, and unpack its codes and zero points.

    name: of the linear.
    rows: which rows to read; all by default.
    """
    height, columns = read(f"{name}.weight_shape").tolist()
    codes = unpack(read(f"{name}.weight_packed")[rows], grid.bits, columns)  # (rows, columns)
    # Zero points are packed along the rows, so all are unpacked before the slice is taken.
    zero = None if grid.symmetric else zero_points(read(f"{name}.weight_zero_point"), grid, height)[rows]
    return QuantizedWeight(codes, read(f"{name}.weight_scale")[rows], zero, grid)


def check_parts(source: ModelFolder, linear: Linear, grid: Grid) -> None:
    """Check the tensors of a packed linear. Raises JettisonError if shapes or types are not those of its grid."""
    where = f"{source.folder}: {linear.name}"
    stored = lambda part: source.locate(f"{linear.name}.{part}")[0]
    if (kind := source.checkpoint.dtype(stored("weight_scale"))) not in SCALE_TYPES:
        raise JettisonError(f"{where}.weight_scale is stored as {kind}; valid: {', '.join(SCALE_TYPES)}")
    if SCALE_TYPES[kind] != grid.scale_type:
        raise JettisonError(f"{where}.weight_scale is stored as {kind}, the config says {grid.scale_type}")
    for part, value in empty_parts(linear.rows, linear.columns, grid).items():
        shape, kind = source.checkpoint.shape(stored(part)), source.checkpoint.dtype(stored(part))
        if (
            shape != tuple(value.shape)
            or (value.dtype == torch.int32 and kind != "I32")
            or (grid.minimum and part == "weight_zero_point" and SCALE_TYPES.get(kind) != grid.scale_type)
        ):
            expected = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
            raise JettisonError(f"{where}.{part} is {kind} {shape}; a weight of {grid} has {expected}")
    # The type is checked because the comparison below would accept 64.0 for 64.
    if (kind := source.checkpoint.dtype(stored("weight_shape"))) not in ("I64", "I32"):
        raise JettisonError(f"{where}.weight_shape is stored as {kind}; valid: I64, I32")
    if source.read(f"{linear.name}.weight_shape").tolist() != [linear.rows, linear.columns]:
        raise JettisonError(f"{where}.weight_shape is not that of the config, {linear.rows} x {linear.columns}")
