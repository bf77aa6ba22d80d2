"""Types of the fields of draft.json that Jettison reads."""

from typing import Any

from jettison.formats.plan_schema import Part


class Candidate(Part):
    """A draft whose speed was predicted. step: the cost of a draft token; expected: the predicted speed-up."""

    draft: str
    acceptance: float
    step: float
    expected: float


class Tried(Part):
    """A draft whose speed was measured. expected, measured: speed-up over plain decoding."""

    draft: str
    expected: float
    measured: float


class Found(Part):
    """The measurements behind a choice of draft."""

    rows: list[Candidate] | None = None
    tried: list[Tried] | None = None


class Drafts(Part):
    """The content of draft.json, as far as the report reads it."""

    draft: dict[str, Any] | None = None
    reason: str = ""
    measured: Found | None = None
