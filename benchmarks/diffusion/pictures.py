"""The picture of samples: a column for every seed, a row for every set."""

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from jettison.core.files import write_atomic

ZOOM, GAP, LEFT = 2, 2, 150  # pixels of a side per pixel; between pictures; for the names of rows
QUALITY = 70  # of WebP


def sample_grid(rows: Mapping[str, torch.Tensor], count: int, out: Path) -> None:
    """Write the first ``count`` images of every set as one picture; equal columns have equal seeds.

    rows: name -> images (n, 3, height, width) uint8.
    """
    height, width = (GAP + ZOOM * side for side in next(iter(rows.values())).shape[-2:])
    page = Image.new("RGB", (LEFT + count * width, len(rows) * height), "white")
    draw = ImageDraw.Draw(page)
    for row, (name, images) in enumerate(rows.items()):
        draw.text((4, row * height + height // 2 - 6), name, fill="black")
        for column, image in enumerate(images[:count]):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            picture = picture.resize((width - GAP, height - GAP), Image.Resampling.NEAREST)
            page.paste(picture, (LEFT + column * width, row * height))
    file = io.BytesIO()
    page.save(file, "webp", quality=QUALITY, method=6)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, lambda temporary: temporary.write_bytes(file.getvalue()))
