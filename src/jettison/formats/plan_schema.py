"""What jettison.json holds of a plan, as far as it is read; see ``schema``."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MANY = 100_000  # blocks; a chart has a column for each
Positive = Annotated[float, Field(gt=0, le=1e30)]
Block = Annotated[int, Field(ge=0, lt=MANY)]


class Part(BaseModel):
    """Fields that are not listed are kept and not looked at."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Operators(Part):
    role: str
    moved: Positive
    flops: float
    seconds: Positive


class Phases(Part):
    decode: list[Operators] = Field(min_length=1)
    prefill: list[Operators]


class Cell(Part):
    role: str
    block: Block | None
    choice: Annotated[str, Field(pattern=r"^(16|8|4|3|2)( |$)")]
    loss: float


class Sensitivity(Part):
    role: str
    block: Block
    loss: float


class Point(Part):
    memory: Positive
    tokens_per_second: float
    loss: float


class Preset(Part):
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
    role: str
    choices: dict[str, int]
    weights: float
    bytes: float
    time: float
    loss: float


class Gains(Part):
    contexts: list[int]
    plan: list[float] = Field(alias="this plan")
    other: list[float] = Field(alias="W4/W2-GateUp")


class Device(Part):
    name: str
    title: str
    bandwidth: Positive
    flops: Positive


class Setting(Part):
    context: int


class Plan(Point):
    """What ``plan_data`` gives."""

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
