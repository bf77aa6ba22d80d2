"""What a module does in one inference, operator by operator: multiply-adds, bytes, and what they cost on a device.

The roofline is that of ``jettison.devices``. Energy is a stated model, not a measurement: figures of one operation in a
45 nm process (M. Horowitz, ISSCC 2014), every byte that an operator reads or writes counted as one of DRAM. It compares
variants of a model; it is no statement about a device.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from jettison.devices.device import Device
from jettison.xr.costs import Cost, Costs, ends, layer_table

MAC_PJ = {"fp32": 4.6, "fp16": 1.5, "int8": 0.3}  # multiply and add; int8 into int32
BYTE_PJ = 160.0  # 1.3 nJ of 8 bytes
HALF = (torch.float16, torch.bfloat16)
BYTES_OF_LAYERS = 2  # of a number in the official layer tables, which do not say


@dataclass(frozen=True)
class Operator:
    """macs: multiply-adds. moved: bytes read and written. kind: of arithmetic, as in devices.yaml."""

    name: str
    macs: float
    moved: float
    kind: str = "fp32"

    def seconds(self, device: Device) -> float:
        """max(bytes / bandwidth, flops / peak), and what launching costs."""
        return max(self.moved / device.bandwidth, 2 * self.macs / device.peak(self.kind)) + device.overhead

    @property
    def energy_mj(self) -> float:
        return 1e-9 * (self.macs * MAC_PJ[self.kind] + self.moved * BYTE_PJ)


class _Count(TorchDispatchMode):
    """Every operator that makes something new; views move nothing."""

    def __init__(self):
        super().__init__()
        self.found: list[Operator] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        held = {tensor.untyped_storage().data_ptr() for tensor in given}
        if made and all(tensor.untyped_storage().data_ptr() in held for tensor in made):
            return out
        ours, packet = function.namespace == "jettison", function._overloadpacket
        macs = flop_registry[packet](*args, **kwargs, out_val=out) / 2 if packet in flop_registry else 0.0
        if ours and made and given:  # a product with packed weights, activations in int8
            macs = made[0].numel() * given[0].shape[-1]
        floats = [tensor.dtype for tensor in given if tensor.is_floating_point()]
        kind = "int8" if ours else "fp16" if floats and floats[0] in HALF else "fp32"
        moved = sum(tensor.nbytes for tensor in [*given, *made])
        self.found.append(Operator(str(packet), macs, moved, kind))
        return out


def count_operators(run: Callable[[], object]) -> list[Operator]:
    """Of one call of ``run``, which is made."""
    with torch.no_grad(), _Count() as counting:
        run()
    return counting.found


def table_operators(model: str) -> list[Operator]:
    """The official layers of a model, each one a dense convolution, numbers of 16 bits."""
    bytes_of = lambda a: BYTES_OF_LAYERS * (a.K * a.C * a.R * a.S + a.C * a.Y * a.X + a.K * a.outputs)
    return [Operator(f"conv{n}", layer.macs, bytes_of(layer), "fp16") for n, layer in enumerate(layer_table(model))]


def operators_cost(operators: Sequence[Operator], device: Device) -> Cost:
    """One inference by the roofline, an operator after the other; it can be preempted between any two."""
    seconds = [operator.seconds(device) for operator in operators]
    return Cost(1e3 * sum(seconds), energy_of(operators), ends(seconds))


def energy_of(operators: Iterable[Operator]) -> float:
    """mJ."""
    return sum(operator.energy_mj for operator in operators)


def roofline_costs(devices: Sequence[Device], operators: dict[str, Sequence[Operator]]) -> Costs:
    """Each device is a unit. operators: by model, from ``count_operators`` (``native``) or ``table_operators``
    (``xrbench-v0.1``)."""
    rows = tuple(
        {model: operators_cost(found, device) for model, found in operators.items()} for device in devices
    )  # fmt: skip
    return Costs(tuple(device.name for device in devices), rows)
