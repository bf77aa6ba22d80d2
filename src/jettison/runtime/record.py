"""What is known of texts while they are written, and afterwards: timings, drafts, and why they ended."""

from collections.abc import Iterator
from dataclasses import dataclass, field

STOP, LENGTH = "stop", "length"  # why a text is over: an end token or a stop text; as many tokens as were asked for


@dataclass
class Timings:
    """Tokens and seconds of reading prompts, and of writing after the first token."""

    read: int = 0
    reading: float = 0.0
    written: int = 0
    writing: float = 0.0

    @property
    def prefill(self) -> float:
        """Tokens per second."""
        return self.read / self.reading if self.reading else 0.0

    @property
    def decode(self) -> float:
        """Tokens per second."""
        return self.written / self.writing if self.writing else 0.0


@dataclass(frozen=True)
class Round:
    """kind: model, lookup or none. steps: of the draft model. proposed: tokens verified. taken: how many of those."""

    kind: str
    steps: int
    proposed: int
    taken: int


@dataclass
class Speculation:
    """What became of the draft tokens of a text."""

    rounds: list[Round] = field(default_factory=list)

    @property
    def acceptance(self) -> float:
        """Of the tokens that were judged (those after the first refused one are not), the share that was taken."""
        drafted = [each for each in self.rounds if each.proposed]
        taken = sum(each.taken for each in drafted)
        judged = taken + sum(each.taken < each.proposed for each in drafted)
        return taken / judged if judged else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Tokens written for each time that the target read its weights."""
        return 1 + sum(each.taken for each in self.rounds) / len(self.rounds) if self.rounds else 1.0


@dataclass
class Record:
    """finish_reasons: of each row STOP or LENGTH, None while it is being written. Timings are of all rows together."""

    finish_reasons: list[str | None]
    timings: Timings = field(default_factory=Timings)
    speculation: Speculation = field(default_factory=Speculation)


@dataclass
class Tokens:
    """Iterates over (row, token) as they come; ``record`` fills meanwhile."""

    pairs: Iterator[tuple[int, int]]
    record: Record

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return self.pairs
