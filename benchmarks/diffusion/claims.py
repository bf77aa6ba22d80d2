"""The claims, tables and pictures of benchmarks.diffusion.programs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.diffusion.baselines import UNIFORM, program_of
from benchmarks.diffusion.pictures import sample_grid
from benchmarks.diffusion.sets import STEPS, Sets, ends
from benchmarks.diffusion.speed import BATCHES, growth, latency
from benchmarks.witness import ROOT, claim, write_result
from jettison.metrics.frechet import frechet_interval

MIDDLE = 0.6  # the ratio of the claims on quality and latency
SHARE, GAIN, RATIO, WINS = 0.85, 2.1, 1.1, 2  # targets; that of the ratio is ours (paper, DiT-XL: 3.01 / 2.97)
FAMILIES = {"fewer_steps": ("fewer steps",), "uniform_cache": tuple(UNIFORM)}
PICTURE = ROOT / "docs" / "studies" / "diffusion-samples.webp"
Scores = Mapping[float, Mapping[str, Mapping[str, Any]]]  # ratio -> method -> scores


def write(bench: Any) -> None:
    """Measure times, and write benchmarks/results/NAME.json and the picture of samples.

    bench: a ``Bench`` of benchmarks.diffusion.programs.
    """
    sets, scores = bench.sets, bench.compared()
    key = bench.chosen()["search"]
    result, _ = bench.searched(key, **bench.searches[key])
    programs = {ratio: program_of(result, ratio) for ratio in scores}
    full = whole(sets)
    timed = sets.cell("latency", lambda: latency(sets, programs))
    grown = sets.cell("growth", growth)
    ablated = list(bench.ablations())
    claims = [wins(sets, scores, family) for family in FAMILIES]
    middle = scores[MIDDLE]["DiP-GO"]
    note = f"{middle['real'][0]:.3g} of the program, {full['real'][0]:.3g} of full runs, from real images; target ours"
    claims.append(
        claim("frechet_ratio_vs_full_at_0_6", round(middle["real"][0] / full["real"][0], 4), "x", "lower", RATIO, note)
    )
    row, computed = timed["rows"][f"{BATCHES[-1]}, {MIDDLE}"], 1 / (1 - programs[MIDDLE].costs.pruned)
    note = f"{BATCHES[-1]} images at once; interval {row['low']} to {row['high']}; {computed:.2f} by FLOPs"
    claims.append(claim("latency_gain_at_0_6", row["ratio"], "x", "higher", GAIN, note))
    claims.append(claim("latency_share_of_computed", round(row["ratio"] / computed, 3), "", "higher", SHARE, note))
    tables = {f"quality at pruning {ratio}": quality(rows) for ratio, rows in scores.items()}
    tables["Fréchet distance of DiP-GO minus that of others"] = differences(sets, scores)
    tables |= {"latency": times(timed, programs), "growth of a search": grown_table(grown)}
    tables["ablations"] = ablation_table(ablated)
    details = {
        "model": facts(sets, full), "chosen": bench.chosen(), "programs": {
            str(ratio): {"pruned": round(program.costs.pruned, 4), "reuse": program.reuse, "gates": program.gates}
            for ratio, program in programs.items()
        },
        "sets": {row["key"]: {name: row[name][0] for name in ("real", "full")}
                 for rows in scores.values() for row in rows.values()} | {"full": {"real": full["real"][0]}},
        "disturbance": timed["disturbance"], "tables": tables,
    }  # fmt: skip
    details["searches"] = {
        name: bench.searched(name, **changes)[1]["curve"] for name, changes in bench.searches.items()
    }
    rows = {"full run": sets.full(sets.unseen)[0]["images"]}
    for ratio in scores:
        rows |= {
            f"{name}, {ratio}": sets.kept(scores[ratio][name]["key"])["images"] for name in ("DiP-GO", "fewer steps")
        }
    rows[f"uniform, blocks, {MIDDLE}"] = sets.kept(scores[MIDDLE]["uniform, blocks"]["key"])["images"]
    sample_grid(rows, sets.classes, PICTURE)
    write_result(
        sets.name, claims, seconds(sets.folder), details, script=str(Path(__file__).with_name("programs.py"))
    )  # fmt: skip


def whole(sets: Sets) -> dict[str, Any]:
    """Return the distance of full runs from real images, [value, low, high]."""
    features, resamples = sets.full(sets.unseen)[0]["features"], sets.resamples
    work = lambda: {"real": ends(frechet_interval(features, sets.real(), resamples=resamples))}
    return sets.cell("full-real", work)


def wins(sets: Sets, scores: Scores, family: str) -> dict[str, Any]:
    """Return the claim: at how many ratios DiP-GO is better than every baseline of a family, by both distances.

    Better means that the whole interval of the difference is below 0.
    """
    both, real, near = [], [], []
    for ratio, rows in scores.items():
        gaps = [sets.difference(rows["DiP-GO"]["key"], rows[other]["key"]) for other in FAMILIES[family]]
        each = {name: all(gap[name][2] < 0 for gap in gaps) for name in ("real", "full")}
        real += [str(ratio)] * each["real"]
        near += [str(ratio)] * each["full"]
        both += [ratio] * all(each.values())
    listed = lambda ratios: ", ".join(ratios) or "none"
    note = f"by the distance from real images at {listed(real)}; from full runs at {listed(near)}"
    if len(FAMILIES[family]) > 1:
        note += f"; a win is one over all of {'; '.join(FAMILIES[family])}"
    return claim(f"frechet_wins_vs_{family}", len(both), f"of {len(scores)}", "higher", WINS, note)


def shown(interval: Sequence[float]) -> str:
    """Return a distance with its interval as text."""
    return f"{interval[0]:.3g} ({interval[1]:.3g} to {interval[2]:.3g})"


def quality(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the table of all methods at one ratio."""
    columns = ["", "FLOPs", "distance from real images", "from full runs", "SSIM"]
    lines = [
        [name, f"{100 * row['cost']:.1f} %", shown(row["real"]), shown(row["full"]), row["ssim"]]
        for name, row in rows.items()
    ]
    return {"columns": columns, "rows": lines}


def differences(sets: Sets, scores: Scores) -> dict[str, Any]:
    """Return the table of differences between DiP-GO and the baselines that claims are about; negative: DiP-GO wins."""
    lines = []
    for ratio, rows in scores.items():
        for other in (name for names in FAMILIES.values() for name in names):
            gap = sets.difference(rows["DiP-GO"]["key"], rows[other]["key"])
            lines.append([ratio, other, shown(gap["real"]), shown(gap["full"])])
    return {"columns": ["pruning", "minus", "distance from real images", "from full runs"], "rows": lines}


def times(timed: Mapping[str, Any], programs: Mapping[float, Any]) -> dict[str, Any]:
    """Return the table of latencies."""
    lines = []
    for ratio, program in programs.items():
        for batch in BATCHES:
            row, computed = timed["rows"][f"{batch}, {ratio}"], 1 / (1 - program.costs.pruned)
            share = f"{row['ratio'] / computed:.3f}"
            lines.append([ratio, batch, row["full_ms"], row["ms"], row["ratio"], f"{computed:.3f}", share])
    columns = ["pruning", "images at once", "full run, ms", "program, ms", "gain", "by FLOPs", "share"]
    return {"columns": columns, "rows": lines}


def grown_table(grown: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of a search's time and memory."""
    columns = ["steps T", "blocks N", "T x N", "checkpointing", "seconds per step", "MB"]
    return {"columns": columns, "rows": grown["rows"]}


def ablation_table(ablated: Sequence[tuple[str, float, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the table of ablations, and whether each goes in the paper's direction: worse than the first row."""
    (_, _, base), lines = ablated[0], []
    for name, paper, row in ablated:
        same = "" if row is base else "as in the paper" if row["full"][0] > base["full"][0] else "opposite"
        lines.append([name, shown(row["full"]), shown(row["real"]), row["ssim"], paper, same])
    columns = [
        "search",
        "distance from full runs",
        "from real images",
        "SSIM",
        "CLIP in the paper, at 0.8",
        "direction",
    ]
    return {"columns": columns, "rows": lines}


def facts(sets: Sets, full: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of the model and its full runs."""
    file = sets.model / "training.json"
    training = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    names = ("parameters", "width", "layers", "heads", "steps", "batch", "epochs", "last_loss", "test_loss")
    return {
        "training": {name: training[name] for name in names if name in training}, "sampler": "DDIM", "steps": STEPS,
        "guidance": sets.guidance, "seeds": sets.count, "features": sets.real().shape[1],
        "distance_of_full_runs": full["real"],
    }  # fmt: skip


def seconds(folder: Path) -> float:
    """Return how long all cells took."""
    return sum(json.loads(file.read_text(encoding="utf-8"))["seconds"] for file in folder.glob("*.json"))
