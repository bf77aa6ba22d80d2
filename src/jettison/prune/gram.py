"""Reconstruction of a layer's outputs from second moments alone: a step costs one product with an (in, in) matrix."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from jettison.calibrate import Stats
from jettison.pattern import Pattern
from jettison.prune.masks import column_norms, smallest

BETAS, EPSILON = (0.9, 0.999), 1e-8
DAMP = 1e-4  # of the mean diagonal: what gives inputs that were never active a norm


@dataclass(frozen=True)
class Gram:
    """Find W with the least mean ‖W₀ x₀ − W x‖² = tr(W H Wᵀ) − 2 tr(T Wᵀ) + ‖W₀ x₀‖², by H = E[x xᵀ] and
    T = W₀ E[x₀ xᵀ].

    All in units in which every input has norm 1 and the weights of W₀ have mean square 1: hessian (in, in), target
    (out, in), unit (in,): a weight in these units times ``unit`` is one of the layer.
    """

    hessian: torch.Tensor
    target: torch.Tensor
    unit: torch.Tensor
    energy: float

    @classmethod
    def of(cls, weight: torch.Tensor, stats: Stats, dense: bool = False, share: float = 1.0) -> "Gram":
        """weight: (out, in), the original's. dense: x is what the original has, else what the sparse model has. share:
        of the way from W₀ x to W₀ x₀ that is aimed at."""
        hessian = stats.dense if dense else stats.hessian
        cross = hessian if dense or stats.cross is None else torch.lerp(hessian, stats.cross, share)
        diagonal = hessian.diagonal()
        norm = (diagonal + DAMP * diagonal.mean().clamp(min=1e-30)).sqrt()
        size = (weight * norm).square().mean().sqrt().clamp(min=1e-30)
        target = (weight @ cross) / norm / size
        energy = stats.dense if stats.cross is not None and stats.dense is not None else hessian
        whole = float((weight * (weight @ energy)).sum(dtype=torch.float64)) / float(size) ** 2
        return cls(hessian / norm / norm.unsqueeze(1), target, size / norm, whole)

    def gradient(self, weight: torch.Tensor) -> torch.Tensor:
        return weight @ self.hessian - self.target

    def error(self, weight: torch.Tensor) -> float:
        """‖W₀ x₀ − W x‖² / ‖W₀ x₀‖², W in these units."""
        total = (weight * (weight @ self.hessian - 2 * self.target)).sum(dtype=torch.float64)
        return float(total) / max(self.energy, 1e-30) + 1.0


def descend(start: torch.Tensor, steps: int, lr: float, gradient: Callable, after: Callable | None = None):
    """Adam with a cosine from ``lr`` to 0. gradient: of weights; after: what is done to them after each step."""
    weight = start.clone()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, steps + 1):
        slope = gradient(weight)
        first.lerp_(slope, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(slope, slope, value=1 - BETAS[1])
        pace = lr * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps)) / (1 - BETAS[0] ** step)
        weight.addcdiv_(first, (second / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON), value=-pace)
        if after is not None:
            after(weight)
    return weight


def redense(gram: Gram, start: torch.Tensor, steps: int, lr: float, l1: float, l2: float) -> torch.Tensor:
    return descend(start, steps, lr, lambda w: gram.gradient(w) + l1 * w.sign() + 2 * l2 * w)


def adjust(gram, start, pattern, steps, lr, scope="layer", shadow=None, score=None):
    """start: pruned. shadow: None = mask held."""
    gone = start == 0
    if shadow is None:
        return descend(start, steps, lr, lambda w: gram.gradient(w).masked_fill_(gone, 0.0))
    # shadow: values for masked entries
    first = start + shadow * gone
    state = {"gone": gone}
    def grad(w):
        g = smallest(score(w), pattern, scope)
        state["gone"] = g
        return gram.gradient(w.masked_fill(g, 0.0)).masked_fill_(g, 0.0)
    w = descend(first, steps, lr, grad)
    return w.masked_fill(smallest(score(w), pattern, scope), 0.0)
