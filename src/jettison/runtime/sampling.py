"""Which token comes next: from logits, under the usual settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch

from jettison.core.errors import JettisonError, UsageError
from jettison.core.numbers import check_seed

COLDEST = 1e-6  # below, the likeliest token is certain, and logits / temperature may leave float32
MOST = 1e3  # of temperature; of a penalty, and of its inverse
RULES = {  # setting -> its type, whether a value is valid, and what is, in words
    "temperature": (Real, lambda value: 0 <= value <= MOST, f"0 to {MOST:g}"),
    "top_k": (Integral, lambda value: value >= 0, "0 (all) or more"),
    "top_p": (Real, lambda value: 0 < value <= 1, "more than 0, at most 1"),
    "min_p": (Real, lambda value: 0 <= value <= 1, "0 to 1"),
    "repetition_penalty": (Real, lambda value: 1 / MOST <= value <= MOST, f"{1 / MOST:g} to {MOST:g}; 1 is none"),
}


@dataclass(frozen=True)
class Sampling:
    """temperature 0, or below a millionth: always the likeliest token, whatever the rest says. Filters apply in this
    order.

    repetition_penalty: logits of tokens that were there before are divided by it, or multiplied where negative
    (arXiv:1909.05858, section 4.1). temperature: logits are divided by it. top_k: only the k likeliest (0: all).
    top_p: only the likeliest that make up p together (arXiv:1904.09751). min_p: only what is at least p times as likely
    as the likeliest (arXiv:2407.01082).

    Raises UsageError for a value that is no number, or out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        check_seed(self.seed)
        for name, (kind, fine, valid) in RULES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind) or not fine(value):
                raise UsageError(f"{name} = {value!r}: it must be {valid}")
        if self.temperature < COLDEST:
            object.__setattr__(self, "temperature", 0.0)

    def generator(self, row: int) -> torch.Generator:
        """Of a row of a batch, so that a text does not depend on its neighbours."""
        return torch.Generator().manual_seed(self.seed + row)

    def choose(self, logits: torch.Tensor, before: Sequence[int], rng: torch.Generator) -> int:
        """logits: float32 (vocabulary), changed in place. before: the tokens so far, prompt included."""
        if self.temperature == 0:
            return self.likeliest(logits, before)
        return int(torch.multinomial(self.chances(logits, before), 1, generator=rng))

    def likeliest(self, logits: torch.Tensor, before: Sequence[int]) -> int:
        self._penalize(logits, before)
        token = int(logits.argmax())  # of a value that is not a number, where there is one
        _check_finite(logits[token])
        return token

    def chances(self, logits: torch.Tensor, before: Sequence[int]) -> torch.Tensor:
        """(vocabulary), not normalized where filters took something: what ``choose`` draws from, if temperature > 0.
        logits: changed in place."""
        self._penalize(logits, before)
        _check_finite(logits.max())
        if self.top_k and self.top_k < len(logits):
            logits[logits < logits.topk(self.top_k).values[-1]] = float("-inf")
        chances = (logits / self.temperature).softmax(-1)
        if self.top_p < 1:
            ordered, places = chances.sort(descending=True)
            passed = ordered.cumsum(-1) - ordered >= self.top_p  # not by the token that passes p: it stays
            passed[0] = False  # p may be 0 in float32
            chances[places[passed]] = 0.0
        if self.min_p:
            chances[chances < self.min_p * chances.max()] = 0.0
        return chances

    def _penalize(self, logits: torch.Tensor, before: Sequence[int]) -> None:
        if self.repetition_penalty != 1.0 and before:
            seen = torch.tensor(sorted(set(before)))
            penalty = self.repetition_penalty
            logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)


def _check_finite(largest: torch.Tensor) -> None:
    if not math.isfinite(largest):
        raise JettisonError(
            f"the model's largest logit is {float(largest)}: its weights or its activations are not sound"
        )
