"""Write a model folder as an ONNX file, and check this file against the folder."""

import os
import re
from pathlib import Path
from typing import Any

import torch

from jettison.core.errors import JettisonError, UsageError, guarded, shown
from jettison.core.files import writable_file
from jettison.core.numbers import check_number, figures
from jettison.core.progress import say, waiting
from jettison.domains.domain import find_domain
from jettison.domains.vision.data import image_processor
from jettison.formats.onnx_file import INPUT, OPSET, OUTPUT, check_onnx, required, write_onnx
from jettison.graph.folder import ModelFolder
from jettison.graph.skeleton import KINDS
from jettison.runtime.load import load

MOST_SIDE = 4096  # pixels
IMAGES = 2  # in the check; the file is traced with one image
TOLERANCE = 1e-3  # largest difference of the logits, as a share of the largest logit


def export_onnx(model: str | Path, out: str | Path, size: str | None = None) -> dict[str, Any]:
    """Write an image classifier or a perception model as an ONNX file, and compare it with the model in ONNX Runtime.

    Weights packed on integer grids are stored as int8, all others as float32. The file takes any number of images of
    one size; of perception models, packed inputs (``graph.own_models.pack``), of the size in their config.

    model: a folder that Jettison wrote, a model folder, or a hub id.
    out: the file to write.
    size: height and width of the images, such as ``224`` or ``192x256``; None means the size that the config or the
        image processor states. A perception model has its own.

    Returns file, to, opset, bytes, input and output (names and shapes), difference (the largest one between the logits
    of file and model on two images of noise; None if onnxruntime is not installed) and largest (logit).
    Raises UsageError for a model of another kind, a size that it does not take, and if onnx is not installed. Raises
    JettisonError, and removes the file, if its logits differ from the model's.
    """
    sides = _parse_size(size) if size is not None else None
    path, source = writable_file(Path(out)), ModelFolder(model)
    for reason in refuses_onnx(source):
        raise UsageError(reason)
    kind = source.anatomy.family.domain
    if sides and kind == "perception":
        raise UsageError(f"size = {shown(size)}: {source.name} has the size of its config; leave it out")
    required("onnx")
    pixels = _example(source) if kind == "perception" else _noise(source, sides or _stated_size(source))
    loaded = load(source.folder, exact=True, dtype=torch.float32)
    logits = loaded.logits(pixels)  # (images, classes)
    with waiting("writing and checking the ONNX file"):
        write_onnx(loaded.model, pixels[:1], path)
        difference = _check(path, loaded.model, pixels, float(logits.abs().max()))
    return {
        "file": os.fspath(path),
        "to": "onnx",
        "opset": OPSET,
        "bytes": path.stat().st_size,
        "input": {INPUT: ["images", *pixels.shape[1:]]},
        "output": {OUTPUT: ["images", *logits.shape[1:]]},
        "difference": difference,
        "largest": float(logits.abs().max()),
    }


def refuses_onnx(source: ModelFolder) -> list[str]:
    """Return why a model is not written as ONNX, in one line; an empty list if it is."""
    if (kind := source.anatomy.family.domain) in ("vision", "perception"):
        return []
    return [
        f"{source.name} is a {KINDS.get(kind, f'{kind} model')}: only an {KINDS['vision']} or a perception model "
        "can be written as onnx"
    ]


def _example(source: ModelFolder) -> torch.Tensor:
    """Return packed inputs of a perception model: its example, and noise of the same shape."""
    example, _ = find_domain(source).example(source)
    noise = torch.rand(IMAGES - 1, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    return torch.cat([example, noise])


def _check(path: Path, model: torch.nn.Module, pixels: torch.Tensor, largest: float) -> float | None:
    try:
        required("onnxruntime")
    except UsageError as error:
        say(f"note: the file was not checked: {error}")
        return None
    difference = check_onnx(path, model, pixels)
    if not difference <= TOLERANCE * largest:
        path.unlink()
        raise JettisonError(
            f"the ONNX file would give other logits than the model: they differ by up to {figures(difference)}, and "
            f"{figures(TOLERANCE * largest)} is accepted. No file was written"
        )
    return difference


def _parse_size(text: str) -> tuple[int, int]:
    """Parse ``224`` or ``192x256``. Returns height and width."""
    match = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", text)
    if not match:
        raise UsageError(f"size = {shown(text)}: height and width in pixels are needed, such as 224 or 192x256")
    sides = int(match[1]), int(match[2] or match[1])
    for side in sides:
        check_number("size", side, 1, MOST_SIDE, whole=True)
    return sides


def _stated_size(source: ModelFolder) -> tuple[int, int]:
    """Return height and width of the images that a model is made for, as its config or its image processor says."""
    side = getattr(source.config, "image_size", None)
    if side is None:
        shape = (64, 64, _channels(source))
        try:
            processor = image_processor(source.folder)
            with guarded(f"the image processor of {source.name} fails"):
                side = processor(torch.zeros(shape, dtype=torch.uint8).numpy(), return_tensors="pt")["pixel_values"]
        except UsageError as error:
            raise UsageError(f"{source.name} states no size of images ({error}): name one with --size") from error
        side = side.shape[-2:]
    height, width = side if isinstance(side, list | tuple) else (side, side)
    for value in (height, width):
        check_number("image_size", value, 1, MOST_SIDE, whole=True)
    return height, width


def _channels(source: ModelFolder) -> int:
    return getattr(source.config, "num_channels", 3)


def _noise(source: ModelFolder, sides: tuple[int, int]) -> torch.Tensor:
    """Return noise (images, channels, height, width) of a fixed seed."""
    return torch.randn(IMAGES, _channels(source), *sides, generator=torch.Generator().manual_seed(0))
