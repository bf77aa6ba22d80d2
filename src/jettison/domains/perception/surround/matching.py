"""Pseudo-depth: the matches of all neighbouring cameras of a frame, with the depths that follow from the calibration.

- Only the strips that two neighbours both see are matched, as in SurroundDepth (arXiv:2204.03636); here the strips
  follow from the calibration.
- All matches in front of the cameras are kept, with a mark whether the geometric filters keep them, so that training
  can also do without the filters.
- Tables of matches are cached: one sealed file per frame, whose name says what it was made of.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import content_digest, digest
from jettison.core.progress import bar, say
from jettison.core.sealed import read_sealed, write_sealed
from jettison.domains.perception.layouts.reading import read_image, within
from jettison.domains.perception.scenes import Frame, View
from jettison.domains.perception.surround.matchers import Matcher
from jettison.domains.perception.surround.rig import neighbours, overlap, ring
from jettison.domains.perception.surround.triangulation import Limits, triangulate

TRUE = 2.0  # pixels between a match and the place where the true depth puts it
SUSPECT, ENOUGH = 0.25, 40  # share of matches that fit a calibration, at least; matches that tell


@dataclass(frozen=True, eq=False)
class Table:
    """The matches of a frame.

    ends: (n, 2), the slots of both cameras in the ring.
    pixels: (n, 2, 2), x and y in both images, of their full size.
    depths: (n, 2) metres along the axes of both cameras.
    fits: (n,) bool, whether the geometric filters keep the match.
    """

    ends: torch.Tensor
    pixels: torch.Tensor
    depths: torch.Tensor
    fits: torch.Tensor

    def __len__(self) -> int:
        return len(self.ends)

    def kept(self, chosen: torch.Tensor) -> "Table":
        """Return the matches of a mask (n,)."""
        return Table(self.ends[chosen], self.pixels[chosen], self.depths[chosen], self.fits[chosen])


def slots_of(frame: Frame, views: int) -> list[View | None]:
    """Return what the cameras of a frame saw in the order of the ring, None for a slot without a camera.

    views: number of slots. Cameras without a calibration are left out. Raises UsageError for too many, and for none.
    """
    cameras = {name: view.camera for name, view in frame.views.items() if view.camera is not None}
    with within(f"frame {frame.name}"):
        names = ring(cameras, views)
    return [None if name is None else frame.views[name] for name in names]


def there(view: View | None) -> bool:
    """Whether there is an image of a view."""
    return view is not None and view.image is not None and view.image.exists()


def match_frame(frame: Frame, views: int, matcher: Matcher, limits: Limits) -> Table:
    """Match all neighbours of a frame. Raises UsageError for images that are broken, or of another size."""
    slots = [view if there(view) else None for view in slots_of(frame, views)]
    images = [None if view is None else _image(view) for view in slots]
    rows: list[np.ndarray] = []
    for one, other in neighbours([None if view is None else view.camera for view in slots]):
        camera, beside = slots[one].camera, slots[other].camera
        strips = overlap(camera, beside), overlap(beside, camera)
        made = matcher.match(
            *(images[slot][:, slice(*strip)] for slot, strip in zip((one, other), strips, strict=True))
        )
        pixels = np.stack([made.pixels, made.others], 1)  # (n, 2, 2)
        pixels[..., 0] += [strip[0] for strip in strips]
        points = triangulate(pixels[:, 0], camera, pixels[:, 1], beside)
        near = points.in_range(limits.most)
        ends = np.broadcast_to([one, other], (len(pixels), 2))
        rows.append(np.column_stack([ends, pixels.reshape(-1, 4), points.depths, points.fits(limits)])[near])
    whole = torch.from_numpy(np.concatenate([*rows, np.zeros((0, 9))]))
    pixels = whole[:, 2:6].reshape(-1, 2, 2).float()
    return Table(whole[:, :2].long(), pixels, whole[:, 6:8].float(), whole[:, 8].bool())


def _image(view: View) -> np.ndarray:
    image, camera = read_image(view.image), view.camera
    if image.shape[:2] != (camera.height, camera.width):
        raise UsageError(
            f"{view.image} has {image.shape[1]} x {image.shape[0]} pixels: the {camera.width} x {camera.height} of the "
            f"calibration of {camera.name} are needed"
        )
    return image


def match_frames(
    frames: Iterable[tuple[str, Frame]], total: int, views: int, matcher: Matcher, limits: Limits, folder: Path,
    what: str = "match neighbours",
) -> dict[str, Table]:  # fmt: skip
    """Match frames, or read what an earlier run has matched. Returns the tables by the frames' keys.

    frames: key and frame, each read when it is its turn. total: their number. folder: of the cache.
    A note names the pairs of cameras whose matches do not fit the calibration.
    """
    tables: dict[str, Table] = {}
    names: dict[int, str] = {}
    with bar(what, total) as progress:
        for key, frame in frames:
            file = folder / f"{_fingerprint(frame, views, matcher, limits)}.safetensors"
            stored = read_sealed(file)
            if stored is None:
                table = match_frame(frame, views, matcher, limits)
                folder.mkdir(parents=True, exist_ok=True)
                write_sealed(file, vars(table))
                tables[key] = table
            else:
                tables[key] = Table(**stored[0])
            names |= {slot: view.camera.name for slot, view in enumerate(slots_of(frame, views)) if view is not None}
            progress.advance(note=f"{int(tables[key].fits.sum())} matches")
    _warn(tables.values(), names)
    return tables


def _fingerprint(frame: Frame, views: int, matcher: Matcher, limits: Limits) -> str:
    parts: list[object] = [matcher.name, views, list(limits)]
    for name, view in sorted(frame.views.items()):
        if view.camera is not None and there(view):
            parts += [name, content_digest(view.image), view.camera.intrinsics.tolist()]
            parts.append(view.camera.camera_to_ego.tolist())
    return digest(*parts)


def suspects(tables: Iterable[Table]) -> dict[tuple[int, int], float]:
    """Return the pairs of slots whose matches do not fit the calibration, and the share of those that do."""
    counts: dict[tuple[int, int], list[int]] = {}
    for table in tables:
        for ends, fits in zip(table.ends.tolist(), table.fits.tolist(), strict=True):
            row = counts.setdefault(tuple(ends), [0, 0])
            row[0], row[1] = row[0] + fits, row[1] + 1
    return {pair: fit / every for pair, (fit, every) in counts.items() if every >= ENOUGH and fit < SUSPECT * every}


def _warn(tables: Iterable[Table], names: Mapping[int, str]) -> None:
    wrong = suspects(tables)
    for (one, other), share in wrong.items():
        say(
            f"note: only {share:.0%} of the matches between {names[one]} and {names[other]} fit the calibration; "
            "the intrinsics or extrinsics of one of them may be wrong"
        )
    blamed = {slot: sum(slot in pair for pair in wrong) for pair in wrong for slot in pair}
    for slot in sorted(slot for slot, count in blamed.items() if count > 1):
        say(f"note: {names[slot]} is in several of these pairs: check its calibration first")


def correctness(frame: Frame, table: Table, views: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which matches are true, (n,) bool, and of which that is known, (n,) bool.

    A match is true if the true depth of one of its pixels carries it to within 2 pixels of its partner.
    """
    slots = slots_of(frame, views)
    true, known = np.zeros(len(table), bool), np.zeros(len(table), bool)
    maps: dict[int, np.ndarray] = {}
    for side in (0, 1):
        for one, other in {tuple(ends) for ends in table.ends.tolist()}:
            slot, partner = ((one, other), (other, one))[side]
            if slots[slot] is None or slots[slot].depth is None:
                continue
            depth = maps[slot] if slot in maps else maps.setdefault(slot, slots[slot].depth())
            rows = np.flatnonzero((table.ends == torch.tensor([one, other])).all(1).numpy())
            pixels, wanted = (table.pixels[rows, end].double().numpy() for end in (side, 1 - side))
            x, y = (np.rint(pixels[:, axis]).astype(int).clip(0, depth.shape[1 - axis] - 1) for axis in (0, 1))
            points = slots[slot].camera.lift(pixels, depth[y, x].astype(np.float64))
            arrived, _ = slots[partner].camera.project(points)
            known[rows] |= depth[y, x] > 0
            with np.errstate(invalid="ignore"):
                true[rows] |= (depth[y, x] > 0) & (np.linalg.norm(arrived - wanted, axis=1) < TRUE)
    return torch.from_numpy(true), torch.from_numpy(known)


def depth_map(table: Table, slots: Sequence[View | None], height: int, width: int) -> torch.Tensor:
    """Return the depths of matches as maps (slots, height, width), 0 where there are none.

    height, width: of the maps; matches lie in images of the cameras' sizes. Of several in a pixel the nearest counts.
    """
    maps = torch.full((len(slots), height, width), torch.inf)
    for side in (0, 1):
        slot = table.ends[:, side]
        sizes = torch.tensor([(1, 1) if view is None else (view.camera.width, view.camera.height) for view in slots])
        scale = torch.tensor([width, height]) / sizes[slot]
        x, y = ((table.pixels[:, side] + 0.5) * scale - 0.5).round().long().unbind(1)
        place = (slot * height + y.clamp(0, height - 1)) * width + x.clamp(0, width - 1)
        maps.view(-1).scatter_reduce_(0, place, table.depths[:, side], "amin")
    return torch.where(maps.isinf(), 0.0, maps)


def check_enough(tables: Iterable[Table], filtered: bool) -> None:
    """Raise JettisonError if there is no match to learn from. filtered: whether only those that fit count."""
    if not any(bool(table.fits.any()) if filtered else len(table) for table in tables):
        raise JettisonError(
            "no match between neighbouring cameras fits the calibration: check that the cameras overlap, and their "
            "intrinsics and extrinsics"
        )
