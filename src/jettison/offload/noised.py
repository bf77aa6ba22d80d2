"""Noised latents: the only data that may leave a device.

The service sends nothing but ``Noised``. Inside the package only the noise step and this file make one;
``tests/offload/test_noised.py`` reads the source to check that.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from jettison.core.errors import JettisonError, UsageError, shown
from jettison.core.files import check_regular
from jettison.core.numbers import check_number, check_seed
from jettison.core.tensors import write_tensors

LARGEST = 1 << 20  # numbers in a latent
LAST_FRAME = 2**63 - 1
MOST_BYTES = 1 << 32  # of a file of frames
MARK, NOISED, LOCAL = "jettison_offload", "noised", "local"  # metadata and tensors of a file of frames


@dataclass(frozen=True, eq=False)
class Noised:
    """A latent to which noise has been added, so that it may leave the device.

    latent: (d,) float32, all finite; it is copied, and the copy cannot be written to.
    frame: number of the frame, from 0 on. A stream's numbers rise.
    Raises UsageError for another type, shape or number.
    """

    latent: np.ndarray
    frame: int

    def __post_init__(self):
        check_number("frame", self.frame, 0, LAST_FRAME, whole=True)
        value = self.latent
        if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.ndim != 1:
            kind = f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
            raise UsageError(f"latent of frame {self.frame} is {kind}; a float32 array of shape (d,) is needed")
        check_number(f"length of the latent of frame {self.frame}", value.size, 1, LARGEST, whole=True)
        if not np.isfinite(value).all():
            raise UsageError(f"latent of frame {self.frame} holds numbers that are not finite")
        copy = np.array(value, dtype="<f4")  # little-endian, as on the wire
        copy.setflags(write=False)
        object.__setattr__(self, "latent", copy)

    def again(self, frame: int) -> "Noised":
        """Return the same noised latent for a later frame: with the same noise it tells nothing new."""
        return Noised(self.latent, frame)


def noise_alone(size: int, frame: int = 0, seed: int = 0) -> Noised:
    """Return a latent of standard normal noise and nothing else, for measuring a worker without any data.

    size: d. The same seed and frame give the same latent.
    """
    check_seed(seed)
    check_number("size", size, 1, LARGEST, whole=True)
    latent = np.random.default_rng((seed, frame)).standard_normal(size, dtype=np.float32)
    return Noised(latent, frame)


def write_noised(path: str | Path, stream: Sequence[Noised], local: torch.Tensor | None = None) -> None:
    """Write a file of frames for ``jettison offload join``: noised latents, and what stays on the device.

    stream: the noised latents of all frames, of one length, with rising numbers.
    local: (frames, ...) float32, the inputs of the local half; they are never sent.
    Raises UsageError for an empty stream, and for latents that do not fit together.
    """
    if not stream:
        raise UsageError("a file of frames needs one noised latent at least")
    if len({one.latent.size for one in stream}) > 1 or any(type(one) is not Noised for one in stream):
        raise UsageError("a file of frames needs noised latents of one length")
    frames = _numbers(stream)
    tensors = {NOISED: torch.from_numpy(np.stack([one.latent for one in stream]))}
    if local is not None:
        if len(local) != len(stream) or local.dtype != torch.float32:
            raise UsageError(f"local has {len(local)} rows of {local.dtype}; {len(stream)} of float32 are needed")
        tensors[LOCAL] = local
    write_tensors(Path(path), tensors, {MARK: NOISED, "frames": json.dumps(frames)})


def read_noised(path: str | Path) -> tuple[list[Noised], torch.Tensor | None]:
    """Read a file that ``write_noised`` wrote. Returns the noised latents, and the inputs of the local half or None.

    Raises UsageError for a file that is missing or without the mark of ``write_noised``: its latents may have no noise.
    """
    path = Path(path)
    try:
        check_regular(path, MOST_BYTES)
    except JettisonError as error:
        raise UsageError(str(error)) from error
    try:
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, set(file.keys())
            tensors = {name: file.get_tensor(name) for name in names & {NOISED, LOCAL}}
        frames = json.loads(metadata.get("frames", "[]"))
    except (OSError, SafetensorError, ValueError) as error:
        raise UsageError(f"{path} is no file of frames: {error}") from error
    if metadata.get(MARK) != NOISED or NOISED not in names:
        raise UsageError(
            f"{path} holds no latents that are marked as noised, and no others are sent; "
            "write it with jettison.offload.noised.write_noised"
        )
    latents, local = tensors[NOISED], tensors.get(LOCAL)
    if latents.dtype != torch.float32 or latents.dim() != 2 or not isinstance(frames, list):
        raise UsageError(f"{path}: {NOISED} is {latents.dtype} of shape {tuple(latents.shape)}; (frames, d) is needed")
    if len(frames) != len(latents) or not len(latents) or (local is not None and len(local) != len(latents)):
        raise UsageError(f"{path} has {len(latents)} latents, and numbers of {shown(len(frames))} frames")
    stream = [Noised(row, frame) for row, frame in zip(latents.numpy(), frames, strict=True)]
    _numbers(stream)
    return stream, local


def _numbers(stream: Sequence[Noised]) -> list[int]:
    """Return the numbers of the frames. Raises UsageError if they do not rise."""
    frames = [one.frame for one in stream]
    if any(later <= earlier for earlier, later in pairwise(frames)):
        raise UsageError(f"the numbers of the frames must rise; these are {shown(frames)}")
    return frames
