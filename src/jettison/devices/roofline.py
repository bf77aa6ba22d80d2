"""The cost of running a model by the roofline: an operator takes the longer of moving its bytes and its arithmetic.

Source: the roofline of Recover-LoRA's planning (arXiv:2606.04238); its exact form is our reconstruction.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from jettison.devices.device import Device


@dataclass(frozen=True)
class Operator:
    """An operator of a step, or several operators that are alike.

    role: the heading under which it is counted, such as ``gate_up`` or ``attention``.
    stored: bytes that it keeps in memory.
    moved: bytes that it reads and writes in a step.
    flops: operations in a step; a multiply-add counts 2.
    launches: how many launches it takes in a step.
    """

    name: str
    role: str
    stored: float = 0.0
    moved: float = 0.0
    flops: float = 0.0
    launches: float = 1.0

    def seconds(self, device: Device) -> float:
        """Return the time on a device: max(bytes / bandwidth, flops / peak) plus the overhead of its launches."""
        return max(self.moved / device.bandwidth, self.flops / device.peak()) + self.launches * device.overhead


@dataclass(frozen=True)
class Cost:
    """The cost of a step.

    seconds: duration of the step. moved: bytes read and written. memory: bytes stored in all. tokens: tokens that the
    step yields.
    """

    seconds: float
    moved: float
    memory: float
    tokens: float = 1.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def step_cost(operators: Iterable[Operator], device: Device, tokens: float = 1.0) -> Cost:
    """Return the cost of a step that runs all operators one after another. tokens: tokens that the step yields."""
    operators = list(operators)
    return Cost(
        seconds=sum(operator.seconds(device) for operator in operators),
        moved=sum(operator.moved for operator in operators),
        memory=sum(operator.stored for operator in operators),
        tokens=tokens,
    )
