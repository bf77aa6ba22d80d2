"""Blocks that only a checkpoint has: those for multi-token prediction (MTP), which the model does not run.

Their tensors are numbered on after the model's own blocks (DeepSeek: ``model.layers.61``), or have a name of their own
(Qwen3-Next: ``mtp.layers.0``). A matrix of such a block that also stands in the model's own blocks, under the same path
and of the same shape, is a linear like that one. Others (``eh_proj``, embeddings, heads) are not: runtimes hold them
dense.
"""

import re
from dataclasses import replace

from jettison.graph.anatomy import Anatomy, Linear
from jettison.graph.folder import ModelFolder


def extra_tensors(source: ModelFolder) -> list[str]:
    """Return the tensors of the checkpoint that belong to blocks which the model does not have, sorted."""
    if not source.anatomy.family.chain:
        return []
    own, pattern = set(source.skeleton.state_dict()), _pattern(source.anatomy)
    beyond = lambda match: match["number"] is None or int(match["number"]) >= source.anatomy.blocks
    return [name for name in sorted(source.checkpoint) if (m := pattern.match(name)) and beyond(m) and name not in own]


def extra_matrices(source: ModelFolder) -> list[str]:
    """Return the modules whose weight is a matrix of such a block, by their names in the checkpoint."""
    matrices = [name for name in extra_tensors(source) if len(source.checkpoint.shape(name)) == 2]
    return [name.removesuffix(".weight") for name in matrices if name.endswith(".weight")]


def extra_linears(source: ModelFolder) -> list[Linear]:
    """Return the linears of such blocks: the matrices that the model's own blocks have too, with their roles.

    Their ``block`` is None. Experts that are stacked in one tensor are left out.
    """
    anatomy = source.anatomy
    tensors = extra_tensors(source)
    matches = [_pattern(anatomy).match(name) for name in tensors]
    roots = dict.fromkeys(match["root"] for match in matches if match["root"])
    likes = {linear.name.removeprefix(f"{_root(linear, anatomy)}."): linear for linear in anatomy if _inside(linear)}
    linears = []
    for root in roots:
        for path, like in likes.items():
            place = source.find(f"{root}.{path}.weight")
            if place and place[1] is None and source.checkpoint.shape(place[0]) == (like.rows, like.columns):
                moved = lambda key, old=_root(like, anatomy), root=root: root + key.removeprefix(old)
                keys = {key: moved(getattr(like, key)) for key in ("name", "fused", "inputs")}
                linears.append(replace(like, block=None, **keys))
    return linears


def _pattern(anatomy: Anatomy) -> re.Pattern[str]:
    """Match a tensor that may belong to such a block; ``root``: the path of the block, where it has a number."""
    blocks = re.escape(anatomy.family.blocks)
    named = r"mtp\w*(?:\.(?!\d)\w+)?"
    return re.compile(rf"(?P<root>(?:.*\.)?(?:{blocks}\.(?P<number>\d+)|{named}\.\d+))\.|(?:.*\.)?mtp\w*\.")


def _inside(linear: Linear) -> bool:
    return linear.block is not None and linear.layout == "linear"


def _root(linear: Linear, anatomy: Anatomy) -> str:
    return anatomy.path(linear.block)
