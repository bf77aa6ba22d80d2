"""A feature pyramid: maps of several sizes get one width, and the finer ones what the coarser ones know."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class Pyramid(nn.Module):
    """A feature pyramid network (arXiv:1612.03144): 1x1 convolutions, sums from coarse to fine, then 3x3 convolutions.

    channels: of the maps, from fine to coarse. smooth: whether there are the 3x3 convolutions, most of its cost.
    """

    def __init__(self, channels: Sequence[int], width: int, smooth: bool = True):
        super().__init__()
        self.narrow = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels if smooth)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return maps (batch, width, height, width of the map) of the same sizes. maps: from fine to coarse."""
        narrow = [layer(part) for layer, part in zip(self.narrow, maps, strict=True)]
        for level in range(len(narrow) - 2, -1, -1):
            narrow[level] = narrow[level] + functional.interpolate(narrow[level + 1], narrow[level].shape[-2:])
        return [layer(part) for layer, part in zip(self.smooth, narrow, strict=True)] if self.smooth else narrow
