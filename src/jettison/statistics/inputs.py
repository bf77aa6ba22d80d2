"""Mean squares of the inputs of every linear of a model: what weights the errors of a format that fits its scales."""

import torch

from jettison.core.progress import bar
from jettison.graph.folder import ModelFolder
from jettison.graph.whole import open_walk
from jettison.statistics.stats import watch


def mean_squares(source: ModelFolder, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the key ``inputs`` of a linear -> mean squares of its inputs (in,), for the linears of all blocks.

    source: a folder whose weights read dense, such as ``formats.packed.UnpackedFolder``.
    tokens: (windows, length), windows of the calibration data. Experts that get no token are left out.
    """
    walk, squares = open_walk(source, tokens), {}
    with bar("inputs", source.anatomy.blocks) as progress:
        for block in range(source.anatomy.blocks):
            linears = source.anatomy.of_block(block)
            with walk.block(block) as module, watch(module, walk.prefix(block), linears) as watching:
                for number in range(len(walk.batches)):
                    walk.advance(block, number)
                squares |= {key: one.hessian.diagonal().clone() for key, one in watching.stats.items() if one.tokens}
            progress.advance()
    return squares
