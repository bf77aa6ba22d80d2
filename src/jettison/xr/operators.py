"""The operators of one inference: their multiply-adds and bytes, and their cost on a device.

Latency follows the roofline of ``jettison.devices``. Energy is a model with stated figures, not a measurement: the
energy of one operation in a 45 nm process (M. Horowitz, ISSCC 2014), with every byte that an operator reads or writes
counted as a DRAM access. The figures serve to compare variants of a model; they say nothing about a particular device.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from jettison.devices.device import Device
from jettison.xr.costs import Cost, Costs, ends, layer_table

MAC_PJ = {"fp32": 4.6, "fp16": 1.5, "int8": 0.3}  # of one multiply and add; int8 accumulates in int32
BYTE_PJ = 160.0  # 1.3 nJ for 8 bytes
HALF = (torch.float16, torch.bfloat16)
BYTES_OF_LAYERS = 2  # per number in the official layer tables; the tables do not state a type, so this is assumed


@dataclass(frozen=True)
class Operator:
    """One operator of an inference.

    macs: multiply-adds. moved: bytes read and written. kind: type of the arithmetic, fp32, fp16 or int8 as in
    devices.yaml.
    """

    name: str
    macs: float
    moved: float
    kind: str = "fp32"

    def seconds(self, device: Device) -> float:
        """Return the latency on a device: max(bytes / bandwidth, flops / peak) plus the launch overhead."""
        return max(self.moved / device.bandwidth, 2 * self.macs / device.peak(self.kind)) + device.overhead

    @property
    def energy_mj(self) -> float:
        """Energy in mJ by the model of this file."""
        return 1e-9 * (self.macs * MAC_PJ[self.kind] + self.moved * BYTE_PJ)


class _Count(TorchDispatchMode):
    """Collects every operator that computes a new tensor. Views are left out, because they move no bytes."""

    def __init__(self):
        super().__init__()
        self.operators: list[Operator] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        storages = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        if results and all(
            tensor.untyped_storage().data_ptr() in storages for tensor in results
        ):  # a view, or in place
            return out
        ours, packet = function.namespace == "jettison", function._overloadpacket
        macs = flop_registry[packet](*args, **kwargs, out_val=out) / 2 if packet in flop_registry else 0.0
        if ours and results and inputs:  # a product with packed weights, activations in int8
            macs = results[0].numel() * inputs[0].shape[-1]
        floats = [tensor.dtype for tensor in inputs if tensor.is_floating_point()]
        kind = "int8" if ours else "fp16" if floats and floats[0] in HALF else "fp32"
        moved = sum(tensor.nbytes for tensor in [*inputs, *results])
        self.operators.append(Operator(str(packet), macs, moved, kind))
        return out


def count_operators(run: Callable[[], object]) -> list[Operator]:
    """Call ``run`` once, without gradients, and return the operators that it executed."""
    with torch.no_grad(), _Count() as counting:
        run()
    return counting.operators


def table_operators(model: str) -> list[Operator]:
    """Return the layers of a model in the official tables as operators: dense convolutions in fp16.

    Raises UsageError for a model that has no table.
    """
    # weights + input + output
    bytes_of = lambda a: BYTES_OF_LAYERS * (a.K * a.C * a.R * a.S + a.C * a.Y * a.X + a.K * a.outputs)
    return [Operator(f"conv{n}", layer.macs, bytes_of(layer), "fp16") for n, layer in enumerate(layer_table(model))]


def operators_cost(operators: Sequence[Operator], device: Device) -> Cost:
    """Return the cost of one inference by the roofline.

    The operators run one after another, and the inference can be preempted after every operator.
    """
    seconds = [operator.seconds(device) for operator in operators]
    return Cost(1e3 * sum(seconds), energy_of(operators), ends(seconds))


def energy_of(operators: Iterable[Operator]) -> float:
    """Return the energy of all operators in mJ."""
    return sum(operator.energy_mj for operator in operators)


def roofline_costs(devices: Sequence[Device], operators: dict[str, Sequence[Operator]]) -> Costs:
    """Return the costs of models on devices by the roofline; every device is one unit.

    operators: by model, from ``count_operators`` (workload ``native``) or ``table_operators`` (``xrbench-v0.1``).
    """
    rows = tuple(
        {model: operators_cost(listed, device) for model, listed in operators.items()} for device in devices
    )  # fmt: skip
    return Costs(tuple(device.name for device in devices), rows)
