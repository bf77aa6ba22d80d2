"""SDS: prune, re-densify the model so that it is easier to prune, and prune again."""

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

SHADOW = 0.9  # share of its re-densed value that a pruned weight competes with when the mask is chosen again


def _base(name: str) -> Method:
    """Return the method ``name``. Raises UsageError if it is no pruner, or sds itself."""
    if name not in registry.methods("prune") or name == "sds":
        raise unknown("base", name, set(registry.methods("prune")) - {"sds"}, " of sds")
    return registry.find("prune", name)


def _needs(options: Mapping[str, Any]) -> set[str]:
    """Return the statistics that these options need.

    This runs before anything is written, so an invalid ``base`` is refused without leaving a folder behind.
    """
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
    """Prune by ``base``, train all weights to match the original's outputs, prune by ``base`` again, and adjust.

    The re-dense stage in the middle makes the weights easier to prune. A result that is worse than the first pruning
    on the calibration text is dropped for the first pruning.

    weight: (out, in) float32.
    pattern: the sparsity, or N:M.
    stats.hessian: (in, in), the mean of x xᵀ, where x are the inputs that the compressed blocks before give;
    stats.cross: of x₀ xᵀ, where x₀ are the inputs in the original model; stats.dense: of x₀ x₀ᵀ.
    base: the pruner of both prunings.
    data: train on ``sd``, the activations x of the sparse model, or ``dd``, the activations x₀ of the dense model.
    dense_steps: number of steps of the re-dense stage, in which all weights are trained, with the penalties ``l1`` and
    ``l2``. With 0 there is no such stage and no second pruning: ``second_steps`` steps adjust the first pruning.
    (dense_steps 0 with second_steps 400 is the control of equal budget in docs/studies/pruning.md.)
    second_steps: number of steps of the adjustment after the second pruning.
    lr: peak learning rate of Adam; every step uses all calibration tokens, through their second moments. lr, l1 and l2
    are for inputs of norm 1 and weights of mean square 1.
    share: how far the target lies from the original's outputs for x (0) towards its outputs for x₀ (1).
    damp: a ridge that draws weights to the original's, as a share of the Hessian's mean diagonal; without it they fit
    the calibration text too closely.
    rechoose: choose the mask again, by magnitude, at every step of the adjustment. If the pattern has neither N:M nor a
    scope, weights compete within the whole layer, even if ``base`` (wanda) prunes row by row. If False, the mask
    stays fixed.
    early_exit: skip the adjustment if the second pruning alone is no worse than the first.

    Returns (out, in) with zeros; the kept weights have changed. Raises UsageError for a base that is no pruner.

    The paper does not name the optimizer, and gives lr 0.1 and both λ 0.1 for weights without scaling. Adam in these
    units, the defaults, and the target for SD data are our reconstruction.
    """
    method = _base(base).function
    # ``gram.unit`` (in,) converts to the units in which lr, l1 and l2 hold. Only ``base`` sees the layer's own units.
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
    """Return the weights with the lower loss on the calibration text."""
    return second if gram.loss(second) <= gram.loss(first) else first
