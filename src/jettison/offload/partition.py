"""Horizontal partitioning: which frequency components of the block DCT stay on the device, and which leave.

Source: arXiv:2604.17476. Its code has a fixed order of components, ``RELEASED``; here an order is found in data: by
energy, by a loss that is measured for each component, or by a search over sets of components.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from jettison.core.errors import UsageError
from jettison.core.numbers import check_number
from jettison.numerics.evolution import Genome, evolve
from jettison.offload.noise import exact

# Components of blocks of 4 in the order in which the code of the paper's authors offloads them.
RELEASED = (15, 14, 11, 13, 10, 7, 12, 9, 3, 6, 8, 5, 2, 4, 1, 0)
Loss = Callable[[tuple[int, ...]], float]  # numbers of the offloaded components -> loss


@dataclass(frozen=True)
class Partition:
    """Which of ``count`` components leave the device: ``offloaded``, in ascending order.

    Raises UsageError for numbers that are no components, and if all or none leave.
    """

    count: int
    offloaded: tuple[int, ...]

    def __post_init__(self) -> None:
        chosen = set(self.offloaded)
        if len(chosen) != len(self.offloaded) or not chosen <= set(range(self.count)):
            raise UsageError(f"offloaded = {self.offloaded}: different numbers from 0 to {self.count - 1} are needed")
        if not 0 < len(chosen) < self.count:
            raise UsageError(
                f"{len(chosen)} of {self.count} components offloaded: some have to leave, and some to stay"
            )
        object.__setattr__(self, "offloaded", tuple(sorted(self.offloaded)))

    @property
    def local(self) -> tuple[int, ...]:
        """The components that stay, in ascending order."""
        return tuple(sorted(set(range(self.count)) - set(self.offloaded)))


def component_energy(components: torch.Tensor) -> torch.Tensor:
    """Return the variance of every component over frames, (components,), summed over its map.

    components: of ``block_dct``, (frames, components, channels, rows, columns).
    """
    centred = components.double() - components.double().mean(0)
    return centred.square().mean(0).sum((1, 2, 3))


def by_order(order: Iterable[int], offloaded: int) -> Partition:
    """Return the partition in which the first ``offloaded`` components of an order leave, such as ``RELEASED``."""
    order = list(order)
    check_number("offloaded", offloaded, 1, len(order) - 1, whole=True)
    return Partition(len(order), tuple(order[:offloaded]))


def by_energy(energy: torch.Tensor, offloaded: int) -> Partition:
    """Return the partition in which the components with the least energy leave. energy: (components,)."""
    return by_order(energy.argsort(stable=True).tolist(), offloaded)


def by_loss(count: int, offloaded: int, loss: Loss) -> Partition:
    """Return the partition in which those components leave that each alone have the least loss.

    count: of all components. offloaded: how many leave. loss: numbers of offloaded components -> their loss.
    """
    return by_order(sorted(range(count), key=lambda component: loss((component,))), offloaded)


def by_search(
    count: int, offloaded: int, loss: Loss, population: int = 24, generations: int = 12, seed: int = 0
) -> Partition:
    """Return the partition with the least loss that an evolutionary search finds.

    Arguments as ``by_loss``. population, generations: of the search; few sets are all tried, see ``evolution.evolve``.
    """
    check_number("offloaded", offloaded, 1, count - 1, whole=True)

    def repair(genome: Genome, rng: torch.Generator) -> Genome:
        """Flip random bits until as many are set as components leave."""
        bits = list(genome)
        while (number := sum(bits)) != offloaded:
            places = [place for place, bit in enumerate(bits) if bit == (number > offloaded)]
            bits[places[int(torch.randint(len(places), (1,), generator=rng))]] ^= 1
        return tuple(bits)

    chosen = lambda genome: tuple(place for place, bit in enumerate(genome) if bit)
    best = evolve(
        count, lambda genome: -loss(chosen(genome)), lambda genome: sum(genome) == offloaded, repair,
        population=population, generations=generations, seed=seed,
    )  # fmt: skip
    return Partition(count, chosen(best))


def widths(scores: Sequence[float] | torch.Tensor, partition: Partition, total: int) -> tuple[int, int]:
    """Divide the width of a decoder between the local and the offloaded branch, each at least 1, by their scores.

    scores: of every component, such as the root of its energy.
    Source: arXiv:2604.17476, whose code rounds the scores of pairs of components; here those of a branch are rounded.
    """
    check_number("total", total, 2, whole=True)
    scores = torch.as_tensor(scores, dtype=torch.float64)
    share = float(scores[list(partition.offloaded)].sum() / scores.sum().clamp(min=1e-300))
    away = min(total - 1, max(1, round(total * share)))
    return total - away, away


class LinearLoss:
    """What a partition costs if both branches are as good as principal components can be: a proxy without training.

    components: of ``block_dct``, (frames, components, channels, rows, columns); some hundred frames are enough.
    latents, offloaded_latents: how many numbers each branch codes a frame into.
    budget: nats that the offloaded latents of a frame may tell; ``exact`` noise is put on them, and the decoder makes
        the best of what it gets.
    A call returns the loss of a set of offloaded components: mean squared error, as a share of the variance.
    Ours; no source.
    """

    def __init__(self, components: torch.Tensor, latents: int, offloaded_latents: int, budget: float):
        centred = (components.double() - components.double().mean(0)).flatten(2)  # (frames, components, values)
        self._gram = torch.einsum("ncv,mcv->cnm", centred, centred) / len(centred)  # (components, frames, frames)
        self._total = float(self._gram.diagonal(dim1=1, dim2=2).sum())
        self.latents, self.offloaded_latents, self.budget = latents, offloaded_latents, budget

    def __call__(self, offloaded: tuple[int, ...]) -> float:
        away = list(offloaded)
        stays = sorted(set(range(len(self._gram))) - set(away))
        _, lost = self._split(stays, self.latents)
        kept, missing = self._split(away, self.offloaded_latents)
        noise = exact(kept, self.budget)
        return (lost + missing + float((kept * noise / (kept + noise)).sum())) / self._total

    def _split(self, members: list[int], latents: int) -> tuple[torch.Tensor, float]:
        """Return the variances of the first principal components of some maps, and the variance of the others."""
        values = torch.linalg.eigvalsh(self._gram[members].sum(0)).flip(0).clamp(min=0)
        kept = values[:latents][values[:latents] > 1e-12 * values[0]]
        return kept, float(values.sum() - kept.sum())
