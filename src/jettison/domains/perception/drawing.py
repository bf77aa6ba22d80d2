"""Draws frames for people: camera images with lanes and traffic elements, depth, and the road graph from above."""

import base64
import io
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from jettison.core.errors import UsageError
from jettison.core.files import write_text
from jettison.domains.perception.clouds import cloud, cloud_picture
from jettison.domains.perception.images import FRONT
from jettison.domains.perception.layouts.reading import pillow, read_image
from jettison.domains.perception.scenes import ATTRIBUTES, Camera, Frame, Road

ORDER = ("FRONT_LEFT", "FRONT", "FRONT_RIGHT", "BACK_LEFT", "BACK", "BACK_RIGHT")  # ends of names, row by row
LANES = ((230, 60, 50), (250, 180, 20), (60, 200, 90), (60, 130, 240))
WAY, JUNCTION, GRAPH = (40, 110, 220), (150, 70, 200), (20, 150, 80)
COLOURS = {"red": (225, 30, 30), "green": (20, 170, 70), "yellow": (225, 170, 0)}  # of lights; signs are blue
SIGN_COLOUR = (20, 70, 190)
NEAR, DEEP = 2.0, 120.0  # metres, the ends of the scale of depth
SCALE = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float64)[::-1]
PIXELS = 10  # of a metre, seen from above
SPAN = (51.2, 25.6)  # metres ahead and behind, left and right
STYLE = (
    "body{font-family:sans-serif;max-width:1500px;margin:1em auto;padding:0 1em;color:#222;background:#fff}"
    "section{display:grid;grid-template-columns:5fr 2fr;gap:1em;align-items:start}h2{font-size:1.1em;margin:1.5em 0 0}"
    "figure{margin:.6em 0}figcaption,p{color:#555;margin:.2em 0}img{width:100%;display:block}"
    "@media(max-width:800px){section{grid-template-columns:1fr}}"
)
LEGEND = (
    "Thick lines in the front image are the lines beside the own lane and the next ones. Thin lines are the middles of "
    "lanes: blue on streets, violet in junctions. Boxes are traffic lights and signs. From above: green dots where "
    "lanes continue, squares at the lanes that a light or sign holds for."
)
NEAREST = 0.3  # metres in front of a camera from which things are drawn
LINE_LIFT = 0.02  # metres between a drawn line and the ground


def ordered(frame: Frame) -> list[str]:
    """Return the names of the cameras, front left to back right; other names follow as they are."""
    place = {
        name: next((i for i, end in enumerate(ORDER) if name.endswith(f"CAM_{end}")), len(ORDER))
        for name in frame.views
    }
    return sorted(frame.views, key=lambda name: place[name])


def camera_sheet(frame: Frame, labels: bool = True, columns: int = 3, graph: bool = False) -> np.ndarray:
    """Return the images of all cameras beside each other, (height, width, 3) uint8.

    labels: whether to draw lanes, centerlines and traffic elements over them.
    graph: whether to draw the road graph, too: green dots where lanes continue, and in the front image thin lines from
        traffic elements to the lanes that they hold for.
    """
    return stacked([_camera_image(frame, name, labels, graph) for name in ordered(frame)], columns)


def depth_sheet(frame: Frame, columns: int = 3) -> np.ndarray:
    """Return the depth maps of all cameras beside each other, yellow near, blue far, black unknown."""
    maps = [view.depth() for name in ordered(frame) if (view := frame.views[name]).depth is not None]
    if not maps:
        raise UsageError(f"frame {frame.name} has no depth: a dataset with depth maps or a lidar is needed")
    return stacked([depth_colours(depth) for depth in maps], columns)


def depth_colours(depth: np.ndarray) -> np.ndarray:
    """Return a depth map (height, width) as an image; its colours are even in the logarithm of depth."""
    share = np.clip(np.log(np.maximum(depth, NEAR) / NEAR) / np.log(DEEP / NEAR), 0, 1) * (len(SCALE) - 1)
    low = np.minimum(share.astype(int), len(SCALE) - 2)
    part = (share - low)[..., None]
    return np.where(depth[..., None] > 0, SCALE[low] * (1 - part) + SCALE[low + 1] * part, 0).astype(np.uint8)


def stacked(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Return images beside and below each other, row by row, on white. columns: at most."""
    columns = min(columns, len(images))
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + 2) - 2, columns * (width + 2) - 2, 3), 255, np.uint8)
    for place, image in enumerate(images):
        top, left = place // columns * (height + 2), place % columns * (width + 2)
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def _camera_image(frame: Frame, name: str, labels: bool, graph: bool) -> np.ndarray:
    view = frame.views[name]
    if view.image is None:
        raise UsageError(f"frame {frame.name} has no image of camera {name}")
    pixels = read_image(view.image)
    if not labels:
        return pixels
    image_module, draw_module = pillow()
    image = image_module.fromarray(pixels)
    draw = draw_module.Draw(image)
    thick = max(1, pixels.shape[0] // 160)
    if frame.road is not None and view.camera is not None:
        for lane in frame.road.lanes:
            colour = JUNCTION if lane.in_junction else WAY
            for part in _visible(view.camera, lane.points):
                draw.line(part, fill=colour, width=thick)
    for place, lane in enumerate(view.lanes or ()):
        draw.line([tuple(point) for point in lane.points.tolist()], fill=LANES[place % len(LANES)], width=2 * thick)
    if frame.road is not None and name.endswith(FRONT):
        for element in frame.road.elements:
            colour = COLOURS.get(ATTRIBUTES[element.attribute], SIGN_COLOUR)
            (x1, y1), (x2, y2) = element.box.tolist()
            draw.rectangle((x1 - thick, y1 - thick, x2 + thick, y2 + thick), outline=colour, width=thick)
    if graph and frame.road is not None and view.camera is not None:
        _draw_graph(draw, frame.road, view.camera, name.endswith(FRONT), thick)
    return np.asarray(image)


def _draw_graph(draw: Any, road: Road, camera: Camera, front: bool, thick: int) -> None:
    """Draw the edges of a road over the image of a camera, see ``camera_sheet``."""
    ends = [road.lanes[i].points[-1] for i, _ in np.argwhere(road.lane_lane > 0.5).tolist()]
    pixels, depths = camera.project(np.reshape(ends, (-1, 3)))
    for x, y in pixels[depths > NEAREST].tolist():
        draw.ellipse((x - 2 * thick, y - 2 * thick, x + 2 * thick, y + 2 * thick), fill=GRAPH)
    for i, j in np.argwhere(road.lane_element > 0.5).tolist() if front else ():
        parts = _visible(camera, road.lanes[i].points)
        seen = [
            point for part in parts for point in part if 0 <= point[0] < camera.width and 0 <= point[1] < camera.height
        ]
        if seen:
            element = road.elements[j]
            (x1, _), (x2, bottom) = element.box.tolist()
            colour = COLOURS.get(ATTRIBUTES[element.attribute], SIGN_COLOUR)
            draw.line([((x1 + x2) / 2, bottom), seen[-1]], fill=colour, width=1)


def _visible(camera: Camera, points: np.ndarray) -> list[list[tuple[float, float]]]:
    """The pieces of a line, (n, 3) in the ego frame, that lie in front of a camera and near its image, in pixels."""
    dense = np.concatenate([
        np.linspace(a, b, 12, endpoint=False) for a, b in pairwise(points)
    ] + [points[-1:]])  # fmt: skip
    pixels, depths = camera.project(dense + np.array([0, 0, LINE_LIFT]))
    inside = (depths > NEAREST) & (np.abs(np.nan_to_num(pixels, nan=1e9)) < 4 * max(camera.width, camera.height)).all(1)
    bounds = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(int), [0]]))).reshape(-1, 2)
    return [[tuple(point) for point in pixels[low:high].tolist()] for low, high in bounds if high - low > 1]


def birds_eye(road: Road) -> np.ndarray:
    """Return the road from above, the car in the middle and driving upwards, (height, width, 3) uint8.

    Lanes are grey with their painted lines; centerlines blue, in junctions violet, with an arrow at the end; green
    dots are where a lane continues in another one; a coloured square at a lane's end is a traffic element that holds
    for it.
    """
    image_module, draw_module = pillow()
    margin = 4
    size = (int(2 * (SPAN[1] + margin) * PIXELS), int(2 * (SPAN[0] + margin) * PIXELS))
    image = image_module.new("RGB", size, (236, 240, 230))
    draw = draw_module.Draw(image)

    def at(point: Sequence[float]) -> tuple[float, float]:
        return (size[0] / 2 - point[1] * PIXELS, size[1] / 2 - point[0] * PIXELS)

    path = lambda points: [at(point) for point in points.tolist()]
    for lane in road.lanes:
        if lane.left is not None and lane.right is not None:
            draw.polygon(path(lane.left.points) + path(lane.right.points)[::-1], fill=(196, 198, 202))
    for lane in road.lanes:
        for line in (lane.left, lane.right):
            if line is not None and line.kind != "none":
                _painted(draw, path(line.points), line.kind == "dashed")
    for lane in road.lanes:
        colour = JUNCTION if lane.in_junction else WAY
        points = path(lane.points)
        draw.line(points, fill=colour, width=3)
        _arrow(draw, points[-2], points[-1], colour)
    for i, j in np.argwhere(road.lane_lane > 0.5).tolist():
        for x, y in (at(road.lanes[i].points[-1]), at(road.lanes[j].points[0])):
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=GRAPH)
    for i, lane in enumerate(road.lanes):
        for place, j in enumerate(np.flatnonzero(road.lane_element[i] > 0.5).tolist()):
            if lane.in_junction:
                continue
            name = ATTRIBUTES[road.elements[j].attribute]
            x, y = at(lane.points[-1])
            y += 14 * place + 10
            draw.rectangle((x - 5, y - 5, x + 5, y + 5), fill=COLOURS.get(name, SIGN_COLOUR), outline=(255, 255, 255))
            draw.text((x + 8, y - 6), name, fill=(0, 0, 0))
    x, y = at((1.3, 0))
    draw.rectangle((x - 9, y - 23, x + 9, y + 23), outline=(0, 0, 0), fill=(250, 250, 250), width=2)
    draw.polygon([(x - 6, y - 8), (x + 6, y - 8), (x, y - 19)], fill=(0, 0, 0))
    return np.asarray(image)


def _painted(draw: Any, points: list[tuple[float, float]], dashed: bool) -> None:
    for place, (a, b) in enumerate(pairwise(points)):
        if not dashed or place % 2 == 0:
            draw.line((a, b), fill=(255, 255, 255), width=3)


def _arrow(draw: Any, before: tuple[float, float], end: tuple[float, float], colour: tuple[int, int, int]) -> None:
    step = np.subtract(end, before)
    step = 9 * step / max(float(np.linalg.norm(step)), 1e-6)
    side = np.array([-step[1], step[0]]) / 2
    draw.polygon([end, tuple(np.subtract(end, step) + side), tuple(np.subtract(end, step) - side)], fill=colour)


def picture_bytes(image: np.ndarray, kind: str = "webp", quality: int = 82) -> bytes:
    """Return an image (height, width, 3) uint8 as a file. kind: webp, png or jpeg."""
    image_module, _ = pillow()
    file = io.BytesIO()
    image_module.fromarray(image).save(file, kind, quality=quality)
    return file.getvalue()


def write_page(path: Path, title: str, frames: Sequence[Frame]) -> None:
    """Write frames as one HTML page that needs no other file: cameras, depth, and the road from above beside them."""
    parts = [f"<h1>{escape(title)}</h1><p>{LEGEND}</p>"]
    for frame in frames:
        sheets = {"Cameras": camera_sheet(frame, labels=False), "Lanes, ways and traffic elements": camera_sheet(frame)}
        if any(view.depth is not None for view in frame.views.values()):
            sheets[f"Depth, {NEAR:g} m (yellow) to {DEEP:g} m (blue)"] = depth_sheet(frame)
            depths = {name: view.depth() for name, view in frame.views.items() if view.depth is not None}
            sheets["Points of all cameras, the car drives up"] = cloud_picture(*cloud(frame, depths))
        columns = ["".join(figure(name, sheet) for name, sheet in sheets.items())]
        if frame.road is not None:
            columns.append(figure("The road from above", birds_eye(frame.road)))
        parts.append(f"<h2>{escape(frame.name)}</h2><section>" + "".join(f"<div>{one}</div>" for one in columns))
        parts.append("</section>")
    write_html(path, title, parts)


def write_html(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write parts of HTML as a page."""
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    write_text(path, head + "\n".join(parts) + "</html>\n")


def figure(name: str, image: np.ndarray) -> str:
    """Return an image with its name as HTML that needs no other file."""
    data = base64.b64encode(picture_bytes(image)).decode("ascii")
    picture = f'<img alt="{escape(name)}" src="data:image/webp;base64,{data}">'
    return f"<figure><figcaption>{escape(name)}</figcaption>{picture}</figure>"
