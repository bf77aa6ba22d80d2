"""Reads predicted depth maps: a file for each, or one file for all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jettison.core.errors import UsageError, guarded, shown
from jettison.core.files import check_regular
from jettison.domains.perception.layouts.reading import FILE_LIMIT, DataFolder, load_array, within
from jettison.domains.perception.scenes import Frame, Scene

ARCHIVES = (".npz", ".safetensors")  # of many maps
ENDINGS = (*ARCHIVES, ".npy")
KEY = "depth"  # name of the map in a file of its own


def frame_path(scene: Scene, frame: Frame) -> str:
    """Return SCENE/FRAME, the first parts of the names of the depth maps of a frame."""
    return frame.name if frame.name.startswith(f"{scene.name}/") else f"{scene.name}/{frame.name}"


@contextmanager
def depth_maps(predictions: Path) -> Iterator[Callable[[str], np.ndarray]]:
    """Open depth maps, and yield a function from SCENE/FRAME/CAMERA to a map (h, w) of floats, in metres.

    predictions: a folder with a file .npz, .npy or .safetensors under this name for every map, or one file .npz or
        .safetensors with all maps under these names.
    The function raises UsageError for a map that is missing, broken, or no map of floats.
    """
    if predictions.is_dir():
        folder = DataFolder(predictions, "depth maps")
        yield lambda name: _checked(_read_single(folder, name), f"{predictions}, {name}")
    elif predictions.suffix in ARCHIVES:
        with within(str(predictions)):
            check_regular(predictions)
        with _opened(predictions) as arrays:
            yield lambda name: _checked(_take(arrays, name, predictions), f"{predictions}, {name}")
    else:
        raise UsageError(f"{predictions}: depth maps are read from a folder, or from a file .npz or .safetensors")


def _checked(depth: np.ndarray, what: str) -> np.ndarray:
    if depth.ndim != 2 or depth.dtype.kind != "f" or not depth.size:
        raise UsageError(
            f"{what} holds {depth.dtype} of shape {depth.shape}: floats (height, width) in metres are needed"
        )
    return depth.astype(np.float32) if depth.itemsize < 4 else depth


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file of arrays. Raises UsageError if it is no such file; errors of the block pass."""
    what = f"{path} cannot be read"
    if path.suffix == ".npz":
        with open(path, "rb") as file:  # numpy leaves a broken file open
            with guarded(what):
                arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise UsageError(f"{path} is no archive of arrays: a file that numpy.savez wrote is needed")
            with arrays:
                yield arrays
        return
    from safetensors import safe_open

    with guarded(what):
        arrays = safe_open(path, framework="np")
    with arrays:
        yield arrays


def _take(arrays: Any, name: str, path: Path) -> np.ndarray:
    names = set(arrays.keys())
    if name not in names:
        raise UsageError(
            f"{path} has no {name!r} among its {len(names):,} maps, such as {shown(min(names, default=''))}"
        )
    with guarded(f"{path}, {name}"):
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            return arrays.get_tensor(name)
        if (size := arrays.zip.getinfo(f"{name}.npy").file_size) > FILE_LIMIT:
            raise UsageError(f"{path}, {name} unpacks to {size:,} bytes; at most {FILE_LIMIT:,} are read")
        return arrays[name]


def _read_single(folder: DataFolder, name: str) -> np.ndarray:
    path = next((folder.file(f"{name}{end}") for end in ENDINGS if folder.has(f"{name}{end}")), None)
    if path is None:
        raise UsageError(f"{folder.path} has no {name} with an ending of {', '.join(ENDINGS)}")
    if path.suffix != ".safetensors":
        return load_array(path, KEY)
    with within(str(path)):
        check_regular(path, FILE_LIMIT)
    with _opened(path) as arrays, guarded(f"{path} cannot be read"):
        names = list(arrays.keys())
        if KEY not in names and len(names) != 1:
            raise UsageError(f"{path} has the tensors {shown(names)}: one named {KEY!r} is needed")
        return arrays.get_tensor(KEY if KEY in names else names[0])
