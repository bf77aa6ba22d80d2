"""Matchers: they find the same points in two images. SIFT with OpenCV, or a transformer from a local folder.

- A matcher has a ``name``, which tells its results apart in a cache, and ``match``.
- ``sift``: the settings of SurroundDepth (arXiv:2204.03636): edge threshold 8, contrast 0.01, ratio of distances 0.75.
- A folder: SuperGlue or LightGlue with their weights, as ``transformers`` saves them. SA-FSM (arXiv:2407.10406) uses
  SuperGlue, whose weights are for research only. Confidences of 0.2 or less are left out.
- EfficientLoFTR is refused: in ``transformers`` 5 the entries of its two lists of points do not belong together.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from jettison.core.documents import read_json
from jettison.core.errors import UsageError, guarded, shown
from jettison.core.files import content_digest, digest

SIFT = "sift"
CONTRAST, EDGE, RATIO = 0.01, 8, 0.75
LEAST = 0.2  # confidence of a transformer's matches
TRANSFORMERS = ("superglue", "lightglue")
MULTIPLE = 32  # sides of the images that a transformer sees
GRAY = (0.299, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class Matches:
    """Points that two images show. pixels, others: (n, 2), in the first and the second image. confidence: (n,), 0-1."""

    pixels: np.ndarray
    others: np.ndarray
    confidence: np.ndarray


class Matcher(Protocol):
    """Finds matches. name: tells the results of matchers and their settings apart."""

    name: str

    def match(self, image: np.ndarray, other: np.ndarray) -> Matches:
        """Return the matches of two images, (height, width, 3) uint8, of any sizes."""


def open_matcher(name: str) -> Matcher:
    """Return a matcher: ``sift``, or the transformer in a folder of weights.

    Raises UsageError for another name, a folder without such a model, and if OpenCV is missing.
    """
    return Sift() if name == SIFT else TransformerMatcher(name)


class Sift:
    """SIFT with brute-force matching: the best match must be clearly nearer than the second. Confidences are 1."""

    name = f"sift {CONTRAST} {EDGE} {RATIO}"

    def __init__(self):
        try:
            import cv2
        except ImportError as error:
            raise UsageError(
                "matcher sift: OpenCV is not installed; pip install 'jettison[matching]', or name the folder of a "
                "transformer matcher"
            ) from error
        self._cv2 = cv2
        self._sift = cv2.SIFT_create(contrastThreshold=CONTRAST, edgeThreshold=EDGE)

    def match(self, image: np.ndarray, other: np.ndarray) -> Matches:
        """Return the matches of two images, (height, width, 3) uint8."""
        gray = lambda pixels: self._cv2.cvtColor(np.ascontiguousarray(pixels), self._cv2.COLOR_RGB2GRAY)
        points, descriptors = zip(
            *(self._sift.detectAndCompute(gray(one), None) for one in (image, other)), strict=True
        )
        empty = np.zeros((0, 2))
        if any(part is None or len(part) < 2 for part in descriptors):
            return Matches(empty, empty, np.zeros(0))
        pairs = self._cv2.BFMatcher().knnMatch(*descriptors, k=2)
        kept = [first for first, second in pairs if first.distance < RATIO * second.distance]
        place = lambda side, index: np.array([points[side][getattr(one, index)].pt for one in kept]).reshape(-1, 2)
        return Matches(place(0, "queryIdx"), place(1, "trainIdx"), np.ones(len(kept)))


class TransformerMatcher:
    """A keypoint matcher of ``transformers`` with weights from a local folder."""

    def __init__(self, folder: str | Path):
        path = Path(folder)
        config, weights = path / "config.json", path / "model.safetensors"
        if not config.is_file() or not weights.is_file():
            raise UsageError(
                f"matcher {shown(str(folder))} is neither {SIFT!r} nor a folder with config.json and model.safetensors "
                f"of a keypoint matcher ({', '.join(TRANSFORMERS)})"
            )
        settings = read_json(config)
        kind = settings.get("model_type")
        if kind not in TRANSFORMERS:
            raise UsageError(f"{config}: model_type = {shown(kind)}; valid: {', '.join(TRANSFORMERS)}")
        if settings.get("trust_remote_code"):
            raise UsageError(f"{config}: trust_remote_code is set; the code of a folder is never run")
        from transformers import AutoModelForKeypointMatching

        with guarded(f"the matcher in {path} cannot be opened"):
            model = AutoModelForKeypointMatching.from_pretrained(path, local_files_only=True, use_safetensors=True)
        self._model = model.eval()
        self.name = f"{kind} {digest(content_digest(config), content_digest(weights))} {LEAST}"

    @torch.no_grad()
    def match(self, image: np.ndarray, other: np.ndarray) -> Matches:
        """Return the matches of two images, (height, width, 3) uint8. Both are resized to one size, in gray."""
        sides = [-(-max(image.shape[axis], other.shape[axis]) // MULTIPLE) * MULTIPLE for axis in (0, 1)]
        made = self._model(torch.stack([_gray(one, sides) for one in (image, other)])[None])
        points = made.keypoints[0].double()  # (2, n, 2), shares of the sides
        matches, confidence = (
            part.reshape(2, -1) for part in (made.matches, made.matching_scores)
        )  # some have a batch
        first, second = torch.arange(points.shape[1]), matches[0].long()  # points of one image, partners in the other
        scores, there = confidence[0], made.mask[0] > 0
        valid = (second > -1) & there[0] & there[1][second.clamp(min=0)] & (scores > LEAST)
        places = []
        for side, index, source in ((0, first, image), (1, second, other)):
            size = torch.tensor([source.shape[1], source.shape[0]], dtype=torch.float64)
            seen = torch.tensor(sides[::-1], dtype=torch.float64)
            at = points[side][index[valid]] * seen  # pixels of what the model saw
            places.append(((at + 0.5) * size / seen - 0.5).numpy())
        return Matches(places[0], places[1], scores[valid].double().numpy())


def _gray(image: np.ndarray, sides: list[int]) -> torch.Tensor:
    """Return an image as (3, height, width) from 0 to 1, the same in all channels."""
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    gray = (pixels * torch.tensor(GRAY)[:, None, None]).sum(1, keepdim=True)
    resized: Any = functional.interpolate(gray, sides, mode="bilinear", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1).expand(3, -1, -1)
