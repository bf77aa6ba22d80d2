"""Object detection (Faster R-CNN of D2Go) and plane detection (PlaneRCNN).

Both networks propose regions and process the best of them in a second stage. Their number is fixed (``regions``), and
no region is suppressed because it overlaps another one, so that every frame costs the same. The official tables count
one region.
"""

import torch
from torch import nn

from jettison.domains.perception.xr.blocks import bottleneck, conv, inverted, upsample, width_of

# D2Go's FBNetV3 backbone at stride 16: inside, expanded, outside, kernel, stride, squeeze.
FBNET_V3 = (
    (16, 16, 16, 3, 1, 0), (16, 16, 16, 3, 1, 0), (16, 64, 24, 5, 2, 0), (24, 72, 24, 5, 1, 0), (24, 72, 24, 5, 1, 0),
    (24, 72, 24, 5, 1, 0), (24, 96, 32, 5, 2, 24), *[(32, 96, 32, 3, 1, 24)] * 3,
    (32, 128, 64, 5, 2, 0), (64, 192, 64, 3, 1, 0), (64, 192, 64, 3, 1, 0), (64, 192, 64, 3, 1, 0),
    (64, 256, 112, 5, 1, 64), *[(112, 336, 112, 5, 1, 88)] * 9,
)  # fmt: skip
FBNET_V3_HEAD = (
    (112, 448, 184, 5, 2, 112), *[(184, 736, 184, 3, 1, 184)] * 4, (184, 1104, 200, 5, 1, 280),
)  # fmt: skip


def best_regions(scores: torch.Tensor, shifts: torch.Tensor, count: int) -> torch.Tensor:
    """Return the ``count`` regions with the highest scores; fewer if there are not so many.

    scores: (batch, anchors, height, width).
    shifts: (batch, 4·anchors, height, width): corrections of x, y, width and height.
    Returns (batch, count, 4): left, top, right, bottom, as fractions of the picture's sides.
    """
    _, anchors, height, width = scores.shape
    ys = (torch.arange(height, device=scores.device) + 0.5) / height
    xs = (torch.arange(width, device=scores.device) + 0.5) / width
    sizes = 2.0 ** -torch.linspace(0.5, 4, anchors, device=scores.device)  # of the anchors: 0.71 to 0.06 of a side
    shifts = shifts.unflatten(1, (anchors, 4)).tanh()  # (batch, anchors, 4, height, width)
    x = xs.view(1, 1, 1, -1) + 0.1 * shifts[:, :, 0]  # (batch, anchors, height, width), like y, w and h
    y = ys.view(1, 1, -1, 1) + 0.1 * shifts[:, :, 1]
    w, h = (sizes.view(1, -1, 1, 1) * shifts[:, :, side].exp() for side in (2, 3))
    boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1).flatten(1, 3).clamp(0, 1)  # (batch, all, 4)
    best = scores.flatten(1).topk(min(count, scores[0].numel())).indices  # (batch, count)
    return boxes.gather(1, best.unsqueeze(-1).expand(-1, -1, 4))


def crop(features: torch.Tensor, boxes: torch.Tensor, side: int) -> torch.Tensor:
    """Sample features bilinearly at the centres of a grid of ``side`` by ``side`` cells in every box.

    features: (batch, channels, height, width).
    boxes: (batch, boxes, 4), as ``best_regions`` returns them.
    Returns (batch·boxes, channels, side, side).
    """
    steps = (torch.arange(side, device=boxes.device) + 0.5) / side
    x = boxes[..., None, 0] + (boxes[..., None, 2] - boxes[..., None, 0]) * steps  # (batch, boxes, side)
    y = boxes[..., None, 1] + (boxes[..., None, 3] - boxes[..., None, 1]) * steps
    count = boxes.shape[1]
    grid = torch.stack([x.unsqueeze(2).expand(-1, -1, side, -1), y.unsqueeze(3).expand(-1, -1, -1, side)], -1)
    # grid: (batch, boxes, side, side, 2) in 0 to 1; grid_sample takes (batch, rows, columns, 2) in -1 to 1
    samples = nn.functional.grid_sample(features, (2 * grid - 1).flatten(1, 2).to(features.dtype), align_corners=False)
    return samples.unflatten(2, (count, side)).transpose(1, 2).flatten(0, 1)


class FasterRCNN(nn.Module):
    """Object detection with the Faster R-CNN of D2Go.

    Input (batch, 3, height, width). Outputs: boxes (batch, regions, 4), class scores (batch, regions, 81), corrections
    of the boxes for every class (batch, regions, 320).
    """

    def __init__(self, width: float = 1.0, regions: int = 10, anchors: int = 15):
        super().__init__()
        c, self.regions = width_of(width), regions
        blocks = lambda rows: [
            inverted(c(a), c(e), c(b), k, s, c(q) if q else 0, nn.Hardswish) for a, e, b, k, s, q in rows
        ]
        self.backbone = nn.Sequential(conv(3, c(16), 3, 2, act=nn.Hardswish), *blocks(FBNET_V3))
        self.objectness, self.shifts = nn.Conv2d(c(112), anchors, 1), nn.Conv2d(c(112), 4 * anchors, 1)
        self.look = nn.Sequential(*blocks(FBNET_V3_HEAD))
        self.classes, self.corrections = nn.Linear(c(200), 81), nn.Linear(c(200), 320)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return boxes, class scores and box corrections."""
        features = self.backbone(x)  # (batch, 112, height/16, width/16) at full width
        boxes = best_regions(self.objectness(features), self.shifts(features), self.regions)
        pooled = self.look(crop(features, boxes, 6)).mean((2, 3)).unflatten(0, boxes.shape[:2])  # (batch, regions, 200)
        return boxes, self.classes(pooled), self.corrections(pooled)


class PlaneRCNN(nn.Module):
    """Plane detection with PlaneRCNN (arXiv:1812.04072), on a quarter of its pixels.

    Input (batch, 3, height, width), sides multiples of 32. Outputs: depth (batch, height/4, width/4), masks (batch,
    regions, 14, 14), classes (batch, regions, 8), parameters of the planes (batch, regions, 24), refined masks (batch,
    height/8, width/8).
    """

    def __init__(self, width: float = 1.0, regions: int = 10, anchors: int = 3):
        super().__init__()
        c, self.regions = width_of(width), regions
        self.stem = nn.Sequential(conv(3, c(64), 7, 2), nn.MaxPool2d(3, 2, 1))
        stages, inside, wide = [], c(64), []
        for middle, count, stride in ((64, 3, 1), (128, 4, 2), (256, 23, 2), (512, 3, 2)):  # ResNet-101
            blocks = []
            for number in range(count):
                blocks.append(bottleneck(inside, c(middle), c(4 * middle), stride if number == 0 else 1))
                inside = c(4 * middle)
            stages.append(nn.Sequential(*blocks))
            wide.append(inside)
        self.stages, deep = nn.ModuleList(stages), c(256)
        self.lateral = nn.ModuleList([nn.Conv2d(level_channels, deep, 1) for level_channels in wide])
        self.smooth = nn.ModuleList([nn.Conv2d(deep, deep, 3, padding=1) for _ in wide])
        self.depth = nn.ModuleList([conv(deep if n == 0 else deep + c(128), c(128), 3) for n in range(4)])
        self.depth_head = nn.Sequential(conv(c(128), c(64), 3), nn.Conv2d(c(64), 1, 3, padding=1))
        self.shared = conv(deep, c(512), 3)
        self.objectness, self.shifts = nn.Conv2d(c(512), anchors, 1), nn.Conv2d(c(512), 4 * anchors, 1)
        self.box = nn.Sequential(
            nn.Conv2d(deep, c(1024), 7), nn.Flatten(), nn.ReLU(), nn.Linear(c(1024), c(1024)), nn.ReLU()
        )
        self.classes, self.planes = nn.Linear(c(1024), 8), nn.Linear(c(1024), 24)
        self.mask = nn.Sequential(*(conv(deep, deep, 3) for _ in range(4)), nn.ConvTranspose2d(deep, deep, 2, 2))
        self.mask_head = nn.Conv2d(deep, 1, 1)
        self.refine = nn.Sequential(
            conv(4, c(32), 3), conv(c(32), c(64), 3, 2), conv(c(64), c(64), 3), conv(c(64), c(16), 3),
            nn.Conv2d(c(16), 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return depth, masks, classes, plane parameters and refined masks."""
        picture, levels = x, []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            levels.append(x)  # 1/4, 1/8, 1/16 and 1/32 of the resolution
        pyramid = [self.lateral[-1](levels[-1])]
        for lateral, level in zip(reversed(self.lateral[:-1]), reversed(levels[:-1]), strict=True):
            pyramid.append(lateral(level) + upsample(pyramid[-1], level))
        # from coarse to fine: 1/32, 1/16, 1/8 and 1/4 of the resolution, all with the same channels
        pyramid = [smooth(level) for smooth, level in zip(reversed(self.smooth), pyramid, strict=True)]
        deep = None
        for layer, level in zip(self.depth, pyramid, strict=True):
            deep = layer(level if deep is None else torch.cat([level, upsample(deep, level)], 1))
        depth = self.depth_head(deep)  # (batch, 1, height/4, width/4)
        shared = self.shared(pyramid[1])
        boxes = best_regions(self.objectness(shared), self.shifts(shared), self.regions)
        pooled = self.box(crop(pyramid[2], boxes, 7)).unflatten(0, boxes.shape[:2])  # (batch, regions, 1024)
        masks = self.mask_head(self.mask(crop(pyramid[2], boxes, 7))).unflatten(0, boxes.shape[:2]).squeeze(2)
        refined = self.refine(torch.cat([nn.functional.interpolate(picture, size=depth.shape[-2:]), depth], 1))
        return depth.squeeze(1), masks, self.classes(pooled), self.planes(pooled), refined.squeeze(1)
