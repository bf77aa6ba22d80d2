"""Speculative decoding: draft tokens are proposed cheaply, and the target verifies all of them in one pass.

- Greedy decoding accepts a draft token if the target would have written the same token.
- Sampling accepts it with a probability, and else draws from a remaining distribution, such that the text has the
  target's own distribution (arXiv:2211.17192, section 2.3; several candidates for one place: arXiv:2305.09781, section
  4.3).
"""

import time
from collections.abc import Iterator, Sequence

import torch

from jettison.runtime.record import LENGTH, STOP, Record, Round
from jettison.runtime.sampling import Sampling
from jettison.runtime.speculative.propose import Proposal, Proposer
from jettison.runtime.targets import Target


def speculate(
    target: Target,
    proposer: Proposer,
    prompt: Sequence[int],
    sampling: Sampling,
    tokens: int,
    ends: set[int],
    record: Record,
) -> Iterator[int]:
    """Generate tokens for one prompt by speculative decoding. Yields them as they are accepted.

    prompt: token ids.
    tokens: how many at most.
    ends: end tokens; generation stops before the first of them.
    record: of one row, filled as by ``write``.

    With temperature 0 the tokens equal those of ``write``, else they have the same distribution.
    """
    timings, reasons = record.timings, record.finish_reasons
    rng, text = sampling.generator(0), list(prompt)
    start = time.perf_counter()
    logits = target.read(prompt)
    proposer.learn(prompt)
    timings.read += len(prompt)
    timings.reading += time.perf_counter() - start
    fresh = [sampling.choose(logits, text, rng)]
    while True:
        for token in fresh:
            if token in ends:
                reasons[0] = STOP
                return
            text.append(token)
            yield token
        left = tokens - (len(text) - len(prompt))
        if left < 1:
            reasons[0] = reasons[0] or LENGTH
            return
        start = time.perf_counter()
        proposer.learn(text[-len(fresh) :])
        proposal = proposer.propose(target, text, min(left, target.room) - 1, sampling, rng)
        logits = target.verify([text[-1], *proposal.tokens], [-1, *proposal.parents])
        path, last = judge(logits, proposal, text, sampling, rng)
        target.keep(path)
        proposer.judged(proposal, path)
        fresh = [*(proposal.tokens[row - 1] for row in path[1:]), last]
        record.speculation.rounds.append(Round(proposal.kind, proposal.steps, len(proposal.tokens), len(path) - 1))
        timings.written += len(fresh)
        timings.writing += time.perf_counter() - start


def judge(
    logits: torch.Tensor, proposal: Proposal, text: Sequence[int], sampling: Sampling, rng: torch.Generator
) -> tuple[list[int], int]:
    """Decide which draft tokens are accepted.

    logits: (rows, vocabulary), the target's logits after every row; changed in place.
    Returns the accepted rows, row 0 (the last token of the text) first, and the token that the target writes next.
    """
    path, before = [0], list(text)
    while True:
        children = proposal.children(path[-1])
        if sampling.temperature == 0:
            token = sampling.likeliest(logits[path[-1]], before)
            taken = next((row for row in children if proposal.tokens[row - 1] == token), None)
        else:
            taken, token = _draw(sampling.chances(logits[path[-1]], before), children, proposal, rng)
        if taken is None:
            return path, token
        path.append(taken)
        before.append(proposal.tokens[taken - 1])


def _draw(
    chances: torch.Tensor, children: Sequence[int], proposal: Proposal, rng: torch.Generator
) -> tuple[int | None, int]:
    """Return the accepted child and its token, or None and a token from what is left once all children are rejected.

    chances: the target's probabilities (vocabulary), not normalized.
    """
    rest = chances / chances.sum()
    for row in children:
        token, drawn = proposal.tokens[row - 1], proposal.chances[row - 1]
        accept = rest[token] if drawn is None else rest[token] / drawn[token]
        if float(torch.rand(1, generator=rng)) < float(accept):
            return row, token
        if drawn is None:  # looked up: a draft distribution with all its weight on this token
            rest[token] = 0.0
        else:
            rest = (rest - drawn).clamp_(min=0.0)
        total = rest.sum()
        if total <= 0:  # only by rounding, where draft and target distribution are equal
            rest = chances.clone()
            total = rest.sum()
        rest = rest / total
    return None, int(torch.multinomial(rest, 1, generator=rng))
