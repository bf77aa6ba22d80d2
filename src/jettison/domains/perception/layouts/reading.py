"""What readers of dataset folders share: files inside the folder, JSON fields, images, arrays, frames read on demand.

- Every name in a file of a dataset is taken relative to the folder and may not lead out of it.
- Nothing is unpickled: arrays are read with ``allow_pickle=False``, and pickle files are refused.
- A folder that holds only a part of its frames is refused with a count, or read in part with ``incomplete=True``.
"""

import io
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jettison.core.documents import parse_json
from jettison.core.errors import JettisonError, UsageError, guarded, shown
from jettison.core.files import inside, read_bytes
from jettison.core.progress import say
from jettison.domains.perception.scenes import MOST_SIDE, Camera, Frame, checked_points, checked_transform

FILE_LIMIT = 1 << 28  # bytes of an image, a label file or an array
TABLE_LIMIT = 1 << 31  # bytes of a table of nuScenes
MOST_PIXELS = 1 << 26
PICKLES = (".pkl", ".pickle", ".p", ".pt", ".pth")
SPLITS = ("train", "val", "test")


@contextmanager
def within(what: str) -> Iterator[None]:
    """Put ``what:`` before the messages of errors in the block, and make them UsageErrors."""
    try:
        yield
    except JettisonError as error:
        message = str(error)
        raise UsageError(message if message.startswith(what) else f"{what}: {message}") from error


@dataclass(frozen=True)
class DataFolder:
    """The folder of a dataset. layout: the name of the dataset, in errors."""

    path: Path
    layout: str

    def __post_init__(self):
        if not os.path.isdir(self.path):
            kind = "is a file" if os.path.exists(self.path) else "does not exist"
            raise UsageError(f"{self.path} {kind}: a folder in the layout of {self.layout} is needed")

    def file(self, name: Any) -> Path:
        """Return the path of a file whose name the dataset states. Raises UsageError if it leads out of the folder."""
        if not isinstance(name, str) or not name or "\0" in name:
            raise UsageError(f"{self.path} refers to a file {shown(name)}: a path inside the folder is needed")
        with within(str(self.path)):
            return inside(self.path, name)

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return os.path.isfile(self.file(name))

    def lines(self, name: str) -> list[str]:
        """Return the lines of a text file that are not empty. Raises UsageError if it cannot be read."""
        path = self.file(name)
        try:
            return [line for line in load_bytes(path).decode("utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is no text in UTF-8: {error}") from error

    def json(self, name: str, kind: type = dict, limit: int = FILE_LIMIT) -> Any:
        """Return the JSON value of a file. kind: dict or list. Raises UsageError if it is something else."""
        return load_json(self.file(name), kind, limit)


def load_bytes(path: Path, limit: int = FILE_LIMIT) -> bytes:
    """Read a file. Raises UsageError if it is missing, too large, a pickle, or cannot be read."""
    refuse_pickle(path)
    with within(str(path)):
        return read_bytes(path, limit)


def refuse_pickle(path: Path) -> None:
    """Raise UsageError for the name of a pickle file, which may run code when it is read."""
    if path.suffix.lower() in PICKLES:
        raise UsageError(
            f"{path} is a pickle, which may run code when it is read: Jettison reads JSON, npz and safetensors. Write "
            "its content as one of those with the program that made it"
        )


def load_json(path: Path, kind: type = dict, limit: int = FILE_LIMIT) -> Any:
    """Return the JSON value of a file. kind: dict or list. Raises UsageError if it is something else."""
    with within(str(path)):
        value = parse_json(load_bytes(path, limit), str(path))
    if not isinstance(value, kind):
        raise UsageError(f"{path} holds a JSON {type(value).__name__}: a {kind.__name__} is needed")
    return value


def entry(record: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return a value of a JSON object. Raises UsageError if it is missing or of another type. where: in errors."""
    if not isinstance(record, dict) or key not in record:
        raise UsageError(f"{where} has no {key!r}")
    value = record[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise UsageError(f"{where} has {key} = {shown(value)}: a value of type {names} is needed")
    return value


class LazyFrames(Sequence):
    """Frames that are read from their files whenever one is asked for.

    names: of the frames. read: function from the index of a frame to the frame; its errors get the frame's name.
    """

    def __init__(self, names: Sequence[str], read: Callable[[int], Frame]):
        self.names, self._read = names, read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):
        if isinstance(index, slice):
            picked = range(len(self))[index]
            return LazyFrames([self.names[one] for one in picked], lambda place: self._read(picked[place]))
        place = range(len(self))[index]
        with within(f"frame {self.names[place]}"):
            return self._read(place)


def present(folder: DataFolder, wanted: Sequence[tuple[str, Sequence[str]]], incomplete: bool) -> list[int]:
    """Find the frames whose files are all there.

    wanted: for every frame, its name and the names of its files and folders.
    incomplete: whether a part of the frames will do; what is missing is then noted.
    Returns indices into ``wanted``. Raises UsageError if there are none, and for missing files without ``incomplete``.
    """
    if not wanted:
        raise UsageError(f"{folder.path} lists no frames: a file list with at least one frame is needed")
    absent = {
        index: [name for name in names if not os.path.exists(folder.file(name))]
        for index, (_, names) in enumerate(wanted)
    }
    kept = [index for index, names in absent.items() if not names]
    if len(kept) == len(wanted):
        return kept
    missing = [name for names in absent.values() for name in names]
    more = f" and {len(missing) - 1:,} more files are" if len(missing) > 1 else " is"
    message = f"{folder.path} holds {len(kept):,} of {len(wanted):,} frames: {missing[0]}{more} missing"
    if not kept or not incomplete:
        way = "download the rest" if not kept else "download the rest, or read what is there (incomplete)"
        raise UsageError(f"{message}: {way}")
    say(f"note: {message}; the others are read")
    return kept


def read_image(path: Path) -> np.ndarray:
    """Read an image as (height, width, 3) uint8. Raises UsageError if it is missing, broken or absurdly large."""
    with _opened_image(path) as picture:
        return np.asarray(picture.convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """Return the width and height of an image from its header. Raises UsageError as ``read_image`` does."""
    with _opened_image(path) as picture:
        return picture.size


def pillow() -> tuple[ModuleType, ModuleType]:
    """Return the modules Image and ImageDraw of Pillow. Raises UsageError if it is missing."""
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise UsageError("images need pillow: pip install 'jettison[vision]'") from error
    return Image, ImageDraw


@contextmanager
def _opened_image(path: Path) -> Iterator[Any]:
    image_module, _ = pillow()
    with within(f"image {path}"), guarded(f"image {path} cannot be read"):
        data = load_bytes(path)
        with image_module.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MOST_PIXELS or max(picture.size) > MOST_SIDE:
                raise UsageError(
                    f"it has {picture.width:,} x {picture.height:,} pixels: at most {MOST_PIXELS:,} in all and "
                    f"{MOST_SIDE:,} a side are read"
                )
            yield picture


def load_array(path: Path, key: str) -> np.ndarray:
    """Read an array from an .npy file, or from an .npz file under ``key`` or as its only one.

    Raises UsageError if it is missing, too large, pickled or broken.
    """
    data = io.BytesIO(load_bytes(path))
    with guarded(f"array {path} cannot be read"):
        if path.suffix != ".npz":
            return np.load(data, allow_pickle=False)
        with zipfile.ZipFile(data) as archive:
            if (size := sum(item.file_size for item in archive.infolist())) > FILE_LIMIT:
                raise UsageError(f"{path} unpacks to {size:,} bytes; at most {FILE_LIMIT:,} are read")
        with np.load(data, allow_pickle=False) as arrays:
            names = list(arrays)
            if key not in names and len(names) != 1:
                raise UsageError(f"{path} has the arrays {shown(names)}: one named {key!r} is needed")
            return arrays[key if key in names else names[0]]


def load_depth(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Read a dense depth map as (height, width) float32 metres; unknown depths become 0. Raises UsageError."""
    depth = load_array(path, "data")
    if depth.shape != shape or depth.dtype.kind not in "fiu":
        raise UsageError(f"{path} holds {depth.dtype} of shape {depth.shape}: numbers of shape {shape} are needed")
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)


def rotation_of(quaternion: Sequence[float], what: str) -> np.ndarray:
    """Return the rotation (3, 3) of a quaternion w, x, y, z. Raises UsageError if its length is not about 1."""
    q = checked_points([quaternion], 4, what, 1)[0]
    length = np.linalg.norm(q)
    if abs(length - 1) > 1e-2:
        raise UsageError(f"{what} is {shown(list(quaternion))}: a quaternion w, x, y, z of length 1 is needed")
    w, x, y, z = q / length
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def transform_of(rotation: Any, translation: Any, what: str) -> np.ndarray:
    """Return the transform (4, 4) of a rotation (3, 3) and a translation (3,). Raises UsageError for anything else."""
    matrix = np.eye(4)
    with within(what):
        turn, move = checked_points(rotation, 3, "rotation", 3), checked_points([translation], 3, "translation", 1)
        if turn.shape != (3, 3):
            raise UsageError(f"rotation has shape {turn.shape}: (3, 3) is needed")
    matrix[:3, :3], matrix[:3, 3] = turn, move[0]
    return checked_transform(matrix, what)


def lidar_depth(points: np.ndarray, lidar_to_camera: np.ndarray, camera: Camera) -> np.ndarray:
    """Project points of a lidar into a camera; of several in one pixel the nearest counts.

    points: (n, 3). lidar_to_camera: (4, 4). Returns (height, width) float32 metres, 0 where there is none.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # broken points are left out
        inside = points.astype(np.float64) @ lidar_to_camera[:3, :3].T + lidar_to_camera[:3, 3]  # (n, 3)
    inside = inside[np.isfinite(inside).all(1) & (inside[:, 2] > 0)]
    pixels = (inside @ camera.intrinsics.T)[:, :2] / inside[:, 2:]
    pixels = np.round(np.clip(pixels, -1.0, 2.0 * MOST_SIDE)).astype(int)
    seen = ((pixels >= 0) & (pixels < (camera.width, camera.height))).all(1)
    pixels, depths = pixels[seen], inside[seen, 2]
    depth = np.full((camera.height, camera.width), np.inf)
    np.minimum.at(depth, (pixels[:, 1], pixels[:, 0]), depths)
    return np.where(np.isfinite(depth), depth, 0).astype(np.float32)
