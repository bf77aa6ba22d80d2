"""Estimate the speedup of speculative decoding from acceptance and costs."""

from collections.abc import Sequence

from jettison.core.errors import UsageError
from jettison.runtime.record import Round, Speculation


def closed_speedup(acceptance: float, length: int, draft: float, verify: float) -> float:
    """Return the expected speedup over plain decoding, (1 − αᵏ⁺¹) / ((1 − α) (k c + v)).

    acceptance: α, the probability that a draft token is accepted, independent of the others.
    length: k, draft tokens per round.
    draft: c, cost of a step of the draft model, in steps of plain decoding.
    verify: v, cost of verifying ``length`` + 1 tokens in one pass, in the same unit.

    Raises UsageError for an acceptance outside [0, 1] or a length below 0.
    Source: arXiv:2211.17192, theorem 3.8.
    """
    if not 0 <= acceptance <= 1 or length < 0:
        raise UsageError(f"acceptance {acceptance:g} of {length} tokens: it must be 0 to 1, of 0 tokens or more")
    expected = sum(acceptance**taken for taken in range(length + 1))
    return expected / (length * draft + verify)


def recut(rounds: Sequence[Round], length: int) -> list[Round]:
    """Return the rounds as they would have been with shorter drafts.

    length: tokens of the shorter drafts, at most as many as the rounds had.

    Shorter rounds begin at other places of the text. So the judgments, one per token of the text, are put in one
    sequence, and this sequence is cut into new rounds. The token after a fully accepted draft was never judged; such
    tokens count as accepted as often as those that were judged.
    """
    judged, carry, share = [], 0.0, Speculation(list(rounds)).acceptance
    for r in rounds:
        judged += [True] * r.taken
        if not r.proposed:
            judged.append(None)
        elif r.taken < r.proposed:
            judged.append(False)
        else:
            carry += share  # fractions add up: of n such tokens about n · share count as accepted
            judged.append(carry >= 1.0)
            carry -= carry >= 1.0
    kind, steps = _usual(rounds)
    new, i = [], 0
    while i < len(judged):
        taken = 0
        while taken < length and i + taken < len(judged) and judged[i + taken]:
            taken += 1
        proposed = 0 if judged[i] is None else length
        new.append(Round(kind if proposed else "none", length if proposed and steps else 0, proposed, taken))
        i += taken + 1
    return new


def _usual(rounds: Sequence[Round]) -> tuple[str, bool]:
    """Return the kind of the first draft, and whether any draft ran a draft model."""
    drafted = [r for r in rounds if r.proposed]
    return (drafted[0].kind, any(r.steps for r in drafted)) if drafted else ("none", False)


def rounds_speedup(rounds: Sequence[Round], draft: float, verify: Sequence[float]) -> float:
    """Return the speedup over plain decoding from recorded rounds: their tokens divided by their cost.

    Unlike ``closed_speedup`` it needs neither equal acceptance of all tokens nor a draft in every round.

    draft: cost of a step of the draft model, in steps of plain decoding.
    verify: costs of verifying 1, 2, ... tokens in one pass, in the same unit.
    """
    if not rounds:
        return 1.0
    tokens = sum(1 + r.taken for r in rounds)
    return tokens / sum(r.steps * draft + verify[r.proposed] for r in rounds)


def needed_acceptance(speedup: float, length: int, draft: float, verify: float) -> float | None:
    """Return the least acceptance with which drafts of this length and cost reach ``speedup``; None if 1 is too little.

    Costs as in ``closed_speedup``.
    """
    if closed_speedup(1.0, length, draft, verify) < speedup:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):  # bisection
        middle = (low + high) / 2
        low, high = (low, middle) if closed_speedup(middle, length, draft, verify) >= speedup else (middle, high)
    return high


def loop_start(tokens: Sequence[int], size: int = 4, times: int = 3) -> int | None:
    """Find where a text begins to repeat itself. Acceptance from there on would not be typical of other texts.

    size: tokens of the n-gram that must repeat.
    times: how often it must occur within 12 · ``size`` tokens.
    Returns the second of these places, or None if the text does not repeat itself.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for i in range(len(tokens) - size + 1):
        seen = places.setdefault(tuple(tokens[i : i + size]), [])
        seen.append(i)
        if len(seen) >= times and i - seen[-times] <= 12 * size:
            return seen[-times + 1]
    return None


def before_loop(rounds: Sequence[Round], tokens: Sequence[int]) -> list[Round]:
    """Return the rounds that wrote the text before it begins to repeat itself; all of them if it does not."""
    end, written, kept = loop_start(tokens), 1, []  # 1: the first token is from the logits of the prompt
    for r in rounds:
        written += 1 + r.taken
        if end is not None and written > end:
            break
        kept.append(r)
    return kept
