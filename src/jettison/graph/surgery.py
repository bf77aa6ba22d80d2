"""Units that are dropped: from a module, whose other weights stay shared, and from the tensors and config of a folder.
Normalizations that become a part of the convolution before them.

A unit is a block (``3``), or a half of one (``3.mlp``), see ``graph.halves``.
"""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from jettison.core.errors import UsageError
from jettison.graph.anatomy import Family
from jettison.graph.halves import HALVES, silence, skipped_halves

LISTED = ("layer_types", "mlp_layer_types", "no_rope_layers")  # of config.json, one entry a block


def drop_units(model: nn.Module, family: Family, skip: Iterable[str]) -> nn.Module:
    """A model of fewer blocks whose parameters are those of ``model``; it keeps a cache of its own.

    skip: units to leave out. Raises UsageError for a unit that is none, and for a model whose text is described within
    another's.
    """
    *path, last = family.blocks.split(".")
    clone = parent = _shallow(model)
    for name in path:
        child = _shallow(parent.get_submodule(name))
        parent.add_module(name, child)
        parent = child
    blocks, kept, stay = parent.get_submodule(last), [], []
    for number, halves in enumerate(skipped_halves(skip, len(blocks))):
        if len(halves) < len(HALVES):
            stay.append(number)
            kept.append(_renumbered(blocks[number], len(kept)))
            for half in halves:
                silence(kept[-1], family, half)
    parent.add_module(last, nn.ModuleList(kept))
    if model.config.get_text_config() is not model.config:
        raise UsageError(f"{model.config.model_type} with fewer blocks: only models of text alone can be cut out")
    config = copy.deepcopy(model.config)
    for name, value in shortened(vars(config), stay).items():
        setattr(config, name, value)
    for module in (clone, parent):
        module.config = config
    return clone.eval()


def shortened(config: Mapping[str, Any], stay: Sequence[int]) -> dict[str, Any]:
    """What changes in a config when only the blocks ``stay`` are left."""
    listed = {name: config[name] for name in LISTED if isinstance(config.get(name), list)}
    return {name: [values[block] for block in stay] for name, values in listed.items()} | {
        "num_hidden_layers": len(stay)
    }


class Renumbering:
    """Names of tensors when only the blocks ``stay`` are left. blocks: the path of the list of blocks."""

    def __init__(self, blocks: str, stay: Sequence[int]):
        self._pattern = re.compile(rf"((?:^|\.){blocks.rpartition('.')[2]}\.)(\d+)(?=\.)")
        self._new = {old: new for new, old in enumerate(stay)}

    def block(self, name: str) -> int | None:
        """The block, by its old number, that a tensor belongs to; None outside blocks."""
        found = self._pattern.search(name)
        return int(found[2]) if found else None

    def rename(self, name: str) -> str:
        return self._pattern.sub(lambda found: f"{found[1]}{self._new[int(found[2])]}", name, count=1)


def _shallow(module: nn.Module) -> nn.Module:
    clone = copy.copy(module)
    clone._modules = dict(module._modules)
    return clone


def _renumbered(block: nn.Module, number: int) -> nn.Module:
    """The block, as the ``number``-th: its attention finds its keys and values by that."""
    block = _shallow(block)
    for name, child in block._modules.items():
        if hasattr(child, "layer_idx"):
            child = _shallow(child)
            child.layer_idx = number
        block._modules[name] = child
    if hasattr(block, "layer_idx"):
        block.layer_idx = number
    return block


def fold_norms(module: nn.Module) -> None:
    """Every normalization that follows a convolution in a Sequential becomes a part of it."""
    for parent in module.modules():
        if isinstance(parent, nn.Sequential):
            for place in range(len(parent) - 1):
                first, second = parent[place], parent[place + 1]
                if isinstance(first, nn.Conv1d | nn.Conv2d) and isinstance(second, nn.BatchNorm1d | nn.BatchNorm2d):
                    parent[place], parent[place + 1] = fuse_conv_bn_eval(first, second), nn.Identity()
