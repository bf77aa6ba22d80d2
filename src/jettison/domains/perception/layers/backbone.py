"""Backbones: networks of transformers that map images to feature maps of four sizes, built from a few numbers.

Weights are new; nothing is downloaded. In families.yaml, the row of ``jettison_dense_anchors`` has the blocks of all
kinds, and the roles of their matrices.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from transformers import ResNetBackbone, ResNetConfig, SwinBackbone, SwinConfig

from jettison.core.errors import UsageError, shown, unknown

KINDS = ("resnet", "bottleneck", "swin")  # bottleneck: the ResNet of 50 and more layers
STRIDES = (4, 8, 16, 32)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, by colour
HEAD_WIDTH = 32  # channels of an attention head of Swin
WINDOW = 7


class Backbone(nn.Module):
    """A network that maps images to feature maps at 1/4, 1/8, 1/16 and 1/32 of their sides.

    channels: of the four maps.
    """

    def __init__(self, model: nn.Module, channels: Sequence[int]):
        super().__init__()
        self.model, self.channels = model, tuple(channels)
        for name, colours in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, torch.tensor(colours).view(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return four maps (n, channels, height / stride, width / stride), sides rounded up.

        images: (n, 3, height, width) from 0 to 1; they are normalized here.
        """
        return list(self.model((images - self.mean) / self.deviation).feature_maps)


def build_backbone(kind: str, widths: Sequence[int], depths: Sequence[int], stem: int | None = None) -> Backbone:
    """Build a backbone with new weights, drawn by the seed of torch.

    kind: one of ``KINDS``. ResNet is arXiv:1512.03385, Swin arXiv:2103.14030.
    widths: channels of the four stages; those of Swin double from stage to stage.
    depths: numbers of blocks of the four stages.
    stem: channels of the first convolution of a ResNet; None for those of the first block.
    Raises UsageError for an unknown kind, and for widths and depths that it cannot have.
    """
    if kind not in KINDS:
        raise unknown("backbone", kind, KINDS)
    for name, numbers in (("widths", widths), ("depths", depths)):
        if len(numbers) != len(STRIDES) or min(numbers) < 1:
            raise UsageError(f"{name} of a backbone are {shown(list(numbers))}: four whole numbers from 1 are needed")
    every = [1, 2, 3, 4]  # the stages whose outputs are returned
    if kind == "swin":
        if any(after != 2 * before for before, after in pairwise(widths)) or stem is not None:
            raise UsageError(
                f"widths of swin are {shown(list(widths))}, stem {stem}: each width is twice the one before, such as "
                "96, 192, 384, 768, and there is no stem"
            )
        heads = [_heads(width) for width in widths]
        config = SwinConfig(
            embed_dim=widths[0], depths=list(depths), num_heads=heads, window_size=WINDOW, out_indices=every,
            drop_path_rate=0.0,
        )  # fmt: skip
        return Backbone(SwinBackbone(config), widths)
    factor = 4 if kind == "bottleneck" else 1
    if any(width % factor for width in widths):
        raise UsageError(f"widths of bottleneck are {shown(list(widths))}: multiples of {factor} are needed")
    config = ResNetConfig(
        embedding_size=stem or widths[0] // factor, hidden_sizes=list(widths), depths=list(depths), out_indices=every,
        layer_type="bottleneck" if kind == "bottleneck" else "basic",
    )  # fmt: skip
    return Backbone(ResNetBackbone(config), widths)


def _heads(width: int) -> int:
    """Return the number of heads: the largest that divides the width and leaves ``HEAD_WIDTH`` channels or more."""
    return next(count for count in range(max(1, width // HEAD_WIDTH), 0, -1) if width % count == 0)
