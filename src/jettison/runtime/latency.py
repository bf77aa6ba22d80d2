"""Times image classifiers side by side, in PyTorch or in ONNX Runtime, and any other functions.

- In every round every model is measured once, in an order drawn anew, so that slow drift and other work hit all alike.
- Batch normalizations are folded into convolutions for both runtimes.
- Compare two models by ``ratio``: of samples of the same round, which shared the state of the machine.
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from scipy.stats import binom
from torch import nn

from jettison.core.errors import UsageError, shown, unknown
from jettison.core.numbers import check_number, figures
from jettison.core.progress import bar, say
from jettison.core.timing import FOREIGN, watched
from jettison.formats.onnx_file import open_onnx, run_onnx, write_onnx
from jettison.graph.folding import fold_batch_norms, logits_of

RUNTIMES = ("pytorch", "onnxruntime")
SAMPLE = 0.005  # seconds; shorter runs are repeated, and the sample is their mean
WARM_UP, MOST_ROUNDS, FEWEST = 3, 100_000, 5
Run = Callable[[], object]


def latencies(
    models: Mapping[str, nn.Module | str | Path],
    example: torch.Tensor,
    runtime: str = "pytorch",
    *,
    threads: int = 2,
    rounds: int = 100,
    seconds: float = 60.0,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Measure how long every model takes for one image.

    models: name -> a module that maps pixels to logits, which is not changed; or an ONNX file, for onnxruntime only.
    example: (1, channels, height, width) pixels.
    runtime: ``pytorch`` or ``onnxruntime``.
    threads: of one operator. PyTorch's number of threads is restored afterwards.
    rounds: samples of every model.
    seconds: no round begins later than this after the first one, but at least 5 rounds are measured.
    seed: of the order of the models in each round.

    Returns name -> ``median_ms`` and ``samples_ms``, one sample for every round. A note says if other processes used
    the cores: PyTorch's threads wait for each other in loops, and may then take a hundred times as long.
    Raises UsageError for arguments that are not valid, and for onnxruntime if it is not installed.
    """
    _check(models, example, runtime)
    check_number("threads", threads, 1, 1024, whole=True)
    check_number("rounds", rounds, 1, MOST_ROUNDS, whole=True)
    check_number("seconds", seconds, 0)
    with _threads(threads), torch.inference_mode():
        prepare = _in_pytorch if runtime == "pytorch" else _in_onnxruntime
        runs = {name: prepare(model, example, threads) for name, model in models.items()}
        return in_turns(runs, rounds=rounds, seconds=seconds, seed=seed)


def in_turns(
    runs: Mapping[str, Run], *, rounds: int = 100, seconds: float = 60.0, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Measure how long functions take, each once in every round. Arguments and result are those of ``latencies``."""
    samples, foreign = watched(lambda: _measure(runs, rounds, seconds, random.Random(seed)))
    if foreign > FOREIGN:
        say(
            f"note: other processes used {figures(foreign, 2)} cores during these measurements, which are then too slow"
        )
    return {name: {"median_ms": statistics.median(taken), "samples_ms": taken} for name, taken in samples.items()}


def ratio(samples_a: Sequence[float], samples_b: Sequence[float]) -> dict[str, float]:
    """Compare the samples of two models round by round.

    samples_a, samples_b: of the same rounds, in order.
    Returns ``ratio``, the median of a / b, and ``low`` and ``high``, a 95 % interval of this median. The interval
    assumes nothing of the distribution, but that rounds are independent. With fewer than 6 rounds it is the range.
    Raises UsageError for samples of different number, and for numbers that are not positive.
    """
    if len(samples_a) != len(samples_b) or not samples_a:
        raise UsageError(
            f"{len(samples_a)} and {len(samples_b)} samples: as many of both are needed, of 1 round or more"
        )
    if wrong := [value for value in (*samples_a, *samples_b) if not 0 < value < math.inf]:
        raise UsageError(f"a sample of {shown(wrong[0])} ms: a number above 0 is needed")
    ratios = sorted(a / b for a, b in zip(samples_a, samples_b, strict=True))
    rank = _rank(len(ratios))
    return {"ratio": statistics.median(ratios), "low": ratios[rank], "high": ratios[-1 - rank]}


def _rank(count: int) -> int:
    """Return how many of the sorted values lie outside a 95 % interval of the median, on each side.

    The number of values below the true median is binomial with probability 1/2.
    """
    return max(0, int(binom.ppf(0.025, count, 0.5)) - 1) if count > FEWEST else 0


def _check(models: Mapping[str, Any], example: torch.Tensor, runtime: str) -> None:
    if runtime not in RUNTIMES:
        raise unknown("runtime", runtime, RUNTIMES)
    if not models:
        raise UsageError("models is empty: at least one model is needed")
    if example.dim() != 4 or len(example) != 1:
        raise UsageError(f"an example of shape {tuple(example.shape)}: (1, channels, height, width) is needed")
    for name, model in models.items():
        if not isinstance(model, nn.Module) and runtime == "pytorch":
            raise UsageError(f"model {name!r} is {shown(model)}: PyTorch runs modules only; valid: an nn.Module")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set PyTorch's number of threads during a block of code."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_pytorch(model: nn.Module, example: torch.Tensor, threads: int) -> Run:
    folded = fold_batch_norms(model, example)
    return lambda: logits_of(folded, example)


def _in_onnxruntime(model: nn.Module | str | Path, example: torch.Tensor, threads: int) -> Run:
    if isinstance(model, nn.Module):
        with TemporaryDirectory() as folder, torch.inference_mode(False):
            write_onnx(model, example, path := Path(folder) / "model.onnx")
            session = open_onnx(path, threads)
    else:
        session = open_onnx(Path(model), threads)
    return lambda: run_onnx(session, example)


def _measure(runs: Mapping[str, Run], rounds: int, seconds: float, rng: random.Random) -> dict[str, list[float]]:
    """Return name -> milliseconds of one run, for every round."""
    # All models are repeated equally often: the first run after another model's is slower.
    repeats = max(1, math.ceil(SAMPLE / min(_warm_up(run) for run in runs.values())))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order, start = list(runs), time.perf_counter()
    with bar("latency", rounds) as progress:
        for done in range(rounds):
            if done >= FEWEST and time.perf_counter() - start > seconds:
                break
            rng.shuffle(order)
            for name in order:
                runs[name]()  # not measured: brings the weights into the caches
                began = time.perf_counter()
                for _ in range(repeats):
                    runs[name]()
                samples[name].append(1000 * (time.perf_counter() - began) / repeats)
            progress.advance()
    return samples


def _warm_up(run: Run) -> float:
    """Run a few times. Returns the seconds of the fastest run."""
    times = []
    for _ in range(WARM_UP):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return max(min(times), 1e-6)
