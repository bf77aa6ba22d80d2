"""How far pruned models are from scribe, in KL, where perplexity alone does not tell. ``sds.py`` runs it.

Perplexity on a text that a model is too sure of falls when its outputs are blurred, whatever blurs them. scribe is that
sure on WikiText-2: ``confidence`` measures it. KL(original ‖ pruned), on the same windows, knows no such reward.
"""

import json
import shutil
import statistics

import torch
from witness import RUNS, cell

from jettison.calibrate import token_windows
from jettison.compress import compress
from jettison.decode import Loaded, load
from jettison.evaluate.quality import BATCH, TEXTS, TOKENS, WINDOW, compare

FOLDER = RUNS / "sds"
BASES = ("sparsegpt", "alps")  # which are near SDS
TEMPERATURES = (0.9, 1.0, 1.1, 1.2, 1.3)


def windows_of(model: Loaded, text: str) -> torch.Tensor:
    return token_windows(model.tokenizer, text, WINDOW, TOKENS // WINDOW)


def distance(name: str, prune: dict) -> dict:
    """KL(original ‖ pruned) by text and window, nats per token. name: of the cell; prune: the step."""
    return cell(FOLDER.name, f"distance-{name}", lambda: _distance(prune, FOLDER / f"distance-{name}"))


def _distance(prune: dict, folder) -> dict:
    compress("scribe", {"name": "prune", "steps": [{"prune": prune}]}, folder)
    original, pruned = load("scribe"), load(folder)
    shutil.rmtree(folder)
    kl = lambda text: [compare(pruned, original, ids[None], text)["kl"] for ids in windows_of(original, text)]
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


def gains(pair: tuple[str, str]) -> dict[str, tuple[float, float, float, float]] | None:
    """By text: KL of the base, KL of SDS, the mean difference and its standard error over windows; None without cells.

    pair: the names of the two cells.
    """
    files = [FOLDER / f"distance-{name}.json" for name in pair]
    if not all(file.exists() for file in files):
        return None
    base, sds = (json.loads(file.read_text()) for file in files)
    found = {}
    for text in TEXTS:
        each = [before - after for before, after in zip(base[text], sds[text], strict=True)]
        error = statistics.stdev(each) / len(each) ** 0.5
        found[text] = (statistics.mean(base[text]), statistics.mean(sds[text]), statistics.mean(each), error)
    return found


def tables(slugs: dict[str, tuple[str, str]]) -> dict:
    """Of the cells that there are. slugs: of each setting, the cells of the base and of SDS."""
    found, rows = {}, []
    for setting, measured in ((setting, gains(pair)) for setting, pair in slugs.items()):
        if measured:
            cells = [
                part
                for base, sds, nearer, error in measured.values()
                for part in (f"{base:.4f}", f"{sds:.4f}", f"{nearer:+.4f} ± {error:.4f}")
            ]
            rows.append([setting, *cells])
    if rows:
        columns = ["", "books: base", "SDS", "nearer by", "WikiText-2: base", "SDS", "nearer by"]
        found["scribe: KL from the original, nats per token"] = {"columns": columns, "rows": rows}
    if (file := FOLDER / "confidence.json").exists():
        measured = json.loads(file.read_text())
        rows = [[text, *(f"{value:.4f}" for value in measured[text].values())] for text in TEXTS]
        found["scribe itself: log-perplexity with logits divided by a temperature"] = {
            "columns": ["", *map(str, TEMPERATURES)],
            "rows": rows,
        }
    return found


def told(slugs: dict[str, tuple[str, str]]) -> str:
    """For a claim's note: in how many of these settings SDS is nearer by more than two standard errors."""
    every = [measured for measured in map(gains, slugs.values()) if measured]
    if not every:
        return ""
    nearer = {text: sum(of[text][2] > 2 * of[text][3] for of in every) for text in TEXTS}
    counts = " and ".join(f"{count} on {text}" for text, count in nearer.items())
    bases = " and ".join(BASES)
    return f"By KL from the original, SDS is nearer than its base in {counts} of {len(every)} settings of {bases}"
