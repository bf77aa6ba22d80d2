"""Types of the fields of jettison.json and speed.json that Jettison reads.

Fields that are not listed are kept and not checked. ``checked`` reports the first field of another type.
"""

from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from jettison.core.errors import JettisonError
from jettison.formats.depth_schema import Depth
from jettison.formats.plan_schema import Part, Plan, Positive
from jettison.formats.program_schema import FoundProgram

Values = TypeVar("Values", bound=dict[str, Any])


class Teacher(Part):
    """The original. fingerprint: the hash of its content."""

    name: str
    folder: str
    fingerprint: str


class Where(Part):
    """The matrices that a step applies to."""

    role: list[str] = []
    block: list[int | str] = []


class Options(Part):
    """The options of a step that the report and the model card describe in words."""

    method: str = ""
    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    train: list[str] = []


class Recipe(Part):
    """The recipe of a run. Every step is checked to have one verb with options that can be read."""

    name: str
    use: str = ""
    why: list[str] | None = None
    calibration: dict[str, Any] | None = None
    steps: list[dict[str, Any]]

    @field_validator("steps")
    @classmethod
    def _are_steps(cls, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for step in steps:
            verbs = [name for name in step if name != "where"]
            if len(verbs) != 1:
                raise ValueError(f"a step has one verb, and perhaps 'where'; this one has {', '.join(step) or 'none'}")
            Options.model_validate({} if step[verbs[0]] is None else step[verbs[0]])
            where = step.get("where") or {}
            for place in where if isinstance(where, list) else [where]:
                Where.model_validate(place)
        return steps


class Size(Part):
    """The size of a checkpoint."""

    bytes: Positive
    bits_per_weight: float


class Text(Part):
    """Quality on a text. kl, agreement: compared with the original; absent for the original itself."""

    log_perplexity: float
    perplexity: Positive
    kl: float = 0.0
    agreement: float = 0.0
    tokens: int | None = None

    @model_validator(mode="after")
    def _has_both_distances(self) -> "Text":
        if ("kl" in self.model_fields_set) != ("agreement" in self.model_fields_set):
            raise ValueError("kl and agreement are measured together")
        return self


class Accuracy(Part):
    """The result of a task. random: the accuracy of guessing. scores: of all items, separated by spaces."""

    accuracy: float
    standard_error: float | None = None
    random: float | None = None
    scores: str = ""


class Sample(Part):
    """A prompt and the text that the model continues it with."""

    prompt: str
    text: str


class Images(Part):
    """Quality on labelled images. broken: how many could not be decoded."""

    accuracy: float
    standard_error: float
    loss: float
    kl: float = 0.0
    agreement: float = 0.0
    images: int
    broken: int = 0


class Named(Part):
    """A predicted class and its probability."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, populate_by_name=True)

    name: str = Field(alias="class")
    probability: float


class Picture(Part):
    """An example image with the predictions of the original and of the compressed model (now)."""

    png: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/=]*$")]
    label: str
    original: Named
    now: Named


class Shown(Part):
    """A picture of an exhibit."""

    png: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/=]*$")]
    caption: str = ""


class Exhibit(Part):
    """Pictures that a domain shows of a stage."""

    title: str
    note: str = ""
    wide: bool = False
    pictures: list[Shown] = []


class Stage(Part):
    """The measurements of the original, quantized or recovered model.

    looked_at: how many images were compared. differ: for how many of them the predicted class differs.
    """

    size: Size
    texts: dict[str, Text] = {}
    images: dict[str, Images] = {}
    pictures: list[Picture] | None = None
    differ: int | None = None
    looked_at: int | None = None
    samples: list[Sample] | None = None
    exhibits: list[Exhibit] | None = None
    tasks: dict[str, Accuracy] | None = None


class Share(Part):
    """The share of a task's lost accuracy that recovery brought back. counts: whether the loss is significant."""

    task: str
    counts: bool
    lost: float
    lost_error: float
    recovered: float | None = None
    recovered_error: float | None = None

    @model_validator(mode="after")
    def _has_figures(self) -> "Share":
        if self.counts and (self.recovered is None or self.recovered_error is None):
            raise ValueError("a share that counts needs recovered and recovered_error")
        return self


class Figures(Part):
    """Predicted speed, and memory in bytes."""

    tokens_per_second: float | None = None
    memory: float | None = None


class Predicted(Part):
    """What the plan predicts for the original and for the result."""

    original: Figures | None = None
    result: Figures | None = None


class Request(Part):
    """The arguments of ``jettison fit``."""

    model: str
    device: str = ""
    tps: float | None = None
    memory: str | float | None = None
    latency: float | None = None
    fps: float | None = None
    speedup: float | None = None
    context: int | None = None
    engine: str | None = None
    recovery: bool = True
    losses: str | None = None
    refine: int | None = None
    recipe: str | None = None
    changes: list[str] | None = None
    texts: list[str] | None = None
    images: str | None = None
    tasks: list[str] | None = None
    items: int | None = None
    seed: int = 0
    predicted: Predicted | None = None
    command: list[str] | None = None


class Linear(Part):
    """A compressed linear. error: its relative error."""

    model_config = ConfigDict(strict=True, allow_inf_nan=True)  # a matrix of zeros has no finite relative error

    error: float
    grid: str = ""
    pattern: str = ""


class Blocks(Part):
    """The compressed linears of one shard. error: of the block's output."""

    model_config = ConfigDict(strict=True, allow_inf_nan=True)

    error: float | None = None
    linears: dict[str, Linear]


class CheckedBlock(Part):
    """The block that ``formats.check.check_block`` ran, and the largest difference of its outputs."""

    index: int
    difference: float


class Check(Part):
    """The result of the checks after compression. linears: how many were checked."""

    linears: int
    block: CheckedBlock | None = None
    notes: list[str] = []


class Recovery(Part):
    """The recovery of a run. features: the weight of the loss of inner states."""

    hashes: dict[str, str]
    loss: list[float] = []
    features: float | None = None
    train: list[str] = []
    command: list[str] | None = None


class Manifest(Part):
    """The content of jettison.json."""

    teacher: Teacher
    recipe: Recipe
    blocks: list[Blocks]
    hashes: dict[str, str]
    jettison: str = ""
    license: str = ""
    seed: int = 0
    versions: dict[str, str] = {}
    not_in_transformers: list[str] = []
    replaced: list[str] = []
    quantized_before: dict[str, Any] = {}
    command: list[str] | None = None
    check: Check | None = None
    request: Request | None = None
    plan: Plan | None = None
    depth: Depth | None = None
    program: FoundProgram | None = None
    recovery: Recovery | None = None
    results: dict[str, Stage] = {}
    tasks: list[Share] | None = None


class Rates(Part):
    """The speed of one stage."""

    decode_tokens_per_second: float | None = None
    prefill_tokens_per_second: float | None = None
    latency_ms: float | None = None
    latency_samples: list[float] | None = None
    decode_samples: list[float] | None = None
    prefill_samples: list[float] | None = None


class Speeds(Part):
    """The content of speed.json."""

    machine: str | None = None
    stages: dict[str, Rates] = {}


def checked(values: Values, kind: type[Part], where: str) -> Values:
    """Check the content of a file and return it unchanged.

    where: name of the file in errors.
    Raises JettisonError for the first field that does not match ``kind``.
    """
    try:
        kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"]))
        actual = "" if first["type"] == "missing" else f"; it is {type(first['input']).__name__} {first['input']!r:.60}"
        raise JettisonError(f"{where} is damaged: {field}: {first['msg']}{actual}") from None
    return values
