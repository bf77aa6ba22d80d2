"""The tables and claims that ``study.py`` makes from its cells. Differences are paired, by window and by item."""

import math
import statistics

from benchmarks.sds import distance
from benchmarks.sds.block import BASES
from benchmarks.sds.cells import (
    ABLATED,
    ABLATIONS,
    CONTROLLED,
    DISTANT,
    HELD,
    ITEMS,
    NAMES,
    OPT_CELLS,
    PATTERNS,
    VARIANTS,
)
from benchmarks.witness import claim
from jettison.pipeline.evaluation import TEXTS

OTHERS = {
    "plain": "its base",
    "control": "the control of equal budget, its mask chosen anew as in SDS",
    HELD: "the control of equal budget that holds the base's mask",
}
ATTEMPTS = (
    "Tried for SparseGPT and ALPS at 50 %, on text kept for choosing, 80 steps a stage: a ridge in proportion to each "
    "input's norm, half of the way to the original's outputs, no l1 and l2, the mask held, and statistics taken anew "
    "within a block after each group of its matrices; the last gains ALPS 0.006 nats on books, none gains anything on "
    "WikiText-2"
)


def gain(before: dict, after: dict, text: str) -> tuple[float, float]:
    """Return by how many nats per token ``after`` has the lower log-perplexity, and its standard error over windows."""
    pairs = zip(before["texts"][text]["windows"], after["texts"][text]["windows"], strict=True)
    return mean_and_error([one - other for one, other in pairs])


def points(before: dict, after: dict) -> tuple[float, float]:
    """Return the points of accuracy gained, as the mean over tasks, and its standard error over items."""
    means, errors = [], []
    for task in before["scores"]:
        sides = [[float(score) for score in result["scores"][task].split()] for result in (before, after)]
        mean, error = mean_and_error([100 * (new - old) for old, new in zip(*sides, strict=True)])
        means.append(mean)
        errors.append(error)
    return statistics.mean(means), math.sqrt(sum(error**2 for error in errors)) / len(errors)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def better(pair: tuple[float, float]) -> bool:
    """Return whether a difference exceeds two of its standard errors."""
    return pair[0] > 2 * pair[1]


def accuracy(result: dict) -> float:
    """Return the mean accuracy over tasks, in percent."""
    means = [statistics.mean(map(float, scores.split())) for scores in result["scores"].values()]
    return 100 * statistics.mean(means)


def row(name: str, result: dict) -> list[str]:
    """Return a row of a table: name, perplexities and accuracy."""
    perplexities = [f"{result['texts'][text]['perplexity']:.2f}" for text in TEXTS]
    return [name, *perplexities, f"{accuracy(result):.1f}"]


def in_nats(pair: tuple[float, float]) -> str:
    """Format a difference in nats, marked as better or worse where it is."""
    return f"{pair[0]:+.4f} ± {pair[1]:.4f}" + (
        " better" if better(pair) else " worse" if better((-pair[0], pair[1])) else ""
    )


def in_points(pair: tuple[float, float]) -> str:
    """Format a difference in points."""
    return "{:+.2f} ± {:.2f}".format(*pair)


def settings(have: dict[str, dict], model: str, *variants: str) -> list[tuple[str, dict[str, dict]]]:
    """Return the settings of which all these variants have been computed, with the cells by variant."""
    pairs = OPT_CELLS if model == "opt" else [(base, pattern) for pattern in PATTERNS for base in BASES]
    names = [f"{base} {pattern}" for base, pattern in pairs]
    cells = {name: {variant: have.get(f"{model}: {name}, {variant}") for variant in variants} for name in names}
    return [(name, of) for name, of in cells.items() if all(of.values())]


def tables(have: dict[str, dict]) -> dict:
    """Return the tables of the results page."""
    by_title = {}
    columns = ["", "books", "WikiText-2", "tasks, %"]
    for model in NAMES:
        if f"{model}: dense" not in have:
            continue
        rows = [row("dense", have[f"{model}: dense"])]
        for name, _ in settings(have, model, "plain"):
            cells = {variant: have.get(f"{model}: {name}, {variant}") for variant in CONTROLLED}
            rows += [row(name + ("" if v == "plain" else f", {v}"), cell) for v, cell in cells.items() if cell]
        by_title[f"{NAMES[model]}: perplexity and mean accuracy"] = {"columns": columns, "rows": rows}
        for other, title in OTHERS.items():
            rows = [
                [
                    name,
                    *(in_nats(gain(of[other], of["sds"], text)) for text in TEXTS),
                    in_points(points(of[other], of["sds"])),
                ]
                for name, of in settings(have, model, other, "sds")
            ]
            if rows:
                gained = ["", "books, nats", "WikiText-2, nats", "tasks, points"]
                by_title[f"{NAMES[model]}: what SDS gains over {title}"] = {"columns": gained, "rows": rows}
    for base, pattern in ABLATED:
        start = f"scribe: {base} {pattern}, "
        if f"{start}sds" in have:
            names = [name for name in ABLATIONS if start + name in have]
            rows = [[*row("SDS", have[f"{start}sds"]), "", ""]]
            for name in names:
                gains = [in_nats(gain(have[f"{start}sds"], have[start + name], text)) for text in TEXTS]
                rows.append(row(name, have[start + name]) + gains)
            head = [*columns, "books, nats gained", "WikiText-2, nats gained"]
            by_title[f"Ablations at {base} {pattern}"] = {"columns": head, "rows": rows}
    return by_title


def wins_over(have: dict[str, dict], other: str) -> dict[str, list[str]]:
    """Return lists of scribe's settings in which SDS is compared with the variant ``other``.

    ``measured``: both have been computed. ``both``: SDS is better on both texts. ``better on TEXT``, ``worse on TEXT``:
    SDS is better or worse on this text.
    """
    wins: dict[str, list[str]] = {"measured": [], "both": []}
    wins |= {f"{word} on {text}": [] for word in ("better", "worse") for text in TEXTS}
    for name, of in settings(have, "scribe", other, "sds"):
        gains = {text: gain(of[other], of["sds"], text) for text in TEXTS}
        wins["measured"].append(name)
        wins["both"] += [name] * all(map(better, gains.values()))
        for text, (mean, error) in gains.items():
            wins[f"better on {text}"] += [name] * better((mean, error))
            wins[f"worse on {text}"] += [name] * better((-mean, error))
    return wins


def claims(have: dict[str, dict]) -> tuple[list[dict], dict]:
    """Return the claims, and the wins of SDS by variant. Both are empty without cells."""
    wins = {other: wins_over(have, other) for other in OTHERS}
    base, control, held = wins.values()
    if not base["measured"]:
        return [], {}
    gained = [points(of["plain"], of["sds"]) for _, of in settings(have, "scribe", "plain", "sds")]
    mean = statistics.mean(mean for mean, _ in gained)
    error = math.sqrt(sum(error**2 for _, error in gained)) / len(gained)
    rest = [name for name in base["measured"] if name not in base["both"]]
    complete = [name for name, _ in settings(have, "scribe", *VARIANTS)]
    entries = [
        claim(
            "sds_wins", len(base["both"]), "of 16", "higher", 14,
            f"better than its base by more than two standard errors on books and on WikiText-2 ({counted(base)}); "
            f"not: {named(rest)}. {ATTEMPTS}",
        ),
        claim("sds_settings", len(complete), "settings", "equal", 16, "four methods, four patterns"),
    ]  # fmt: skip
    if control["measured"]:
        worse = "; ".join(f"the control is better on {text} at {named(control[f'worse on {text}'])}" for text in TEXTS)
        other = f". Over the control that holds the base's mask: {len(held['both'])} on both, {counted(held)}"
        entries.append(
            claim(
                "sds_beats_equal_budget", len(control["both"]), "of 16", "higher", 9,
                f"better on both texts than the control whose mask is chosen anew as in SDS ({counted(control)}); "
                f"{worse}{other if held['measured'] else ''}",
            )
        )  # fmt: skip
    entries.append(
        claim(
            "task_points_gained_mean", round(mean, 3), "points", "higher", 0.5,
            f"± {error:.2f}, mean over the 22 bundled tasks, {ITEMS} items each, and {len(gained)} settings",
        )
    )  # fmt: skip
    return entries + distance.claims(DISTANT), wins


def counted(wins: dict[str, list[str]]) -> str:
    """Format on how many settings SDS wins, by text."""
    counts = ", ".join(f"{len(wins[f'better on {text}'])} on {text} alone" for text in TEXTS)
    return f"{counts}, of {len(wins['measured'])} measured"


def named(names: list[str]) -> str:
    """Format a list of settings."""
    return ", ".join(names) or "none"
