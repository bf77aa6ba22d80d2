"""Types of the section ``program`` of jettison.json, and of the journals of a program step. See ``schema``."""

from typing import Annotated

from pydantic import Field

from jettison.formats.plan_schema import MANY, Part, Positive

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=MANY)]


class Point(Part):
    """How well the runs of one program resemble full runs. flops: the share of the FLOPs of a full run.

    ssim: their mean structural similarity. samples: that of every seed.
    """

    method: Annotated[str, Field(max_length=100)]
    flops: Share
    ssim: Annotated[float, Field(ge=-1, le=1)]
    samples: list[float] | None = None


class FoundProgram(Part):
    """A program that a run found. steps, guidance, sampler: of the full run that it is compared with.

    flops: the share of the FLOPs of a full run that is left. speedup: what follows from it, not measured.
    computed: how many of ``blocks`` (blocks times calls of the denoiser) are computed.
    asked: a ratio, or a speedup that is to be measured.
    """

    method: str
    source: str = ""
    sampler: str
    steps: Annotated[int, Field(ge=1, le=MANY)]
    guidance: Annotated[float, Field(ge=0, le=1e4)]
    flops: Share
    speedup: Positive
    computed: Count
    blocks: Count
    asked: dict[str, float] | None = None
    curve: list[Point] | None = None


class Timed(Part):
    """A measurement of a program: how many times as fast it is, with a 95 % interval, and the medians."""

    timed: Annotated[int, Field(ge=0)]
    ratio: Share
    speedup: Positive
    low: Positive
    high: Positive
    milliseconds: dict[str, Positive]


class SearchStep(Part):
    """A step of DiP-GO's search. unlike: the part of the loss that is no sparsity. kept: the share of the FLOPs."""

    step: Annotated[int, Field(ge=0)]
    loss: float
    unlike: float
    kept: float
