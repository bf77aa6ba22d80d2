"""How far pruned models are from scribe, in KL, where perplexity alone does not tell. ``study.py`` runs it.

Perplexity on a text that a model is too sure of falls when its outputs are blurred, whatever blurs them. scribe is that
sure on WikiText-2: ``confidence`` measures it. KL(original ‖ pruned), on the same windows, knows no such reward.
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
    return token_windows(model.source, text, WINDOW, TOKENS // WINDOW)


def distance(name: str, prune: dict) -> dict:
    """KL(original ‖ pruned) by text and window, nats per token. name: of the cell; prune: the step."""
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
    """Log-perplexity of scribe itself by text, its logits divided by each of TEMPERATURES."""
    return cell(FOLDER.name, "confidence", _confidence)


@torch.no_grad()
def _confidence() -> dict:
    model, found = load("scribe"), {}
    for text in TEXTS:
        losses = dict.fromkeys(map(str, TEMPERATURES), 0.0)
        windows = windows_of(model, text)
        for ids in windows.split(BATCH):
            logits, wanted = model.logits(ids)[:, :-1].float(), ids[:, 1:].unsqueeze(-1)
            for temperature in TEMPERATURES:
                rates = (logits / temperature).log_softmax(-1).gather(-1, wanted)
                losses[str(temperature)] -= float(rates.sum()) / (windows.shape[0] * (windows.shape[1] - 1))
        found[text] = losses
    return found


def gains(other: str, sds: str) -> dict[str, tuple[float, float, float, float]] | None:
    """By text: KL of the other, KL of SDS, the mean difference and its standard error over windows; None without cells.

    other, sds: the names of the two cells.
    """
    files = [FOLDER / f"distance-{name}.json" for name in (other, sds)]
    if not all(file.exists() for file in files):
        return None
    before, after = (json.loads(file.read_text()) for file in files)
    found = {}
    for text in TEXTS:
        each = [one - two for one, two in zip(before[text], after[text], strict=True)]
        error = statistics.stdev(each) / len(each) ** 0.5
        found[text] = (statistics.mean(before[text]), statistics.mean(after[text]), statistics.mean(each), error)
    return found


def measured(distant: dict[str, dict[str, str]], other: str) -> dict[str, dict]:
    """setting -> ``gains`` of SDS over the variant ``other``, where there are cells."""
    found = {setting: gains(names[other], names["sds"]) for setting, names in distant.items()}
    return {setting: each for setting, each in found.items() if each}


def tables(distant: dict[str, dict[str, str]]) -> dict:
    """Of the cells that there are."""
    found = {}
    for other, title in (("plain", "base"), ("control", "control")):
        rows = [
            [
                setting,
                *(
                    part
                    for before, after, nearer, error in each.values()
                    for part in (f"{before:.4f}", f"{after:.4f}", f"{nearer:+.4f} ± {error:.4f}")
                ),
            ]
            for setting, each in measured(distant, other).items()
        ]
        if rows:
            columns = ["", f"books: {title}", "SDS", "nearer by", f"WikiText-2: {title}", "SDS", "nearer by"]
            found[f"scribe: KL from the original, nats per token: SDS and its {title}"] = {
                "columns": columns,
                "rows": rows,
            }
    if (file := FOLDER / "confidence.json").exists():
        losses = json.loads(file.read_text())
        rows = [[text, *(f"{value:.4f}" for value in losses[text].values())] for text in TEXTS]
        found["scribe itself: log-perplexity with logits divided by a temperature"] = {
            "columns": ["", *map(str, TEMPERATURES)],
            "rows": rows,
        }
    return found


def claims(distant: dict[str, dict[str, str]]) -> list[dict]:
    """In how many settings SDS is nearer to the original on both texts, by more than two standard errors."""
    found = []
    for id, other, target, title in (
        ("sds_nearer_by_kl", "plain", 14, "its base"),
        ("sds_nearer_than_control_by_kl", "control", 9, "the control whose mask is chosen anew"),
    ):
        every = measured(distant, other)
        if not every:
            continue
        near = {text: [name for name, of in every.items() if of[text][2] > 2 * of[text][3]] for text in TEXTS}
        far = {text: [name for name, of in every.items() if of[text][2] < -2 * of[text][3]] for text in TEXTS}
        both = sum(all(name in near[text] for text in TEXTS) for name in every)
        each = ", ".join(f"{len(near[text])} on {text}" for text in TEXTS)
        farther = "; ".join(f"farther on {text}: {', '.join(far[text]) or 'none'}" for text in TEXTS)
        note = f"nearer than {title} on both texts, by KL from the original ({each}); {farther}"
        found.append(claim(id, both, f"of {len(every)}", "higher", target, note))
    return found
