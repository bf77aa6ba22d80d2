"""Reconstruct the outputs of a layer from second moments alone. A step costs one product with an (in, in) matrix."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from jettison.encodings.pattern import Pattern
from jettison.numerics.masks import smallest
from jettison.statistics.stats import Stats

BETAS, EPSILON = (0.9, 0.999), 1e-8
LEAST_DAMP = 1e-4  # the least ridge, so that inputs that were never active have a norm above 0


@dataclass(frozen=True)
class Gram:
    """The least-squares problem of a layer: find W with the least mean ‖W₀ x₀ − W x‖².

    The mean is tr(W H Wᵀ) − 2 tr(T Wᵀ) + ‖W₀ x₀‖² with H = E[x xᵀ] and T = W₀ E[x₀ xᵀ]. Both moments have a ridge,
    which keeps W near W₀ for inputs about which the calibration data say little.

    All fields are in normalized units: every input has norm 1, and the weights of W₀ have mean square 1.

    hessian: (in, in), H.
    target: (out, in), T.
    unit: (in,). A weight in normalized units times ``unit`` is a weight of the layer.
    """

    hessian: torch.Tensor
    target: torch.Tensor
    unit: torch.Tensor

    @classmethod
    def of(
        cls, weight: torch.Tensor, stats: Stats, dense: bool = False, share: float = 1.0, damp: float = 0.0
    ) -> "Gram":
        """Make the problem from calibration statistics.

        weight: (out, in), of the original model.
        dense: whether x are the inputs in the original model; else they are those in the sparse model.
        share: where the target lies between W₀ x (0) and W₀ x₀ (1).
        damp: the ridge, as a share of H's mean diagonal; at least ``LEAST_DAMP``.
        """
        dense = dense and stats.cross is not None  # None for experts, whose tokens do not correspond
        hessian = stats.dense if dense else stats.hessian
        cross = hessian if dense or stats.cross is None else torch.lerp(hessian, stats.cross, share)
        ridge = max(damp, LEAST_DAMP) * hessian.diagonal().mean().clamp(min=1e-30) * torch.eye(len(hessian)).to(hessian)
        hessian, cross = hessian + ridge, cross + ridge
        norm = hessian.diagonal().sqrt()  # (in,): the root mean square of every input
        size = (weight * norm).square().mean().sqrt().clamp(min=1e-30)
        target = (weight @ cross) / norm / size
        return cls(hessian / norm / norm.unsqueeze(1), target, size / norm)

    def gradient(self, weight: torch.Tensor) -> torch.Tensor:
        """Return half the gradient of the loss at ``weight`` (normalized units)."""
        return weight @ self.hessian - self.target

    def loss(self, weight: torch.Tensor) -> float:
        """Return the mean of ‖W₀ x₀ − W x‖² − ‖W₀ x₀‖², for comparisons. weight: W in normalized units."""
        return float((weight * (weight @ self.hessian - 2 * self.target)).sum(dtype=torch.float64))


def redense(gram: Gram, start: torch.Tensor, steps: int, lr: float, l1: float, l2: float) -> torch.Tensor:
    """Minimize ½ of the loss + l1 ‖W‖₁ + l2 ‖W‖₂² over all weights, from ``start`` (out, in). Returns W (out, in)."""
    return _descend(
        start, steps, lr, lambda weight: gram.gradient(weight).add_(weight, alpha=2 * l2) + l1 * weight.sign()
    )


def adjust(
    gram: Gram, start: torch.Tensor, steps: int, lr: float, pattern: Pattern, shadow: torch.Tensor | None = None
) -> torch.Tensor:
    """Minimize the loss over the weights that are not zero in ``start``. Returns W (out, in).

    shadow: None keeps the sparsity mask of ``start``. Else (out, in), the values with which pruned weights compete for
        the mask. The mask is chosen anew before every step by magnitude in normalized units, which is what a weight
        adds to its output. A weight that returns starts from its shadow. Pruned weights have no gradient.
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
    """Run Adam from ``start``, with a learning rate that follows a cosine from ``lr`` to 0."""
    weight, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(steps):
        slope = gradient(weight)
        # The running means of the gradient and of its square.
        first.lerp_(slope, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(slope, slope, value=1 - BETAS[1])
        rate = lr * 0.5 * (1 + math.cos(math.pi * step / steps)) / (1 - BETAS[0] ** (step + 1))
        # The powers of BETAS correct the bias of the means towards their start at 0.
        weight.addcdiv_(first, (second / (1 - BETAS[1] ** (step + 1))).sqrt_().add_(EPSILON), value=-rate)
    return weight
