"""Images with labels: both layouts, broken images, and the pixels that the processor makes."""

import io
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny import CLASSES, PROCESSOR

from jettison.core.errors import UsageError
from jettison.domains.vision.data import open_images
from jettison.graph.folder import ModelFolder


@pytest.fixture(scope="module")
def source(tiny):
    return ModelFolder(tiny("resnet"))


def png(color, size=(5, 4)):
    """Return the bytes of a PNG file of one color."""
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "png")
    return file.getvalue()


def parquet(path, images, labels, columns=("image", "label")):
    """Write a table of images and labels. Returns the path."""
    pq.write_table(pa.table(dict(zip(columns, (images, labels), strict=True))), path)
    return path


def test_a_folder_of_classes(pictures, source):
    images = open_images(pictures, source)
    assert len(images) == 36 and images.classes == CLASSES
    pixels, labels = images.sample(6)
    assert pixels.shape == (6, 3, 32, 32) and pixels.dtype == torch.float32
    assert labels.tolist() == [0, 0, 1, 1, 2, 2], "spread evenly over the set"


def test_pixels_are_the_processors(tmp_path, source):
    path = parquet(tmp_path / "a.parquet", [{"bytes": png((255, 0, 51)), "path": "a"}], [2])
    pixels, labels = open_images(path, source).sample()
    expected = [(1 - 0.5) / 0.2, (0 - 0.4) / 0.25, (0.2 - 0.3) / 0.5]
    assert torch.allclose(pixels[0].mean((1, 2)), torch.tensor(expected), atol=1e-5) and labels.tolist() == [2]


def test_class_folders_have_the_models_numbers(tmp_path, source):
    for name in ("frog", "cat"):  # two of the three classes: frog has number 2, cat 0
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png((1, 2, 3)))
    assert open_images(tmp_path, source).sample()[1].tolist() == [0, 2]


def test_gray_and_transparent_pictures(tmp_path, source):
    (tmp_path / "cat").mkdir()
    Image.new("L", (4, 4), 255).save(tmp_path / "cat" / "a.png")
    Image.new("RGBA", (4, 4), (255, 255, 255, 0)).save(tmp_path / "cat" / "b.png")
    pixels, _ = open_images(tmp_path, source).sample()
    assert torch.allclose(pixels[0], pixels[1])


def test_broken_images_are_named_and_counted(tmp_path, source, monkeypatch):
    notes = []
    monkeypatch.setattr("jettison.domains.vision.data.say", notes.append)
    path = parquet(tmp_path / "a.parquet", [png((1, 2, 3)), b"no image", png((1, 2, 3))[:40], None], [0, 1, 2, 0])
    images = open_images(path, source)
    pixels, labels = images.sample()
    assert len(pixels) == 1 and labels.tolist() == [0]
    assert images.broken == ["a.parquet:1", "a.parquet:2", "a.parquet:3"]
    assert len(notes) == 3 and notes[0].startswith(f"note: image a.parquet:1 of {path} is broken and left out: ")


def test_nothing_that_can_be_decoded(tmp_path, source):
    path = parquet(tmp_path / "a.parquet", [b"no image"] * 2, [0, 1])
    with pytest.raises(UsageError, match=r"none of 2 images can be decoded, such as a.parquet:0"):
        open_images(path, source).sample()


def test_the_digest_is_of_the_content(pictures, tmp_path):
    copy = shutil.copytree(pictures, tmp_path / "copy")
    assert open_images(copy).digest == open_images(pictures).digest
    file = copy / "cat" / "00.png"
    file.write_bytes(file.read_bytes() + b"\0")
    assert open_images(copy).digest != open_images(pictures).digest


def test_links_out_of_the_folder_are_not_followed(pictures, tmp_path):
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "cat" / "a.png").write_bytes(png((1, 2, 3)))
    (tmp_path / "set" / "cat" / "b.png").symlink_to(pictures / "dog" / "00.png")
    (tmp_path / "set" / "dog").symlink_to(pictures / "dog")
    assert len(open_images(tmp_path / "set")) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path / "nowhere", "no images .*nowhere.*a folder of class subfolders"),
        (lambda path: path, "holds no images"),
        (lambda path: parquet(path / "a.parquet", [b""], [0], ("photo", "label")), "has the columns photo, label"),
        (lambda path: parquet(path / "a.parquet", [b""], ["cat"]), "label 'cat'; whole numbers are needed"),
        (lambda path: parquet(path / "a.parquet", [b"", b""], [0, None]), "label None; whole numbers are needed"),
        (lambda path: parquet(path / "a.parquet", [b""], [0.0]), "label 0.0; whole numbers are needed"),
        (lambda path: parquet(path / "a.parquet", [b""], [3]), "has label 3: .* has classes 0 to 2"),
        (lambda path: (path / "a.parquet", (path / "a.parquet").write_bytes(b"PAR1"))[0], "cannot be read"),
        (lambda path: (path / "a.txt", (path / "a.txt").write_bytes(b"x"))[0], "holds no images"),
    ],
)
def test_what_cannot_be_read(tmp_path, source, make, words):
    with pytest.raises(UsageError, match=words):
        open_images(make(tmp_path), source)


def test_a_checkpoint_without_a_processor(tiny, pictures, tmp_path):
    folder = shutil.copytree(tiny("resnet"), tmp_path / "m")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match=r"has no preprocessor_config.json.*copy it from the original"):
        open_images(pictures, ModelFolder(folder))


def test_a_processor_that_is_damaged(tiny, pictures, tmp_path):
    folder = shutil.copytree(tiny("resnet"), tmp_path / "m")
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"image_mean": [0.5]}))
    with pytest.raises(UsageError, match="image processor of the checkpoint fails"):
        open_images(pictures, ModelFolder(folder)).sample(2)


def test_without_the_extra(pictures, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"images need PIL: pip install 'jettison\[vision\]'"):
        open_images(pictures)
