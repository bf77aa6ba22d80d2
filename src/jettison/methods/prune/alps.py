"""ALPS: find the mask by ADMM, then the kept weights by conjugate gradients."""

from typing import Annotated

import torch
from pydantic import Field

from jettison.encodings.pattern import Pattern
from jettison.numerics.columns import never_active
from jettison.numerics.masks import smallest
from jettison.recipe.registry import pruner
from jettison.statistics.stats import Stats

LARGEST_RHO = 1e6
SETTLED = 3e-4  # share of the kept weights; a mask that changes by less between two checks has settled
LOOK = 3  # iterations between two checks of the mask


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
    """Search mask and weights together for the least ‖(W − W') X‖, then refit the kept weights.

    ADMM splits W' into one part that fits the outputs and one part that is sparse. A penalty ``rho`` draws the two
    together; it grows faster the more the mask still changes. Inputs are scaled to norm 1.

    weight: (out, in) float32.
    stats.hessian: (in, in), the mean of x xᵀ.
    rho: the first penalty.
    iterations: of ADMM, at most.
    patience: iterations after which the search may end, as soon as the mask has settled.
    refit: steps of conjugate gradients on the final mask.
    damp: added to the Hessian's diagonal, as a share of its mean; it also gives inputs that were never active a norm.

    Returns (out, in) with zeros; the kept weights have changed.
    """
    hessian = stats.hessian.float().clone()
    if never_active(hessian):  # no input was ever active: only the weights can decide
        return weight.masked_fill(smallest(weight.abs(), pattern), 0.0)
    hessian.diagonal().add_(damp * hessian.diagonal().mean())
    norm = hessian.diagonal().sqrt() + 1e-8  # (in,), the norm of every input
    hessian = hessian / norm / norm.unsqueeze(1)
    start = weight * norm
    values, vectors = torch.linalg.eigh(hessian.double())
    inverse = lambda: (vectors / (values + rho) @ vectors.T).float()  # (hessian + rho)⁻¹, (in, in)
    # In float64: a rounding error in the target is in every iteration, and gives another mask on another processor.
    target, solve = (start.double() @ hessian.double()).float(), inverse()  # target: W H, (out, in)
    prune = lambda matrix: matrix.masked_fill(smallest(matrix.square(), pattern), 0.0)
    sparse = first = prune(start)
    mask, kept = sparse == 0, int((sparse != 0).sum())
    if not kept:  # all zero: nothing to search for, and rho would only shrink
        return first
    dual, grown = torch.zeros_like(start), False
    for iteration in range(1, iterations + 1):
        dense = (target - dual + rho * sparse) @ solve  # the part that fits the outputs
        sparse = prune(dense + dual / rho)
        dual = dual + rho * (dense - sparse)
        if iteration % LOOK:
            continue
        zero = sparse == 0
        changes = int((zero != mask).sum())
        mask = zero
        if not changes and grown:
            break
        if changes > 0.005 * kept:
            rho, grown = rho * (1.3 if changes > 0.1 * kept else 1.2), True
        elif grown:
            rho *= 1.1
        else:  # hardly any change since the start: the first penalty was too strong, so weaken it
            rho /= 5
            if changes:
                sparse, dual = first.clone(), torch.zeros_like(dual)
        rho = min(rho, LARGEST_RHO)
        solve = inverse()
        if iteration > patience and changes < SETTLED * kept:
            break
    return conjugate_gradients(prune(dense), hessian, target, refit) / norm


def conjugate_gradients(weight: torch.Tensor, hessian: torch.Tensor, target: torch.Tensor, steps: int) -> torch.Tensor:
    """Change the nonzero weights so that weight · hessian comes close to ``target``.

    Every output (row) is a linear system of its own, over its kept inputs; all rows are solved together.

    weight: (out, in); its zeros stay zero.
    hessian: (in, in).
    target: (out, in).
    Returns (out, in).
    """
    kept = weight != 0
    residual = (target - weight @ hessian) * kept
    direction, size = residual, residual.square().sum(1, keepdim=True)  # size: (out, 1)
    for _ in range(steps):
        product = direction @ hessian
        pace = size / (direction * product).sum(1, keepdim=True).clamp(min=1e-30)
        weight = weight + pace * direction
        residual = (residual - pace * product) * kept
        last, size = size, residual.square().sum(1, keepdim=True)
        direction = residual + size / last.clamp(min=1e-30) * direction
    return weight
