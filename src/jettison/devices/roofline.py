"""What running a model costs: every operator takes the longer of moving its bytes and doing its arithmetic.

The roofline of Recover-LoRA's planning (arXiv:2606.04238); its exact form is our reconstruction.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from jettison.devices.device import Device


@dataclass(frozen=True)
class Operator:
    """One thing a device does in a step, or several that are alike.

    role: what it is counted under, such as ``gate_up`` or ``attention``. stored: bytes it keeps in memory. moved: bytes
    it reads and writes in a step. flops: of a step, a multiply-add being two. launches: how often the device is told
    to start something.
    """

    name: str
    role: str
    stored: float = 0.0
    moved: float = 0.0
    flops: float = 0.0
    launches: float = 1.0

    def seconds(self, device: Device) -> float:
        """max(bytes / bandwidth, flops / peak), and what launching costs."""
        return max(self.moved / device.bandwidth, self.flops / device.peak()) + self.launches * device.overhead


@dataclass(frozen=True)
class Cost:
    """seconds: of a step, which yields ``tokens``. moved: bytes of a step. memory: bytes in all."""

    seconds: float
    moved: float
    memory: float
    tokens: float = 1.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def step_cost(operators: Iterable[Operator], device: Device, tokens: float = 1.0) -> Cost:
    operators = list(operators)
    return Cost(
        seconds=sum(operator.seconds(device) for operator in operators),
        moved=sum(operator.moved for operator in operators),
        memory=sum(operator.stored for operator in operators),
        tokens=tokens,
    )
