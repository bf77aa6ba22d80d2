"""FastCache's linear stand-in for a block whose input changes little, with weights that are fitted.

The released code replaces such a block by a linear layer that nobody trained: it is kept as ``weights="released"``,
for comparison. Here the layer is the ridge regression of the residual on the input, over calibration runs.
"""

from typing import Literal

import torch

from jettison.core.errors import UsageError
from jettison.policies.step_cache import (
    COMPUTE,
    Approximate,
    Decision,
    StepCachePolicy,
    Tensors,
    Trajectory,
    relative_change,
)


class LinearStandIn(StepCachePolicy):
    """Replaces a unit by an affine function of its input while the input is near that of the last computation.

    limit: on the relative change of the input; 0 computes everything. The paper's test of significance amounts to a
        fixed limit in the released code, 0.05.
    ridge: penalty, as a share of the mean square of the inputs.
    weights: ``ridge``: run the pipeline a few times, in which everything is computed, then call ``fit``. ``released``:
        random weights, as in the released code.
    Source: arXiv:2505.20353; fitting is our correction.
    """

    looks = True

    def __init__(
        self, limit: float, ridge: float = 1e-3, weights: Literal["ridge", "released"] = "ridge", seed: int = 0
    ):
        if not limit >= 0 or not ridge > 0:
            raise UsageError(
                f"linear stand-in: limit = {limit}, ridge = {ridge}: at least 0 and more than 0 are needed"
            )
        self.limit, self.ridge, self.weights, self.seed = limit, ridge, weights, seed
        self.sums: dict[tuple[int, int], list[torch.Tensor]] = {}
        self.affine: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self.last: dict[int, torch.Tensor] = {}

    @property
    def ready(self) -> bool:
        """Whether units may be approximated: after ``fit``, or with the released weights."""
        return bool(self.affine) or self.weights == "released"

    def reset(self, trajectory: Trajectory) -> None:
        if crooked := [unit.name for unit in trajectory.units if not unit.aligned]:
            raise UsageError(f"linear stand-in: the outputs of {crooked[0]} do not have the shapes of its inputs")
        self.last = {}

    def decide(self, step: int, unit: int, inputs: Tensors | None) -> Decision:
        near = unit in self.last and relative_change(inputs[0], self.last[unit]) < self.limit
        return Approximate(lambda inputs: self._replace(unit, inputs)) if near and self.ready else COMPUTE

    def observe(self, step: int, unit: int, inputs: Tensors, outputs: Tensors) -> None:
        self.last[unit] = inputs[0]
        if not self.ready:
            for stream, (x, y) in enumerate(zip(inputs, outputs, strict=True)):
                self._add((unit, stream), x, y)

    def _add(self, key: tuple[int, int], x: torch.Tensor, y: torch.Tensor) -> None:
        """Add the tokens of one computation to the sums of a regression."""
        x, y = (value.detach().flatten(0, -2).double() for value in (x, y))  # (tokens, width)
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        new = [x.T @ x, x.T @ (y - x[:, :-1])]
        self.sums[key] = (
            [old + part for old, part in zip(self.sums[key], new, strict=True)] if key in self.sums else new
        )

    def fit(self) -> None:
        """Fit the weights to all that was computed since the policy was made. Raises UsageError if that is nothing."""
        if not self.sums:
            raise UsageError("linear stand-in: nothing was computed yet: attach it, run the pipeline, then call fit")
        for key, (gram, cross) in self.sums.items():
            width = len(gram) - 1
            penalty = (
                self.ridge * gram.diagonal()[:-1].mean() * torch.ones(width + 1, dtype=gram.dtype, device=gram.device)
            )
            penalty[-1] = 1e-9 * gram[-1, -1]  # the constant is hardly penalized
            solved = torch.linalg.solve(gram + penalty.diag(), cross)  # (width + 1, width)
            self.affine[key] = (solved[:-1].float(), solved[-1].float())
        self.sums = {}

    def _replace(self, unit: int, inputs: Tensors) -> Tensors:
        if self.weights == "released":
            return tuple(self._released((unit, stream), x) for stream, x in enumerate(inputs))
        outputs = []
        for stream, x in enumerate(inputs):
            slope, constant = self.affine[unit, stream]
            outputs.append(x + (x.float() @ slope + constant).to(x.dtype))
        return tuple(outputs)

    def _released(self, key: tuple[int, int], x: torch.Tensor) -> torch.Tensor:
        """Apply the linear layer of the released code: PyTorch's initial weights."""
        if key not in self.affine:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed * 1_000_003 + 1009 * key[0] + key[1])
                layer = torch.nn.Linear(x.shape[-1], x.shape[-1])
            self.affine[key] = (layer.weight.detach().T.to(x.device), layer.bias.detach().to(x.device))
        slope, constant = self.affine[key]
        return (x.float() @ slope + constant).to(x.dtype)
