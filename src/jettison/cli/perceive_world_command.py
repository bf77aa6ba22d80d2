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
    "show": (
        "jettison perceive show world --split val --frames 3 --out val.html",
        "jettison perceive show lanes photo.jpg --out photo.html",
        "jettison perceive show lanes lanes-w8 --data world",
    ),
}


def world(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the frames; a run that was killed continues.")],
    scenes: Annotated[int, typer.Option("--scenes", help="Number of scenes; more can be added later.")] = 5,
    size: Annotated[str, typer.Option("--size", help="Height and width of the images in pixels.")] = "160x400",
    frames: Annotated[int, typer.Option("--frames", help="Frames of each scene, of an image per camera.")] = 6,
    interval: Annotated[float, typer.Option("--interval", help="Seconds from frame to frame.")] = 0.5,
    place: Annotated[
        str | None, typer.Option("--place", help="Only this kind of scene: road, junction or fork. Default: mixed.")
    ] = None,
    weather: Annotated[
        str | None, typer.Option("--weather", help="Only this weather: day, night or rain. Default: mixed.")
    ] = None,
    cameras: Annotated[
        str, typer.Option("--cameras", help="all, or front: a sixth of the time, and enough to learn lanes.")
    ] = "all",
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
    order = Order(seed, parse_size(size), frames, interval, place, weather, cameras)
    result = write_world(out, order, scenes, processes)
    seen = "six cameras" if cameras == "all" else "one camera"
    common.out.print(
        f"{result['scenes']:,} scenes, {result['frames']:,} frames of {seen}, {result['rendered']:,} rendered now",
        markup=False,
    )
    common.finish(result, json)


def show(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR | MODEL... [IMAGE...]",
            help="A folder that `jettison perceive world` wrote; or folders of perception models, and images to show "
            "them on.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page to write, as HTML. Default: show.html in DIR or MODEL.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Show models on frames of this dataset, in place of images.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Only train, val or test. Default: all; for models, test.")
    ] = None,
    frames: Annotated[int, typer.Option("--frames", help="Frames to show, spread evenly over all.")] = 4,
    json: common.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Write a page with pictures of a world, or of what models predict.

    Of a world: six cameras, depth, lanes over the images, the road graph from above. Of models: their predictions over
    your own images or frames of a dataset, and their learning curves.
    """
    from jettison.core.numbers import check_number
    from jettison.domains.perception.drawing import write_page
    from jettison.domains.perception.world.loading import read

    folder, models = paths[0], [path for path in paths if path.is_dir()]
    page = (models[0] if models else Path()) / "show.html" if out is None else out
    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {page}: the name of a page must end in .html")
    check_number("frames", frames, 1, 100, whole=True)
    if len(paths) > 1 or data is not None or folder.is_file() or (folder / "config.json").exists():
        from jettison.pipeline.perceiving import show_perception

        common.begin(quiet, json, page)
        images = [path for path in paths if not path.is_dir()]
        result = show_perception(models, page, images=images, data=data, split=split or "test", frames=frames)
        for model, notes in result["models"].items():
            common.out.print(f"{model}: {' '.join(notes)}" if notes else model, markup=False, soft_wrap=True)
        common.out.print(f"{page}: {len(result['frames'])} frames", markup=False)
        common.finish(result, json)
        return
    every = [(scene, place) for scene in read(folder, split) for place in range(len(scene.frames))]
    common.begin(quiet, json, page)
    count = min(frames, len(every))
    shown = [every[index * len(every) // count] for index in range(count)]
    pictured = [scene.frames[place] for scene, place in shown]
    write_page(page, f"Driving scenes in {folder}", pictured)
    common.out.print(f"{page}: {count} of {len(every)} frames", markup=False)
    common.finish({"page": str(page), "frames": [frame.name for frame in pictured]}, json)
