"""Fold batch normalizations into the convolutions before them, in a copy of a model.

- The model is run once. A normalization is folded if its input is the output of a convolution, that very tensor, and no
  other code uses this tensor.
- Cases that are not clear stay as they are: modules that run several times, subclasses, modules with hooks, batch
  normalizations without running statistics.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from jettison.graph.modules import PackedConv2d
from jettison.graph.skeleton import run_model

# Names of functions that read a tensor's description and not its values.
DESCRIBE = {"dim", "size", "stride", "numel", "is_floating_point", "is_contiguous", "__len__"}
# Properties that describe a tensor; torch calls the getter of each "__get__".
DESCRIPTIONS = tuple(
    getattr(torch.Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_meta", "layout")
)


def logits_of(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Return the logits of an image classifier.

    model: of transformers, or any module that maps pixels to a tensor or to an object with ``logits``.
    pixels: (batch, channels, height, width).
    """
    output = run_model(model, pixels) if hasattr(model, "main_input_name") else model(pixels)
    return getattr(output, "logits", output)


@torch.no_grad()
def fold_batch_norms(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """Return a copy of a model, in eval mode, without the batch normalizations that directly follow a convolution.

    The copy has the same outputs, and ``nn.Identity`` in the place of every folded normalization. Packed convolutions
    stay packed: their scales become float32.

    example: inputs (batch, ...), such as pixels, of a size that the model takes.
    """
    model = deepcopy(model).eval()
    for conv, norm in _pairs(model, example):
        _fold(conv, norm)
        for parent in model.modules():
            for name, child in parent._modules.items():
                if child is norm:
                    parent._modules[name] = nn.Identity()
    return model


def _fold(conv: nn.Conv1d | nn.Conv2d | PackedConv2d, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    """Scale a convolution's output channels and shift its bias, in place. The sums are computed in float64."""
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight.double()  # (channels,)
    bias = torch.zeros_like(factor) if conv.bias is None else conv.bias.double()
    bias = (bias - norm.running_mean.double()) * factor
    bias = bias if norm.bias is None else bias + norm.bias.double()
    if isinstance(conv, PackedConv2d):
        conv.weight_scale = (conv.weight_scale.double() * factor.unsqueeze(1)).float()  # (channels, groups)
        if conv.bias is None:
            del conv.bias  # a plain attribute, in the way of the buffer
        conv.register_buffer("bias", bias.to(norm.running_mean.dtype))
        return
    dtype, trained = conv.weight.dtype, conv.weight.requires_grad
    weight = conv.weight.double() * factor.view(-1, *(1 for _ in conv.weight.shape[1:]))
    conv.weight = nn.Parameter(weight.to(dtype), trained)
    conv.bias = nn.Parameter(bias.to(dtype), trained)


def _pairs(model: nn.Module, example: torch.Tensor) -> list[tuple[nn.Module, nn.Module]]:
    """Return the convolutions and normalizations that can be folded."""
    watch = _Watch()
    with watch.hooks(model), watch:
        output = logits_of(model, example)
        watch.note(output)  # the caller uses it
    runs = Counter(module for module, _ in watch.made.values())
    runs.update(norm for norm, _ in watch.normalized)
    pairs = []
    for norm, inputs in watch.normalized:
        conv, result = watch.made.get(id(inputs[0]), (None, None)) if len(inputs) == 1 else (None, None)
        if (
            conv is not None
            and runs[conv] == runs[norm] == 1
            and norm.running_mean is not None
            and conv.out_channels == norm.num_features
            and watch.uses[id(result)] == {norm}
        ):
            pairs.append((conv, norm))
    return pairs


class _Watch(TorchFunctionMode):
    """Watches a run of a model: what convolutions return, and which code uses these tensors.

    made: id of a tensor -> the convolution that returned it, and the tensor itself, so that no other gets its id.
    normalized: (module, positional arguments) of every call of a batch normalization.
    uses: id of a tensor of ``made`` -> the normalizations that call a function of torch on it; None for all other code.
    """

    def __init__(self):
        super().__init__()
        self.made: dict[int, tuple[nn.Module, torch.Tensor]] = {}
        self.normalized: list[tuple[nn.Module, tuple[Any, ...]]] = []
        self.uses: dict[int, set[nn.Module | None]] = {}
        self._running: nn.Module | None = None

    @contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        """Attach hooks to the plain convolutions and normalizations of a model during a block of code.

        Subclasses and modules with hooks of others are left out: they may compute something else.
        """
        handles = []
        for module in model.modules():
            if len(module._forward_hooks) + len(module._forward_pre_hooks) == 0:
                if type(module) in (nn.Conv1d, nn.Conv2d, PackedConv2d):
                    handles.append(module.register_forward_hook(self._after_conv))
                elif type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
                    handles.append(module.register_forward_pre_hook(self._before_norm))
                    handles.append(module.register_forward_hook(self._after_norm))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _after_conv(self, conv: nn.Module, inputs: tuple[Any, ...], result: torch.Tensor) -> None:
        self.made[id(result)], self.uses[id(result)] = (conv, result), set()

    def _before_norm(self, norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.normalized.append((norm, inputs))
        self._running = norm

    def _after_norm(self, norm: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
        self._running = None

    def note(self, values: Any) -> None:
        """Note that the running code uses the tensors inside ``values``."""
        if isinstance(values, torch.Tensor):
            if id(values) in self.uses:
                self.uses[id(values)].add(self._running)
        elif isinstance(values, list | tuple):
            for value in values:
                self.note(value)
        elif isinstance(values, dict):
            self.note(list(values.values()))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") not in DESCRIBE and function not in DESCRIPTIONS:
            self.note((args, kwargs or {}))
        return function(*args, **kwargs or {})
