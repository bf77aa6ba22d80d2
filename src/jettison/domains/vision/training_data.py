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
        # (n, channels, height, width), filled as images are used; None until the first are
        self._pixels: torch.Tensor | None = None
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
            pixels, labels = self.images.load(self.places[indices])
            if len(self) * pixels[0].nbytes > SHARE * psutil.virtual_memory().available:
                return pixels, labels
            self._pixels = torch.empty(len(self), *pixels.shape[1:])
        self._decode(indices[~self._known[indices]].unique())
        whole = indices[~self._broken[indices]]
        if not len(whole):
            return self.images.load(self.places[indices])  # raises
        return self._pixels[whole], self._labels[whole]

    def _decode(self, indices: torch.Tensor) -> None:
        """Keep the pixels of images that were not read yet. indices: (n,), each once."""
        if not len(indices):
            return
        try:
            pixels, _ = self.images.load(self.places[indices])
        except UsageError:
            if not self._is_broken(indices).all():  # the image processor failed
                raise
            pixels = self._pixels[:0]
        broken = self._is_broken(indices)
        self._pixels[indices[~broken]] = pixels
        self._broken[indices] = broken
        self._known[indices] = True

    def _is_broken(self, indices: torch.Tensor) -> torch.Tensor:
        """Return which of some images are broken, (n,) bool. All of them were read."""
        broken = set(self.images.broken)
        return torch.tensor([self.images.names[place] in broken for place in self.places[indices].tolist()])


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


def labelled(images: Images) -> Labelled:
    """Divide images with labels into those to train on and those to validate on, see ``divide``."""
    places, held_out, calibration = divide(len(images), images.path)
    training = TrainingImages(images, places)

    def fetch(indices: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = training.load(indices)
        return augment(pixels, step).contiguous(memory_format=torch.channels_last), labels

    return Labelled(
        len(training),
        fetch,
        calibration=[training.load(part)[0] for part in calibration.split(BATCH)],
        validation=[images.load(part) for part in held_out.split(BATCH)],
    )


def divide(count: int, where: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Divide images into those to train on and those to validate on, evenly over the set.

    where: name of the set, for the error.
    Returns the places of the images to train on, those of the images to validate on, and which of the images to train
    on are for the statistics of batch normalizations (indices into the first).
    Raises UsageError for fewer than 40 images.
    """
    if count < 2 * HELD_OUT:
        raise UsageError(f"{where} has {count} images: at least {2 * HELD_OUT} are needed to train on")
    places = torch.arange(count)
    held_out = places[HELD_OUT // 2 :: HELD_OUT]
    training = places[~torch.isin(places, held_out)]
    return training, _spread(held_out, MOST_HELD_OUT), _spread(torch.arange(len(training)), CALIBRATION)


def _spread(values: torch.Tensor, most: int) -> torch.Tensor:
    """Return at most so many of some values, evenly."""
    count = min(most, len(values))
    return values[torch.arange(count) * len(values) // count]
