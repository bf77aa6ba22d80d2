"""Measure drafts on this machine: acceptance, costs of steps, and speed of generation."""

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

ROUNDS = 3  # samples of every step


def record_rounds(
    loaded: Loaded,
    draft: Draft,
    starts: Sequence[Sequence[int]],
    tokens: int,
    sampling: Sampling,
    activation_bits: int = 15,
) -> list[Round]:
    """Generate with a draft of fixed length, and return the rounds of speculative decoding.

    starts: prompts, as ids; ``tokens`` tokens are written after each.
    Rounds are left out from where a text begins to repeat itself, unless no round would be left.
    """
    before_loops, every, steady = [], [], dataclasses.replace(draft, adaptive=False)
    for number, start in enumerate(starts):
        seeded = dataclasses.replace(sampling, seed=sampling.seed + number)
        written, record = write_ids(loaded, start, tokens, seeded, activation_bits, steady)
        before_loops += before_loop(record.speculation.rounds, written)
        every += record.speculation.rounds
    return before_loops or every


def write_ids(
    loaded: Loaded,
    start: Sequence[int],
    tokens: int,
    sampling: Sampling,
    activation_bits: int = 15,
    draft: Draft | None = None,
) -> tuple[list[int], Record]:
    """Generate ``tokens`` tokens after ``start`` (ids), past any end token, so that all texts are equally long.

    Returns the ids and the record.
    """
    written = loaded.write([start], tokens, sampling, activation_bits=activation_bits, draft=draft)
    return [token for _, token in written], written.record


def step_costs(
    loaded: Loaded, draft: Draft, start: Sequence[int], activation_bits: int = 15, *, calm: bool = False
) -> tuple[float, tuple[float, ...]]:
    """Measure what drafting and verifying cost, in steps of plain decoding after the prompt ``start`` (ids).

    calm: repeat samples while other processes use the cores.
    Returns the cost of a step of the draft model (0 without one), and the costs of verifying 1 to ``draft.length`` + 1
    tokens in one pass. They are medians over rounds in which all kinds of steps take turns.
    """
    most = draft.length + 1
    target = loaded.target(draft, len(start) + most, activation_bits=activation_bits)
    target.read(start)
    tokens = [start[i % len(start)] for i in range(most)]

    def verify(count: int) -> None:
        target.verify(tokens[:count], list(range(-1, count - 1)))
        target.keep([])

    def step() -> None:
        target.draft(tokens[0])
        target.undraft()

    runs = {count: lambda count=count: verify(count) for count in range(1, most + 1)} | (
        {0: step} if draft.model else {}
    )
    seconds: dict[int, list[float]] = {count: [] for count in runs}  # by tokens verified; 0: a step of the draft model
    for _ in range(ROUNDS):
        for count, run in runs.items():
            seconds[count].append(sample(run)[0] if calm else _quickest(run))
    cost = {  # every time is divided by that of plain decoding in the same round, so that slow drift cancels
        count: statistics.median(t / one for t, one in zip(times, seconds[1], strict=True))
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
    """Measure the speedup of every draft over plain decoding: the median over ``starts``, the prompts as ids.

    After every prompt plain decoding and all drafts take turns.
    """  # fmt: skip
    ratios: list[list[float]] = [[] for _ in drafts]
    for number, start in enumerate(starts):
        seeded = dataclasses.replace(sampling, seed=sampling.seed + number)
        decode = lambda *more, start=start, seeded=seeded: (
            write_ids(loaded, start, tokens, seeded, activation_bits, *more)[1].timings.decode
        )
        plain = decode()
        for ratios_of_draft, draft in zip(ratios, drafts, strict=True):
            ratios_of_draft.append(decode(draft) / plain)
    return [statistics.median(ratios_of_draft) for ratios_of_draft in ratios]


def _quickest(run: Callable[[], None], times: int = 5) -> float:
    """Return the seconds of the fastest of several runs."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
