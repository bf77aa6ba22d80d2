"""The draft model as a module of transformers that shares the weights of the target: for assisted generation."""

import copy
from collections.abc import Iterable

from torch import nn

from jettison.core.errors import UsageError
from jettison.formats.draft_model import LISTED
from jettison.graph.anatomy import Family
from jettison.graph.halves import HALVES, silence, skipped_halves


def assistant(model: nn.Module, family: Family, skip: Iterable[str]) -> nn.Module:
    """A model of fewer blocks whose parameters are those of ``model``; it keeps a cache of its own.

    skip: units to leave out, see ``models.halves``. Raises UsageError for a unit that is none.
    """
    *path, last = family.blocks.split(".")
    clone = parent = _shallow(model)
    for name in path:
        child = _shallow(parent.get_submodule(name))
        parent.add_module(name, child)
        parent = child
    blocks, kept = parent.get_submodule(last), []
    for block, halves in zip(blocks, skipped_halves(skip, len(blocks)), strict=True):
        if len(halves) < len(HALVES):
            kept.append(_renumbered(block, len(kept)))
            for half in halves:
                silence(kept[-1], family, half)
    parent.add_module(last, nn.ModuleList(kept))
    stay = [number for number, halves in enumerate(skipped_halves(skip, len(blocks))) if len(halves) < len(HALVES)]
    config = shorter_config(model.config, stay)
    for module in (clone, parent):
        module.config = config
    return clone.eval()


def shorter_config(config, stay: list[int]):
    """A copy for the blocks ``stay`` alone. Raises UsageError for a model whose text is described within another's."""
    if config.get_text_config() is not config:
        raise UsageError(f"a draft model of {config.model_type}: only models of text alone can be cut out")
    config = copy.deepcopy(config)
    for name in LISTED:
        if isinstance(each := getattr(config, name, None), list):
            setattr(config, name, [each[block] for block in stay])
    config.num_hidden_layers = len(stay)
    return config


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
