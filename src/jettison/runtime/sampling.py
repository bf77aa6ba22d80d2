"""Choose the next token from logits: temperature, top-k, top-p, min-p and repetition penalty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch

from jettison.core.errors import JettisonError, UsageError
from jettison.core.numbers import check_seed

COLDEST = 1e-6  # lower temperatures count as 0: the likeliest token is certain, and logits / temperature may overflow
MOST = 1e3  # upper limit of the temperature, of a penalty and of a penalty's inverse
RULES = {  # setting -> (type, test of a value, the valid values in words)
    "temperature": (Real, lambda value: 0 <= value <= MOST, f"0 to {MOST:g}"),
    "top_k": (Integral, lambda value: value >= 0, "0 (all) or more"),
    "top_p": (Real, lambda value: 0 < value <= 1, "more than 0, at most 1"),
    "min_p": (Real, lambda value: 0 <= value <= 1, "0 to 1"),
    "repetition_penalty": (Real, lambda value: 1 / MOST <= value <= MOST, f"{1 / MOST:g} to {MOST:g}; 1 is none"),
}


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling. They apply in the order of this list.

    repetition_penalty: the logit of every earlier token is divided by it, or multiplied where the logit is negative
        (arXiv:1909.05858, section 4.1).
    temperature: logits are divided by it. With 0, or less than a millionth, the likeliest token is always chosen, and
        top_k, top_p and min_p have no effect.
    top_k: keep the k likeliest tokens; 0 keeps all.
    top_p: keep the likeliest tokens whose probabilities add up to p (arXiv:1904.09751).
    min_p: keep tokens that are at least p times as likely as the likeliest one (arXiv:2407.01082).
    seed: of the random numbers; row i of a batch uses seed + i.

    Raises UsageError for a value that is not a number or is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        check_seed(self.seed)
        for name, (kind, is_valid, valid) in RULES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind) or not is_valid(value):
                raise UsageError(f"{name} = {value!r}: it must be {valid}")
        if self.temperature < COLDEST:
            object.__setattr__(self, "temperature", 0.0)

    def generator(self, row: int) -> torch.Generator:
        """Return a random generator for one row of a batch, so that a text does not depend on its neighbours."""
        return torch.Generator().manual_seed(self.seed + row)

    def choose(self, logits: torch.Tensor, before: Sequence[int], rng: torch.Generator) -> int:
        """Choose the next token.

        logits: (vocabulary) float32, changed in place.
        before: the tokens so far, prompt included.
        """
        if self.temperature == 0:
            return self.likeliest(logits, before)
        return int(torch.multinomial(self.chances(logits, before), 1, generator=rng))

    def likeliest(self, logits: torch.Tensor, before: Sequence[int]) -> int:
        """Return the likeliest token after the repetition penalty; arguments as in ``choose``."""
        self._penalize(logits, before)
        token = int(logits.argmax())  # argmax prefers NaN, so the check below sees any NaN
        _check_finite(logits[token])
        return token

    def chances(self, logits: torch.Tensor, before: Sequence[int]) -> torch.Tensor:
        """Return the probabilities (vocabulary) that ``choose`` draws from if temperature > 0.

        They do not add up to 1 if a filter removed tokens. logits: changed in place.
        """
        self._penalize(logits, before)
        _check_finite(logits.max())
        if self.top_k and self.top_k < len(logits):
            logits[logits < logits.topk(self.top_k).values[-1]] = float("-inf")
        chances = (logits / self.temperature).softmax(-1)
        if self.top_p < 1:
            ordered, places = chances.sort(descending=True)
            passed = ordered.cumsum(-1) - ordered >= self.top_p  # sum before the token: the one that passes p stays
            passed[0] = False  # a tiny p is 0 in float32, which would remove every token
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
