"""The units of a denoiser in order of execution: the block lists of its row in families.yaml, applied to a model."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import Signature, signature
from typing import Any, Literal

import torch
from torch import nn

from jettison.core.errors import UsageError, unknown
from jettison.graph.anatomy import Family
from jettison.graph.families import UnitRow, families
from jettison.policies.step_cache import Tensors, Unit

Level = Literal["block", "part"]


@dataclass(frozen=True)
class Place:
    """A unit in a model, with the way to its inputs and outputs.

    inputs, outputs: names, as in families.yaml. Outputs may be None where a model does not compute them.
    """

    unit: Unit
    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    signature: Signature

    def outputs_of(self, result: Any) -> Tensors:
        """Return the outputs in the order of the inputs; all tensors that a unit returns if it is not aligned."""
        if not self.unit.aligned:
            return tuple(tensors_in(result))
        if not self.outputs:
            return (result,)
        named = dict(zip(self.outputs, result, strict=True))
        return tuple(named[name] for name in self.inputs if named[name] is not None)

    def arguments(self, args: tuple, kwargs: dict[str, Any]) -> Tensors:
        """Return the inputs of a call."""
        bound = self.signature.bind_partial(*args, **kwargs).arguments
        return tuple(bound[name] for name in self.inputs)

    def returned(self, outputs: Tensors, like: Any) -> Any:
        """Return outputs in the form in which the unit returns them. like: what it returned before."""
        if not self.outputs:
            return outputs[0]
        absent = {name for name, value in zip(self.outputs, like, strict=True) if value is None}
        named = dict(zip([name for name in self.inputs if name not in absent], outputs, strict=True))
        return tuple(named.get(name) for name in self.outputs)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return all tensors in nested lists, tuples and dicts, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in tensors_in(item)] if isinstance(value, list | tuple) else []


def map_tensors(function: Callable[..., torch.Tensor], value: Any, *others: Any) -> Any:
    """Apply a function to all tensors in nested lists and tuples, and to their counterparts in ``others``."""
    if isinstance(value, torch.Tensor):
        return function(value, *others)
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(function, *items) for items in zip(value, *others, strict=True))
    return value


def denoiser_of(target: Any) -> nn.Module:
    """Return the denoiser of a pipeline, or the denoiser itself. torch.compile's wrapper is taken off.

    Raises UsageError if there is none, or none of a known class.
    """
    parts = (
        [target] if isinstance(target, nn.Module) else [getattr(target, name, None) for name in ("transformer", "unet")]
    )
    module = next((part for part in parts if isinstance(part, nn.Module)), None)
    if module is None:
        raise UsageError(f"{type(target).__name__} has no denoiser: a pipeline with .unet or .transformer is needed")
    module = getattr(module, "_orig_mod", module)
    row_of(module)
    return module


def row_of(denoiser: nn.Module) -> Family:
    """Return the row of a denoiser in families.yaml. Raises UsageError for a class without one."""
    known = {name: row for name, row in families().items() if row.caching}
    for base in type(denoiser).__mro__:
        if base.__name__ in known:
            return known[base.__name__]
    raise unknown("denoiser", type(denoiser).__name__, known)


def places(denoiser: nn.Module, level: Level = "block") -> list[Place]:
    """Return the units of a denoiser in order of execution.

    level: blocks, or the attentions and MLPs inside them.
    Raises UsageError for an unknown class, and for one whose blocks have no such parts.
    """
    family, result = row_of(denoiser), []
    for path, row in zip(family.blocks.split(), family.caching.units, strict=True):
        path = path.removesuffix(".*")
        module = denoiser.get_submodule(path) if hasattr(denoiser, path) else None
        if module is None:  # a UNet may lack its middle
            continue
        blocks = {path: module}
        if isinstance(module, nn.ModuleList):
            blocks = {f"{path}.{number}": block for number, block in enumerate(module)}
        for name, block in blocks.items():
            result += [_block(name, block, row)] if level == "block" else _parts(name, block, row)
    if not result:
        raise UsageError(f"{type(denoiser).__name__}: its blocks have no parts that are cached; use whole blocks")
    return result


def _block(name: str, block: nn.Module, row: UnitRow) -> Place:
    outputs = tuple(row.outputs) if len(row.outputs) > 1 else ()
    return Place(Unit(name, row.kind, bool(row.outputs)), block, tuple(row.inputs), outputs, signature(block.forward))


def _parts(name: str, block: nn.Module, row: UnitRow) -> list[Place]:
    """Return the parts that a block has. Their input is their first argument."""
    result = []
    for part, kind in row.parts.items():
        if isinstance(module := getattr(block, part, None), nn.Module):
            form = signature(module.forward)
            result.append(Place(Unit(f"{name}.{part}", kind, False), module, (next(iter(form.parameters)),), (), form))
    return result
