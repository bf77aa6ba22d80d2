"""The claims, tables and the picture of benchmarks.offload.privatar, from its cells."""

import base64
import io
import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.offload import load
from benchmarks.witness import RESULTS, ROOT, claim, compare, result_text, show, write_result
from jettison.core.files import write_atomic, write_text
from jettison.core.numbers import figures
from jettison.offload.capacity import Times, energy, find_constants, headlines, paper_table, users
from jettison.offload.gallery import pictures
from jettison.offload.noise import make_noise

NAME = "privatar"
GOLDEN = ROOT / "tests" / "golden" / "privatar"
PICTURE = ROOT / "docs" / "studies" / "offload-row.png"
COLUMNS = ("original", "local part alone", "offloaded, 1 nat", "guesser's view, 1 nat")
# Bits per second that the paper's transfer times imply: 0.0176 s for a component of 3 x 256 x 256 floats. Of a period,
# as in the paper, one frame of a user is decoded.
LINK_BPS, PERIOD_S = 3.57e8, 1.0
HEADSET_USERS = 2.48  # frames in a period that the paper's headset decodes by itself
PAYS = 0.05  # offloading pays if it recovers this share of what the local part alone loses
SHOWN = 1.0  # nats, of the picture


def reference() -> dict[str, float]:
    """Return the errors of noise traces against the reference vectors, and what the exact form saves there."""
    from safetensors.torch import load_file

    cases, vectors = json.loads((GOLDEN / "cases.json").read_text()), load_file(GOLDEN / "vectors.safetensors")
    errors, saved = [], {}
    for case in cases["noise_cases"]:
        covariance = vectors[f"nz{case['index']}_Sigma"]
        exact, linear = (make_noise(covariance, case["v"], rule).trace for rule in ("exact", "linear"))
        errors.append(abs(exact / case["trace_exact_constraint_optimum"] - 1))
        errors.append(abs(linear / case["trace_linear_bound_rule"] - 1))
        saved[case["dim"], case["v"]] = exact / linear
    return {"error": max(errors), "exact_vs_linear": saved[8, 4], "cases": len(errors)}


def on_a_headset(timed: Mapping[str, Any], main: int) -> dict[str, Any]:
    """Return the device's times, scaled so that the whole network takes as long as on the paper's headset."""
    factor = PERIOD_S / HEADSET_USERS / timed["whole"][str(main)]
    scaled = {
        part: {name: factor * value for name, value in timed[part].items()} for part in ("local", "whole", "others")
    }
    return {**timed, **scaled, "factor": factor}


def split_times(timed: Mapping[str, Any], k: int, share: float) -> Times:
    """Return the times of a frame of which ``share`` are sent: the link has LINK_BPS, others reuse an answer."""
    worker = timed["workers"][str(k)]
    link = worker["transfer_s"] + 8 * (worker["bytes_up"] + worker["bytes_down"]) / LINK_BPS
    return Times(
        local_s=timed["local"][str(k)], whole_s=timed["whole"][str(k)], transfer_s=share * link,
        worker_s=share * worker["worker_s"], bytes_up=round(share * worker["bytes_up"]),
        bytes_down=round(share * worker["bytes_down"]),
    )  # fmt: skip


def attack_margin(done: Mapping[str, Any]) -> tuple[float, str]:
    """Return by how much the upper end of an interval comes nearest to its bound, or passes it, and where."""
    rows = [
        (row["high"] - row["bound"],
         f"k = {k}, {row['rule']}, V = {row['limit']:g}, N = {row['repeats']}, {row['attack']}")
        for k, cell in done["attacks"].items() for row in cell["rows"] if row["rule"] != "none"
    ]  # fmt: skip
    return max(rows)


def noiseless(done: Mapping[str, Any]) -> tuple[float, str]:
    """Return the lowest success without noise, and whose it is."""
    return min(
        (row["rate"], f"k = {k}, {row['attack']}")
        for k, cell in done["attacks"].items() for row in cell["rows"] if row["rule"] == "none"
    )  # fmt: skip


def against_dp(done: Mapping[str, Any]) -> list[float]:
    """Return the trace of honest local DP over that of the exact form, for every k, limit and N."""
    ratios = []
    for cell in done["losses"].values():
        traces = {(row["limit"], row["draws"], row["rule"]): row["trace"] for row in cell["rows"]}
        ratios += [
            traces[limit, draws, "dp-replace"] / trace
            for (limit, draws, rule), trace in traces.items() if rule == "exact"
        ]  # fmt: skip
    return ratios


def recovered(loss: float, bounds: Mapping[str, float]) -> float:
    """Return the share of what the local part alone loses that offloading recovers; negative if it is worse.

    0 if even without noise there is nothing to recover.
    """
    gap = bounds["local"] - bounds["no noise"]
    return (bounds["local"] - loss) / gap if gap > 0 else 0.0


def loss_table(done: Mapping[str, Any]) -> dict[str, Any]:
    """Return loss by k, limit, draws and rule: single frames with noise of V / N."""
    rules = list(dict.fromkeys(row["rule"] for row in next(iter(done["losses"].values()))["rows"]))
    rows = []
    for k, cell in done["losses"].items():
        own = done["avatars"][k]
        of = {(row["limit"], row["draws"], row["rule"]): row for row in cell["rows"]}
        for limit, draws in dict.fromkeys((row["limit"], row["draws"]) for row in cell["rows"]):
            values = [f"{of[limit, draws, rule]['loss']:.4f}" for rule in rules]
            traces = [figures(of[limit, draws, rule]["trace"]) for rule in ("exact", "linear", "dp-replace")]
            ends = [f"{own['loss']:.4f}", f"{own['local_loss']:.4f}"]
            rows.append([k, f"{limit:g}", draws, ends[0], *values, ends[1], *traces])
    columns = ["k", "V", "N", "no noise", *rules, "local part alone", "trace: exact", "linear", "dp-replace"]
    return {"columns": columns, "rows": rows}


def attack_table(done: Mapping[str, Any]) -> dict[str, Any]:
    """Return for every k, limit and N the most successful attack on exact noise beside the bound."""
    rows = []
    for k, cell in done["attacks"].items():
        for row in (row for row in cell["rows"] if row["rule"] == "none"):
            rows.append([k, "none", "", row["attack"], percent(row["rate"]), percent(row["high"]), "", ""])
        exact = [row for row in cell["rows"] if row["rule"] == "exact"]
        for limit, draws in dict.fromkeys((row["limit"], row["repeats"]) for row in exact):
            best = max(
                (row for row in exact if (row["limit"], row["repeats"]) == (limit, draws)), key=lambda row: row["high"]
            )
            rows.append([
                k, f"{limit:g}", draws, best["attack"], percent(best["rate"]), percent(best["high"]),
                percent(best["bound"]), figures(best["told"]),
            ])  # fmt: skip
    columns = ["k", "V", "N", "best attack", "right", "95 % upper end", "at most", "nats told, measured"]
    return {"columns": columns, "rows": rows}


def sequence_table(done: Mapping[str, Any], plan: Any) -> dict[str, Any]:
    """Return loss and users of sequences: by limit, hold and N, and whether offloading still pays."""
    rows = []
    for row in done["sequences"]["rows"]:
        share, gain = row["fresh"] / row["frames"], recovered(row["loss"], row["bounds"])
        served = users(split_times(done["times"], plan.main, share), PERIOD_S) if "times" in done else None
        rows.append([
            f"{row['limit']:g}", row["hold"], row["allowed"], percent(share), f"{row['loss']:.4f}",
            f"{row['bounds']['local']:.4f}", percent(gain), "" if served is None else f"{served.ratio:.2f}x",
            "yes" if gain >= PAYS else "no", "" if row["overspent"] is None else figures(row["overspent"]),
        ])  # fmt: skip
    columns = ["V", "frames per secret", "N", "frames sent", "loss", "local part alone", "recovered", "users", "pays",
               "nats beyond budget"]  # fmt: skip
    return {"columns": columns, "rows": rows}


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.1f} %"


def pareto(done: Mapping[str, Any], plan: Any) -> list[dict[str, Any]]:
    """Return the points of the Pareto plot: users and energy of a device against loss, and the bound of each."""
    timed, points = done["times"], []
    whole = timed["whole"][str(plan.main)]
    constants = find_constants()
    for k, limit in product(plan.ks, plan.limits):
        times = split_times(timed, k, 1.0)
        loss = next(
            row["loss"] for row in done["losses"][k]["rows"]
            if (row["limit"], row["draws"], row["rule"]) == (limit, plan.draws[0], "exact")
        )  # fmt: skip
        bound = next(row["bound"] for row in done["attacks"][k]["rows"] if row.get("limit") == limit)
        points.append(
            point(f"k = {k}, V = {limit:g}", f"offloaded, V = {limit:g}", times, loss, bound, constants, whole)
        )
    main, based = done["baselines"], lambda seconds: Times(local_s=seconds, transfer_s=0, worker_s=0, whole_s=seconds)
    for name, title, seconds in (
        ("int8", "int8", whole), ("pruned", "pruned 10 %", timed["others"]["pruned"]),
    ):  # fmt: skip
        loss, kind = main[name]["loss"], "smaller, on the device"
        points.append(point(f"k = {plan.main}, {title}", kind, based(seconds), loss, None, constants, whole))
    for kind, seconds, loss in (("local only", "whole", "loss"), ("local part alone", "local", "local_loss")):
        for k in plan.ks:
            own = based(timed[seconds][str(k)])
            points.append(point(f"k = {k}, {kind}", kind, own, done["avatars"][k][loss], None, constants, whole))
    return points


def point(name, kind, times, loss, bound, constants, whole) -> dict[str, Any]:
    """Return one point. whole: seconds of the network that users are counted against."""
    served = PERIOD_S / times.whole_s if times.transfer_s == 0 else users(times, PERIOD_S).total
    spent = energy(times, *constants)
    return {
        "name": name, "kind": kind, "users": round(served, 3), "ratio": round(served * whole / PERIOD_S, 3),
        "loss": round(loss, 5), "energy_mj": round(spent.total_mj, 4), "bound": bound,
    }  # fmt: skip


def pareto_table(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the table of the points; a star marks those that no other beats in loss, users and bound at once."""

    def beaten(one: dict[str, Any]) -> bool:
        safe = lambda entry: entry["bound"] or 0.0
        mine = (one["loss"], -one["users"], safe(one))
        return any(
            (theirs := (other["loss"], -other["users"], safe(other))) != mine
            and all(a <= b for a, b in zip(theirs, mine, strict=True))
            for other in points
        )

    rows = [
        [("" if beaten(one) else "* ") + one["name"], f"{one['loss']:.4f}", f"{one['users']:.2f}",
         f"{one['ratio']:.2f}x", f"{one['energy_mj']:.2f}",
         "nothing leaves" if one["bound"] is None else percent(one["bound"])]
        for one in points
    ]  # fmt: skip
    return {"columns": ["", "loss", "users", "ratio", "mJ a frame", "guessed at most"], "rows": rows}


def paper() -> dict[str, Any]:
    """Return the paper's table, recomputed."""
    rows = [
        [row["k"], row["local_s"], row["transfer_s"], row["worker_s"], f"{row['offloaded']:.2f}", f"{row['extra']:.2f}",
         f"{row['total']:.2f}", f"{row['ratio']:.2f}x", f"{row['loss_rise']['1']:+.1%}"]
        for row in paper_table()
    ]  # fmt: skip
    columns = ["k", "local s", "transfer s", "worker s", "users", "extra", "in all", "ratio", "loss, v = 1"]
    return {"columns": columns, "rows": rows}


def claims(done: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the claims of all cells."""
    vectors, (lowest, whose), (margin, where) = reference(), noiseless(done), attack_margin(done)
    ratios, ratio = against_dp(done), next(row["ratio"] for row in paper_table() if row["k"] == 14)
    clear = ", ".join(f"k = {k}" for k in headlines()["loss_rise"]["rows"])
    return [
        claim("noise_trace_rel_error", vectors["error"], "", "lower", 1e-6, f"{vectors['cases']} reference traces"),
        claim("exact_vs_linear_trace_ratio", vectors["exact_vs_linear"], "", "lower", 0.55, "d = 8, v = 4"),
        claim("attack_no_noise_min", lowest, "right", "higher", 0.9, f"the least: {whose}"),
        claim("attack_minus_bound_max", margin, "", "lower", 0.0, f"upper end of the interval; the nearest: {where}"),
        claim("damp_vs_dp_noise_ratio", min(ratios), "x", "higher", 1.0,
              f"traces of dp-replace over exact, equal bound, posterior means: {min(ratios):.3g} to {max(ratios):.3g}"),
        claim("users_ratio_k14", round(ratio, 2), "x", "equal", 2.37, f"the paper's +6.5 % loss is that of {clear}"),
        *load.claims(done["load"], {name: done["fuzz"][name] for name in ("worker", "device")}),
    ]  # fmt: skip


def write(bench: Any, done: Mapping[str, Any]) -> None:
    """Write the result and the picture; with tiny settings only into the folder of the cells."""
    plan, tiny = bench.plan, bench.plan.name != NAME
    done = {**done, "times": on_a_headset(done["times"], plan.main)}
    points = pareto(done, plan)
    tables = {
        "loss, users and energy": pareto_table(points), "attacks on exact noise": attack_table(done),
        "sequences": sequence_table(done, plan), "loss and noise by rule": loss_table(done),
        "the paper's table, recomputed": paper(),
    }  # fmt: skip
    details = {
        "setup": plan.setup.model_dump(mode="json"), "link_bps": LINK_BPS, "pareto": points, "tables": tables,
        "secrets": done["attacks"][plan.main]["secrets"], "times": done["times"],
        "shortfall": {k: cell["shortfall"] for k, cell in done["avatars"].items()},
    }  # fmt: skip
    row = picture(bench.experiment(plan.main), plan.setup.grid)
    if tiny:
        text = result_text(NAME, {"claims": claims(done), "command": "", "details": details})
        write_text(bench.cells / "result.json", text)
        write_atomic(bench.cells / PICTURE.name, lambda file: file.write_bytes(row))
        return show(claims(done))
    write_atomic(PICTURE, lambda file: file.write_bytes(row))
    cells = [*done["avatars"].values(), *done["losses"].values(), *done["attacks"].values()]
    cells += [done[name] for name in ("sequences", "baselines", "fuzz", "load", "times")]
    seconds = sum(cell["seconds"] for cell in cells)
    write_result(NAME, claims(done), seconds, details, script=str(Path(__file__).with_name("privatar.py")))


def picture(experiment: Any, grid: tuple[int, int]) -> bytes:
    """Return a PNG of one row: original, local part alone, offloaded with noise of one nat, and the guesser's view."""
    from PIL import Image

    noises = {f"{SHOWN:g} nat": experiment.noise(SHOWN)}
    shown = dict(pictures(experiment, noises, [experiment.secrets + 1], grid)[0]["pictures"])
    chosen = [next(png for caption, png in shown.items() if caption.startswith(column)) for column in COLUMNS]
    tiles = [Image.open(io.BytesIO(base64.b64decode(png))) for png in chosen]
    row = Image.new("RGB", (sum(tile.width + 8 for tile in tiles) - 8, tiles[0].height), "white")
    for number, tile in enumerate(tiles):
        row.paste(tile, (number * (tile.width + 8), 0))
    file = io.BytesIO()
    row.save(file, "png")
    return file.getvalue()


def summarize(done: Mapping[str, Any]) -> None:
    """Print what is known before the times are."""
    (lowest, whose), (margin, where) = noiseless(done), attack_margin(done)
    print(f"without noise at least {percent(lowest)} right ({whose}); bound: {margin:+.4f} ({where})")
    for k, cell in done["avatars"].items():
        print(
            f"k = {k}: loss {cell['loss']:.4f}, local part alone {cell['local_loss']:.4f}, "
            f"covariance too small by {cell['shortfall']:.2f}"
        )
    print("now: python -m benchmarks.offload.privatar --finish, on a machine that does nothing else")


def check() -> None:
    """Recompute what needs no training, and compare it with the recorded result."""
    if not (file := RESULTS / f"{NAME}.json").exists():
        raise SystemExit(f"no result is recorded yet: {file} is missing")
    recorded = {entry["id"]: entry["value"] for entry in json.loads(file.read_text())["claims"]}
    vectors, ratio = reference(), next(row["ratio"] for row in paper_table() if row["k"] == 14)
    compare({
        "noise_trace_rel_error": (vectors["error"], recorded["noise_trace_rel_error"], 1e-6),
        "exact_vs_linear_trace_ratio": (
            vectors["exact_vs_linear"], recorded["exact_vs_linear_trace_ratio"], 1e-6
        ),
        "users_ratio_k14": (ratio, recorded["users_ratio_k14"], 0.005),
    })  # fmt: skip
