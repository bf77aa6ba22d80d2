"""Object detection (Faster R-CNN of D2Go) and plane detection (PlaneRCNN).

Both propose regions and look at the best few of them again. How many is fixed (``regions``) and none is suppressed for
overlapping, so that a frame always costs the same; the official tables count one region.
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
    """The regions with the highest scores. scores: (batch, anchors, height, width); shifts: (batch, 4·anchors, height,
    width), of x, y, width and height. Returns (batch, count, 4): left, top, right, bottom, as parts of the picture."""
    _, anchors, height, width = scores.shape
    ys = (torch.arange(height, device=scores.device) + 0.5) / height
    xs = (torch.arange(width, device=scores.device) + 0.5) / width
    sizes = 2.0 ** -torch.linspace(0.5, 4, anchors, device=scores.device)
    shifts = shifts.unflatten(1, (anchors, 4)).tanh()
    x = xs.view(1, 1, 1, -1) + 0.1 * shifts[:, :, 0]
    y = ys.view(1, 1, -1, 1) + 0.1 * shifts[:, :, 1]
    w, h = (sizes.view(1, -1, 1, 1) * shifts[:, :, side].exp() for side in (2, 3))
    boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1).flatten(1, 3).clamp(0, 1)
    best = scores.flatten(1).topk(min(count, scores[0].numel())).indices
    return boxes.gather(1, best.unsqueeze(-1).expand(-1, -1, 4))


def crop(features: torch.Tensor, boxes: torch.Tensor, side: int) -> torch.Tensor:
    """Bilinear samples in the middles of a side by side grid of every box: (batch·boxes, channels, side, side)."""
    steps = (torch.arange(side, device=boxes.device) + 0.5) / side
    x = boxes[..., None, 0] + (boxes[..., None, 2] - boxes[..., None, 0]) * steps  # (batch, boxes, side)
    y = boxes[..., None, 1] + (boxes[..., None, 3] - boxes[..., None, 1]) * steps
    count = boxes.shape[1]
    grid = torch.stack([x.unsqueeze(2).expand(-1, -1, side, -1), y.unsqueeze(3).expand(-1, -1, -1, side)], -1)
    found = nn.functional.grid_sample(features, (2 * grid - 1).flatten(1, 2).to(features.dtype), align_corners=False)
    return found.unflatten(2, (count, side)).transpose(1, 2).flatten(0, 1)


class FasterRCNN(nn.Module):
    """(batch, 3, height, width) -> boxes (batch, regions, 4), scores (batch, regions, 81), corrections of the boxes by
    class (batch, regions, 320)."""

    def __init__(self, width: float = 1.0, regions: int = 10, anchors: int = 15):
        super().__init__()
        c, self.regions = width_of(width), regions
        made = lambda rows: [
            inverted(c(a), c(e), c(b), k, s, c(q) if q else 0, nn.Hardswish) for a, e, b, k, s, q in rows
        ]
        self.backbone = nn.Sequential(conv(3, c(16), 3, 2, act=nn.Hardswish), *made(FBNET_V3))
        self.objectness, self.shifts = nn.Conv2d(c(112), anchors, 1), nn.Conv2d(c(112), 4 * anchors, 1)
        self.look = nn.Sequential(*made(FBNET_V3_HEAD))
        self.classes, self.corrections = nn.Linear(c(200), 81), nn.Linear(c(200), 320)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features = self.backbone(x)
        boxes = best_regions(self.objectness(features), self.shifts(features), self.regions)
        looked = self.look(crop(features, boxes, 6)).mean((2, 3)).unflatten(0, boxes.shape[:2])
        return boxes, self.classes(looked), self.corrections(looked)


class PlaneRCNN(nn.Module):
    """(batch, 3, height, width) -> depth (batch, height/4, width/4), masks (batch, regions, 14, 14), classes (batch,
    regions, 8), parameters of the planes (batch, regions, 24), refined masks as depth; sides multiples of 32
    (arXiv:1812.04072, on a quarter of its pixels)."""

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
        self.lateral = nn.ModuleList([nn.Conv2d(each, deep, 1) for each in wide])
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
        picture, levels = x, []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        pyramid = [self.lateral[-1](levels[-1])]
        for lateral, level in zip(reversed(self.lateral[:-1]), reversed(levels[:-1]), strict=True):
            pyramid.append(lateral(level) + upsample(pyramid[-1], level))
        pyramid = [smooth(each) for smooth, each in zip(reversed(self.smooth), pyramid, strict=True)]  # coarse to fine
        deep = None
        for layer, level in zip(self.depth, pyramid, strict=True):
            deep = layer(level if deep is None else torch.cat([level, upsample(deep, level)], 1))
        depth = self.depth_head(deep)
        shared = self.shared(pyramid[1])
        boxes = best_regions(self.objectness(shared), self.shifts(shared), self.regions)
        looked = self.box(crop(pyramid[2], boxes, 7)).unflatten(0, boxes.shape[:2])
        masks = self.mask_head(self.mask(crop(pyramid[2], boxes, 7))).unflatten(0, boxes.shape[:2]).squeeze(2)
        refined = self.refine(torch.cat([nn.functional.interpolate(picture, size=depth.shape[-2:]), depth], 1))
        return depth.squeeze(1), masks, self.classes(looked), self.planes(looked), refined.squeeze(1)
