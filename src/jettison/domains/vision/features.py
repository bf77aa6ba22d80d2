"""Features of images, for distances between sets of images: what the last layer of an image classifier reads."""

from collections.abc import Callable
from pathlib import Path

import torch

from jettison.core.errors import UsageError, guarded
from jettison.domains.vision.data import image_processor
from jettison.graph.dense import load_dense
from jettison.graph.folder import ModelFolder
from jettison.graph.skeleton import run_model

BATCH = 250


def open_features(folder: str | Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Load an image classifier and return a function from images to features.

    The function takes (images, 3, height, width) from 0 to 1, rounds them to the 256 values of a picture, lets the
    checkpoint's image processor make pixels, and returns (images, features) float32: the inputs of the last linear.
    Raises UsageError if the folder holds no image classifier that ends in a linear.
    """
    source = ModelFolder(folder)
    head = source.anatomy.head
    if source.anatomy.family.domain != "vision" or head is None:
        raise UsageError(f"{source.name} is no image classifier with a linear at its end: features need one")
    model, processor = load_dense(source, torch.float32), image_processor(source.folder)
    module = model.get_submodule(head.name)

    @torch.no_grad()
    def features(images: torch.Tensor) -> torch.Tensor:
        rows: list[torch.Tensor] = []
        hook = module.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].flatten(1).float()))
        try:
            for part in images.split(BATCH):
                pictures = list((part * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())
                with guarded(f"the image processor of {source.folder} fails"):
                    pixels = processor(pictures, return_tensors="pt", input_data_format="channels_last")
                run_model(model, pixels["pixel_values"])
        finally:
            hook.remove()
        return torch.cat(rows)

    return features
