"""The fields of a recipe file that belong to no method: of the file, of its calibration, and of verbs.

Pydantic checks them. A field's description says what is needed.
"""

from typing import Any

from pydantic import Field

from jettison.core.validation import Fields

CALIBRATION = {"text": "books", "samples": 128, "length": 256}
PATTERN_OPTIONS = ("sparsity", "pattern", "scope", "allocation", "spread")
FASTEST = 1000.0  # times as fast that may be asked for


class RecipeFields(Fields):
    """The fields of a recipe file. Other functions read steps and calibration."""

    name: str = Field("custom", min_length=1, description="a text is needed")
    use: str = Field("", description="a text is needed")
    calibration: Any = None
    steps: Any = None
    why: Any = None
    loss: Any = None


class CalibrationFields(Fields):
    """The fields of ``calibration`` in a recipe file."""

    text: str = Field(CALIBRATION["text"], min_length=1, description="a text is needed")
    samples: int = Field(CALIBRATION["samples"], ge=1, description="a positive whole number is needed")
    length: int = Field(CALIBRATION["length"], ge=1, description="a positive whole number is needed")
    images: str | None = Field(None, min_length=1, description="a text is needed")  # for image classifiers


class GridFields(Fields):
    """The options that determine the grid of a quantize step."""

    bits: int | None = Field(None, description="int is needed")
    group_size: int | None = Field(None, description="int is needed")
    symmetric: bool | None = Field(None, description="bool is needed")
    mtp: int | None = Field(None, description="a number of bits is needed")
    values: str | None = Field(None, description="str is needed")


class RunFields(Fields):
    """The options of a program step that say for which runs of a diffusion pipeline the program is, and how short.

    ratio: the share of the FLOPs of a run that is saved, as counted.
    speedup: instead, how many times as fast a run must be, measured on this machine.
    steps: of the sampler.
    guidance: the scale of classifier-free guidance; 1 turns it off, None means the default of the pipeline's class.
    """

    ratio: float | None = Field(None, gt=0, lt=1, description="a number between 0 and 1 is needed, such as 0.6")
    speedup: float | None = Field(None, gt=1, le=FASTEST, description="a number above 1 is needed, such as 2.5")
    steps: int = Field(20, ge=2, le=10_000, description="a whole number of at least 2 is needed")
    guidance: float | None = Field(None, ge=1, le=1000, description="a number of at least 1 is needed")


# Options that belong to a verb, whatever the method.
OWN_OPTIONS = {
    "quantize": tuple(GridFields.model_fields), "prune": PATTERN_OPTIONS, "program": tuple(RunFields.model_fields),
}  # fmt: skip
