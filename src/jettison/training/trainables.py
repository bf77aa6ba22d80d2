"""What recovery may train: LoRA adapters, the scales of the grids themselves, and weights that are not packed."""

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
    """Put a LoRA adapter B A of ``rank`` beside each linear; returns the parameters by name.

    init: ``default``, A uniform as PEFT's, B zero. ``olora``, B the first columns of Q of the original weight's QR
    decomposition (arXiv:2406.01775) and A zero: OLoRA also subtracts the start from the base, which a quantized base
    cannot take, so we leave out its R; a reconstruction. ``svd``, the best correction of the quantization error for
    the calibration inputs: ``best_correction`` of W − W'.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters: dict[str, nn.Parameter] = {}
    for linear in linears:
        base, scaling = student.get_submodule(linear.name), alpha / rank
        bound = 1 / math.sqrt(linear.columns)  # kaiming_uniform with a = √5
        a = (torch.rand(rank, linear.columns, generator=generator) * 2 - 1) * bound
        b = torch.zeros(linear.rows, rank)
        if init != "default":
            original = dense_weight(teacher.get_submodule(linear.name), linear)
        if init == "olora":
            q = torch.linalg.qr(original)[0][:, :rank]
            a, b = torch.zeros_like(a), nn.functional.pad(q, (0, rank - q.shape[1])).contiguous()
        elif init == "svd":
            a, b = best_correction(original - dense_weight(base, linear), stats[linear.inputs].hessian, rank)
            a, b = a / math.sqrt(scaling), b / math.sqrt(scaling)
        adapted = Adapted(base, a, b, scaling)
        student.set_submodule(linear.name, adapted)
        for name, parameter in (("lora_a", adapted.lora_a), ("lora_b", adapted.lora_b)):
            parameters[f"{linear.name}.{name}"] = parameter.requires_grad_()
    return parameters


class _Scaled:
    """A packed matrix whose scales are trained: scale · exp(gain). gain: (out, groups), 0 at the start."""

    def __init__(self, packed: PackedLinear | PackedConv2d):
        parts = (packed.weight_packed, packed.weight_scale, packed.weight_zero_point, packed.bias)
        super().__init__(packed.grid, packed if isinstance(packed, PackedConv2d) else packed.in_features, *parts)
        self.gain = nn.Parameter(torch.zeros(packed.weight_scale.shape, device=packed.weight_scale.device))

    @property
    def scale(self) -> torch.Tensor:
        """What the scales would be stored as, with the gradient passed through the rounding."""
        exact = self.weight_scale.float() * self.gain.exp()
        return exact + (exact.to(self.grid.scale_dtype).float() - exact).detach()


class ScaledLinear(_Scaled, PackedLinear):
    pass


class ScaledConv2d(_Scaled, PackedConv2d):
    pass


def train_scales(student: nn.Module, linears: Iterable[Linear]) -> dict[str, nn.Parameter]:
    """Let every group's scale grow or shrink: scale · exp(gain), gain starting at 0. Returns the gains by name."""
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
    """The weights of linears that are not packed, by name. masked: what is zero stays zero."""
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
