"""Checks after a write: that the files hold the intended weights, and that the numbers in them make sense."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from jettison.core.errors import JettisonError
from jettison.encodings.quantized import AT_ONCE, QuantizedWeight
from jettison.formats.format import format_of
from jettison.formats.packed import packed_module, read_grids
from jettison.formats.writer import Stored, Writer
from jettison.graph.anatomy import Linear
from jettison.graph.checkpoint import Checkpoint
from jettison.graph.folder import ModelFolder
from jettison.graph.modules import of_matrix
from jettison.graph.whole import open_walk, random_states

CLOSE = 1e-4  # tolerance, as a share of the largest output: both sides multiply the same float32 weights


def inspect(name: str, weight: QuantizedWeight) -> dict[str, int]:
    """Count the groups of a quantized weight that look wrong. Both kinds are legal, but they show that the weights and
    the range of the grid do not suit each other.

    Returns the number of groups by kind, without kinds of which there is none: ``constant`` (all codes are the same)
    and ``saturated`` (not constant, and every code is the lowest or the highest of the grid).
    Raises JettisonError for scales that are not finite.
    """
    if bad := int((~torch.isfinite(weight.scale.float())).sum()):
        raise JettisonError(f"{name}: {bad} of {weight.scale.numel()} scales are NaN or infinite")
    codes = weight.grid.grouped(weight.codes)  # (rows, groups, width)
    low, high = codes.amin(-1), codes.amax(-1)  # (rows, groups)
    constant = low == high
    least, greatest = weight.grid.ends
    saturated = ((codes == least) | (codes == greatest)).all(-1) & ~constant
    counts = {"constant": int(constant.sum()), "saturated": int(saturated.sum())}
    return {kind: count for kind, count in counts.items() if count}


def check_shard(writer: Writer, file: Path, weights: Mapping[Linear, Stored]) -> None:
    """Read compressed linears back from a shard and compare every weight, or code, scale and zero point.

    weights: what was written for every linear of the shard.
    Raises JettisonError if one differs.
    """
    shard = Checkpoint(file.parent, [file])
    for linear, weight in weights.items():
        if not _reads_back(writer, shard, linear, weight):
            raise JettisonError(f"{file}: {linear.name} reads back differently from what was written: try another disk")


def _reads_back(writer: Writer, shard: Checkpoint, linear: Linear, weight: Stored) -> bool:
    if not writer.packed(linear, weight):
        return torch.equal(writer.read_back(shard, linear, None), writer.as_stored(linear, weight))
    name, height = writer.stored_name(linear), max(1, AT_ONCE // linear.columns)  # height: of a slice of rows
    for first in range(0, linear.rows, height):
        rows = slice(first, first + height)
        stored = writer.format.read_weight(shard.read, name, weight.grid, rows)
        pairs = [(stored.codes, weight.codes[rows]), (stored.scale, weight.scale[rows])]
        pairs += [] if weight.zero is None else [(stored.zero, weight.zero[rows])]
        if not all(torch.equal(a, b) for a, b in pairs):
            return False
    return True


def check_block(
    source: ModelFolder, out: Path, linears: Iterable[Linear], example: torch.Tensor
) -> dict[str, float] | None:
    """Run the first quantized block on inputs with packed weights, and compare with the same weights dense.

    The packed weights are read as the finished folder's own config.json describes them. The dense ones stand in the
    block of the original.

    source: the original.
    out: the finished folder.
    linears: the compressed linears.
    example: inputs (samples, ...) of the model. A chain of blocks gets random states instead.
    Returns the block's number and the largest difference as a share of the largest output; None if no block is
    quantized. Raises JettisonError if the two do not agree.
    """
    blocks = sorted({linear.block for linear in linears if linear.block is not None})
    if not blocks:
        return None
    block, written = blocks[0], ModelFolder(out)
    grids, format = read_grids(written), format_of(written)
    # A family without a row may compute states from token ids in a way that needs them.
    known = source.anatomy.family.chain and source.anatomy.family.name != "generic"
    walk = open_walk(source, random_states(source) if known else example)
    prefix = walk.prefix(block)
    with walk.block(block) as module:
        of_block = {
            linear.name.removeprefix(prefix).removeprefix("."): linear for linear in linears if linear.block == block
        }
        for path, linear in of_block.items():
            inner = module.get_submodule(path)
            if linear.name in grids:
                weight = format.read_weight(written.read, linear.name, grids[linear.name]).dequantize()
                inner.weight.data = of_matrix(weight, linear.layout, inner.weight.shape)
            else:
                inner.weight.data = written.read(f"{linear.name}.weight").float()
        dense = walk.output(block, 0)
        for path, linear in of_block.items():
            if linear.name in grids:
                inner = module.get_submodule(path)
                packed = packed_module(written, linear.name, grids[linear.name], inner, inner.bias)
                if path:
                    module.set_submodule(path, packed)
                else:  # the block is this matrix
                    module.forward = packed.forward
        difference = float((walk.output(block, 0) - dense).abs().max() / dense.abs().max())
    if not difference <= CLOSE:
        raise JettisonError(f"{out}: block {block} computes other outputs from its packed weights ({difference:.3g})")
    return {"index": block, "difference": round(difference, 9)}
