"""Evaluate tasks with lm-eval: the bundled suite, or any task of lm-eval; and compare the results of several stages."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from jettison.core.errors import JettisonError, UsageError, unknown
from jettison.core.numbers import check_number
from jettison.core.progress import Bar, bar
from jettison.domains.text.tasks.suite import NAMES, SUITE, TASKS, suite_folder
from jettison.graph.dense import require_memory
from jettison.graph.folder import ModelFolder
from jettison.metrics.share import recovered_share
from jettison.runtime.load import Loaded, load

DIGITS = 6


def evaluate_tasks(
    model: str | Path,
    tasks: Sequence[str] = (SUITE,),
    *,
    items: int | None = None,
    adapter: bool = True,
    batch: int = 32,
) -> dict[str, dict[str, Any]]:
    """Measure a checkpoint or any model on tasks, with lm-eval.

    tasks: names of the bundled suite, or of lm-eval, which downloads their data.
    items: use only the first ``items`` items of each task; None uses all.
    batch: requests per forward pass.

    Returns, for each task, ``accuracy`` (or another score, named by ``metric``), its ``standard_error``, the accuracy
    of guessing (``random``, None if unknown), and ``scores`` of all items in order, for pairing with other models.
    Raises UsageError for an unknown task, JettisonError if the data of a task cannot be loaded.
    """
    manager = check_tasks(tasks, items)
    source = ModelFolder(model)
    source.require_text("tasks are for language models")
    require_memory(source.checkpoint.tensor_bytes, f"evaluating {source.name}")
    with _hushed():
        samples = _run(load(model, adapter=adapter), list(dict.fromkeys(tasks)), manager, items, batch)
    return {task: _summary(task, answers) for task, answers in samples.items()}


def compare_tasks(
    original: Mapping[str, Mapping[str, Any]],
    quantized: Mapping[str, Mapping[str, Any]],
    recovered: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Compute the recovered share of each task's loss, from three results of ``evaluate_tasks`` on the same items.

    Returns one row per task:

    - ``lost``: original − quantized. ``recovered``: (recovered − quantized) / lost, None if nothing was lost. Both
      come with the standard error of their paired estimate.
    - ``counts``: whether the loss exceeds two of its standard errors; if not, the share is not meaningful.

    Raises UsageError if the results have no task in common, or were not measured on the same items.
    """
    common = [task for task in original if task in quantized and task in recovered]
    if not common:
        raise UsageError("the three results have no task in common")
    rows = []
    for task in common:
        scores = [
            [float(score) for score in result[task]["scores"].split()] for result in (original, quantized, recovered)
        ]
        if len({len(stage) for stage in scores}) > 1:
            raise UsageError(
                f"{task} was not measured on the same items: {', '.join(str(len(stage)) for stage in scores)}"
            )
        share = recovered_share(*scores)
        values = {name: getattr(share, name) for name in ("lost", "lost_error", "recovered", "recovered_error")}
        finite = {name: round(value, DIGITS) if math.isfinite(value) else None for name, value in values.items()}
        rows.append({"task": task} | finite | {"counts": share.counts})
    return rows


def check_tasks(tasks: Sequence[str], items: int | None = None):
    """Check task names and return lm-eval's index of tasks (its ``TaskManager``).

    lm-eval's own thousands of task files are read only if ``tasks`` names one that is not bundled.
    Raises UsageError for an unknown task, and for fewer items than 2, which have no standard error.
    """
    if items is not None:
        check_number("items", items, 2, whole=True)
    from lm_eval.tasks import TaskManager

    if not tasks:
        raise UsageError(f"no task to evaluate: give {SUITE} or a task of lm-eval")
    foreign = [task for task in tasks if task not in NAMES]
    for task in foreign:
        if task.startswith("jettison"):
            raise unknown("task", task, NAMES)
    manager = TaskManager(include_path=str(suite_folder()), include_defaults=bool(foreign))
    for task in foreign:
        if task not in manager.all_tasks:
            close = get_close_matches(task, manager.all_tasks, n=3)
            hint = f"; close to it: {', '.join(close)}" if close else ""
            raise UsageError(
                f"unknown task {task!r}{hint}. Bundled: {SUITE}, its groups and tasks; others: lm-eval ls tasks"
            )
    return manager


def _run(loaded: Loaded, tasks: list[str], manager, items: int | None, batch: int) -> dict[str, list[dict[str, Any]]]:
    """Run lm-eval; return the samples that it logged, by task."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    class Scorer(HFLM):
        """lm-eval's own model class, with our progress bar and a check of the token ids."""

        def tok_encode(self, string, *args, **options):
            ids = super().tok_encode(string, *args, **options)
            loaded.source.check_tokens(ids, "a text of the tasks")
            return ids

        def loglikelihood(self, requests, disable_tqdm=True):
            with bar("tasks", len(requests)) as progress:
                self.set_cache_hook(_Watcher(progress))
                return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests, disable_tqdm=True):
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests, disable_tqdm=True):
            return super().generate_until(requests, disable_tqdm=True)

    scorer = Scorer(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        batch_size=batch,
        softmax_dtype="float32",  # in bfloat16, choices with nearly the same likelihood would tie
    )
    try:
        results = lm_eval.simple_evaluate(
            scorer, tasks=tasks, task_manager=manager, limit=items, bootstrap_iters=0, log_samples=True
        )
    except OSError as error:  # no network, no such data set and a full disk all raise OSError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise JettisonError(
            f"the data of {', '.join(tasks)} cannot be had: {reason}. "
            f"Tasks of lm-eval fetch theirs from the network once; {SUITE} needs none"
        ) from error
    return results["samples"]


class _Watcher:
    """Stands in for lm-eval's cache, which is called after every finished request, and advances a bar."""

    def __init__(self, progress: Bar):
        self._progress = progress

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        """Advance the bar. The name and the arguments are those of lm-eval's cache hook."""
        self._progress.advance()


def _summary(task: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarize the scores of a task.

    samples: lm-eval's log, one entry for each item and filter; only the first filter is used.
    """
    kept = sorted((item for item in samples if item["filter"] == samples[0]["filter"]), key=lambda item: item["doc_id"])
    metric = next((name for name in kept[0]["metrics"] if isinstance(kept[0][name], (int, float, np.number))), None)
    if metric is None:
        raise JettisonError(
            f"{task} has no score of single items, only {', '.join(kept[0]['metrics'])} of all together"
        )
    scores = np.array([float(item[metric]) for item in kept])
    error = float(scores.std(ddof=1)) / math.sqrt(len(scores)) if len(scores) > 1 else None
    return {
        "accuracy": round(float(scores.mean()), DIGITS),
        "standard_error": error if error is None else round(error, DIGITS),
        "random": round(TASKS[task].random, DIGITS) if task in TASKS else None,
        "items": len(scores),
        "metric": metric,
        "scores": " ".join(f"{score:g}" for score in scores),
    }


@contextmanager
def _hushed() -> Iterator[None]:
    """Silence lm-eval and datasets: no bars of theirs for every task, no notes; our bar is enough.

    lm-eval is also kept from recording the git commit and the machine: without a repository git prints an error, and
    neither record is used.
    """
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels, bars_off = [logger.level for logger in loggers], are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        with (
            patch("lm_eval.api.task.tqdm", lambda documents, **_: documents),
            patch("lm_eval.evaluator.get_git_commit_hash", lambda: None, create=True),
            patch("lm_eval.evaluator.add_env_info", lambda results: None, create=True),
        ):
            yield
    finally:
        if not bars_off:
            enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
