"""The parameters that recovery can train: LoRA adapters, the scales of packed weights, and weights not packed."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from jettison.graph.anatomy import Linear
from jettison.graph.modules import Adapted, PackedConv2d, PackedLinear, Quantized, dense_weight
from jettison.numerics.low_rank import best_correction
from jettison.statistics.stats import Stats


def add_lora(
    student: nn.Module, teacher: nn.Module, linears: Iterable[Linear], rank: int, alpha: float, init: str, seed: int,
    stats: Mapping[str, Stats],
) -> dict[str, nn.Parameter]:  # fmt: skip
    """Add a LoRA adapter B A of ``rank`` to every linear. Returns the parameters by name.

    alpha: the output of the adapter is multiplied by alpha / rank.
    init: how A and B start:
        ``default``: A uniform as in PEFT, B zero.
        ``olora``: B is the first columns of Q in the QR decomposition of the original weight, A is zero
            (arXiv:2406.01775). OLoRA also subtracts the start from the base. This is impossible for a quantized base,
            so we leave R out; our reconstruction.
        ``svd``: the best correction of the quantization error W − W' for the calibration inputs, see
            ``best_correction``.
    stats: the key ``inputs`` of a linear -> calibration statistics, for ``svd``.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters: dict[str, nn.Parameter] = {}
    for linear in linears:
        base, scaling = student.get_submodule(linear.name), alpha / rank
        bound = 1 / math.sqrt(linear.columns)  # the bound of kaiming_uniform with a = √5
        a = (torch.rand(rank, linear.columns, generator=generator) * 2 - 1) * bound  # (rank, in)
        b = torch.zeros(linear.rows, rank)  # (out, rank)
        if init != "default":
            original = dense_weight(teacher.get_submodule(linear.name), linear)
        if init == "olora":
            q = torch.linalg.qr(original)[0][:, :rank]
            a, b = torch.zeros_like(a), nn.functional.pad(q, (0, rank - q.shape[1])).contiguous()
        elif init == "svd":
            a, b = best_correction(original - dense_weight(base, linear), stats[linear.inputs].hessian, rank)
            a, b = a / math.sqrt(scaling), b / math.sqrt(scaling)  # the adapter multiplies B A by scaling
        adapted = Adapted(base, a, b, scaling)
        student.set_submodule(linear.name, adapted)
        for name, parameter in (("lora_a", adapted.lora_a), ("lora_b", adapted.lora_b)):
            parameters[f"{linear.name}.{name}"] = parameter.requires_grad_()
    return parameters


class _Scaled:
    """A packed matrix whose scales are trained, as scale · exp(gain). gain: (out, groups), 0 at the start."""

    def __init__(self, packed: PackedLinear | PackedConv2d):
        parts = (packed.weight_packed, packed.weight_scale, packed.weight_zero_point, packed.bias)
        super().__init__(packed.grid, packed if isinstance(packed, PackedConv2d) else packed.in_features, *parts)
        self.gain = nn.Parameter(torch.zeros(packed.weight_scale.shape, device=packed.weight_scale.device))

    @property
    def scale(self) -> torch.Tensor:
        """The scales rounded to the type in which they are stored. The gradient passes through the rounding."""
        exact = self.weight_scale.float() * self.gain.exp()
        return exact + (exact.to(self.grid.scale_dtype).float() - exact).detach()


class ScaledLinear(_Scaled, PackedLinear):
    """A packed linear whose scales are trained."""

    pass


class ScaledConv2d(_Scaled, PackedConv2d):
    """A packed convolution whose scales are trained."""

    pass


def train_scales(student: nn.Module, linears: Iterable[Linear]) -> dict[str, nn.Parameter]:
    """Make the scales of packed linears trainable, as scale · exp(gain) with gain 0 at the start.

    Linears that are not packed are left out. Returns the gains by name.
    """
    parameters = {}
    for linear in linears:
        module = student.get_submodule(linear.name)
        owner = module.base if isinstance(module, Adapted) else module
        if isinstance(owner, PackedLinear | PackedConv2d):
            scaled = (ScaledConv2d if isinstance(owner, PackedConv2d) else ScaledLinear)(owner)
            student.set_submodule(f"{linear.name}.base" if isinstance(module, Adapted) else linear.name, scaled)
            parameters[f"{linear.name}.gain"] = scaled.gain
    return parameters


def train_weights(student: nn.Module, linears: Iterable[Linear], masked: bool) -> dict[str, nn.Parameter]:
    """Make the weights of linears that are not packed trainable. Returns them by name. masked: zeros stay zero."""
    parameters = {}
    for linear in linears:
        module = student.get_submodule(linear.name)
        module = module.base if isinstance(module, Adapted) else module
        if not isinstance(module, Quantized):
            weight = module.weight.requires_grad_()
            if masked:
                kept = weight.detach() != 0
                weight.register_hook(lambda gradient, kept=kept: gradient * kept.to(gradient.device))
            parameters[f"{linear.name}.weight"] = weight
    return parameters
