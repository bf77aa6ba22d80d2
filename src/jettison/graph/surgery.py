"""Remove units from a model.

- ``drop_units`` removes units from a module. The remaining weights stay shared with the original.
- ``shortened`` and ``Renumbering`` do the same for the config and the tensor names of a folder.

A unit is a block (``3``), or a half of one (``3.mlp``), see ``graph.halves``.
"""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from jettison.core.errors import UsageError
from jettison.graph.anatomy import Family
from jettison.graph.halves import HALVES, silence, skipped_halves

# Fields of a config with numbers of blocks, and with how many blocks at the start are of another kind.
NUMBERED = (
    "mlp_only_layers", "moe_layers", "attn_layer_indices", "full_attn_idxs", "hybrid_layer_ids", "global_attn_layers",
)  # fmt: skip
LEADING = ("first_k_dense_replace", "num_dense_layers", "max_window_layers", "num_dense_blocks")
NUMBERS = ("layer_idx", "layer_id", "idx", "layer_number", "block_idx")  # attributes of modules: a block's own number


def drop_units(model: nn.Module, family: Family, skip: Iterable[str]) -> nn.Module:
    """Return a model without some units that shares its parameters with ``model``. It has a key-value cache of its own.

    skip: the units to leave out.
    Raises UsageError for a name that is not a unit, and for a model whose text model is a section of its config.
    """
    *path, last = family.blocks.split(".")
    clone = parent = _shallow(model)
    for name in path:
        child = _shallow(parent.get_submodule(name))
        parent.add_module(name, child)
        parent = child
    blocks, kept, numbers = parent.get_submodule(last), [], []
    for number, halves in enumerate(skipped_halves(skip, len(blocks))):
        if len(halves) < len(HALVES):
            numbers.append(number)
            kept.append(_renumbered(blocks[number], len(kept)))
            for half in halves:
                silence(kept[-1], family, half)
    parent.add_module(last, nn.ModuleList(kept))
    if model.config.get_text_config() is not model.config:
        raise UsageError(f"cannot drop blocks of a {model.config.model_type} model: a model of text alone is needed")
    config = copy.deepcopy(model.config)
    for name, value in shortened(vars(config), numbers, len(blocks)).items():
        setattr(config, name, value)
    for module in (clone, parent):
        module.config = config
    return clone.eval()


def shortened(config: Mapping[str, Any], stay: Sequence[int], blocks: int) -> dict[str, Any]:
    """Return the fields of a config that change when only the blocks ``stay`` of ``blocks`` remain, in order.

    config: the fields as transformers has them after reading, so that lists that follow from other fields are there.
    """
    changed: dict[str, Any] = {"num_hidden_layers": len(stay)}
    new = {old: place for place, old in enumerate(stay)}
    for name, value in config.items():
        if name in NUMBERED and isinstance(value, list):  # the numbers of the blocks of one kind
            changed[name] = [new[block] for block in value if block in new]
        elif isinstance(value, list) and len(value) == blocks and not name.startswith("_"):  # an entry for every block
            changed[name] = [value[block] for block in stay]
        elif name in LEADING and type(value) is int:  # how many blocks at the start are of another kind
            changed[name] = sum(block < value for block in stay)
    step = config.get("decoder_sparse_step")
    if type(step) is int and step > 1:  # every so many blocks have experts: the others are numbered instead
        dense = [block for block in stay if (block + 1) % step or block in (config.get("mlp_only_layers") or ())]
        changed |= {"decoder_sparse_step": 1, "mlp_only_layers": [new[block] for block in dense]}
    return changed


def check_kinds(old: nn.Module, new: nn.Module, blocks: str, stay: Sequence[int]) -> None:
    """Check that the blocks of a shortened skeleton have the kinds of the blocks that they were.

    old, new: skeletons of the whole model and of the shortened one.
    blocks: the path of the list of blocks.
    Raises UsageError that names the first block whose modules, shapes or settings differ: then the config says of
    blocks what ``shortened`` does not know.
    """
    before, after = old.get_submodule(blocks), new.get_submodule(blocks)
    for place, number in enumerate(stay):
        if differing := _kind(before[number]) ^ _kind(after[place]):
            raise UsageError(
                f"blocks of a {old.config.model_type} model cannot be left out: block {number} would become another "
                f"kind of block ({min(map(str, differing))[:120]})"
            )


def _kind(block: nn.Module) -> set[tuple[str, str, Any]]:
    """Return what distinguishes kinds of blocks: classes, shapes, and plain settings other than the block's number."""
    kind: set[tuple[str, str, Any]] = set()
    for path, module in block.named_modules():
        kind.add((path, "class", type(module).__name__))
        for name, parameter in module._parameters.items():
            kind.add((path, name, None if parameter is None else tuple(parameter.shape)))
        for name, value in vars(module).items():
            if isinstance(value, str | int | float | bool | None) and name not in NUMBERS and not name.startswith("_"):
                kind.add((path, name, value))
    return kind


class Renumbering:
    """The names of tensors when only the blocks ``stay`` remain. blocks: the path of the list of blocks."""

    def __init__(self, blocks: str, stay: Sequence[int]):
        self._pattern = re.compile(rf"((?:^|\.){blocks.rpartition('.')[2]}\.)(\d+)(?=\.)")
        self._new = {old: new for new, old in enumerate(stay)}

    def block(self, name: str) -> int | None:
        """Return the old number of the block that a tensor belongs to, or None if it is outside the blocks."""
        match = self._pattern.search(name)
        return int(match[2]) if match else None

    def rename(self, name: str) -> str:
        """Return the name of a tensor with the new number of its block."""
        return self._pattern.sub(lambda match: f"{match[1]}{self._new[int(match[2])]}", name, count=1)


def _shallow(module: nn.Module) -> nn.Module:
    """Copy a module but not its children, so that a child can be replaced in the copy alone."""
    clone = copy.copy(module)
    clone._modules = dict(module._modules)
    return clone


def _renumbered(block: nn.Module, number: int) -> nn.Module:
    """Copy a block and give it a new number, by which its attention finds its keys and values in the cache."""
    block = _shallow(block)
    for name, child in block._modules.items():
        if hasattr(child, "layer_idx"):
            child = _shallow(child)
            child.layer_idx = number
        block._modules[name] = child
    if hasattr(block, "layer_idx"):
        block.layer_idx = number
    return block
