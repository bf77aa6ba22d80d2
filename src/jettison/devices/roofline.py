"""What decoding one token costs: every operator takes the longer of reading its bytes and doing its arithmetic.

The roofline of Recover-LoRA's planning (arXiv:2606.04238); its exact form is our reconstruction.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from jettison.devices.device import Device


@dataclass(frozen=True)
class Operator:
    """A matrix as it lies in memory. stored: its bytes. weights: how many numbers that is. share: of it, the part
    that one token uses (below 1 for experts; 0 for an embedding, of which one row is read)."""

    name: str
    stored: float
    weights: float
    share: float = 1.0


@dataclass(frozen=True)
class Cost:
    """seconds per token, bytes read per token, bytes of memory in all."""

    seconds: float
    read: float
    memory: float

    @property
    def tokens_per_second(self) -> float:
        return 1.0 / self.seconds


def decode_cost(operators: Iterable[Operator], cache: float, device: Device) -> Cost:
    """One token, batch 1. cache: bytes of keys and values at the context at hand, all of them read."""
    operators = list(operators)
    read = cache + sum(operator.stored * operator.share for operator in operators)
    seconds = cache / device.bandwidth + sum(
        max(operator.stored * operator.share / device.bandwidth, 2 * operator.weights * operator.share / device.flops)
        for operator in operators
    )
    return Cost(seconds, read, cache + sum(operator.stored for operator in operators))
