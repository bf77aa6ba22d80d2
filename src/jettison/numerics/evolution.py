"""Evolutionary search over strings of bits."""

from collections.abc import Callable

import torch

Genome = tuple[int, ...]
LISTED = 16  # bits: up to this length all genomes are listed
EXHAUSTED = 3  # populations: if no more genomes are feasible, all are tried
FLIPPED = 1.5  # bits of a genome, on average
TRIES = 200  # at a feasible genome, for every place in the population


def evolve(
    length: int,
    fitness: Callable[[Genome], float],
    feasible: Callable[[Genome], bool],
    repair: Callable[[Genome, torch.Generator], Genome],
    *,
    population: int,
    generations: int,
    seed: int = 0,
    note: Callable[[int, float], None] = lambda generation, best: None,
) -> Genome:
    """Return the feasible genome with the highest fitness that was found.

    length: how many bits a genome has.
    fitness: is asked once for every genome.
    repair: changes a genome so that it becomes feasible if it can.
    note: called after every generation with the best fitness so far.
    A quarter of each generation survives; half of the next comes from crossing two survivors bit by bit, the rest from
    flipping bits of one. Where there are at most ``EXHAUSTED`` populations of feasible genomes, all are tried.
    Raises ValueError if no feasible genome is found.
    """
    rng, known = torch.Generator().manual_seed(seed), {}

    def judge(genome: Genome) -> float:
        if genome not in known:
            known[genome] = fitness(genome)
        return known[genome]

    if length <= LISTED:
        everyone = (tuple(number >> bit & 1 for bit in range(length)) for number in range(2**length))
        legal = [genome for genome in everyone if feasible(genome)]
        if not legal:
            raise ValueError("no genome is feasible")
        if len(legal) <= EXHAUSTED * population:
            best = max(legal, key=judge)
            note(0, judge(best))
            return best

    def fill(members: list[Genome], make: Callable[[list[Genome]], Genome], size: int) -> None:
        """Add feasible genomes that ``make`` makes of the members, until there are ``size``."""
        parents = list(members)
        for _ in range(TRIES * size):
            if len(members) >= size:
                return
            genome = repair(make(parents), rng)
            if feasible(genome) and genome not in members:
                members.append(genome)

    def bits() -> list[int]:
        return torch.randint(2, (length,), generator=rng).tolist()

    def pick(parents: list[Genome]) -> Genome:
        return parents[int(torch.randint(len(parents), (1,), generator=rng))]

    def cross(parents: list[Genome]) -> Genome:
        return tuple(a if bit else b for a, b, bit in zip(pick(parents), pick(parents), bits(), strict=True))

    def flip(parents: list[Genome]) -> Genome:
        return tuple(bit ^ int(torch.rand(1, generator=rng) < FLIPPED / length) for bit in pick(parents))

    members: list[Genome] = []
    fill(members, lambda parents: tuple(bits()), population)
    if not members:
        raise ValueError("no genome is feasible")
    for generation in range(generations):
        members.sort(key=judge, reverse=True)
        note(generation, judge(members[0]))
        members = members[: max(2, population // 4)]
        fill(members, cross, len(members) + (population - len(members)) // 2)
        fill(members, flip, population)
    members.sort(key=judge, reverse=True)
    note(generations, judge(members[0]))
    return members[0]
