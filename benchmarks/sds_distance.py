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


def tables(slugs: dict[str, tuple[str, str]]) -> dict:
    """Of the cells that there are. slugs: of each setting, the cells of the base and of SDS."""
    read = lambda name: json.loads((FOLDER / f"{name}.json").read_text())
    there = lambda *names: all((FOLDER / f"{name}.json").exists() for name in names)
    found, rows = {}, []
    for setting, pair in slugs.items():
        if not there(*(f"distance-{name}" for name in pair)):
            continue
        base, sds = (read(f"distance-{name}") for name in pair)
        row = [setting]
        for text in TEXTS:
            gains = [before - after for before, after in zip(base[text], sds[text], strict=True)]
            error = statistics.stdev(gains) / len(gains) ** 0.5
            means = (statistics.mean(each[text]) for each in (base, sds))
            row += [*(f"{mean:.4f}" for mean in means), f"{statistics.mean(gains):+.4f} ± {error:.4f}"]
        rows.append(row)
    if rows:
        columns = ["", "books: base", "SDS", "nearer by", "WikiText-2: base", "SDS", "nearer by"]
        found["scribe: KL from the original, nats per token"] = {"columns": columns, "rows": rows}
    if there("confidence"):
        measured = read("confidence")
        rows = [[text, *(f"{value:.4f}" for value in measured[text].values())] for text in TEXTS]
        found["scribe itself: log-perplexity with logits divided by a temperature"] = {
            "columns": ["", *map(str, TEMPERATURES)],
            "rows": rows,
        }
    return found
