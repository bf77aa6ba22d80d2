"""The scores of XRBench: real-time, energy, accuracy, quality of experience; of a frame, a model, a scenario, all.

Source: arXiv:2211.08675, section 4.2; constants and the treatment of drops from the official program.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, sqrt
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtrit

from jettison.core.errors import UsageError, unknown
from jettison.xr.costs import Costs
from jettison.xr.definitions import Scenario
from jettison.xr.frames import Frame, Timeline
from jettison.xr.official import patterns, simulate_official

STEEPNESS = 15.0  # per ms
ENERGY_MAX_MJ = 1500.0
DROP_PENALTIES = ("code", "paper")


def real_time_score(lateness_ms: float) -> float:
    """1 / (1 + exp(15 lateness)): a half at the deadline, 0 or 1 a third of a ms to its sides."""
    return 1.0 / (1.0 + exp(min(STEEPNESS * lateness_ms, 700.0)))


def energy_score(energy_mj: float, clamp: bool = True) -> float:
    """1 - energy / 1500 mJ. clamp: not below 0, as in the paper; the official program lets it."""
    score = 1.0 - energy_mj / ENERGY_MAX_MJ
    return max(score, 0.0) if clamp else score


def check_penalty(name: str) -> None:
    """Raises UsageError that lists what there is."""
    if name not in DROP_PENALTIES:
        raise unknown("drop penalty", name, DROP_PENALTIES)


def inference_score(frame: Frame, accuracy: float = 1.0, clamp: bool = True) -> float:
    """Real-time times energy times accuracy, 0 to 1, of a frame that ran."""
    return real_time_score(frame.lateness) * energy_score(frame.energy, clamp) * accuracy


@dataclass(frozen=True)
class ModelScore:
    """rt, en, acc: means over the frames that ran, 0 to 1. qoe: the share that ran. score: of the model, 0 to 100."""

    executed: int
    dropped: int
    skipped: int
    rt: float
    en: float
    acc: float
    qoe: float
    score: float

    @property
    def logged(self) -> bool:
        return self.executed + self.dropped > 0


@dataclass(frozen=True)
class ScenarioScore:
    """Means over the models. overall: over all of them, as published: a model that nothing was asked of has 0.
    overall_logged: over those that ran or dropped something, as the official program prints it. Both 0 to 100."""

    models: Mapping[str, ModelScore]
    rt: float
    en: float
    acc: float
    qoe: float
    overall: float
    overall_logged: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def score(
    timeline: Timeline, *, drop_penalty: str = "code", accuracy: Mapping[str, float] | None = None
) -> ScenarioScore:
    """Score a run.

    drop_penalty: ``code`` divides what the frames of a model earn by all of them, dropped ones included, and multiplies
    by QoE as well, as the official program does; ``paper`` divides by those that ran. accuracy: by model, 0 to 1
    (``UnitModel.accuracy_score``); 1 if not given, as in the official program. Raises UsageError.
    """
    check_penalty(drop_penalty)
    accuracy = accuracy or {}
    names = [task.name for task in timeline.scenario.tasks]
    for name, value in accuracy.items():
        if name not in names:
            raise unknown("model", name, names, f" of scenario {timeline.scenario.name!r}, with an accuracy")
        if not 0 <= value <= 1:
            raise UsageError(f"accuracy of {name} = {value!r}: a score from 0 to 1 is needed")
    frames: dict[str, list] = {name: [] for name in names}
    for frame in timeline.frames:
        frames[frame.task].append(frame)
    clamp, double = timeline.compat is None, drop_penalty == "code"
    models = {name: _model(frames[name], accuracy.get(name, 1.0), clamp, double) for name in names}
    logged = [model for model in models.values() if model.logged]
    mean = lambda part: sum(getattr(model, part) for model in logged) / len(models)
    total = sum(model.score for model in logged)
    parts = (mean("rt"), mean("en"), mean("acc"), mean("qoe"))
    return ScenarioScore(models, *parts, total / len(models), total / max(1, len(logged)))


def _model(frames: list, accuracy: float, clamp: bool, double: bool) -> ModelScore:
    executed = dropped = skipped = 0
    rt = en = earned = 0.0
    for frame in frames:
        if frame.status == "done":
            executed, rt, en = (
                executed + 1,
                rt + real_time_score(frame.lateness),
                en + energy_score(frame.energy, clamp),
            )
            earned += inference_score(frame, accuracy, clamp)
        elif frame.status == "dropped":
            dropped += 1
        elif frame.status == "skipped":
            skipped += 1
    asked, ran = executed + dropped, max(1, executed)
    qoe = executed / max(1, asked)
    total = 100 * earned / max(1, asked if double else executed) * qoe
    return ModelScore(executed, dropped, skipped, rt / ran, en / ran, accuracy * bool(executed), qoe, total)


@dataclass(frozen=True)
class Summary:
    """low, high: of the mean, at 95 %, by Student's t. std: of a single run."""

    mean: float
    std: float
    low: float
    high: float
    count: int


def summary(values: Sequence[float]) -> Summary:
    """Of scores over seeds. Raises UsageError for none."""
    if not values:
        raise UsageError("a summary of no scores; one at least is needed")
    mean, count = fmean(values), len(values)
    if count == 1:
        return Summary(mean, 0.0, mean, mean, 1)
    spread = stdev(values)
    half = float(stdtrit(count - 1, 0.975)) * spread / sqrt(count)
    return Summary(mean, spread, mean - half, mean + half, count)


@dataclass(frozen=True)
class Exact:
    """The expectation of a score over every outcome of the coins, under ``compat="v0.1"``. outcomes: (coins as 0 and 1
    in the order of the tasks, probability, score)."""

    mean: float
    std: float
    outcomes: tuple[tuple[str, float, ScenarioScore], ...]


def expected_score(scenario: Scenario, costs: Costs, scheduler: str = "latency-greedy", **options: Any) -> Exact:
    """Of the official runtime: no seeds, all outcomes. options: of ``score``. Raises UsageError for too many."""
    outcomes = []
    for rng, coins in patterns(scenario):
        found = score(simulate_official(scenario, costs, scheduler, 0, coins), **options)
        label = "".join(str(int(heads)) for task in scenario.tasks for heads in coins.get(task.name, ()))
        outcomes.append((label, rng, found))
    mean = sum(rng * found.overall for _, rng, found in outcomes)
    spread = sum(rng * (found.overall - mean) ** 2 for _, rng, found in outcomes)
    return Exact(mean, sqrt(spread), tuple(outcomes))


def benchmark_score(scores: Iterable[ScenarioScore | float]) -> float:
    """The mean over scenarios, 0 to 100: the paper's single figure. Raises UsageError for none."""
    values = [each.overall if isinstance(each, ScenarioScore) else each for each in scores]
    if not values:
        raise UsageError("a benchmark score of no scenarios; one at least is needed")
    return fmean(values)
