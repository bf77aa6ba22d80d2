"""The names under which checkpoints store what transformers renames, or joins, while it loads them.

transformers has the list of these changes for every type (its ``conversion_mapping``). Here it is read backwards: which
tensor of the checkpoint holds a parameter of the model.
"""

import re
from collections.abc import Iterable, Iterator

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    apply_renamings,
    rename_source_key,
)

PROJECTIONS = {1: ("{target}",), 2: ("gate_proj", "up_proj")}  # by the number of tensors that are joined


def renamed(model: nn.Module, tensors: Iterable[str]) -> dict[str, str]:
    """Return parameter of the model -> tensor of the checkpoint, for all tensors that have another name there.

    Experts that transformers stacks are parameters of their own, as ``graph.experts`` separates them.
    """
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    names = {}
    for tensor in tensors:
        names[apply_renamings(tensor, renamings)] = tensor
        names |= {parameter: tensor for parameter in _of_expert(tensor, renamings, converters)}
    return names


def _of_expert(tensor: str, renamings: list[WeightRenaming], converters: list[WeightConverter]) -> Iterator[str]:
    """Yield the parameter of the expert that a tensor is, if transformers would stack it with the others."""
    stem, _, kind = tensor.rpartition(".")  # kind: weight, or a part of a packed weight
    target, pattern = rename_source_key(f"{stem}.weight", renamings, converters)
    rule = next((rule for rule in converters if pattern is not None and pattern in rule.source_patterns), None)
    if rule is None or not all(isinstance(step, MergeModulelist | Concatenate) for step in rule.operations):
        return
    before = apply_renamings(f"{stem}.weight", renamings)
    number = re.search(re.escape(pattern).replace(r"\*", r"(\d+)"), before)
    if number is None or not number.groups():
        return
    path, _, joined = target.rpartition(".")
    names = PROJECTIONS.get(len(rule.source_patterns), ())
    for place, source in enumerate(rule.source_patterns):
        if source == pattern and place < len(names):
            yield f"{path}.{number[1]}.{names[place].format(target=joined)}.{kind}"
