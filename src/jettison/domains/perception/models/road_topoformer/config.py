"""The fields of Separated RoadTopoFormer. The defaults are small; ``PAPER`` has the sizes of the official baseline."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jettison.core.validation import Fields

Count = Annotated[int, Field(ge=1, le=4096, description="a whole number from 1 to 4,096 is needed")]
Layers = Annotated[int, Field(ge=1, le=24, description="a whole number from 1 to 24 is needed")]
Side = Annotated[int, Field(ge=32, le=4096, description="a whole number from 32 to 4,096 is needed")]
Stages = Annotated[list[Count], Field(min_length=4, max_length=4, description="four whole numbers from 1 are needed")]
Stride = Annotated[Literal[4, 8, 16, 32], Field(description="4, 8, 16 or 32 is needed")]
SCHEDULES = ("joint", "separated", "finetuned")


class Config(Fields):
    """The fields of config.json.

    cameras: the most that a frame may have. height, width: of their images as the lane detector sees them.
    front_height, front_width: of the front image as the detector of traffic elements sees it.
    backbone, widths, depths: of both detectors, see ``layers.backbone``. shared: whether they have one backbone.
    dimension: channels of features and queries. heads, hidden: of attention and networks of the layers.
    smooth: whether pyramids have their 3x3 convolutions. points: that a head samples of every level.
    rows, columns: of the cells of the bird's-eye view, ahead to behind, left to right.
    heights: of the points of a cell that are projected into the cameras, metres.
    encoder, decoder: numbers of layers of the lane detector. lane_stride: of its finest map. lane_levels: of its maps
        into which cells look, from the finest on; the pyramid has all. view_points: that a head samples of each of
        them around every projected point.
    lanes: queries. controls: control points of a curve. curve_points: of a predicted lane, as many as the labels that
        the score reads have: 21 of a rendered world, 11 of OpenLane-V2.
    element_encoder, element_decoder: numbers of layers of the other detector. element_stride: of its finest map.
    elements: queries. proposals: whether they begin at the likeliest places of the image, else at learned places.
    geometry: whether the relation heads read end points and boxes, beside the features of the instances.
    schedule: ``separated`` trains the lane detector, then that of elements, then the relation heads on their frozen
        features; ``finetuned`` spends the last part of the steps on all together; ``joint`` trains all together.
    steps: that every part is trained, in all three schedules. finetune: share of them, for ``finetuned``.
    """

    cameras: Annotated[int, Field(ge=1, le=16, description="a whole number from 1 to 16 is needed")] = 6
    height: Side = 96
    width: Side = 240
    front_height: Side = 160
    front_width: Side = 400
    backbone: str = "resnet"
    widths: Stages = Field(default=[16, 32, 64, 128])
    depths: Stages = Field(default=[1, 1, 1, 1])
    shared: bool = False
    dimension: Annotated[int, Field(ge=8, le=1024, multiple_of=8, description="a multiple of 8 is needed")] = 64
    heads: Count = 4
    hidden: Count = 128
    smooth: bool = False
    points: Annotated[int, Field(ge=1, le=32, description="a whole number from 1 to 32 is needed")] = 4
    rows: Annotated[int, Field(ge=4, le=400, description="a whole number from 4 to 400 is needed")] = 40
    columns: Annotated[int, Field(ge=4, le=400, description="a whole number from 4 to 400 is needed")] = 20
    heights: Annotated[list[float], Field(min_length=1, max_length=16)] = Field(default=[-1.0, 0.0, 1.0])
    encoder: Layers = 2
    decoder: Layers = 3
    lane_stride: Stride = 8
    lane_levels: Annotated[int, Field(ge=1, le=4, description="a whole number from 1 to 4 is needed")] = 1
    view_points: Annotated[int, Field(ge=1, le=32, description="a whole number from 1 to 32 is needed")] = 2
    lanes: Count = 40
    controls: Annotated[int, Field(ge=2, le=12, description="a whole number from 2 to 12 is needed")] = 5
    curve_points: Annotated[int, Field(ge=2, le=1000, description="a whole number from 2 to 1,000 is needed")] = 21
    element_encoder: Annotated[int, Field(ge=0, le=24, description="a whole number from 0 to 24 is needed")] = 0
    element_decoder: Layers = 3
    element_stride: Stride = 4
    elements: Count = 20
    proposals: bool = True
    geometry: bool = True
    schedule: Annotated[Literal[SCHEDULES], Field(description=f"{', '.join(SCHEDULES)} is needed")] = "finetuned"
    steps: Annotated[int, Field(ge=2, le=10_000_000, description="a whole number from 2 is needed")] = 1200
    finetune: Annotated[float, Field(gt=0, lt=1, description="a share between 0 and 1 is needed")] = 0.1

    @model_validator(mode="after")
    def _shared_is_joint(self) -> "Config":
        if self.shared and self.schedule != "joint":
            raise ValueError("one shared backbone cannot be frozen for one detector only; valid: schedule=joint")
        return self


# The official large baseline of OpenLane-V2 (baseline_large.py) with the schedule of the paper, arXiv:2307.01557. Its
# heights are the middles of quarters of -2.3 to 1.7 m, its steps are some 24 epochs in batches of 8. Ours differs in:
# - Images have half of the sides of those of OpenLane-V2. Pyramids have no fourth map of a 64th of the sides.
# - The view has as many cells, and reaches ``bezier.REACH``: 60 x 30 m in place of 51.2 x 25.6.
# - Control points move from layer to layer of the decoder; no layer has dropout; earlier frames are not remembered.
PAPER: dict[str, Any] = {
    "cameras": 7, "height": 775, "width": 1024, "front_height": 1024, "front_width": 775, "backbone": "bottleneck",
    "widths": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3], "dimension": 256, "heads": 8, "hidden": 512,
    "smooth": True, "rows": 200, "columns": 100, "heights": [-1.8, -0.8, 0.2, 1.2], "encoder": 3, "decoder": 6,
    "lane_stride": 8, "lane_levels": 3, "view_points": 2, "lanes": 100, "controls": 5, "curve_points": 11,
    "element_encoder": 6, "element_decoder": 6, "element_stride": 8, "elements": 100, "proposals": False,
    "geometry": False, "steps": 67_000,
}  # fmt: skip
