"""The whole loop on one folder: plan, compress, recover, evaluate."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jettison.compress import compress
from jettison.devices import find_device
from jettison.errors import UsageError
from jettison.evaluate import evaluate
from jettison.evaluate.quality import TEXTS, TOKENS
from jettison.formats.manifest import read_manifest, update_manifest
from jettison.models import ModelFolder
from jettison.plan import forecast, plan
from jettison.plan.presets import CONTEXT, predict
from jettison.progress import say
from jettison.recipe import Recipe, load_recipe
from jettison.recover import recover


def fit(
    model: str | Path,
    *,
    out: str | Path,
    device: str = "this",
    tps: float | None = None,
    memory: str | float | None = None,
    context: int = CONTEXT,
    recipe: str | Path | Recipe | None = None,
    changes: Iterable[str] = (),
    texts: Iterable[str | Path] = TEXTS,
    tokens: int | None = TOKENS,
    seed: int = 0,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Make ``model`` fit a device and a budget: a smaller, recovered checkpoint in folder ``out``.

    tps, memory, context: the budget, see ``plan``; or ``recipe``, to choose oneself. changes: ``verb.option=value``.
    texts, tokens: what quality is measured on, see ``evaluate``. Returns the rows ``original``, ``quantized`` and, if
    the recipe recovers, ``recovered``, with ``plan`` (recipe and predicted cost). A killed run continues when it is
    called again. dry_run: returns ``plan`` and ``forecast`` (memory, disk, work) and does nothing.
    """
    changes, out = list(changes), Path(out)
    if recipe is None:
        chosen = plan(model, device=device, tps=tps, memory=memory, context=context, changes=changes)
    else:
        chosen = load_recipe(recipe, changes)
    if seed and chosen.of("recover") and not any(change.startswith("recover.seed=") for change in changes):
        chosen = load_recipe(chosen, [f"recover.seed={seed}"])
    cost = predict(ModelFolder(model), chosen, find_device(device), context)
    predicted = {
        "tokens_per_second": cost.tokens_per_second,
        "memory": cost.memory,
        "device": device,
        "context": context,
    }
    planned = {"recipe": chosen.to_dict(), "predicted": predicted}
    if dry_run:
        return {"plan": planned, "forecast": forecast(model, chosen)}
    say(f"recipe {chosen.name}: {chosen.use}")
    for reason in chosen.why:
        say(f"  {reason}")

    compress(model, chosen, out, seed=seed)
    measure = {"texts": [str(text) for text in texts], "tokens": tokens}
    _check_measured(out, measure["texts"])
    _once(out, "original", lambda: evaluate(model, **measure, teacher=model))
    _once(out, "quantized", lambda: evaluate(out, **measure, adapter=False))
    if chosen.of("recover"):
        recover(out)
        _once(out, "recovered", lambda: evaluate(out, **measure))
    return {"plan": planned} | read_manifest(out)["results"]


def _check_measured(out: Path, texts: list[str]) -> None:
    """Raises UsageError if an earlier run into this folder measured on other texts: stages would not compare."""
    for stage, result in read_manifest(out).get("results", {}).items():
        if list(result["texts"]) != texts:
            raise UsageError(
                f"{out} has its {stage} model measured on {', '.join(result['texts'])}, not on {', '.join(texts)}: "
                "continue with the same texts, or choose another folder"
            )


def _once(out: Path, stage: str, measure) -> None:
    """Measure a stage unless an earlier run already has: the quantized one cannot be had again after recovery."""
    results = read_manifest(out).get("results", {})
    if stage not in results:
        update_manifest(out, results=results | {stage: measure()})
