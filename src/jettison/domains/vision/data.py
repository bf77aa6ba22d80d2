"""Images with labels, as an image classifier reads them: a folder of class subfolders, or parquet.

- Pixels are made by the image processor of the checkpoint, in its PIL form.
- What cannot be decoded is left out, named and counted.
- Pillow and pyarrow are the extra ``vision``.
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
LIMIT, MOST_PIXELS = 1 << 28, 1 << 26  # bytes of an image file, and pixels of an image
PICTURE = 96  # pixels of a side, in reports
SHOWN = 5  # broken images that are named
VALID = "a folder of class subfolders with images, or parquet files with the columns image and label, is needed"


@dataclass
class Images:
    """A set of images. labels: of each, a class of the model. broken: the names of those that could not be decoded, as
    far as they were looked at."""

    path: str
    classes: Sequence[str]
    labels: Sequence[int]
    digest: str
    names: Sequence[str] = field(repr=False)
    _read: Any = field(repr=False)  # from a place to the bytes of an image
    _processor: Any = field(default=None, repr=False)
    _channels: int = 3
    broken: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def spread(self, count: int | None = None) -> torch.Tensor:
        """``count`` places, evenly over the set; all for None, or where there are no more."""
        n = len(self)
        return torch.arange(n) if count is None or count >= n else torch.arange(count) * n // count

    def load(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels (n, channels, height, width) float32, and labels (n,) int64, of the healthy images at ``places``."""
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
        """``load`` of ``spread``."""
        return self.load(self.spread(count))

    def _picture(self, place: int):
        """An image of Pillow, None for one that is broken."""
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self._read(place))) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise ValueError(f"{picture.width} x {picture.height} pixels; at most {MOST_PIXELS:,} are read")
                return picture.convert("L" if self._channels == 1 else "RGB")
        except (OSError, ValueError, SyntaxError, JettisonError, Image.DecompressionBombError) as error:  # Pillow's
            if self.names[place] not in self.broken:
                self.broken.append(self.names[place])
                if len(self.broken) <= SHOWN:
                    say(f"note: image {self.names[place]} of {self.path} is broken and left out: {error}")
                elif len(self.broken) == SHOWN + 1:
                    say(f"note: more images of {self.path} are broken; the result counts them")
            return None

    def png(self, place: int) -> bytes:
        """The image, shrunk to ``PICTURE`` pixels a side, for a report."""
        picture, file = self._picture(place), io.BytesIO()
        picture.thumbnail((PICTURE, PICTURE))
        picture.save(file, "png")
        return file.getvalue()


def open_images(path: str | Path, source: ModelFolder | None = None) -> Images:
    """The images of a folder or file, for the model of ``source``; without a model they can be counted, not loaded.

    Class folders that are called like classes of the model have their numbers; others are numbered in the order of
    their names. Raises UsageError for a path without images, labels that the model does not have, and a checkpoint
    without an image processor.
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
    """The image processor of a checkpoint. Raises UsageError if there is none, or none that can be used."""
    if not (folder / PROCESSOR).exists():
        raise UsageError(f"{folder} has no {PROCESSOR}, which says how images become pixels: copy it from the original")
    from transformers import AutoImageProcessor

    with guarded(f"{folder / PROCESSOR} cannot be used"):
        return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)


def _read_folder(path: Path) -> Images:
    root = path.resolve()
    folders = sorted(each for each in path.iterdir() if each.is_dir() and each.resolve().is_relative_to(root))
    files: list[tuple[Path, int]] = []
    for label, folder in enumerate(folders):
        found = sorted(each for each in folder.iterdir() if each.suffix.lower() in ENDINGS)
        files += [(each, label) for each in found if each.resolve().is_relative_to(root)]
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
            columns = [next((name for name in of if name in schema), None) for of in (IMAGE_COLUMNS, LABEL_COLUMNS)]
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
