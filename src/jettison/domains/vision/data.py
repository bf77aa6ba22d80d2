"""Reads images with labels for image classifiers, from a folder of class subfolders or from parquet files.

- The image processor of the checkpoint makes the pixels, with its PIL backend.
- Images that cannot be decoded are left out, named in a note and counted.
- Pillow and pyarrow are in the extra ``vision``.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from jettison.core.errors import JettisonError, UsageError, guarded
from jettison.core.files import check_regular, content_digest, digest, read_bytes
from jettison.core.progress import say
from jettison.graph.folder import ModelFolder

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label")
PROCESSOR = "preprocessor_config.json"
LIMIT, MOST_PIXELS = 1 << 28, 1 << 26  # limits: bytes of an image file, and pixels of an image
PICTURE = 96  # pixels of the longer side, in reports
SHOWN = 5  # broken images that are named in notes
VALID = "a folder of class subfolders with images, or parquet files with the columns image and label, is needed"


@dataclass
class Images:
    """A set of images.

    labels: for every image, a class of the model.
    digest: 16 hex digits of the content.
    broken: names of the images that could not be decoded, among those that were read so far.
    """

    path: str
    classes: Sequence[str]
    labels: Sequence[int]
    digest: str
    names: Sequence[str] = field(repr=False)
    _read: Any = field(repr=False)  # function from an index to the bytes of an image
    _processor: Any = field(default=None, repr=False)
    _channels: int = 3
    broken: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def spread(self, count: int | None = None) -> torch.Tensor:
        """Return ``count`` indices, spread evenly over the set. Returns all for None, or if there are fewer."""
        n = len(self)
        return torch.arange(n) if count is None or count >= n else torch.arange(count) * n // count

    def load(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Load images, without the broken ones.

        places: indices (images,).
        Returns pixels (n, channels, height, width) float32, and labels (n,) int64.
        Raises UsageError if none can be decoded, or if the image processor fails.
        """
        pictures, labels = [], []
        for place in places.tolist():
            if (picture := self._picture(place)) is not None:
                pictures.append(picture)
                labels.append(self.labels[place])
        if not pictures:
            raise UsageError(f"{self.path}: none of {len(places)} images can be decoded, such as {self.broken[0]}")
        with guarded(f"the image processor of the checkpoint fails on {self.path}"):
            pixels = self._processor(pictures, return_tensors="pt")["pixel_values"]
        return pixels.float(), torch.tensor(labels)

    def sample(self, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Load ``count`` images, spread evenly over the set; see ``load`` and ``spread``."""
        return self.load(self.spread(count))

    def _picture(self, place: int):
        """An image as a Pillow object; None if it is broken, which a note reports."""
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self._read(place))) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise ValueError(f"{picture.width} x {picture.height} pixels; at most {MOST_PIXELS:,} are read")
                return picture.convert("L" if self._channels == 1 else "RGB")
        # Pillow raises all of these for damaged files.
        except (OSError, ValueError, SyntaxError, JettisonError, Image.DecompressionBombError) as error:
            if self.names[place] not in self.broken:
                self.broken.append(self.names[place])
                if len(self.broken) <= SHOWN:
                    say(f"note: image {self.names[place]} of {self.path} is broken and left out: {error}")
                elif len(self.broken) == SHOWN + 1:
                    say(f"note: more images of {self.path} are broken; the result counts them")
            return None

    def png(self, place: int) -> bytes:
        """Return the image as PNG, shrunk to ``PICTURE`` pixels a side, for a report. place: index of the image."""
        picture, file = self._picture(place), io.BytesIO()
        picture.thumbnail((PICTURE, PICTURE))
        picture.save(file, "png")
        return file.getvalue()


def open_images(path: str | Path, source: ModelFolder | None = None) -> Images:
    """Open the images of a folder or file, for the model of ``source``.

    If all class folders have names of the model's classes, they get the numbers of these classes. Otherwise they are
    numbered in the order of their names.

    source: None if the images are only counted, not loaded.
    Raises UsageError for a path without images, labels that the model does not have, and a checkpoint without an image
    processor.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"no images {str(path)!r}: {VALID}")
    _require_pillow()
    parquet = [path] if path.suffix == ".parquet" else sorted(path.glob("*.parquet")) if path.is_dir() else []
    if not parquet and not path.is_dir():
        raise UsageError(f"{path} holds no images: {VALID}")
    images = _read_parquet(path, tuple((file, _stamp(file)) for file in parquet)) if parquet else _read_folder(path)
    return images if source is None else _for_model(images, source)


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise UsageError(f"images need {error.name}: pip install 'jettison[vision]'") from error


def _stamp(file: Path) -> tuple[int, int]:
    check_regular(file)
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _for_model(images: Images, source: ModelFolder) -> Images:
    config, labels = source.config, list(images.labels)
    known = {str(name): number for number, name in (config.id2label or {}).items()}
    if images.classes and set(images.classes) <= set(known):
        labels = [known[images.classes[label]] for label in labels]
    wrong = next((label for label in labels if not 0 <= label < config.num_labels), None)
    if wrong is not None:
        name = f" ({images.classes[wrong]})" if 0 <= wrong < len(images.classes) else ""
        raise UsageError(
            f"{images.path} has label {wrong}{name}: {source.name} has classes 0 to {config.num_labels - 1}"
        )
    channels = getattr(config, "num_channels", 3)
    processor = image_processor(source.folder)
    return replace(images, labels=labels, broken=[], _processor=processor, _channels=channels)


def image_processor(folder: Path) -> Any:
    """Load the image processor of a checkpoint. Raises UsageError if it is missing or cannot be used."""
    if not (folder / PROCESSOR).exists():
        raise UsageError(f"{folder} has no {PROCESSOR}, which says how images become pixels: copy it from the original")
    from transformers import AutoImageProcessor

    with guarded(f"{folder / PROCESSOR} cannot be used"):
        return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)


def _read_folder(path: Path) -> Images:
    root = path.resolve()
    # Links that lead out of the folder are not followed.
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.resolve().is_relative_to(root))
    files: list[tuple[Path, int]] = []
    for label, folder in enumerate(folders):
        images = sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS)
        files += [(file, label) for file in images if file.resolve().is_relative_to(root)]
    if not files:
        raise UsageError(f"{path} holds no images: {VALID}")
    names = [file.relative_to(path).as_posix() for file, _ in files]
    content = digest(*names, *(content_digest(file) for file, _ in files))
    read = lambda place: read_bytes(files[place][0], LIMIT)
    return Images(str(path), [folder.name for folder in folders], [label for _, label in files], content, names, read)


@lru_cache(4)
def _read_parquet(path: Path, files: tuple[tuple[Path, tuple[int, int]], ...]) -> Images:
    from pyarrow import ArrowException, parquet

    images, labels, names = [], [], []
    for file, _ in files:
        try:
            schema = parquet.read_schema(file).names
            columns = [
                next((name for name in valid if name in schema), None) for valid in (IMAGE_COLUMNS, LABEL_COLUMNS)
            ]
            if None in columns:
                raise UsageError(f"{file} has the columns {', '.join(schema)}: {VALID}")
            table = parquet.read_table(file, columns=columns)
        except (ArrowException, OSError) as error:
            raise UsageError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
        images += [(table[columns[0]], row) for row in range(len(table))]
        labels += table[columns[1]].to_pylist()
        names += [f"{file.name}:{row}" for row in range(len(table))]
    if wrong := [label for label in labels if type(label) is not int]:
        raise UsageError(f"{path} has label {wrong[0]!r:.60}; whole numbers are needed")
    if not images:
        raise UsageError(f"{path} holds no images: {VALID}")

    def read(place: int) -> bytes:
        column, row = images[place]
        value = column[row].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes):
            raise ValueError(f"its bytes are {type(value).__name__}")
        return value

    content = digest(*(content_digest(file) for file, _ in files))
    return Images(str(path), [], labels, content, names, read)
