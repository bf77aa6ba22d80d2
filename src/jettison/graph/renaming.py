"""The names under which checkpoints store what transformers renames, or joins, while it loads them.

transformers has the list of these changes for every type (its ``conversion_mapping``). Here it is read backwards: which
tensor of the checkpoint holds a parameter of the model.
"""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    apply_renamings,
    rename_source_key,
)

if TYPE_CHECKING:
    from jettison.graph.folder import ModelFolder

PROJECTIONS = {1: ("{target}",), 2: ("gate_proj", "up_proj")}  # by the number of tensors that are joined


def renamed(model: nn.Module, tensors: Iterable[str]) -> dict[str, str]:
    """Return parameter of the model -> tensor of the checkpoint, for all tensors that have another name there.

    Experts that transformers stacks are parameters of their own, as ``graph.experts`` separates them.
    """
    if not isinstance(model, PreTrainedModel):  # diffusers renames nothing
        return {}
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


def lacking(source: "ModelFolder", parameter: str) -> str:
    """Describe what a checkpoint lacks: up to three parameters without a tensor, and three tensors that fit none.

    parameter: one that has no tensor.
    """
    places = {name: source.find(name) for name, _ in source.skeleton.named_parameters()}
    missing = [name for name, place in places.items() if place is None]
    used = {place[0] for place in places.values() if place is not None}
    others = [tensor for tensor in source.checkpoint if tensor not in used]
    text = f"the checkpoint has no tensor for {_first(missing if parameter in missing else [parameter])}"
    return text + (f"; it has {_first(others)}, which the model does not have" if others else "")


def _first(names: list[str]) -> str:
    """Return the first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def tied(model: nn.Module) -> dict[str, list[str]]:
    """Return parameter -> the other names of the same parameter in the model, such as the bias of a tied head."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    shared = [same for same in names.values() if len(same) > 1]
    return {name: [other for other in same if other != name] for same in shared for name in same}
