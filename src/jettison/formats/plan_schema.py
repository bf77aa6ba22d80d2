"""Types of the section ``plan`` of jettison.json: those of its fields that Jettison reads. See ``schema``."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MANY = 100_000  # limit of the number of blocks: a chart has one column per block
Positive = Annotated[float, Field(gt=0, le=1e30)]
Block = Annotated[int, Field(ge=0, lt=MANY)]


class Part(BaseModel):
    """Base of all sections. Fields that a class does not list are kept and not checked."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Operators(Part):
    """Totals of the operators of one role. moved: bytes; flops: operations."""

    role: str
    moved: Positive
    flops: float
    seconds: Positive


class Phases(Part):
    """The operators of decoding and of prefill, one entry per role."""

    decode: list[Operators] = Field(min_length=1)
    prefill: list[Operators]


class Cell(Part):
    """The choice for a role in one block, such as ``4 g128``. block: None for matrices outside all blocks."""

    role: str
    block: Block | None
    choice: Annotated[str, Field(pattern=r"^(16|8|4|3|2)( |$)")]
    loss: float


class Sensitivity(Part):
    """The expected loss of a role in one block at 3 bits."""

    role: str
    block: Block
    loss: float


class Point(Part):
    """A plan as a point of a chart: memory in bytes, decoded tokens per second, and expected loss."""

    memory: Positive
    tokens_per_second: float
    loss: float


class Preset(Part):
    """Another recipe under the same budget. misses: the reasons why it does not fit; empty if it fits."""

    name: str
    memory: float | None
    tokens_per_second: float | None
    loss: float | None
    misses: list[str]

    @model_validator(mode="after")
    def _has_all_or_none(self) -> "Preset":
        if len({self.memory is None, self.tokens_per_second is None, self.loss is None}) > 1:
            raise ValueError("a preset has memory, tokens_per_second and loss, or none of them")
        return self


class Role(Part):
    """The choices for one role and their totals. choices: choice -> how often it is made; time: share of a step."""

    role: str
    choices: dict[str, int]
    weights: float
    bytes: float
    time: float
    loss: float


class Gains(Part):
    """How much faster than uniform 4 bits the plan and W4/W2-GateUp decode, in percent, per context length."""

    contexts: list[int]
    plan: list[float] = Field(alias="this plan")
    other: list[float] = Field(alias="W4/W2-GateUp")


class Device(Part):
    """The device that the plan is for. bandwidth: bytes per second; flops: operations per second."""

    name: str
    title: str
    bandwidth: Positive
    flops: Positive


class Setting(Part):
    """The setting that the plan is for. context: tokens."""

    context: int


class Plan(Point):
    """The result of ``plan_data``."""

    model: str
    device: Device
    setting: Setting
    verdict: str
    losses: Literal["prior", "gradients", "measured"]
    measured: list[float]
    roles: list[Role]
    presets: list[Preset]
    operators: Phases
    front: list[Point]
    gains: Gains | None
    sensitivity: list[Sensitivity]
    map: list[Cell]
