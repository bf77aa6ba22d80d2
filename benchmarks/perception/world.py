"""The synthetic driving world: its metrics, whether its pictures agree, features in overlaps, speed and memory.

    pip install -r benchmarks/perception/requirements.txt
    python -m benchmarks.perception.world                      # all: some minutes; nothing else may run for the speed
    python -m benchmarks.perception.world --parts agreement    # some parts, which are kept; no result is written
    python -m benchmarks.perception.world --check              # the metrics, and the agreement of one scene, again

A part is computed once and kept in runs/world; remove its file to have it computed again.

- metrics: the largest differences from the official programs, over tests/golden/perception.
- agreement: 24 scenes, mixed. Images of neighbouring cameras, and of frames half a second apart, carried to each other
  by depth and poses; how far they are displaced is estimated from the images alone (``consistency.misalignment``).
  Also the error of depth there and back, and how far lanes are from the ground in the depth maps' own points.
- features: SIFT in neighbouring cameras, ratio 0.75. A match is true if the depth map puts it within 2 pixels.
- speed: six cameras, on one thread, with labels, without writing files.
"""

import argparse
import resource
import time
from typing import Any

import numpy as np
import torch

from benchmarks.calm import calm
from benchmarks.perception.golden import metric_errors
from benchmarks.witness import RESULTS, cell, claim, compare, write_result
from jettison.core.documents import read_json
from jettison.domains.perception.world.cameras import FRONT, NAMES, make_rig
from jettison.domains.perception.world.consistency import Seen, carry, lift, misalignment, project
from jettison.domains.perception.world.render import GROUND
from jettison.domains.perception.world.store import render_frame
from jettison.domains.perception.world.world import WEATHERS, make_world

NAME = "world"
SCENES, CHECKED = 24, 1
SIZE, LARGE = (160, 400), (384, 640)
RATIO, TRUE, WANTED = 0.75, 2.0, 30  # of SIFT: ratio of distances, pixels, matches
ROUNDS = 4
NEIGHBOURS = tuple(zip(NAMES, NAMES[1:] + NAMES[:1], strict=True))


def rendered(
    seed: int, size: tuple[int, int], times: tuple[float, ...]
) -> tuple[Any, list[dict[str, Seen]], np.ndarray]:
    """Return a world, what its cameras see at some times, and which of its things move."""
    world, rig = make_world(seed), make_rig(size, seed)
    seen = []
    for time_of in times:
        frame, pictures = render_frame(world, time_of, rig)
        seen.append({name: Seen(picture, rig[name], frame.ego_to_world) for name, picture in pictures.items()})
    return world, seen, np.array([False, *(solid.moving for solid in world.solids(times[0]))])


def agreement(seeds: range = range(SCENES)) -> dict[str, Any]:
    """Return how well pictures agree, in pixels, and how far the ground in depth maps is from the ground of lanes."""
    shifts: dict[str, list[np.ndarray]] = {"cameras": [], "frames": []}
    returns: dict[str, list[np.ndarray]] = {"cameras": [], "frames": []}
    ground = []
    for seed in seeds:
        world, (now, later), moving = rendered(seed, SIZE, (1.0, 1.5))
        pairs = [("cameras", now[one], now[other]) for one, other in NEIGHBOURS]
        pairs += [("frames", now[name], later[name]) for name in NAMES]
        for kind, one, other in pairs:
            shifts[kind].append(misalignment(one, other, moving))
            returns[kind].append(carry(one, other, moving).error)
        for view in now.values():
            rows, columns = np.nonzero(view.picture.things == GROUND)
            pixels = np.column_stack([columns, rows]).astype(float)
            points = lift(view, pixels, view.picture.depth[rows, columns].astype(float))
            ground.append(np.abs(points[:, 2] - world.hills.height(points[:, 0], points[:, 1])))
    middle = lambda parts: float(np.median(np.concatenate(parts)))
    return {
        "reprojection_px_median": middle([*shifts["cameras"], *shifts["frames"]]),
        "cameras_px_median": middle(shifts["cameras"]),
        "frames_px_median": middle(shifts["frames"]),
        "blocks": sum(len(part) for parts in shifts.values() for part in parts),
        "there_and_back_px_95_percent": float(
            np.percentile(np.concatenate([*returns["cameras"], *returns["frames"]]), 95)
        ),
        "ground_metres_most": float(np.concatenate(ground).max()),
        "scenes": len(seeds),
    }


def opencv() -> Any:
    """Return the module cv2. Exits with a hint if it is missing."""
    try:
        import cv2
    except ImportError:
        raise SystemExit("OpenCV is missing: pip install -r benchmarks/perception/requirements.txt") from None
    return cv2


def features() -> dict[str, Any]:
    """Return the numbers of true SIFT matches in overlaps, by size of the image and by weather."""
    table: dict[str, Any] = {}
    for size in (SIZE, LARGE):
        counts: dict[str, list[float]] = {weather: [] for weather in WEATHERS}
        for seed in range(SCENES):
            world, (seen,), _ = rendered(seed, size, (1.0,))
            pairs = [true_matches(seen[one], seen[other]) for one, other in NEIGHBOURS]
            counts[world.weather].append(float(np.median(pairs)))
        every = [count for group in counts.values() for count in group]
        table["x".join(map(str, size))] = {
            "median_frame": float(np.median(every)),
            **{weather: float(np.median(group)) for weather, group in counts.items() if group},
        }
    return table


def true_matches(one: Seen, other: Seen) -> int:
    """Return the number of SIFT matches of two pictures that agree with the depth map of the first."""
    cv2 = opencv()
    sift = cv2.SIFT_create(contrastThreshold=0.01, edgeThreshold=8)
    points, descriptors = zip(
        *(sift.detectAndCompute(cv2.cvtColor(seen.picture.image, cv2.COLOR_RGB2GRAY), None) for seen in (one, other)),
        strict=True,
    )
    if any(part is None or len(part) < 2 for part in descriptors):
        return 0
    pairs = cv2.BFMatcher().knnMatch(*descriptors, k=2)
    matches = [first for first, second in pairs if first.distance < RATIO * second.distance]
    if not matches:
        return 0
    start = np.array([points[0][match.queryIdx].pt for match in matches])
    end = np.array([points[1][match.trainIdx].pt for match in matches])
    columns, rows = np.rint(start).astype(int).T
    depths = one.picture.depth[rows, columns].astype(float)
    arrived, ahead = project(other, lift(one, start, np.maximum(depths, 1e-3)))
    return int(((depths > 0) & (ahead > 0) & (np.linalg.norm(arrived - end, axis=1) < TRUE)).sum())


def speed() -> dict[str, Any]:
    """Return frames of six cameras per second, on one thread, for two sizes, and the peak memory of the process."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    for size in (SIZE, LARGE):
        worlds = [(make_world(seed), make_rig(size, seed)) for seed in range(ROUNDS)]

        def work(worlds=worlds) -> float:
            start = time.perf_counter()
            for world, rig in worlds:
                render_frame(world, 1.0, rig)
            return len(worlds) / (time.perf_counter() - start)

        work()
        rate, disturbance = calm(work)
        result["x".join(map(str, size))] = {"frames_per_second": rate, "images_per_second": 6 * rate, **disturbance}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return result | {"peak_memory_mb": round(peak / 1024)}


PARTS = {"metrics": metric_errors, "agreement": agreement, "features": features, "speed": speed}


def claims(parts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the claims from the results of all parts."""
    metrics, small = parts["metrics"], parts["speed"]["160x400"]
    loud = small["foreign_cores"] > 0.1
    note = f"six cameras are one frame; other programs used {small['foreign_cores']} cores" if loud else "six cameras"
    return [
        claim("culane_f1_max_abs_error", metrics["culane_f1_max_abs_error"], "", "lower", 1e-9),
        claim("ols_max_abs_error", metrics["ols_max_abs_error"], "", "lower", 1e-5, "rules v1.1 and v2.1"),
        claim("depth_metric_max_rel_error", metrics["depth_metric_max_rel_error"], "", "lower", 1e-8),
        claim("reprojection_px_median", parts["agreement"]["reprojection_px_median"], "px", "lower", 0.5,
              "from the images alone, between neighbouring cameras and frames"),
        claim("sift_true_matches_median", parts["features"]["384x640"]["median_frame"], "matches", "higher", WANTED,
              "384 x 640, in the overlap of two neighbours"),
        claim("frames_per_second_160x400", small["frames_per_second"], "1/s", "higher", 0.5, note),
    ]  # fmt: skip


def check() -> None:
    """Compute the metrics, and the agreement of one scene, again, and compare."""
    known = {entry["id"]: entry["value"] for entry in read_json(RESULTS / f"{NAME}.json")["claims"]}
    now = metric_errors() | {"reprojection_px_median": agreement(range(CHECKED))["reprojection_px_median"]}
    tolerances = {"reprojection_px_median": 0.2}
    compare({name: (value, known[name], tolerances.get(name, 1e-7)) for name, value in now.items()})


def main() -> None:
    """Compute the parts, and write the result if all are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="compute only these; no result is written")
    parser.add_argument("--check", action="store_true", help="compute a part again and compare it with the result")
    args = parser.parse_args()
    if args.check:
        check()
        return
    parts = {name: cell(NAME, name, PARTS[name]) for name in args.parts or PARTS}
    if args.parts:
        print(parts)
        return
    seconds = sum(part["seconds"] for part in parts.values())
    write_result(NAME, claims(parts), seconds, {"parts": parts, "front_camera": FRONT}, script=__file__)


if __name__ == "__main__":
    main()
