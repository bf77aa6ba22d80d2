"""Edits of parameters that a method returns for a whole block; the pipeline applies and writes them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from jettison.encodings.quantized import QuantizedWeight
from jettison.graph.anatomy import Family, Linear


@dataclass(frozen=True)
class Scale:
    """Multiply a parameter along one axis.

    name: of the parameter, as the model has it.
    factor: (size of the axis,).
    """

    name: str
    axis: int
    factor: torch.Tensor

    def of(self, value: torch.Tensor) -> torch.Tensor:
        """Return the parameter ``value`` after the edit, in its own type."""
        shape = [1] * value.dim()
        shape[self.axis] = -1
        return value * self.factor.view(shape).to(value.dtype)


@dataclass(frozen=True)
class Put:
    """Replace the weight of the linear ``name`` by a quantized one."""

    name: str
    weight: QuantizedWeight


Edit = Scale | Put


@dataclass(frozen=True)
class Fold:
    """A place where the inputs of some linears can be divided by a factor without a cost when the model runs.

    The source, a norm's weight or the rows of the linear before the consumers, is divided by the factor.

    names: of the parameters of the source.
    consumers: the linears that read the source, all of them.
    repeats: how many inputs a row of the source becomes (query heads that share a value head).
    """

    names: tuple[str, ...]
    consumers: tuple[Linear, ...]
    repeats: int = 1
    width: int = 0  # the number of rows that are repeated together, which is the width of a head
    offset: float = 0.0  # a norm multiplies by weight + offset


@dataclass(frozen=True)
class BlockView:
    """The linears that a step claims in one block, or outside the blocks.

    weight: reads the weight of a linear as (out, in) float32.
    parameter: reads any parameter by its name.
    """

    linears: Sequence[Linear]
    folds: Sequence[Fold]
    weight: Callable[[Linear], torch.Tensor]
    parameter: Callable[[str], torch.Tensor]


def find_folds(
    family: Family, path: str, linears: Sequence[Linear], claimed: Sequence[Linear], has: Callable[[str], bool],
    heads: tuple[int, int] | None,
) -> Iterator[Fold]:  # fmt: skip
    """Yield the folds of a block from its family's row (``folds``: a norm's path or a role -> the roles that read it).

    path: of the block; "" yields nothing.
    linears: all linears of the block.
    claimed: the linears that the step claims. A fold is yielded only if all its consumers are claimed.
    has: whether the checkpoint has a parameter.
    heads: the number of query heads, and of key and value heads.
    """
    if not path:
        return
    by_role: Mapping[str, list[Linear]] = {}
    for linear in linears:
        for role in linear.roles if "expert" not in linear.roles else ():
            by_role.setdefault(role, []).append(linear)
    for source, roles in family.folds.items():
        consumers = tuple(dict.fromkeys(linear for role in roles for linear in by_role.get(role, ())))
        if not consumers or not set(consumers) <= set(claimed):
            continue
        if source not in by_role:  # the source is the path of a norm, not a role
            stem = f"{path}.{source}"
            names = tuple(name for name in (f"{stem}.weight", f"{stem}.bias") if has(name))
            if names:  # else this model's norm has no weight that could take the factor
                yield Fold(names, consumers, offset=family.norm_offset)
            continue
        (front, *others), (consumer, *more) = by_role[source], consumers
        if others or more or len(front.roles) > 1 or len(consumer.roles) > 1 or front not in claimed:
            # The rows of a fused matrix are not the consumer's inputs. A front that is not claimed may be rounded by
            # another step.
            continue
        repeats, width = 1, 0
        if front.rows != consumer.columns:  # grouped-query attention: several query heads read one value head
            if heads is None or front.rows * heads[0] != consumer.columns * heads[1]:
                continue
            repeats, width = heads[0] // heads[1], front.rows // heads[1]
        names = tuple(name for name in (f"{front.name}.weight", f"{front.name}.bias") if has(name))
        yield Fold(names, consumers, repeats, width)
