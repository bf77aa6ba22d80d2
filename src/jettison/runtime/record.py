"""Records of a generation, filled while it runs: timings, draft tokens, and why each text ended."""

from collections.abc import Iterator
from dataclasses import dataclass, field

STOP, LENGTH = "stop", "length"  # finish reasons: an end token or a stop text; the requested number of tokens


@dataclass
class Timings:
    """Tokens and seconds: of reading prompts (read, reading), and of the tokens after the first (written, writing)."""

    read: int = 0
    reading: float = 0.0
    written: int = 0
    writing: float = 0.0

    @property
    def prefill(self) -> float:
        """Prompt tokens read per second."""
        return self.read / self.reading if self.reading else 0.0

    @property
    def decode(self) -> float:
        """Tokens written per second, the first one not counted."""
        return self.written / self.writing if self.writing else 0.0


@dataclass(frozen=True)
class Round:
    """One round of speculative decoding: propose, verify, accept.

    kind: where the draft tokens came from: model, lookup or none.
    steps: how often the draft model ran.
    proposed: draft tokens that the target verified.
    taken: how many of them it accepted.
    """

    kind: str
    steps: int
    proposed: int
    taken: int


@dataclass
class Speculation:
    """The rounds of speculative decoding of one text."""

    rounds: list[Round] = field(default_factory=list)

    @property
    def acceptance(self) -> float:
        """Share of judged draft tokens that were accepted. A round judges none after the first rejected one."""
        drafted = [r for r in self.rounds if r.proposed]
        taken = sum(r.taken for r in drafted)
        judged = taken + sum(r.taken < r.proposed for r in drafted)  # a round rejects at most one token
        return taken / judged if judged else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Tokens written per pass of the target over its weights."""
        return 1 + sum(r.taken for r in self.rounds) / len(self.rounds) if self.rounds else 1.0


@dataclass
class Record:
    """Record of a batch of texts.

    finish_reasons: STOP or LENGTH for each row, None while the row is being written.
    timings, speculation: of all rows together.
    """

    finish_reasons: list[str | None]
    timings: Timings = field(default_factory=Timings)
    speculation: Speculation = field(default_factory=Speculation)


@dataclass
class Tokens:
    """Generated tokens. Iterating yields (row, token) pairs as they are written, and fills ``record``."""

    pairs: Iterator[tuple[int, int]]
    record: Record

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return self.pairs
