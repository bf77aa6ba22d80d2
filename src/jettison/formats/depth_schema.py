"""Types of the section ``depth`` of jettison.json, and of the entries of OUT/depth/journal.jsonl. See ``schema``."""

from typing import Annotated

from pydantic import Field

from jettison.formats.plan_schema import MANY, Block, Part, Positive

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[float, Field(ge=0, le=1e30)]


class Cost(Part):
    """The layers of the branch of a block, and their multiply-adds for one image."""

    layers: Annotated[int, Field(ge=0, le=1_000_000)]
    multiply_adds: Count


class Merged(Part):
    """A block before and after it was merged."""

    path: str
    before: Cost
    after: Cost


class HeldOut(Part):
    """Accuracies on the images that were not trained on."""

    original: Share
    pruned: Share
    images: int


class Depth(Part):
    """The result of a depth step. blocks: how many can be pruned. pruned: the numbers of those that were.

    dropped: whether they were left out as a whole. difference: of the logits before and after merging, relative.
    paths: of all blocks that can be pruned.
    """

    method: str
    blocks: Block
    pruned: list[Block]
    accuracy: HeldOut
    merged: list[Merged] | None = None
    dropped: bool = False
    difference: float = 0.0
    paths: list[str] | None = None


class Subnet(Part):
    """A subnet that the search looked at. genome: a bit for every block, 1 for pruned.

    latency: expected, as a share of the original's; None if it was not measured.
    """

    genome: Annotated[str, Field(pattern=r"^[01]+$", max_length=MANY)]
    accuracy: Share
    latency: Count | None = None


class Without(Part):
    """A model without some blocks. tried: their numbers."""

    tried: list[Block]
    accuracy: Share


class Loss(Part):
    """The loss of a step of a training."""

    training: Annotated[str, Field(max_length=100)]
    step: Annotated[int, Field(ge=0)]
    steps: int
    loss: float


class Gates(Part):
    """What the gates of all blocks became."""

    gates: list[float]
    pruned: list[Block]


class Latency(Part):
    """The latencies at the end, measured in turns."""

    milliseconds: dict[str, Positive]
