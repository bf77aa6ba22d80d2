"""The page of an attack: the original, the local part alone, the offloaded result and what the guesser sees."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from jettison.core.errors import UsageError
from jettison.domains.perception.avatars.rendering import render
from jettison.offload.avatar import Local
from jettison.offload.experiment import Experiment
from jettison.offload.noise import Noise
from jettison.offload.split import run, run_local
from jettison.reports.offload_page import write_offload_page

SIDE = 144  # pixels of a picture


@torch.no_grad()
def pictures(
    experiment: Experiment, noises: Mapping[str, Noise], places: Sequence[int], grid: tuple[int, int] | None = None
) -> list[dict[str, Any]]:
    """Make the pictures of some of the attacked frames, a row for each.

    noises: caption -> noise. grid: rows and columns of the mesh, to draw faces; None shows textures.
    A row has a name and pictures, each with a caption and a PNG in base64. The guesser sees the offloaded components
    of a noised latent, and the known frame whose latent is nearest, which is their guess.
    """
    model, frames = experiment.model, experiment.other[torch.tensor(list(places))]
    rng = torch.Generator().manual_seed(experiment.setup.seed)
    draw = lambda texture, mesh: _png(texture if grid is None else render(mesh, texture, grid, SIDE))
    columns = [("original", frames.texture, frames.mesh), ("local part alone", *run_local(model, frames))]
    columns.append(("offloaded, no noise", *run(model, frames)))
    _, latents = model.encode(frames)
    seen = {"no noise": latents}
    for caption, noise in noises.items():
        columns.append((f"offloaded, {caption}", *run(model, frames, noise, generator=rng)))
        seen[caption] = noise.protect(latents, rng)
    rows = []
    for number, expression in enumerate(frames.expression.tolist()):
        row = [(caption, draw(texture[number], mesh[number])) for caption, texture, mesh in columns]
        for caption, observed in seen.items():
            guess = int(torch.cdist(observed[number : number + 1], experiment.latents[0]).argmin())
            guessed = int(experiment.known.expression[guess])
            right = "right" if guessed == expression else "wrong"
            texture = _offloaded_texture(experiment, observed[number : number + 1])
            row.append((f"guesser's view, {caption}: expression {guessed}, {right}", _png(texture)))
        rows.append({"name": f"Expression {expression}", "pictures": row})
    return rows


def _offloaded_texture(experiment: Experiment, latents: torch.Tensor) -> torch.Tensor:
    """Return what an observer can draw from a latent (1, d): the offloaded components on the mean texture."""
    model, offloaded = experiment.model, experiment.model.offloaded(latents.float())
    shape = 1, len(model.partition.local), *offloaded.shape[2:]
    local = Local(torch.zeros(shape), model.mesh_mean[None], torch.zeros(1, dtype=torch.int64))
    return model.combine(local, offloaded).texture[0]


def _png(picture: torch.Tensor) -> str:
    """Return a picture (3, height, width) as a PNG in base64."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError("a page with pictures needs Pillow: pip install 'jettison[vision]'") from error
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(file, "png")
    return base64.b64encode(file.getvalue()).decode("ascii")


def write_page(
    path: str | Path, experiment: Experiment, noises: Mapping[str, Noise], lead: str,
    tables: Sequence[Mapping[str, Any]] = (), count: int = 4, grid: tuple[int, int] | None = None,
) -> Path:  # fmt: skip
    """Write the page, and return its path.

    noises: caption -> noise. lead: the first paragraph. tables: each with title, columns, rows of texts.
    count: how many frames are shown, spread over those that are attacked.
    """
    total = len(experiment.other)
    places = [place * total // count for place in range(min(count, total))]
    rows = pictures(experiment, noises, places, grid)
    return write_offload_page(path, "What a guesser sees of an offloaded avatar", lead=lead, rows=rows, tables=tables)
