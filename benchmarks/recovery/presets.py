"""The loss of each preset on scribe: the table in docs/studies/measured.md and ``loss`` of presets for the planner.

    python -m benchmarks.recovery.presets          # about half an hour on two cores; continues preset by preset
    python -m benchmarks.recovery.presets --check  # recomputes those without recovery, about three minutes

Recovery goes twice through 1024 samples of 256 tokens. That takes minutes; the presets' defaults take hours.
"""

import argparse
import json

from benchmarks.witness import RESULTS, RUNS, cell, claim, compare, origin, write_result
from jettison.pipeline.compression import compress
from jettison.pipeline.evaluation import TEXTS, evaluate
from jettison.pipeline.recovery import recover
from jettison.recipe.recipe import load_recipe, preset_names

NAME = "presets"
SHORT = ["recover.samples=1024", "recover.length=256", "recover.epochs=2", "recover.batch=8"]
SHORT += ["recover.lr=0.003", "recover.scale_lr=0.003"]


def run(preset: str) -> dict:
    """Compress scribe by a preset, recover if the preset does, and return the scores of each stage."""
    folder = RUNS / NAME / preset
    changes = SHORT if load_recipe(preset).of("recover") else []
    compress("scribe", preset, folder, changes=changes)
    result = {"quantized": evaluate(folder, tokens=None, adapter=False)}
    if changes:
        file = RUNS / NAME / f"{preset}-quantized.json"
        if file.exists():  # killed in its recovery, which has changed the quantized model: use the recorded scores
            result = json.loads(file.read_text())
        file.write_text(json.dumps(result))
        recover(folder)
        result["recovered"] = evaluate(folder, tokens=None)
    return result


def loss(original: dict, result: dict) -> float:
    """Return the log-perplexity lost on books after the last stage, in nats per token."""
    last = result.get("recovered", result["quantized"])
    return last["texts"][TEXTS[0]]["log_perplexity"] - original["texts"][TEXTS[0]]["log_perplexity"]


def main() -> None:
    """Compute the cells of all presets, and write the result; or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        return check()
    original = cell(NAME, "original", lambda: evaluate("scribe", teacher="scribe", tokens=None))
    results = {preset: cell(NAME, f"cell-{preset}", lambda preset=preset: run(preset)) for preset in preset_names()}
    order = sorted(results, key=lambda preset: loss(original, results[preset]))
    rows = [row("original", original)]
    for preset in order:
        rows.append(row(preset, results[preset]["quantized"]))
        if "recovered" in results[preset]:
            rows.append(row(f"{preset}, recovered", results[preset]["recovered"]))
    columns = ["scribe", "size", "bits/weight", "books", "KL", "WikiText-2", "KL"]
    recorded = {preset: load_recipe(preset).loss for preset in order}
    measured = {preset: round(loss(original, results[preset]), 3) for preset in order}
    worst = max(abs(recorded[preset] - measured[preset]) if recorded[preset] is not None else 9.0 for preset in order)
    details = {"tables": {"Presets (perplexity, and KL from the original)": {"columns": columns, "rows": rows}}}
    details |= {"loss": measured, "original": original, "results": results}
    seconds = sum(result["seconds"] for result in (original, *results.values()))
    off = claim("recorded_loss_off_by_at_most", worst, "nats", "lower", 0.005, origin(results["gateup-w4w2"]))
    write_result(NAME, [off], seconds, details, script=__file__)
    print(json.dumps(measured, indent=1))


def row(name: str, result: dict) -> list[str]:
    """Return a row of the table: name, size, bits per weight, perplexity and KL by text."""
    cells = [name, f"{result['size']['bytes'] / 1e6:.2f} MB", f"{result['size']['bits_per_weight']:.2f}"]
    for text in TEXTS:
        scores = result["texts"][text]
        cells += [f"{scores['perplexity']:.2f}", f"{scores['kl']:.4f}"]
    return cells


def check() -> None:
    """Recompute the presets without recovery, on books, and compare with the result file; exits."""
    recorded = json.loads((RESULTS / f"{NAME}.json").read_text())["details"]
    checks = {}
    for preset, result in recorded["results"].items():
        if "recovered" not in result:
            folder = RUNS / NAME / f"check-{preset}"
            compress("scribe", preset, folder)
            now = evaluate(folder, texts=TEXTS[:1], tokens=None)["texts"][TEXTS[0]]["log_perplexity"]
            checks[preset] = (now, result["quantized"]["texts"][TEXTS[0]]["log_perplexity"], 0.005)
    compare(checks)


if __name__ == "__main__":
    main()
