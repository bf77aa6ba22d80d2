"""Evolutionary search: it finds what is best, keeps to what is feasible, and repeats itself."""

from itertools import product

import pytest
import torch

from jettison.numerics.evolution import evolve


def weights(length, seed=0):
    return torch.randn(length, generator=torch.Generator().manual_seed(seed)).tolist()


def value(genome, of):
    return sum(weight for bit, weight in zip(genome, of, strict=True) if bit)


def as_is(genome, rng):
    return genome


def with_ones(count):
    """Return a function that sets or clears random bits until there are ``count`` ones."""

    def repair(genome, rng):
        genome = list(genome)
        for place in torch.randperm(len(genome), generator=rng).tolist():
            if sum(genome) != count and genome[place] == int(sum(genome) > count):
                genome[place] = 1 - genome[place]
        return tuple(genome)

    return repair


@pytest.mark.parametrize("length", [1, 3, 7])
def test_few_genomes_are_all_tried(length):
    of, asked = weights(length), []

    def fitness(genome):
        asked.append(genome)
        return value(genome, of) - 2 * abs(sum(genome) - 1)

    best = evolve(length, fitness, lambda genome: True, as_is, population=50, generations=1)
    everyone = list(product((0, 1), repeat=length))
    assert len(asked) == len(set(asked)) == 2**length
    assert fitness(best) == max(map(fitness, everyone))


def test_few_feasible_genomes_are_all_tried():
    """Of 2 ** 12 genomes 66 are feasible; the constraint keeps out better ones."""
    of = [abs(weight) for weight in weights(12)]
    best = evolve(
        12,
        lambda genome: value(genome, of),
        lambda genome: sum(genome) == 2,
        with_ones(2),
        population=30,
        generations=1,
    )
    ranked = sorted(range(12), key=of.__getitem__, reverse=True)
    assert [place for place, bit in enumerate(best) if bit] == sorted(ranked[:2])


@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_the_optimum(seed):
    """24 bits, 8 of them ones: 735,471 genomes, of which few are looked at."""
    of, asked = weights(24, seed), []

    def fitness(genome):
        asked.append(genome)
        return value(genome, of)

    best = evolve(
        24, fitness, lambda genome: sum(genome) == 8, with_ones(8), population=40, generations=30, seed=seed
    )  # fmt: skip
    ranked = sorted(range(24), key=of.__getitem__, reverse=True)
    assert [place for place, bit in enumerate(best) if bit] == sorted(ranked[:8])
    assert all(sum(genome) == 8 for genome in asked), "what is not feasible is never judged"
    assert len(asked) == len(set(asked)) < 1500, "no genome is judged twice"


def test_the_same_seed_gives_the_same_search():
    of = weights(20)

    def searched(seed):
        asked, notes = [], []

        def fitness(genome):
            asked.append(genome)
            return value(genome, of)

        evolve(
            20, fitness, lambda genome: sum(genome) == 5, with_ones(5), population=8, generations=3, seed=seed,
            note=lambda generation, best: notes.append((generation, best)),
        )  # fmt: skip
        return asked, notes

    first, notes = searched(1)
    assert searched(1) == (first, notes) and searched(2)[0] != first
    assert [generation for generation, _ in notes] == [0, 1, 2, 3]
    assert [best for _, best in notes] == sorted(best for _, best in notes), "the best so far never gets worse"


@pytest.mark.parametrize("length", [4, 20])
def test_nothing_feasible(length):
    with pytest.raises(ValueError, match="no genome is feasible"):
        evolve(length, lambda genome: 0.0, lambda genome: False, as_is, population=4, generations=1)


def test_fewer_feasible_genomes_than_a_population():
    """Of 20 bits, exactly one is a one: 20 genomes for a population of 50 still end, with the best."""
    of = weights(20)
    best = evolve(
        20,
        lambda genome: value(genome, of),
        lambda genome: sum(genome) == 1,
        with_ones(1),
        population=25,
        generations=2,
    )
    assert best.index(1) == max(range(20), key=of.__getitem__)
