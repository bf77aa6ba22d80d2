"""Images for training: kept in memory where they fit, flipped and shifted at random."""

import psutil
import torch

from jettison.core.errors import UsageError
from jettison.domains.vision.data import Images
from jettison.training.depth import Labelled

SHARE = 0.25  # of the free memory that pixels may fill
HELD_OUT, MOST_HELD_OUT = 20, 2000  # one in so many images is validated on, at most so many
CALIBRATION, BATCH = 512, 128  # images for the statistics of batch normalizations; images at once
SHIFT = 8  # images are shifted by up to 1 / SHIFT of a side


class TrainingImages:
    """Images with labels, in a form that is fast to train on.

    images: the set.
    places: the indices of the images to train on, (n,); all if None.

    An image is decoded once if all of them fit in ``SHARE`` of the free memory, else every time that it is used.
    """

    def __init__(self, images: Images, places: torch.Tensor | None = None):
        self.images = images
        self.places = images.spread() if places is None else places
        self._pixels: torch.Tensor | None = None  # (n, channels, height, width), filled as images are used
        self._known = torch.zeros(len(self.places), dtype=torch.bool)
        self._broken = torch.zeros(len(self.places), dtype=torch.bool)
        self._labels = torch.tensor([images.labels[place] for place in self.places.tolist()])

    def __len__(self) -> int:
        return len(self.places)

    def load(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Load images, without the broken ones.

        indices: (batch,), from 0 to the number of images - 1.
        Returns pixels (n, channels, height, width) float32, and labels (n,) int64.
        Raises UsageError as ``Images.load``.
        """
        if self._pixels is None:
            first, _ = self.images.load(self.places[indices[:1]])
            if len(self) * first.nbytes > SHARE * psutil.virtual_memory().available:
                return self.images.load(self.places[indices])
            self._pixels = torch.empty(len(self), *first.shape[1:])
        self._decode(indices[~self._known[indices]].unique())
        indices = indices[~self._broken[indices]]
        return self._pixels[indices], self._labels[indices]

    def _decode(self, indices: torch.Tensor) -> None:
        if not len(indices):
            return
        pixels, _ = self.images.load(self.places[indices])
        if len(pixels) == len(indices):
            self._pixels[indices] = pixels
        else:  # some are broken: find out which
            broken = set(self.images.broken)
            whole = torch.tensor([self.images.names[place] not in broken for place in self.places[indices].tolist()])
            self._pixels[indices[whole]] = pixels
            self._broken[indices[~whole]] = True
        self._known[indices] = True


def augment(pixels: torch.Tensor, seed: int) -> torch.Tensor:
    """Flip each image or not, and shift it by up to an eighth of its side; what enters at the border is 0.

    pixels: (batch, channels, height, width).
    """
    rng = torch.Generator().manual_seed(seed)
    batch, channels, height, width = pixels.shape
    flips = torch.rand(batch, generator=rng) < 0.5
    pixels = torch.where(flips[:, None, None, None], pixels.flip(-1), pixels)
    shift = max(1, min(height, width) // SHIFT)
    padded = torch.nn.functional.pad(pixels, (shift,) * 4)
    top, left = torch.randint(2 * shift + 1, (2, batch), generator=rng)
    rows = top[:, None] + torch.arange(height)  # (batch, height)
    columns = left[:, None] + torch.arange(width)  # (batch, width)
    index = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]  # (batch, height, width)
    flat = padded.flatten(2)  # (batch, channels, padded height · padded width)
    picked = flat.gather(2, index.flatten(1)[:, None].expand(-1, channels, -1))
    return picked.view(batch, channels, height, width)


def labelled(images: Images, most: int | None = None) -> Labelled:
    """Divide images with labels into those to train on and those to validate on.

    most: how many images are used in all, spread evenly; None for all.
    Raises UsageError for fewer than 40 images.
    """
    places = images.spread(most)
    if len(places) < 2 * HELD_OUT:
        raise UsageError(f"{images.path} has {len(places)} images: at least {2 * HELD_OUT} are needed to train on")
    held_out = places[HELD_OUT // 2 :: HELD_OUT]
    training = TrainingImages(images, places[~torch.isin(places, held_out)])
    held_out = held_out[
        torch.arange(min(MOST_HELD_OUT, len(held_out))) * len(held_out) // min(MOST_HELD_OUT, len(held_out))
    ]
    own = torch.arange(min(CALIBRATION, len(training))) * len(training) // min(CALIBRATION, len(training))

    def fetch(indices: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = training.load(indices)
        return augment(pixels, step).contiguous(memory_format=torch.channels_last), labels

    return Labelled(
        len(training),
        fetch,
        calibration=[training.load(part)[0] for part in own.split(BATCH)],
        validation=[images.load(part) for part in held_out.split(BATCH)],
    )
