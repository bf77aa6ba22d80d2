"""Which token comes next: from logits, under the usual settings."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jettison.errors import UsageError
from jettison.units import check_seed


@dataclass(frozen=True)
class Sampling:
    """temperature 0: always the likeliest token, whatever the rest says. Filters apply in the order they stand here.

    repetition_penalty: logits of tokens that were there before are divided by it, or multiplied where negative
    (arXiv:1909.05858, section 4.1). temperature: logits are divided by it. top_k: only the k likeliest (0: all).
    top_p: only the likeliest that make up p together (arXiv:1904.09751). min_p: only what is at least p times as likely
    as the likeliest (arXiv:2407.01082).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        check_seed(self.seed)
        for name, fine, valid in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "more than 0; 1 penalizes nothing"),
        ):
            if not fine:
                raise UsageError(f"{name} = {getattr(self, name)}: it must be {valid}")

    def generator(self, row: int) -> torch.Generator:
        """Of a row of a batch, so that a text does not depend on its neighbours."""
        return torch.Generator().manual_seed(self.seed + row)

    def choose(self, logits: torch.Tensor, before: Sequence[int], chance: torch.Generator) -> int:
        """logits: float32 (vocabulary), changed in place. before: the tokens so far, prompt included."""
        if self.temperature == 0:
            return self.likeliest(logits, before)
        return int(torch.multinomial(self.chances(logits, before), 1, generator=chance))

    def likeliest(self, logits: torch.Tensor, before: Sequence[int]) -> int:
        self._penalize(logits, before)
        return int(logits.argmax())

    def chances(self, logits: torch.Tensor, before: Sequence[int]) -> torch.Tensor:
        """(vocabulary), not normalized where filters took something: what ``choose`` draws from, if temperature > 0.
        logits: changed in place."""
        self._penalize(logits, before)
        if self.top_k and self.top_k < len(logits):
            logits[logits < logits.topk(self.top_k).values[-1]] = float("-inf")
        chances = (logits / self.temperature).softmax(-1)
        if self.top_p < 1:
            ordered, places = chances.sort(descending=True)
            chances[places[ordered.cumsum(-1) - ordered >= self.top_p]] = 0.0  # the first to pass p stays
        if self.min_p:
            chances[chances < self.min_p * chances.max()] = 0.0
        return chances

    def _penalize(self, logits: torch.Tensor, before: Sequence[int]) -> None:
        if self.repetition_penalty != 1.0 and before:
            seen = torch.tensor(sorted(set(before)))
            penalty = self.repetition_penalty
            logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
