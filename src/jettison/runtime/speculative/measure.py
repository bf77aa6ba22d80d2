"""What drafts bring on this machine: how much is taken of them, what steps cost, how fast texts are written."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

from jettison.core.progress import waiting
from jettison.core.timing import sample
from jettison.runtime.load import Loaded
from jettison.runtime.record import Record, Round
from jettison.runtime.sampling import Sampling
from jettison.runtime.speculative.draft import Draft
from jettison.runtime.speculative.speedup import before_loop

ROUNDS = 3  # of samples of steps


def record_rounds(
    loaded: Loaded,
    draft: Draft,
    starts: Sequence[Sequence[int]],
    tokens: int,
    sampling: Sampling,
    activation_bits: int = 15,
) -> list[Round]:
    """What is taken of drafts that do not adapt, while the model goes on from ``starts`` (ids) for so many tokens each;
    but not once it loops, unless all do at once."""
    straight, every, steady = [], [], dataclasses.replace(draft, adaptive=False)
    for number, start in enumerate(starts):
        each = dataclasses.replace(sampling, seed=sampling.seed + number)
        written, record = write_ids(loaded, start, tokens, each, activation_bits, steady)
        straight += before_loop(record.speculation.rounds, written)
        every += record.speculation.rounds
    return straight or every


def write_ids(
    loaded: Loaded,
    start: Sequence[int],
    tokens: int,
    sampling: Sampling,
    activation_bits: int = 15,
    draft: Draft | None = None,
) -> tuple[list[int], Record]:
    """The ids written; ends of texts are written over, so that all are equally long."""
    written = loaded.write([start], tokens, sampling, activation_bits=activation_bits, draft=draft)
    return [token for _, token in written], written.record


def step_costs(
    loaded: Loaded, draft: Draft, start: Sequence[int], activation_bits: int = 15, *, calm: bool = False
) -> tuple[float, tuple[float, ...]]:
    """A step of the draft model, 0 without one, and reading 1 to ``draft.length`` + 1 tokens at once; in steps of plain
    decoding after ``start``: medians of rounds in which they take turns. calm: samples are repeated while other
    processes are at work."""
    most = draft.length + 1
    target = loaded.target(draft, len(start) + most, activation_bits=activation_bits)
    target.read(start)
    tokens = [start[at % len(start)] for at in range(most)]

    def verify(count: int) -> None:
        target.verify(tokens[:count], list(range(-1, count - 1)))
        target.keep([])

    def step() -> None:
        target.draft(tokens[0])
        target.undraft()

    runs = {count: lambda count=count: verify(count) for count in range(1, most + 1)} | (
        {0: step} if draft.model else {}
    )
    seconds: dict[int, list[float]] = {count: [] for count in runs}
    for _ in range(ROUNDS):
        for count, run in runs.items():
            seconds[count].append(sample(run)[0] if calm else _quickest(run))
    cost = {
        count: statistics.median(each / one for each, one in zip(times, seconds[1], strict=True))
        for count, times in seconds.items()
    }
    return cost.get(0, 0.0), tuple(cost[count] for count in range(1, most + 1))


@waiting("writing with drafts")
def compare_speed(
    loaded: Loaded,
    drafts: Sequence[Draft],
    starts: Sequence[Sequence[int]],
    tokens: int,
    sampling: Sampling,
    activation_bits: int = 15,
) -> list[float]:
    """How many times as fast as plainly each draft writes, over all ``starts``: the median of rounds in which they take
    turns."""  # fmt: skip
    ratios: list[list[float]] = [[] for _ in drafts]
    for number, start in enumerate(starts):
        each = dataclasses.replace(sampling, seed=sampling.seed + number)
        decode = lambda *more, start=start, each=each: (
            write_ids(loaded, start, tokens, each, activation_bits, *more)[1].timings.decode
        )
        plain = decode()
        for found, draft in zip(ratios, drafts, strict=True):
            found.append(decode(draft) / plain)
    return [statistics.median(found) for found in ratios]


def _quickest(run: Callable[[], None], times: int = 5) -> float:
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)
