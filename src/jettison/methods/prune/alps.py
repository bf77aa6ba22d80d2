"""ALPS: the mask by ADMM, what stays by conjugate gradients."""

from typing import Annotated

import torch
from pydantic import Field

from jettison.encodings.pattern import Pattern
from jettison.numerics.columns import never_active
from jettison.numerics.masks import smallest
from jettison.recipe.registry import pruner
from jettison.statistics.stats import Stats

LARGEST_RHO = 1e6
SETTLED = 3e-4  # of what is kept: a mask that changes less between two looks is taken as found
LOOK = 3  # iterations between two looks at the mask


@pruner("alps", paper="arXiv:2406.07831, algorithm 1", needs=("hessian",))
def alps(
    weight: torch.Tensor,
    pattern: Pattern,
    stats: Stats,
    *,
    rho: Annotated[float, Field(gt=0)] = 0.1,
    iterations: Annotated[int, Field(ge=1)] = 300,
    patience: Annotated[int, Field(ge=0)] = 30,
    refit: Annotated[int, Field(ge=0)] = 10,
    damp: Annotated[float, Field(gt=0)] = 0.01,
) -> torch.Tensor:
    """Search mask and weights together for the least ‖(W − W') X‖, then solve for what stays.

    weight: (out, in) float32; returns the same with zeros, and what stays moved. stats.hessian: (in, in), the mean of
    x xᵀ. ADMM splits W' into one part that fits the outputs and one that is sparse, and draws them together with a
    penalty ``rho`` that grows by how much the mask still changes; ``iterations`` at most, and after ``patience`` of
    them it ends when the mask has settled. ``refit`` steps of conjugate gradients follow on the final mask. damp: added
    to the Hessian's diagonal, as a share of its mean, which also gives inputs that were never active a norm. Inputs are
    scaled to norm 1.
    """
    hessian = stats.hessian.float().clone()
    if never_active(hessian):  # no input ever: nothing to choose by but the weights
        return weight.masked_fill(smallest(weight.abs(), pattern), 0.0)
    hessian.diagonal().add_(damp * hessian.diagonal().mean())
    norm = hessian.diagonal().sqrt() + 1e-8
    hessian = hessian / norm / norm.unsqueeze(1)
    start = weight * norm
    values, vectors = torch.linalg.eigh(hessian.double())
    inverse = lambda: (vectors / (values + rho) @ vectors.T).float()
    # Rounding here, which no later step makes up for, would lead the search to another mask on another processor.
    wanted, solve = (start.double() @ hessian.double()).float(), inverse()
    keep = lambda matrix: matrix.masked_fill(smallest(matrix.square(), pattern), 0.0)
    sparse = first = keep(start)
    seen, kept = sparse == 0, int((sparse != 0).sum())
    if not kept:  # all zero: nothing to search for, and rho would only shrink
        return first
    dual, grown = torch.zeros_like(start), False
    for iteration in range(1, iterations + 1):
        dense = (wanted - dual + rho * sparse) @ solve
        sparse = keep(dense + dual / rho)
        dual = dual + rho * (dense - sparse)
        if iteration % LOOK:
            continue
        zero = sparse == 0
        changes = int((zero != seen).sum())
        seen = zero
        if not changes and grown:
            break
        if changes > 0.005 * kept:
            rho, grown = rho * (1.3 if changes > 0.1 * kept else 1.2), True
        elif grown:
            rho *= 1.1
        else:  # nothing moves: the penalty was too strong from the start
            rho /= 5
            if changes:
                sparse, dual = first.clone(), torch.zeros_like(dual)
        rho = min(rho, LARGEST_RHO)
        solve = inverse()
        if iteration > patience and changes < SETTLED * kept:
            break
    return conjugate_gradients(keep(dense), hessian, wanted, refit) / norm


def conjugate_gradients(weight: torch.Tensor, hessian: torch.Tensor, wanted: torch.Tensor, steps: int) -> torch.Tensor:
    """The kept weights W for which W · hessian comes close to ``wanted`` (out, in); zeros of ``weight`` stay.

    Every output is a system of its own, over its kept inputs.
    """
    kept = weight != 0
    residual = (wanted - weight @ hessian) * kept
    direction, size = residual, residual.square().sum(1, keepdim=True)
    for _ in range(steps):
        moved = direction @ hessian
        pace = size / (direction * moved).sum(1, keepdim=True).clamp(min=1e-30)
        weight = weight + pace * direction
        residual = (residual - pace * moved) * kept
        last, size = size, residual.square().sum(1, keepdim=True)
        direction = residual + size / last.clamp(min=1e-30) * direction
    return weight
