"""What is looked at after a write: that the files hold what was meant, and that the numbers in them make sense."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from jettison.core.errors import JettisonError
from jettison.encodings.uniform import AT_ONCE, QuantizedWeight
from jettison.formats import compressed_tensors, writer
from jettison.graph.anatomy import Linear
from jettison.graph.checkpoint import Checkpoint
from jettison.graph.folder import ModelFolder
from jettison.graph.walk import Walk

TOKENS = 16
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
    saturated = ((codes == 0) | (codes == weight.grid.max_code)).all(-1) & ~constant
    found = {"constant": int(constant.sum()), "saturated": int(saturated.sum())}
    return {kind: count for kind, count in found.items() if count}


def check_shard(source: ModelFolder, file: Path, weights: Mapping[Linear, writer.Stored]) -> None:
    """Read compressed linears back from a shard and compare every weight, or code, scale and zero point.

    Raises JettisonError if one differs.
    """
    shard = Checkpoint(file.parent, [file])
    for linear, meant in weights.items():
        if not _reads_back(source, shard, linear, meant):
            raise JettisonError(f"{file}: {linear.name} reads back differently from what was written: try another disk")


def _reads_back(source: ModelFolder, shard: Checkpoint, linear: Linear, meant: writer.Stored) -> bool:
    if not writer.packed(linear, meant):
        return torch.equal(writer.read_back(source, shard, linear, None), writer.as_stored(source, linear, meant))
    name, height = writer.stored_name(source, linear), max(1, AT_ONCE // linear.columns)
    for first in range(0, linear.rows, height):
        rows = slice(first, first + height)
        found = compressed_tensors.read_weight(shard.read, name, meant.grid, rows)
        pairs = [(found.codes, meant.codes[rows]), (found.scale, meant.scale[rows])]
        pairs += [] if meant.zero is None else [(found.zero, meant.zero[rows])]
        if not all(torch.equal(a, b) for a, b in pairs):
            return False
    return True


def check_block(source: ModelFolder, out: Path, linears: Iterable[Linear]) -> dict[str, float] | None:
    """Run the first quantized block as the finished folder's own config.json describes it, on random hidden states,
    and compare with the original's block carrying the same weights dense.

    Returns the block's number and the largest difference as a share of the largest output; None if no block is
    quantized. Raises JettisonError if the two do not agree.
    """
    blocks = sorted({linear.block for linear in linears if linear.block is not None})
    if not blocks:
        return None
    block, written = blocks[0], ModelFolder(out)
    grids = compressed_tensors.read_grids(written)
    width = source.skeleton.get_input_embeddings().embedding_dim
    walk = Walk(source, torch.randn(1, TOKENS, width, generator=torch.Generator().manual_seed(0)))
    prefix = walk.prefix(block)
    with walk.block(block) as module:
        here = [linear for linear in linears if linear.block == block]
        for linear in here:
            inner = module.get_submodule(linear.name.removeprefix(prefix + "."))
            if linear.name in grids:
                weight = compressed_tensors.read_weight(written.read, linear.name, grids[linear.name])
                inner.weight.data = weight.dequantize()
            else:
                inner.weight.data = written.read(f"{linear.name}.weight").float()
        dense = walk.batch_through(block, walk.hidden[0])
        for linear in here:
            if linear.name in grids:
                path = linear.name.removeprefix(prefix + ".")
                grid, bias = grids[linear.name], module.get_submodule(path).bias
                module.set_submodule(path, compressed_tensors.packed_linear(written, linear.name, grid, bias))
        packed = walk.batch_through(block, walk.hidden[0])
    difference = float((packed - dense).abs().max() / dense.abs().max())
    if not difference <= CLOSE:
        raise JettisonError(f"{out}: block {block} computes something else from its packed weights ({difference:.3g})")
    return {"index": block, "difference": round(difference, 9)}
