"""Descriptions of modules as JSON, from which they are built again without foreign code.

A description is ``{"kind": NAME, option: value, ...}``; ``described_kinds.KINDS`` lists every kind with its class
and its options. A sequence or a residual block holds the descriptions of its parts. Values of parameters are stored
elsewhere, under the names that they have in the module (``graph.described_files``).
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.activations import GELUActivation

from jettison.core.errors import JettisonError, UsageError, guarded, unknown
from jettison.core.validation import read_fields
from jettison.graph.described_kinds import KIND_OF, KINDS

DEEPEST = 24  # levels of modules inside modules; in JSON each takes up to two of ``documents.JSON_DEPTH``
MOST_MODULES = 20_000
MOST_PARAMETERS = 10**12


def describe(module: nn.Module, where: str = "") -> dict[str, Any]:
    """Describe a module, so that ``build`` makes one that computes the same once its parameters are filled in.

    where: the module's path, for errors.
    Raises UsageError that names the path and the class of a module without a description, and what is valid.
    """
    spec = _describe(module, where, 1)
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in build(spec, where or "module").state_dict().items()}
    for name, value in module.state_dict().items():
        if shapes.pop(name, None) != tuple(value.shape):
            raise _undescribed(module, where, f"its tensor {name} belongs to no description")
    if shapes:
        raise _undescribed(module, where, f"it has no tensor {next(iter(shapes))}")
    return spec


def _describe(module: nn.Module, where: str, level: int) -> dict[str, Any]:
    if type(module) is GELUActivation and module.act is nn.functional.gelu:  # transformers' name for the same
        module = nn.GELU()
    if type(module) not in KIND_OF:
        raise _undescribed(module, where)
    if level > DEEPEST:
        raise UsageError(f"{where}: modules lie {level} levels deep; at most {DEEPEST} levels are described")
    name = KIND_OF[type(module)]
    kind = KINDS[name]
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if "forward" in vars(module) or any(hook is not first_only for hook in hooks):
        raise _undescribed(module, where, "hooks or another forward change what it computes")
    for attribute, needed in kind.fixed.items():
        if (value := getattr(module, attribute)) != needed:
            raise _undescribed(module, where, f"{attribute} = {value!r}; {needed!r} is needed")
    values: dict[str, Any] = {}
    for option in kind.options.model_fields:
        value = _option(module, option, where)
        part = f"{where}.{option}" if where else option
        if option == "modules":  # of a sequence; its children are the parts
            inside = f"{where}." if where else ""
            values[option] = {
                child: _describe(inner, f"{inside}{child}", level + 1) for child, inner in module._modules.items()
            }
        elif isinstance(value, nn.Module):
            values[option] = _describe(value, part, level + 1)
        else:
            values[option] = list(value) if isinstance(value, tuple) else value
    say = lambda option, value, needed: f"{where or type(module).__name__}: {option} = {value}: {needed}"
    options = read_fields(kind.options, values, say, "option", f" of {name}")
    return {"kind": name, **options.model_dump()}


def _option(module: nn.Module, option: str, where: str) -> Any:
    """Return the value of a module's option."""
    value = getattr(module, option, None)
    if option == "bias":
        return value is not None
    if option != "padding" or not isinstance(value, str):
        return value
    zeros = [size * (side - 1) for size, side in zip(module.dilation, module.kernel_size, strict=True)]
    if value == "valid" or not any(zeros):
        return [0, 0]
    if any(number % 2 for number in zeros):
        raise _undescribed(module, where, "padding = 'same' of an even kernel is not equal at both sides")
    return [number // 2 for number in zeros]


def _undescribed(module: nn.Module, where: str, reason: str = "") -> UsageError:
    name = type(module).__name__
    return UsageError(
        f"{where or 'the model'}: {name} has no description{f' ({reason})' if reason else ''}; valid: modules of torch "
        f"and of jettison.graph.blocks of the kinds {', '.join(sorted(KINDS))}. Export other models to ONNX"
    )


@dataclass
class _Limits:
    """What a description may still hold."""

    modules: int = MOST_MODULES
    parameters: int = MOST_PARAMETERS


def build(spec: Any, where: str) -> nn.Module:
    """Build the module of a description on the default device, ``torch.device("meta")`` for one without values.

    where: name of the description in errors.
    Raises JettisonError for an unknown kind or option, a wrong value, parts that lie too deep, or too many modules or
    parameters.
    """
    try:
        return _build(spec, where, 1, _Limits())
    except UsageError as error:  # the file is damaged, not the request
        raise JettisonError(str(error)) from error


def _build(spec: Any, where: str, level: int, limits: _Limits) -> nn.Module:
    limits.modules -= 1
    if level > DEEPEST:
        raise UsageError(f"{where} lies more than {DEEPEST} levels deep")
    if limits.modules < 0:
        raise UsageError(f"{where}: the description has more than {MOST_MODULES} modules")
    if not isinstance(spec, dict):
        raise UsageError(f"{where} is {type(spec).__name__}; the description of a module, an object, is needed")
    name = spec.get("kind")
    if not isinstance(name, str) or name not in KINDS:
        raise unknown("kind", name, KINDS, f" of {where}")
    kind, values = KINDS[name], {option: value for option, value in spec.items() if option != "kind"}
    say = lambda option, value, needed: f"{where}: {option} = {value}: {needed}"
    options = read_fields(kind.options, values, say, "option", f" of {where}, which is a {name}")
    values = {option: getattr(options, option) for option in kind.options.model_fields}
    if name == "sequential":
        parts = {part: _build(inner, f"{where}.{part}", level + 1, limits) for part, inner in values["modules"].items()}
        with guarded(f"{where}: a part has a name that modules use themselves"):
            return nn.Sequential(OrderedDict(parts))
    for option, value in values.items():
        if isinstance(value, dict):
            values[option] = _build(value, f"{where}.{option}", level + 1, limits)
        elif isinstance(value, list):
            values[option] = tuple(value)
    with guarded(f"{where}: such a {name} cannot be built"):
        module = kind.module(**values)
    limits.parameters -= sum(value.numel() for value in module._parameters.values() if value is not None)
    if limits.parameters < 0:
        raise UsageError(f"{where}: the description has more than {MOST_PARAMETERS:,} parameters")
    return module


def first_only(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Drop all arguments but the first: a hook of a module that replaces a block which takes more of them."""
    return args[:1], {}
