"""Draw the contact sheets of the synthetic driving world for the docs: day, night, rain, and a junction with labels.

    python docs/world_sheets.py

Each picture must be recognizable as a road. The list to check by eye after a change of the renderer:

- perspective: lines of the road meet at the horizon, cars and houses become smaller with distance
- markings: solid, dashed and worn lines, stop lines, zebra crossings, arrows
- horizon: between a sky and a ground, level but for hills
- shadows: from the same sun for all things; none at night and in rain, where lamps and wet asphalt take their place
- vehicles: with wheels, windows, lights; on their lanes, not in each other
- signs: readable where they are near; lights with one lamp on
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from jettison.core.files import write_atomic
from jettison.domains.perception.drawing import birds_eye, camera_sheet, depth_sheet, picture_bytes
from jettison.domains.perception.layouts.reading import pillow
from jettison.domains.perception.world.loading import read
from jettison.domains.perception.world.order import Order
from jettison.domains.perception.world.store import write_world

DOCS = Path(__file__).parent
SIZE, QUALITY, MOST = (200, 500), 68, 150_000  # height and width of an image; quality of WebP; bytes of a sheet
SHEETS = {  # name -> place, weather, seed
    "day": ("fork", "day", 38),
    "night": ("junction", "night", 4),
    "rain": ("junction", "rain", 12),
    "junction": ("junction", "day", 2),
}


def sheet(name: str) -> np.ndarray:
    """Return a contact sheet. That of the junction has the labels, the depth and the road from above."""
    place, weather, seed = SHEETS[name]
    with TemporaryDirectory() as folder:
        write_world(Path(folder), Order(seed, SIZE, 2, 1.0, place, weather), 1)
        frame = read(folder)[0].frames[1]
        if name != "junction":
            return camera_sheet(frame, labels=False)
        cameras, depth = camera_sheet(frame), depth_sheet(frame)
        left = np.concatenate([cameras, depth])
        image, _ = pillow()
        above = image.fromarray(birds_eye(frame.road))
        above = above.resize((round(above.width * len(left) / above.height), len(left)), image.Resampling.LANCZOS)
        return np.concatenate([left, np.asarray(above)], axis=1)


def main() -> None:
    """Write docs/world-NAME.webp for every sheet."""
    for name in SHEETS:
        data = picture_bytes(sheet(name), "webp", QUALITY)
        if len(data) > MOST:
            raise SystemExit(f"the sheet {name} has {len(data):,} bytes, more than {MOST:,}: lower its quality")
        write_atomic(DOCS / f"world-{name}.webp", lambda path, data=data: path.write_bytes(data))


if __name__ == "__main__":
    main()
