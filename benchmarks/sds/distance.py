"""The KL of pruned models from scribe, because perplexity alone can mislead. ``study.py`` runs this file.

If a model is too confident on a text, its perplexity there falls when anything blurs its outputs. scribe is too
confident on WikiText-2: ``confidence`` measures it. KL(original ‖ pruned), on the same windows, rewards no blurring.
"""

import json
import shutil
import statistics

import torch

from benchmarks.witness import RUNS, cell, claim
from jettison.domains.text.data import token_windows
from jettison.domains.text.domain import WINDOW
from jettison.domains.text.scores import BATCH, compare
from jettison.pipeline.compression import compress
from jettison.pipeline.evaluation import TEXTS, TOKENS
from jettison.runtime.load import Loaded, load

FOLDER = RUNS / "sds"
TEMPERATURES = (0.9, 1.0, 1.1, 1.2, 1.3)


def windows_of(model: Loaded, text: str) -> torch.Tensor:
    """Return the windows of a text on which perplexity and KL are measured, (windows, tokens)."""
    return token_windows(model.source, text, WINDOW, TOKENS // WINDOW)


def distance(name: str, prune: dict) -> dict:
    """Return KL(original ‖ pruned) by text and window, in nats per token.

    name: of the cell.
    prune: the prune step.
    """
    return cell(FOLDER.name, f"distance-{name}", lambda: _distance(prune, FOLDER / f"distance-{name}"))


def _distance(prune: dict, folder) -> dict:
    compress("scribe", {"name": "prune", "steps": [{"prune": prune}]}, folder)
    original, pruned = load("scribe"), load(folder)
    shutil.rmtree(folder)
    kl = lambda text: [
        compare(pruned.logits, original.logits, ids[None], text)["kl"] for ids in windows_of(original, text)
    ]
    return {text: kl(text) for text in TEXTS}


def confidence() -> dict:
    """Return the log-perplexity of scribe itself by text, with logits divided by each of TEMPERATURES."""
    return cell(FOLDER.name, "confidence", _confidence)


@torch.no_grad()
def _confidence() -> dict:
    model, losses_of = load("scribe"), {}
    for text in TEXTS:
        losses = dict.fromkeys(map(str, TEMPERATURES), 0.0)
        windows = windows_of(model, text)
        for ids in windows.split(BATCH):
            logits, targets = model.logits(ids)[:, :-1].float(), ids[:, 1:].unsqueeze(-1)  # (batch, tokens - 1, ...)
            for temperature in TEMPERATURES:
                log_probs = (logits / temperature).log_softmax(-1).gather(-1, targets)
                losses[str(temperature)] -= float(log_probs.sum()) / (windows.shape[0] * (windows.shape[1] - 1))
        losses_of[text] = losses
    return losses_of


def gains(other: str, sds: str) -> dict[str, tuple[float, float, float, float]] | None:
    """Compare the KL of SDS with that of another cell, by text.

    other, sds: the names of the two cells.
    Returns text -> KL of the other, KL of SDS, their mean difference and its standard error over windows; None if a
        cell is missing.
    """
    files = [FOLDER / f"distance-{name}.json" for name in (other, sds)]
    if not all(file.exists() for file in files):
        return None
    before, after = (json.loads(file.read_text()) for file in files)
    by_text = {}
    for text in TEXTS:
        diffs = [one - two for one, two in zip(before[text], after[text], strict=True)]
        error = statistics.stdev(diffs) / len(diffs) ** 0.5
        by_text[text] = (statistics.mean(before[text]), statistics.mean(after[text]), statistics.mean(diffs), error)
    return by_text


def measured(distant: dict[str, dict[str, str]], other: str) -> dict[str, dict]:
    """Return setting -> ``gains`` of SDS over the variant ``other``, where both cells have been computed."""
    by_setting = {setting: gains(names[other], names["sds"]) for setting, names in distant.items()}
    return {setting: gain for setting, gain in by_setting.items() if gain}


def tables(distant: dict[str, dict[str, str]]) -> dict:
    """Return the tables of the cells that have been computed."""
    by_title = {}
    for other, title in (("plain", "base"), ("control", "control")):
        rows = [
            [
                setting,
                *(
                    part
                    for before, after, nearer, error in gain.values()
                    for part in (f"{before:.4f}", f"{after:.4f}", f"{nearer:+.4f} ± {error:.4f}")
                ),
            ]
            for setting, gain in measured(distant, other).items()
        ]
        if rows:
            columns = ["", f"books: {title}", "SDS", "nearer by", f"WikiText-2: {title}", "SDS", "nearer by"]
            by_title[f"scribe: KL from the original, nats per token: SDS and its {title}"] = {
                "columns": columns,
                "rows": rows,
            }
    if (file := FOLDER / "confidence.json").exists():
        losses = json.loads(file.read_text())
        rows = [[text, *(f"{value:.4f}" for value in losses[text].values())] for text in TEXTS]
        by_title["scribe itself: log-perplexity with logits divided by a temperature"] = {
            "columns": ["", *map(str, TEMPERATURES)],
            "rows": rows,
        }
    return by_title


def claims(distant: dict[str, dict[str, str]]) -> list[dict]:
    """Return claims: in how many settings SDS is nearer to the original on both texts, by over two standard errors."""
    entries = []
    for id, other, target, title in (
        ("sds_nearer_by_kl", "plain", 14, "its base"),
        ("sds_nearer_than_control_by_kl", "control", 9, "the control whose mask is chosen anew"),
    ):
        by_setting = measured(distant, other)
        if not by_setting:
            continue
        near = {
            text: [name for name, gain in by_setting.items() if gain[text][2] > 2 * gain[text][3]] for text in TEXTS
        }
        far = {
            text: [name for name, gain in by_setting.items() if gain[text][2] < -2 * gain[text][3]] for text in TEXTS
        }
        both = sum(all(name in near[text] for text in TEXTS) for name in by_setting)
        counts = ", ".join(f"{len(near[text])} on {text}" for text in TEXTS)
        farther = "; ".join(f"farther on {text}: {', '.join(far[text]) or 'none'}" for text in TEXTS)
        note = f"nearer than {title} on both texts, by KL from the original ({counts}); {farther}"
        entries.append(claim(id, both, f"of {len(by_setting)}", "higher", target, note))
    return entries
