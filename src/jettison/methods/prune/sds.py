"""SDS: prune, grow a dense model back whose weights like to be pruned, prune again."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from jettison.core.errors import unknown
from jettison.encodings.pattern import Pattern
from jettison.recipe import registry
from jettison.recipe.registry import Method, pruner
from jettison.statistics.gram import Gram, adjust, redense
from jettison.statistics.stats import Stats

SHADOW = 0.9  # of its re-densed value: what a pruned weight counts as when the mask is chosen anew


def _base(name: str) -> Method:
    """Raises UsageError for a base that is no pruner."""
    if name not in registry.methods("prune") or name == "sds":
        raise unknown("base", name, set(registry.methods("prune")) - {"sds"}, " of sds")
    return registry.find("prune", name)


def _needs(options: Mapping[str, Any]) -> set[str]:
    """Asked before anything is written, so that a base that is none leaves no folder behind."""
    return {"hessian", "cross"} | ({"dense"} if options["data"] == "dd" else set()) | _base(options["base"]).needs


@pruner("sds", paper="arXiv:2408.10473, section 3", needs=("hessian", "cross", "dense"), choose=_needs)
def sds(
    weight: torch.Tensor,
    pattern: Pattern,
    stats: Stats,
    *,
    base: str = "sparsegpt",
    data: Literal["sd", "dd"] = "sd",
    dense_steps: Annotated[int, Field(ge=0)] = 200,
    second_steps: Annotated[int, Field(ge=0)] = 200,
    lr: Annotated[float, Field(gt=0)] = 0.03,
    l1: Annotated[float, Field(ge=0)] = 0.01,
    l2: Annotated[float, Field(ge=0)] = 0.01,
    share: Annotated[float, Field(ge=0, le=1)] = 1.0,
    damp: Annotated[float, Field(ge=0)] = 0.05,
    rechoose: bool = True,
    early_exit: bool = False,
) -> torch.Tensor:
    """Prune by ``base``; let all weights learn the original's outputs; prune that by ``base`` again, and adjust.

    weight: (out, in) float32; returns the same with zeros, and what stays moved. stats.hessian: (in, in), the mean of
    x xᵀ over what the compressed blocks before give; cross: of x₀ xᵀ, x₀ being the original's; dense: of x₀ x₀ᵀ.
    data: ``sd``, the activations x of the sparse model, or ``dd``, those of the dense one, x₀. The target is what the
    original gives for x₀; ``share`` of the way there from what it gives for x. dense_steps: of the stage in between, in
    which all weights are free, with ``l1`` and ``l2`` on them; without any there is no such stage and no second
    pruning: second_steps then adjust the first one, which is the control of equal budget. second_steps: of the
    adjustment, in which the mask is chosen anew at every step by magnitude (``rechoose``; in the whole layer where the
    pattern names neither N:M nor a scope, over Wanda too) or held. early_exit: no adjustment where the second pruning
    alone is better than the first. lr: Adam's, on the whole batch; for inputs of norm 1 and weights of mean square 1,
    as l1 and l2 are. damp: a ridge that draws weights to the original's, as a share of the Hessian's mean diagonal;
    without it they fit the calibration text too closely. What is worse than the first pruning on the calibration text
    is not taken.

    The paper leaves the optimizer open and gives lr 0.1 and both λ 0.1 for weights as they are; Adam in these units,
    the defaults, and the target for SD data are our reconstruction. Raises UsageError for a base that is no pruner.
    """
    method = _base(base).function
    prune = lambda matrix: method(matrix, pattern, stats) / gram.unit
    gram = Gram.of(weight, stats, data == "dd", share, damp)
    first = prune(weight)
    if not dense_steps:
        shadow = weight / gram.unit * SHADOW if rechoose else None
        return _better(gram, adjust(gram, first, second_steps, lr, pattern, shadow), first) * gram.unit
    dense = redense(gram, first, dense_steps, lr, l1, l2)
    second = prune(dense * gram.unit)
    if not (early_exit and gram.loss(second) <= gram.loss(first)):
        second = adjust(gram, second, second_steps, lr, pattern, dense * SHADOW if rechoose else None)
    return _better(gram, second, first) * gram.unit


def _better(gram: Gram, second: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    return second if gram.loss(second) <= gram.loss(first) else first
