"""What is looked at after a write: that the files hold what was meant, and that the numbers in them make sense."""

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
from jettison.graph.whole import open_walk, random_inputs

CLOSE = 1e-4  # of the largest output: both sides multiply the same float32 weights


def inspect(name: str, weight: QuantizedWeight) -> dict[str, int]:
    """How many groups are ``constant`` (one code throughout) and, of the others, ``saturated`` (every code at an end
    of the grid): both are legal, and a sign of weights or a range that do not suit each other. Zeros are left out.

    Raises JettisonError for scales that are not finite.
    """
    if bad := int((~torch.isfinite(weight.scale.float())).sum()):
        raise JettisonError(f"{name}: {bad} of {weight.scale.numel()} scales are NaN or infinite")
    codes = weight.grid.grouped(weight.codes)
    low, high = codes.amin(-1), codes.amax(-1)
    constant = low == high
    least, greatest = weight.grid.ends
    saturated = ((codes == least) | (codes == greatest)).all(-1) & ~constant
    found = {"constant": int(constant.sum()), "saturated": int(saturated.sum())}
    return {kind: count for kind, count in found.items() if count}


def check_shard(writer: Writer, file: Path, weights: Mapping[Linear, Stored]) -> None:
    """Read compressed linears back from a shard and compare every weight, or code, scale and zero point.

    Raises JettisonError if one differs.
    """
    shard = Checkpoint(file.parent, [file])
    for linear, meant in weights.items():
        if not _reads_back(writer, shard, linear, meant):
            raise JettisonError(f"{file}: {linear.name} reads back differently from what was written: try another disk")


def _reads_back(writer: Writer, shard: Checkpoint, linear: Linear, meant: Stored) -> bool:
    if not writer.packed(linear, meant):
        return torch.equal(writer.read_back(shard, linear, None), writer.as_stored(linear, meant))
    name, height = writer.stored_name(linear), max(1, AT_ONCE // linear.columns)
    for first in range(0, linear.rows, height):
        rows = slice(first, first + height)
        found = writer.format.read_weight(shard.read, name, meant.grid, rows)
        pairs = [(found.codes, meant.codes[rows]), (found.scale, meant.scale[rows])]
        pairs += [] if meant.zero is None else [(found.zero, meant.zero[rows])]
        if not all(torch.equal(a, b) for a, b in pairs):
            return False
    return True


def check_block(source: ModelFolder, out: Path, linears: Iterable[Linear]) -> dict[str, float] | None:
    """Run the first quantized block as the finished folder's own config.json describes it, on random inputs, and
    compare with the original's block carrying the same weights dense.

    Returns the block's number and the largest difference as a share of the largest output; None if no block is
    quantized. Raises JettisonError if the two do not agree.
    """
    blocks = sorted({linear.block for linear in linears if linear.block is not None})
    if not blocks:
        return None
    block, written = blocks[0], ModelFolder(out)
    grids, format = read_grids(written), format_of(written)
    walk = open_walk(source, random_inputs(source))
    prefix = walk.prefix(block)
    with walk.block(block) as module:
        here = {linear.name.removeprefix(prefix + "."): linear for linear in linears if linear.block == block}
        for path, linear in here.items():
            inner = module.get_submodule(path)
            if linear.name in grids:
                weight = format.read_weight(written.read, linear.name, grids[linear.name]).dequantize()
                inner.weight.data = of_matrix(weight, linear.layout, inner.weight.shape)
            else:
                inner.weight.data = written.read(f"{linear.name}.weight").float()
        dense = walk.output(block, 0)
        for path, linear in here.items():
            if linear.name in grids:
                inner = module.get_submodule(path)
                packed = packed_module(written, linear.name, grids[linear.name], inner, inner.bias)
                module.set_submodule(path, packed)
        difference = float((walk.output(block, 0) - dense).abs().max() / dense.abs().max())
    if not difference <= CLOSE:
        raise JettisonError(f"{out}: block {block} computes something else from its packed weights ({difference:.3g})")
    return {"index": block, "difference": round(difference, 9)}
