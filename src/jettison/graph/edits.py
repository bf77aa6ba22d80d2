"""What a method that sees a whole block may ask for: edits of parameters, which the pipeline applies and writes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from jettison.encodings.quantized import QuantizedWeight
from jettison.graph.anatomy import Family, Linear


@dataclass(frozen=True)
class Scale:
    """Multiply a parameter along one axis. name: of the parameter, as the model has it. factor: (size of the axis,)."""

    name: str
    axis: int
    factor: torch.Tensor

    def of(self, value: torch.Tensor) -> torch.Tensor:
        shape = [1] * value.dim()
        shape[self.axis] = -1
        return value * self.factor.view(shape).to(value.dtype)


@dataclass(frozen=True)
class Put:
    """Store a matrix so. name: of the linear."""

    name: str
    weight: QuantizedWeight


Edit = Scale | Put


@dataclass(frozen=True)
class Fold:
    """A place where the inputs of some linears can be divided by a factor for free: a norm's weight, or the rows of the
    linear in front, take it. names: of the parameters that are divided. repeats: how often a row of the source stands
    among the inputs (heads that share a value)."""

    names: tuple[str, ...]
    consumers: tuple[Linear, ...]
    repeats: int = 1
    width: int = 0  # rows that are repeated together: the width of a head
    offset: float = 0.0  # a norm multiplies by weight + offset


@dataclass(frozen=True)
class BlockView:
    """The linears of a block, or of what lies outside the blocks, that a step claims. weight: reads one as (out, in)
    float32; parameter: reads any parameter."""

    linears: Sequence[Linear]
    folds: Sequence[Fold]
    weight: Callable[[Linear], torch.Tensor]
    parameter: Callable[[str], torch.Tensor]


def find_folds(
    family: Family, path: str, linears: Sequence[Linear], claimed: Sequence[Linear], has: Callable[[str], bool],
    heads: tuple[int, int] | None,
) -> Iterator[Fold]:  # fmt: skip
    """The folds of a block by its family's row (``folds``: norm's path or role -> roles that read it).

    path: of the block. linears: all of the block; only folds all of whose consumers are ``claimed`` are given.
    has: whether the checkpoint has a parameter. heads: of queries, and of keys and values.
    """
    if not path:
        return
    by_role: Mapping[str, list[Linear]] = {}
    for linear in linears:
        for role in linear.roles if "expert" not in linear.roles else ():
            by_role.setdefault(role, []).append(linear)
    for source, roles in family.folds.items():
        consumers = tuple(dict.fromkeys(each for role in roles for each in by_role.get(role, ())))
        if not consumers or not set(consumers) <= set(claimed):
            continue
        if source not in by_role:
            stem = f"{path}.{source}"
            names = tuple(name for name in (f"{stem}.weight", f"{stem}.bias") if has(name))
            yield Fold(names, consumers, offset=family.norm_offset)
            continue
        (front, *others), (consumer, *more) = by_role[source], consumers
        if others or more or len(front.roles) > 1 or len(consumer.roles) > 1 or front not in claimed:
            continue  # of fused matrices the rows are not the consumer's inputs; another step may round the front
        repeats, width = 1, 0
        if front.rows != consumer.columns:
            if heads is None or front.rows * heads[0] != consumer.columns * heads[1]:
                continue
            repeats, width = heads[0] // heads[1], front.rows // heads[1]
        names = tuple(name for name in (f"{front.name}.weight", f"{front.name}.bias") if has(name))
        yield Fold(names, consumers, repeats, width)
