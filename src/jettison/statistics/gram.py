"""Reconstruction of a layer's outputs from second moments alone: a step costs one product with an (in, in) matrix."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from jettison.encodings.pattern import Pattern
from jettison.numerics.masks import smallest
from jettison.statistics.stats import Stats

BETAS, EPSILON = (0.9, 0.999), 1e-8
LEAST_DAMP = 1e-4  # what gives inputs that were never active a norm


@dataclass(frozen=True)
class Gram:
    """Find W with the least mean ‖W₀ x₀ − W x‖² = tr(W H Wᵀ) − 2 tr(T Wᵀ) + ‖W₀ x₀‖², by H = E[x xᵀ] and
    T = W₀ E[x₀ xᵀ]; both with a ridge, which draws W to W₀ where the text says little.

    All in units in which every input has norm 1 and the weights of W₀ have mean square 1: hessian (in, in), target
    (out, in), unit (in,): a weight in these units times ``unit`` is one of the layer.
    """

    hessian: torch.Tensor
    target: torch.Tensor
    unit: torch.Tensor

    @classmethod
    def of(
        cls, weight: torch.Tensor, stats: Stats, dense: bool = False, share: float = 1.0, damp: float = 0.0
    ) -> "Gram":
        """weight: (out, in), the original's. dense: x is what the original has, else what the sparse model has. share:
        of the way from W₀ x to W₀ x₀ that is aimed at. damp: the ridge, as a share of H's mean diagonal."""
        dense = dense and stats.cross is not None  # experts: tokens do not correspond
        hessian = stats.dense if dense else stats.hessian
        cross = hessian if dense or stats.cross is None else torch.lerp(hessian, stats.cross, share)
        ridge = max(damp, LEAST_DAMP) * hessian.diagonal().mean().clamp(min=1e-30) * torch.eye(len(hessian)).to(hessian)
        hessian, cross = hessian + ridge, cross + ridge
        norm = hessian.diagonal().sqrt()
        size = (weight * norm).square().mean().sqrt().clamp(min=1e-30)
        target = (weight @ cross) / norm / size
        return cls(hessian / norm / norm.unsqueeze(1), target, size / norm)

    def gradient(self, weight: torch.Tensor) -> torch.Tensor:
        return weight @ self.hessian - self.target

    def loss(self, weight: torch.Tensor) -> float:
        """Mean ‖W₀ x₀ − W x‖² less ‖W₀ x₀‖², W in these units: what is to be compared."""
        return float((weight * (weight @ self.hessian - 2 * self.target)).sum(dtype=torch.float64))


def redense(gram: Gram, start: torch.Tensor, steps: int, lr: float, l1: float, l2: float) -> torch.Tensor:
    """All weights free, from ``start`` on: ½ of the loss, l1 ‖W‖₁ and l2 ‖W‖₂² with it."""
    return _descend(
        start, steps, lr, lambda weight: gram.gradient(weight).add_(weight, alpha=2 * l2) + l1 * weight.sign()
    )


def adjust(
    gram: Gram, start: torch.Tensor, steps: int, lr: float, pattern: Pattern, shadow: torch.Tensor | None = None
) -> torch.Tensor:
    """What is not zero in ``start`` moves to lower the error; zeros stay zero.

    shadow: (out, in), what pruned weights count as: the mask is then chosen anew before every step, by magnitude in
    these units (what a weight adds to its output), among kept weights and shadows; one that comes back, comes back with
    its shadow's value. Pruned weights have no gradient.
    """
    if shadow is None:
        mask = start == 0
        return _descend(start, steps, lr, lambda weight: gram.gradient(weight).masked_fill_(mask, 0.0))
    weight = torch.where(start == 0, shadow, start)

    def gradient(weight: torch.Tensor) -> torch.Tensor:
        mask = smallest(weight.abs(), pattern)
        return gram.gradient(weight.masked_fill(mask, 0.0)).masked_fill_(mask, 0.0)

    weight = _descend(weight, steps, lr, gradient)
    return weight.masked_fill(smallest(weight.abs(), pattern), 0.0)


def _descend(
    start: torch.Tensor, steps: int, lr: float, gradient: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Adam on the whole batch, its rate on a cosine from ``lr`` to 0."""
    weight, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(steps):
        slope = gradient(weight)
        first.lerp_(slope, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(slope, slope, value=1 - BETAS[1])
        pace = lr * 0.5 * (1 + math.cos(math.pi * step / steps)) / (1 - BETAS[0] ** (step + 1))
        weight.addcdiv_(first, (second / (1 - BETAS[1] ** (step + 1))).sqrt_().add_(EPSILON), value=-pace)
    return weight
