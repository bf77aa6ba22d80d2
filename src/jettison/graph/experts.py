"""Mixtures of experts with one linear per matrix.

transformers holds the experts of a layer as stacked parameters, (experts, rows, columns), in a module of the form that
its decorator ``use_experts_implementation`` describes; Llama 4 has another form, and JetMoE a module for each stack of
matrices. Here every matrix becomes a linear of its own, so that it can be measured, quantized and run like any other.
The gate stays the function of the original module.
"""

import inspect
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from torch import nn

FORM = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "has_post_expert_norm")  # of the decorator


class MetaLinear(nn.Linear):
    """A linear on the meta device. It skips the initialization, which would take most of the time and has no effect."""

    def __init__(self, columns: int, rows: int, bias: bool):
        super().__init__(columns, rows, bias=bias, device="meta")

    def reset_parameters(self) -> None:
        """Do nothing, since parameters on meta have no values."""


class Expert(nn.Module):
    """The linears of an expert: down(gate(x) ⊙ up(x)), or down(act(up(x))) without a gate."""

    def __init__(self, hidden: int, width: int, bias: bool, gated: bool):
        super().__init__()
        if gated:
            self.gate_proj = MetaLinear(hidden, width, bias)
        self.up_proj = MetaLinear(hidden, width, bias)
        self.down_proj = MetaLinear(width, hidden, bias)


class Experts(nn.ModuleList):
    """The experts of a layer.

    number, hidden, width: how many, and the widths of the states and of an expert.
    activate: from the outputs of gate_proj and up_proj, (tokens, width) each, to the inputs of down_proj; from the
        output of up_proj alone for experts without a gate.
    transposed: whether stacked tensors are (experts, in, out) and not (experts, out, in).
    interleaved: whether the rows of gate and up alternate in stacked tensors; otherwise gate comes first.
    """

    def __init__(
        self, number: int, hidden: int, width: int, bias: bool, activate: Callable[..., torch.Tensor],
        gated: bool = True, transposed: bool = False, interleaved: bool = False,
    ):  # fmt: skip
        super().__init__(Expert(hidden, width, bias, gated) for _ in range(number))
        self.activate, self.gated, self.transposed, self.interleaved = activate, gated, transposed, interleaved

    def forward(self, hidden_states: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of the outputs of the chosen experts, (tokens, hidden).

        hidden_states: (tokens, hidden).
        chosen: (tokens, k), numbers of experts; a number that no expert has counts for nothing.
        shares: (tokens, k), the weights of these experts.
        """
        result = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            token, place = torch.where(chosen == number)  # which tokens chose this expert, and as which of their k
            if len(token):
                x = hidden_states[token]  # (tokens of this expert, hidden)
                inner = (expert.gate_proj(x), expert.up_proj(x)) if self.gated else (expert.up_proj(x),)
                y = expert.down_proj(self.activate(*inner))
                result.index_add_(0, token, (y * shares[token, place, None]).to(result.dtype))
        return result

    def part(self, value: torch.Tensor, projection: str) -> torch.Tensor:
        """Return the matrix or bias of one projection from an expert's slice of a stacked tensor.

        value: (out, in) or (in, out) if ``transposed``; or a bias (out,).
        Returns (rows, columns) or (rows,).
        """
        value = value.T if value.dim() == 2 and self.transposed else value
        if projection == "down_proj" or not self.gated:
            return value.contiguous()
        gate, up = (value[0::2], value[1::2]) if self.interleaved else value.chunk(2)
        return (gate if projection == "gate_proj" else up).contiguous()

    def part_shape(self, shape: tuple[int, ...], projection: str) -> tuple[int, ...]:
        """Return the shape of what ``part`` returns for a slice of this shape."""
        shape = tuple(reversed(shape)) if self.transposed else tuple(shape)
        return shape if projection == "down_proj" or not self.gated else (shape[0] // 2, *shape[1:])


class DispatchedExperts(Experts):
    """The experts of a layer of Llama 4, whose block hands every expert all tokens: zeros where it was not chosen."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the experts, (experts · tokens, hidden).

        hidden_states: (experts · tokens, hidden), the tokens times their share of the first expert, then of the next.
        """
        result = torch.zeros_like(hidden_states)
        of_experts = zip(self, hidden_states.chunk(len(self)), result.chunk(len(self)), strict=True)
        for expert, states, outputs in of_experts:  # (tokens, hidden)
            chosen = states.any(-1)  # an expert without biases maps zeros to zeros
            if chosen.any():
                x = states[chosen]
                outputs[chosen] = expert.down_proj(self.activate(expert.gate_proj(x), expert.up_proj(x)))
        return result


class Grouped(nn.Module):
    """One matrix of every expert, for tokens that are sorted by expert."""

    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.expert = MetaLinear(hidden, width, bias=False)


class GroupedExperts(nn.ModuleList):
    """A stack of matrices, one for each expert, as JetMoE multiplies it.

    number, columns, rows: how many matrices, and their shape.
    """

    def __init__(self, number: int, columns: int, rows: int):
        super().__init__(Grouped(columns, rows) for _ in range(number))

    def forward(self, inputs: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Return the outputs, (tokens, rows).

        inputs: (tokens, columns), the tokens of the first expert, then of the next.
        sizes: how many tokens each expert has.
        """
        of_experts = zip(self, inputs.split(list(sizes)), strict=True)
        return torch.cat([one.expert(x) for one, x in of_experts if len(x)])

    def part(self, value: torch.Tensor, projection: str) -> torch.Tensor:
        """Return the matrix of an expert, its slice of the stacked tensor."""
        return value.contiguous()

    def part_shape(self, shape: tuple[int, ...], projection: str) -> tuple[int, ...]:
        """Return the shape of what ``part`` returns for a slice of this shape."""
        return tuple(shape)


def is_stacked(module: nn.Module) -> bool:
    """Return whether a module holds stacked experts in the form of transformers."""
    if not all(hasattr(module, name) for name in FORM) or module.has_post_expert_norm:
        return False
    first = getattr(module, "gate_up_proj" if module.has_gate else "up_proj", None)
    down = getattr(module, "down_proj", None)
    return all(isinstance(value, nn.Parameter) and value.dim() == 3 for value in (first, down))


def is_dispatched(module: nn.Module) -> bool:
    """Return whether a module holds stacked experts in the form of Llama 4: (experts, in, out), gate before up."""
    first, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not all(isinstance(value, nn.Parameter) and value.dim() == 3 for value in (first, down)):
        return False
    number, width, hidden = down.shape
    reads = list(inspect.signature(module.forward).parameters)
    return first.shape == (number, hidden, 2 * width) and reads == ["hidden_states"] and hasattr(module, "act_fn")


def is_grouped(module: nn.Module) -> bool:
    """Return whether a module holds one stack (experts, out, in), and multiplies tokens that are sorted by expert.

    Whether its code computes this is tried on a small stack.
    """
    if list(module._parameters) != ["weight"] or module.weight.dim() != 3 or module._modules or module._buffers:
        return False
    stack, x = torch.arange(24.0).view(2, 4, 3), torch.arange(9.0).view(3, 3)  # of two experts
    expected = torch.cat([x[:1] @ stack[0].T, x[1:] @ stack[1].T])
    try:
        return torch.equal(type(module).forward(SimpleNamespace(weight=stack, num_experts=2), x, [1, 2]), expected)
    except Exception:  # it reads other arguments or attributes
        return False


def separate_experts(model: nn.Module) -> list[str]:
    """Replace every module of stacked experts by ``Experts`` or ``GroupedExperts``, in place. Returns their paths."""
    separated = {}
    for path, module in model.named_modules():
        if is_stacked(module):
            separated[path] = _separated(module)
        elif is_dispatched(module):
            number, width, hidden = module.down_proj.shape
            activate = lambda gate, up, function=module.act_fn: function(gate) * up
            separated[path] = DispatchedExperts(number, hidden, width, bias=False, activate=activate, transposed=True)
        elif is_grouped(module):
            number, rows, columns = module.weight.shape
            separated[path] = GroupedExperts(number, columns, rows)
    for path, experts in separated.items():
        model.set_submodule(path, experts)
    return list(separated)


def stacked_left(model: nn.Module) -> list[str]:
    """Return the names of the stacked matrices that ``separate_experts`` left, since their module has another form.

    They are parameters of shape (several, rows, columns) outside convolutions: no linear, so nothing compresses them.
    """
    return [
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules()
        if not isinstance(module, nn.Conv1d)
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() == 3 and min(parameter.shape) > 1
    ]


def _separated(stacked: nn.Module) -> Experts:
    number, *shape = stacked.down_proj.shape
    width, hidden = shape if stacked.is_transposed else reversed(shape)
    for name in list(stacked._parameters):
        del stacked._parameters[name]  # only its activation is used from here on
    return Experts(
        number, hidden, width, stacked.has_bias, _activation(stacked), stacked.has_gate, stacked.is_transposed,
        not stacked.is_concatenated,
    )  # fmt: skip


def _activation(stacked: nn.Module) -> Callable[..., torch.Tensor]:
    """Return the function between the first matrices of an expert and the last one, as ``stacked`` has it."""
    if not stacked.has_gate:
        return stacked.act_fn
    if stacked.is_concatenated:
        return lambda gate, up: stacked._apply_gate(torch.cat([gate, up], dim=-1))
    return lambda gate, up: stacked._apply_gate(torch.stack([gate, up], dim=-1).flatten(-2))
