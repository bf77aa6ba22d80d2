"""What the formats GPTQ, AWQ and auto-round have in common: matrices stored transposed, and one grid for the model.

Their configs state the grid that most weights have; exceptions are listed beside it, where the format allows them.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from jettison.encodings.grid import Grid
from jettison.encodings.uniform import UniformGrid
from jettison.formats.format import refusals
from jettison.graph.anatomy import Anatomy, Linear


def packs(linear: Linear) -> bool:
    """Whether a matrix is stored packed: linears are. Embeddings and Conv1D of GPT-2 are stored dense, with their
    values on the grid."""
    return linear.layout == "linear"


def refuses(name: str, anatomy: Anatomy, grids: Mapping[str, Grid], bits: Sequence[int], symmetric: bool) -> list[str]:
    """List what a format cannot hold, one line each.

    name: of the format.
    bits: that its layout has.
    symmetric: whether it holds symmetric grids only.
    """
    widths = f"{', '.join(map(str, bits[:-1]))} and {bits[-1]}"
    convolution = lambda linear, grid: linear.layout == "conv2d"
    packed = lambda of: lambda linear, grid: packs(linear) and of(linear, grid)
    kinds = {
        "quantized convolutions": convolution,
        "grids but uniform ones": packed(lambda linear, grid: not isinstance(grid, UniformGrid)),
        f"bits but {widths}": packed(lambda linear, grid: grid.bits not in bits),
    }
    if symmetric:
        points = "zero points of asymmetric grids: it stores them minus 1, so not 0; gptq-v2 and awq hold them"
        kinds[points] = packed(lambda linear, grid: not grid.symmetric)
    return refusals(name, anatomy, grids, kinds)


def main_grid(anatomy: Anatomy, grids: Mapping[str, Grid], extra: Iterable[Linear] = ()) -> Grid:
    """Return the grid that holds the most weights."""
    weights: Counter[Grid] = Counter()
    for linear in (*anatomy, *extra):
        if linear.name in grids:
            weights[grids[linear.name]] += linear.weights
    return weights.most_common(1)[0][0]


def described(grid: Grid) -> dict[str, int | bool]:
    """Return the fields with which the configs of these formats describe a grid."""
    return {"bits": grid.bits, "group_size": grid.group_size, "sym": grid.symmetric}


def left_dense(anatomy: Anatomy, grids: Mapping[str, Grid], dense: Sequence[str] = ()) -> list[str]:
    """Return the modules that a loader must not take for packed ones, by name: linears and routers.

    dense: modules of blocks that the model does not have.
    """
    names = [linear.name for linear in anatomy if linear.name not in grids and linear.layout == "linear"]
    router = anatomy.family.router
    names += [f"{anatomy.path(block)}.{router}" for block in range(anatomy.blocks)] if router else []
    return [*dict.fromkeys(names), *sorted(dense)]


def problems(title: str, anatomy: Anatomy, grids: Mapping[str, Grid], one_grid: bool) -> list[str]:
    """List the reasons why transformers cannot load such a checkpoint, as sentences.

    title: of the format, for people.
    one_grid: whether transformers reads one grid for the whole model.
    """
    reasons, kinds = [], len(set(grids.values()))
    if one_grid and kinds > 1:
        reasons.append(
            f"transformers reads one grid from a {title} config, and this one has {kinds}; jettison.load reads all"
        )
    if any("expert" in linear.roles and linear.name in grids for linear in anatomy):
        reasons.append(f"transformers has no loader for experts packed as {title}; jettison.load has")
    return reasons


def exactly(name: str) -> str:
    """Return a pattern that matches this name alone."""
    return f"^{re.escape(name)}$"
