"""Images of frames as tensors, for the networks of perception models."""

import torch
from torch.nn import functional

from jettison.core.errors import UsageError
from jettison.domains.perception.layouts.reading import image_size, read_image
from jettison.domains.perception.scenes import Frame, View

FRONT = ("FRONT", "front", "front_center", "CAMERA_01")  # ends of the names of front cameras


def front_view(frame: Frame) -> View:
    """Return what the front camera saw. Raises UsageError for a frame without a front camera, or without its image."""
    names = [name for name in frame.views if name.endswith(FRONT)]
    if len(names) != 1:
        raise UsageError(f"frame {frame.name} has the cameras {', '.join(frame.views)}: one front camera is needed")
    if frame.views[names[0]].image is None:
        raise UsageError(f"frame {frame.name} has no image of camera {names[0]}")
    return frame.views[names[0]]


def view_size(view: View) -> tuple[int, int]:
    """Return the height and width of the image of a view, from its header. Raises UsageError if it cannot be read."""
    width, height = image_size(view.image)
    return height, width


def view_pixels(view: View, height: int, width: int) -> torch.Tensor:
    """Return the image of a view as (3, height, width) float32 from 0 to 1, resized with smoothing.

    Raises UsageError for an image that is missing, broken or absurdly large.
    """
    pixels = torch.tensor(read_image(view.image)).permute(2, 0, 1)[None].float() / 255
    if pixels.shape[-2:] != (height, width):
        pixels = functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return pixels[0].clamp(0, 1)
