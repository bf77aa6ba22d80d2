"""Compute at every k-th step, reuse in between: FORA and DeepCache."""

from collections.abc import Collection
from typing import Literal

from jettison.core.errors import UsageError
from jettison.policies.step_cache import COMPUTE, Decision, Reuse, StepCachePolicy, Tensors, Trajectory, Unit


class Interval(StepCachePolicy):
    """Computes all units at every ``every``-th step. Between these steps it reuses outputs.

    every: 1 computes everything.
    level: ``part`` reuses the outputs of attentions and MLPs, whose adaLN gates stay fresh: FORA (arXiv:2407.01425).
        ``block`` reuses those of whole blocks; a chain of blocks is then skipped as a whole.
    shallow: DeepCache (arXiv:2312.00858): the number of outermost blocks of a UNet, on each side, that are always
        computed. The published code divides a UNet more finely, by layers.
    """

    def __init__(self, every: int, level: Literal["block", "part"] = "block", shallow: int = 0):
        if every < 1 or shallow < 0:
            raise UsageError(f"interval: every = {every}, shallow = {shallow}: at least 1 and 0 are needed")
        self.every, self.level, self.shallow = every, level, shallow
        self.always: frozenset[int] = frozenset()

    def reset(self, trajectory: Trajectory) -> None:
        self.always = outermost(trajectory.units, self.shallow)

    def decide(self, step: int, unit: int, inputs: Tensors | None) -> Decision:
        return COMPUTE if step % self.every == 0 or unit in self.always else Reuse()


def outermost(units: Collection[Unit], count: int) -> frozenset[int]:
    """Return the numbers of the first ``count`` blocks on the way down and the last ``count`` on the way up.

    Raises UsageError if the denoiser is no UNet.
    """
    if not count:
        return frozenset()
    down = [number for number, unit in enumerate(units) if unit.kind == "down"]
    up = [number for number, unit in enumerate(units) if unit.kind == "up"]
    if not down:
        raise UsageError(f"shallow = {count}: only the blocks of a UNet are shallow or deep")
    return frozenset(down[:count] + up[-count:])
