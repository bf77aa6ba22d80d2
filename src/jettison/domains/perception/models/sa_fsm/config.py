"""The fields of a depth network's config.json. The defaults are small, for two CPU cores; ``PAPER`` is as published."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jettison.core.errors import UsageError
from jettison.core.validation import Fields

MULTIPLE = 32  # the sides are multiples of the stride of the last feature map
SIDE = Annotated[int, Field(ge=32, le=2048, multiple_of=MULTIPLE, description="a multiple of 32 from 32 to 2,048")]
WIDTH = Annotated[int, Field(ge=4, le=2048, multiple_of=4, description="a multiple of 4 from 4 to 2,048 is needed")]
DEPTH = Annotated[int, Field(ge=1, le=48, description="a whole number from 1 to 48 is needed")]
COUNT = Annotated[int, Field(ge=1, le=16, description="a whole number from 1 to 16 is needed")]
METRES = Annotated[float, Field(gt=0, le=1000, description="a number above 0, at most 1,000, is needed")]


class Config(Fields):
    """The fields of config.json.

    height, width: of the images that the network sees. views: cameras of the ring.
    backbone, widths, depths: see ``layers.backbone``. decoder: channels from the full size to 1/16.
    blocks, heads: of the attention between cameras at every level. grid: stride at which it works.
    neighbours: whether blocks also attend to the neighbours in the ring (NCA); else to all cameras alone (CVT).
    view_embedding: whether cameras have learned embeddings. Without them, the ring can be turned.
    least, most: range of depth in metres. focal: the focal length, as a share of the width, at which depth is what the
        decoder says; it grows with the focal length.
    flip_average: whether the depth is averaged with that of the mirrored images, which takes twice as long.
    matcher: ``sift``, or a folder with a transformer matcher. filters: whether geometric filters drop matches.
    angle, epipolar: limits of these filters, in degrees and in pixels of the original images.
    rounds: 2, or 1 to keep all matches in the second round, which is as long.
    """

    height: SIDE = 64
    width: SIDE = 160
    views: Annotated[int, Field(ge=2, le=16, description="a whole number from 2 to 16 is needed")] = 6
    backbone: Literal["resnet", "bottleneck", "swin"] = "resnet"
    widths: Annotated[list[WIDTH], Field(min_length=4, max_length=4)] = Field(default=[24, 48, 96, 128])
    depths: Annotated[list[DEPTH], Field(min_length=4, max_length=4)] = Field(default=[2, 2, 2, 2])
    decoder: Annotated[list[WIDTH], Field(min_length=5, max_length=5)] = Field(default=[16, 24, 32, 48, 64])
    blocks: COUNT = 2
    heads: COUNT = 4
    grid: Literal[8, 16, 32] = 16
    neighbours: bool = True
    view_embedding: bool = True
    least: METRES = 0.1
    most: METRES = 200.0
    focal: Annotated[float, Field(ge=0.05, le=20, description="a number from 0.05 to 20 is needed")] = 0.7
    flip_average: bool = False
    matcher: str = "sift"
    filters: bool = True
    angle: Annotated[float, Field(ge=0, le=90, description="a number from 0 to 90 is needed")] = 0.01
    epipolar: Annotated[float, Field(gt=0, le=1000, description="a number above 0, at most 1,000, is needed")] = 1.0
    rounds: Literal[1, 2] = 2

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if any(width % self.heads for width in self.widths):
            raise UsageError(f"heads = {self.heads} must divide all widths, {self.widths}")
        if self.least >= self.most:
            raise UsageError(f"least = {self.least:g} must be below most = {self.most:g}")
        return self


# SurroundDepth's settings on DDAD (arXiv:2204.03636), with four blocks of neighbour-enhanced attention, which cost
# about as much as its eight blocks: our reconstruction of SA-FSM (arXiv:2407.10406).
PAPER = {
    "height": 384, "width": 640, "widths": [64, 128, 256, 512], "depths": [3, 4, 6, 3],
    "decoder": [16, 32, 64, 128, 256], "blocks": 4, "heads": 8, "grid": 32, "focal": 715.0873 / 640,
    "flip_average": True,
}  # fmt: skip
