"""How much faster drafts make decoding: from what was taken of them, and what steps cost."""

from collections.abc import Sequence

from jettison.core.errors import UsageError
from jettison.runtime.record import Round, Speculation


def closed_speedup(acceptance: float, length: int, draft: float, verify: float) -> float:
    """Tokens per step of plain decoding: (1 − αᵏ⁺¹) / ((1 − α) (k c + v)) (arXiv:2211.17192, theorem 3.8), where each
    of ``length`` tokens is taken with probability ``acceptance`` on its own.

    draft: c, what a step of the draft model costs. verify: v, what reading ``length`` + 1 tokens at once costs; both in
    steps of plain decoding. Raises UsageError for an acceptance outside [0, 1] or a length below 0.
    """
    if not 0 <= acceptance <= 1 or length < 0:
        raise UsageError(f"acceptance {acceptance:g} of {length} tokens: it is 0 to 1, of 0 tokens or more")
    expected = sum(acceptance**taken for taken in range(length + 1))
    return expected / (length * draft + verify)


def recut(rounds: Sequence[Round], length: int) -> list[Round]:
    """What the rounds would have been with drafts of at most ``length`` tokens, no more than they had.

    Rounds of another length begin elsewhere, so they are not just shortened: the judgments, one a token of the text,
    are cut anew. The token after a draft that was taken whole was not judged; it counts as the share of those that
    were.
    """
    judged, owed, share = [], 0.0, Speculation(list(rounds)).acceptance
    for each in rounds:
        judged += [True] * each.taken
        if not each.proposed:
            judged.append(None)
        elif each.taken < each.proposed:
            judged.append(False)
        else:
            owed += share
            judged.append(owed >= 1.0)
            owed -= owed >= 1.0
    kind, steps = _usual(rounds)
    found, at = [], 0
    while at < len(judged):
        taken = 0
        while taken < length and at + taken < len(judged) and judged[at + taken]:
            taken += 1
        proposed = 0 if judged[at] is None else length
        found.append(Round(kind if proposed else "none", length if proposed and steps else 0, proposed, taken))
        at += taken + 1
    return found


def _usual(rounds: Sequence[Round]) -> tuple[str, bool]:
    drafted = [each for each in rounds if each.proposed]
    return (drafted[0].kind, any(each.steps for each in drafted)) if drafted else ("none", False)


def rounds_speedup(rounds: Sequence[Round], draft: float, verify: Sequence[float]) -> float:
    """Tokens per step of plain decoding, as ``closed_speedup``, where not every token is taken with the same
    probability and not every round has a draft: tokens of the rounds by what they cost. verify: of reading 1, 2, ...
    tokens at once."""
    if not rounds:
        return 1.0
    tokens = sum(1 + each.taken for each in rounds)
    return tokens / sum(each.steps * draft + verify[each.proposed] for each in rounds)


def needed_acceptance(speedup: float, length: int, draft: float, verify: float) -> float | None:
    """The acceptance from which on drafts of this length and cost make decoding so many times as fast; None if not even
    taking all does."""
    if closed_speedup(1.0, length, draft, verify) < speedup:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if closed_speedup(middle, length, draft, verify) >= speedup else (middle, high)
    return high


def loop_start(tokens: Sequence[int], size: int = 4, times: int = 3) -> int | None:
    """Where a text begins to say the same again and again: the second of ``times`` places of an n-gram of ``size``
    tokens that lie within 12 · ``size`` tokens of each other. What is taken of drafts from there on says nothing of
    other texts.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for at in range(len(tokens) - size + 1):
        found = places.setdefault(tuple(tokens[at : at + size]), [])
        found.append(at)
        if len(found) >= times and at - found[-times] <= 12 * size:
            return found[-times + 1]
    return None


def before_loop(rounds: Sequence[Round], tokens: Sequence[int]) -> list[Round]:
    """The rounds that wrote what stands before the loop, all of them if there is none."""
    end, written, found = loop_start(tokens), 1, []  # the first token is of the prompt's reading
    for each in rounds:
        written += 1 + each.taken
        if end is not None and written > end:
            break
        found.append(each)
    return found
