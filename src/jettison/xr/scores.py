"""The scores of XRBench: real-time, energy, accuracy and quality of experience (QoE).

There is a score of a frame, of a model, of a scenario, and of the whole benchmark.

Source: arXiv:2211.08675, section 4.2; the constants and the treatment of dropped frames are those of the official
program.
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
    """Return 1 / (1 + exp(15 · lateness)).

    It is 0.5 at the deadline, nearly 1 a third of a millisecond before it and nearly 0 a third of a millisecond after.
    """
    return 1.0 / (1.0 + exp(min(STEEPNESS * lateness_ms, 700.0)))  # exp(710) overflows


def energy_score(energy_mj: float, clamp: bool = True) -> float:
    """Return 1 - energy / 1500 mJ.

    clamp: raise negative values to 0, as in the paper; the official program does not.
    """
    score = 1.0 - energy_mj / ENERGY_MAX_MJ
    return max(score, 0.0) if clamp else score


def check_penalty(name: str) -> None:
    """Raise UsageError that lists the drop penalties if ``name`` is none of them."""
    if name not in DROP_PENALTIES:
        raise unknown("drop penalty", name, DROP_PENALTIES)


def inference_score(frame: Frame, accuracy: float = 1.0, clamp: bool = True) -> float:
    """Return the score of a frame that ran, 0 to 1: real-time score times energy score times accuracy."""
    return real_time_score(frame.lateness) * energy_score(frame.energy, clamp) * accuracy


@dataclass(frozen=True)
class ModelScore:
    """The scores of a model in a run.

    executed, dropped, skipped: numbers of frames.
    rt, en, acc: means of real-time, energy and accuracy score over the frames that ran, 0 to 1.
    qoe: quality of experience, the share of requested frames that ran.
    score: the score of the model, 0 to 100.
    """

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
        """Whether the model ran or dropped a frame."""
        return self.executed + self.dropped > 0


@dataclass(frozen=True)
class ScenarioScore:
    """The scores of a scenario: means over its models.

    overall: mean over all models, 0 to 100, as published: a model of which no frame was requested counts as 0.
    overall_logged: mean over the models that ran or dropped a frame, 0 to 100, as the official program prints it.
    """

    models: Mapping[str, ModelScore]
    rt: float
    en: float
    acc: float
    qoe: float
    overall: float
    overall_logged: float

    def to_dict(self) -> dict[str, Any]:
        """Return all scores as a dict for JSON."""
        return asdict(self)


def score(
    timeline: Timeline, *, drop_penalty: str = "code", accuracy: Mapping[str, float] | None = None
) -> ScenarioScore:
    """Score a run.

    drop_penalty: ``code`` divides the sum of a model's frame scores by the number of all its frames, dropped ones
        included, and multiplies by QoE as well, as the official program does, so that drops count twice; ``paper``
        divides by the number of frames that ran.
    accuracy: by model, 0 to 1 (``UnitModel.accuracy_score``); 1 if a model is missing, as in the official program.
    Raises UsageError for an unknown drop penalty or model, and for an accuracy outside 0 to 1.
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
    clamp, divide_by_all = timeline.compat is None, drop_penalty == "code"
    models = {name: _model(frames[name], accuracy.get(name, 1.0), clamp, divide_by_all) for name in names}
    logged = [model for model in models.values() if model.logged]
    mean = lambda part: sum(getattr(model, part) for model in logged) / len(models)
    total = sum(model.score for model in logged)
    parts = (mean("rt"), mean("en"), mean("acc"), mean("qoe"))
    return ScenarioScore(models, *parts, total / len(models), total / max(1, len(logged)))


def _model(frames: list, accuracy: float, clamp: bool, divide_by_all: bool) -> ModelScore:
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
    asked, divisor = executed + dropped, max(1, executed)
    qoe = executed / max(1, asked)
    total = 100 * earned / max(1, asked if divide_by_all else executed) * qoe
    return ModelScore(executed, dropped, skipped, rt / divisor, en / divisor, accuracy * bool(executed), qoe, total)


@dataclass(frozen=True)
class Summary:
    """Statistics of scores over seeds.

    std: standard deviation of a single run. low, high: 95 % confidence interval of the mean, by Student's t.
    """

    mean: float
    std: float
    low: float
    high: float
    count: int


def summary(values: Sequence[float]) -> Summary:
    """Return mean, standard deviation and confidence interval of scores. Raises UsageError if there are none."""
    if not values:
        raise UsageError("there are no scores to summarize; at least one is needed")
    mean, count = fmean(values), len(values)
    if count == 1:
        return Summary(mean, 0.0, mean, mean, 1)
    spread = stdev(values)
    half_width = float(stdtrit(count - 1, 0.975)) * spread / sqrt(count)
    return Summary(mean, spread, mean - half_width, mean + half_width, count)


@dataclass(frozen=True)
class Exact:
    """The expected score over every outcome of the coins, under ``compat="v0.1"``.

    mean, std: of the overall score.
    outcomes: (coins as a text of 0 and 1 in the order of the tasks, probability, score).
    """

    mean: float
    std: float
    outcomes: tuple[tuple[str, float, ScenarioScore], ...]


def expected_score(scenario: Scenario, costs: Costs, scheduler: str = "latency-greedy", **options: Any) -> Exact:
    """Return the expected score of the official runtime, over all outcomes of the coins instead of seeds.

    options: of ``score``. Raises UsageError for too many outcomes.
    """
    outcomes = []
    for probability, coins in patterns(scenario):
        scored = score(simulate_official(scenario, costs, scheduler, 0, coins), **options)
        label = "".join(str(int(heads)) for task in scenario.tasks for heads in coins.get(task.name, ()))
        outcomes.append((label, probability, scored))
    mean = sum(probability * scored.overall for _, probability, scored in outcomes)
    variance = sum(probability * (scored.overall - mean) ** 2 for _, probability, scored in outcomes)
    return Exact(mean, sqrt(variance), tuple(outcomes))


def benchmark_score(scores: Iterable[ScenarioScore | float]) -> float:
    """Return the paper's score of the whole benchmark, 0 to 100: the mean of the overall scores of scenarios.

    Raises UsageError if there are no scores.
    """
    values = [scored.overall if isinstance(scored, ScenarioScore) else scored for scored in scores]
    if not values:
        raise UsageError("a benchmark score of no scenarios; at least one is needed")
    return fmean(values)
