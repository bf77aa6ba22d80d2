"""The commands ``world`` and ``show`` of ``jettison perceive``: a synthetic driving world, and its pictures."""

from pathlib import Path
from typing import Annotated

import typer

from jettison.cli import common
from jettison.core.errors import UsageError

EXAMPLES = {
    "world": (
        "jettison perceive world --out world --scenes 10 --seed 0",
        "jettison perceive world --out night --scenes 4 --size 384x640 --weather night --processes 2",
    ),
    "show": ("jettison perceive show world", "jettison perceive show world --split val --frames 3 --out val.html"),
}


def world(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the frames; a run that was killed continues.")],
    scenes: Annotated[int, typer.Option("--scenes", help="Number of scenes; more can be added later.")] = 5,
    size: Annotated[str, typer.Option("--size", help="Height and width of the images in pixels.")] = "160x400",
    frames: Annotated[int, typer.Option("--frames", help="Frames of each scene, of six images each.")] = 6,
    interval: Annotated[float, typer.Option("--interval", help="Seconds from frame to frame.")] = 0.5,
    place: Annotated[
        str | None, typer.Option("--place", help="Only this kind of scene: road, junction or fork. Default: mixed.")
    ] = None,
    weather: Annotated[
        str | None, typer.Option("--weather", help="Only this weather: day, night or rain. Default: mixed.")
    ] = None,
    processes: Annotated[int, typer.Option("--processes", help="Processes that render at the same time.")] = 1,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Render scenes of a synthetic driving world, with depth, lanes, road graph, calibration and poses.

    The folder can be read as OpenLane-V2, CULane, TuSimple and DDAD.
    """
    from jettison.domains.perception.world.cameras import parse_size
    from jettison.domains.perception.world.order import Order
    from jettison.domains.perception.world.store import write_world

    common.begin(quiet, json)
    order = Order(seed, parse_size(size), frames, interval, place, weather)
    result = write_world(out, order, scenes, processes)
    common.out.print(
        f"{result['scenes']:,} scenes, {result['frames']:,} frames of six cameras, {result['rendered']:,} rendered now",
        markup=False,
    )
    common.finish(result, json)


def show(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="A folder that `jettison perceive world` wrote; with --model any driving dataset."
        ),
    ],
    model: Annotated[
        Path | None, typer.Option("--model", help="Show what the perception model of this folder predicts.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page to write, as HTML. Default: show.html in DIR.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Only train, val or test. Default: all.")] = None,
    frames: Annotated[int, typer.Option("--frames", help="Frames to show, spread evenly over all.")] = 4,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Write a page with pictures: six cameras, depth, lanes over the images, the road graph from above.

    With --model: what a model predicts, beside what is true; of depth, a map of every camera and the coloured points.
    """
    from jettison.core.numbers import check_number
    from jettison.domains.perception.drawing import write_page
    from jettison.domains.perception.world.loading import read

    page = folder / "show.html" if out is None else out
    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {page}: the name of a page must end in .html")
    check_number("frames", frames, 1, 100, whole=True)
    if model is not None:
        from jettison.pipeline.perceiving import show_predictions

        common.begin(quiet, json, page)
        pictured = show_predictions(model, folder, page, split=split or "test", frames=frames)
        common.out.print(f"{page}: {len(pictured)} frames", markup=False)
        common.finish({"page": str(page), "frames": pictured}, json)
        return
    every = [(scene, place) for scene in read(folder, split) for place in range(len(scene.frames))]
    common.begin(quiet, json, page)
    count = min(frames, len(every))
    shown = [every[index * len(every) // count] for index in range(count)]
    seen = [scene.frames[place] for scene, place in shown]
    write_page(page, f"Driving scenes in {folder}", seen)
    common.out.print(f"{page}: {count} of {len(every)} frames", markup=False)
    common.finish({"page": str(page), "frames": [frame.name for frame in seen]}, json)
