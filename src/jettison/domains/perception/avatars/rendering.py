"""Pictures of an avatar whose mesh is a grid: points of the surface, drawn from the back to the front."""

import torch

DENSE = 3  # points per pixel and direction


def render(
    mesh: torch.Tensor, texture: torch.Tensor, grid: tuple[int, int], size: int = 192, view: torch.Tensor | None = None
) -> torch.Tensor:
    """Return a picture of a face, (3, size, size), 0 to 1, in parallel projection on white.

    mesh: (rows · columns, 3), see ``face.surface``. texture: (3, height, width), 0 to 1. grid: rows and columns.
    view: unit vector from the face to the camera, (3,); None means from the front.
    """
    view = torch.tensor([0.0, 0.0, 1.0]) if view is None else view.float()
    side = DENSE * size
    to_side = lambda maps: torch.nn.functional.interpolate(maps[None].float(), size=(side, side), mode="bilinear")[0]
    points = to_side(mesh.view(*grid, 3).permute(2, 0, 1)).flatten(1)  # (3, side²)
    colours = to_side(texture).flatten(1)
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), view), dim=0)
    up = torch.linalg.cross(view, right)
    x, y, depth = right @ points, up @ points, view @ points
    column = ((x / 1.35 + 1) / 2 * size).long().clamp(0, size - 1)
    row = ((1 - (y + 0.1) / 1.35) / 2 * size).long().clamp(0, size - 1)
    order = depth.argsort()
    picture, places = torch.ones(3, size * size), (row * size + column)[order]
    last = torch.full((size * size,), -1, dtype=torch.int64)
    last.scatter_reduce_(0, places, torch.arange(len(order)), "amax")  # the front point of every pixel
    seen = last >= 0
    picture[:, seen] = colours[:, order[last[seen]]]
    return picture.view(3, size, size).clamp(0, 1)
