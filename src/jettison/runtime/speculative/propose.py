"""Propose draft tokens to the target: a chain from the draft model, or looked-up tokens, as long as they pay.

The unit of cost is a step of plain decoding. A proposed token costs ``verify``, and ``draft`` more if the draft model
made it. Its gain is the probability that the target accepts it and all tokens before it. These probabilities are
learned during generation, by length of the match and by confidence of the draft model. The stopping rule is our
reconstruction: SDFP has a fixed length, as ``adaptive=False`` has.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch

from jettison.runtime.sampling import Sampling
from jettison.runtime.speculative.draft import Draft
from jettison.runtime.speculative.lookup import Lookup
from jettison.runtime.targets import Target

BINS = 10  # bins of the draft model's confidence
BELIEF, MEMORY = 8.0, 200.0  # observations that a prior counts as; observations after which all are halved
PATIENCE = 16  # rounds after which the draft model runs again, even if its tokens were mostly rejected before
FEW = 2  # tokens of a match from which on a draft of fixed length prefers lookup to the draft model


@dataclass
class Proposal:
    """Draft tokens, a chain or a tree. Row 0 is the last token of the text; draft token i is row i + 1.

    kind: model, lookup or none.
    tokens: ids of the draft tokens.
    parents: for every draft token the row that it follows.
    chances: for every draft token the probabilities (vocabulary) it was drawn from, None if it was not drawn.
    keys: for every draft token the key under which the tally counts whether it is accepted.
    """

    kind: str = "none"
    steps: int = 0  # how often the draft model ran
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    chances: list[torch.Tensor | None] = field(default_factory=list)
    keys: list[Hashable] = field(default_factory=list)

    def add(self, token: int, parent: int, key: Hashable, chances: torch.Tensor | None = None) -> int:
        """Append a draft token. Returns its row."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.chances.append(chances)
        self.keys.append(key)
        return len(self.tokens)

    def children(self, row: int) -> list[int]:
        """Return the rows that follow ``row``."""
        return [i + 1 for i, parent in enumerate(self.parents) if parent == row]


class Tally:
    """Counts how often draft tokens were accepted, by key. Old counts fade."""

    def __init__(self):
        self._seen: dict[Hashable, list[float]] = {}  # key -> [accepted, judged]

    def rate(self, key: Hashable, prior: float) -> float:
        """Return the acceptance rate of a key; ``prior`` counts as BELIEF observations."""
        taken, count = self._seen.get(key, (0.0, 0.0))
        return (taken + BELIEF * prior) / (count + BELIEF)

    def add(self, key: Hashable, taken: bool) -> None:
        """Count one judged draft token."""
        counts = self._seen.setdefault(key, [0.0, 0.0])
        counts[0] += taken
        counts[1] += 1.0
        if counts[1] > MEMORY:
            counts[:] = [counts[0] / 2, counts[1] / 2]


class Proposer:
    """Proposes draft tokens for one text, and learns from the text and from what the target accepts.

    tally: acceptance counts, which may be shared with other texts.
    """

    def __init__(self, draft: Draft, lookup: Lookup | None = None, tally: Tally | None = None):
        self.draft, self.tally = draft, tally or Tally()
        self.lookup = lookup if lookup or not draft.lookup else Lookup(draft.lookup)
        self._since = 0  # rounds since the draft model ran

    def learn(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text that lookup searches."""
        if self.lookup:
            self.lookup.learn(tokens)

    def judged(self, proposal: Proposal, path: Sequence[int]) -> None:
        """Count which draft tokens were accepted. path: the accepted rows, row 0 first."""
        for row in path:
            for child in proposal.children(row):
                taken = child in path
                self.tally.add(proposal.keys[child - 1], taken)
                if proposal.kind == "model":
                    self.tally.add("model", taken)
                if taken:
                    break  # the target did not judge the siblings after it

    def propose(
        self, target: Target, text: Sequence[int], room: int, sampling: Sampling, rng: torch.Generator
    ) -> Proposal:
        """Propose draft tokens for the next round.

        text: ids of all tokens so far; the target has not read the last one yet.
        room: how many tokens may still be written.
        """
        room = min(room, self.draft.length)
        if room < 1:
            return Proposal()
        from_lookup, gain = self._look_up(text, room, target) if self.lookup else (Proposal(), 0.0)
        if not self.draft.model:
            return from_lookup
        if not self.draft.adaptive:
            matched = from_lookup.tokens and from_lookup.keys[0][1] >= FEW
            return from_lookup if matched else self._run_model(target, text, room, sampling, rng)
        if gain >= self._expected(room) and self._since < PATIENCE:
            self._since += 1
            return from_lookup if gain > 0 else Proposal()
        self._since = 0
        return self._run_model(target, text, room, sampling, rng)

    def _expected(self, room: int) -> float:
        """Return the expected gain of running the draft model, at the best length."""
        rate, costs, gain, best, likely = self._rate(), self.draft.costs, 0.0, 0.0, 1.0
        for _ in range(room):
            likely *= rate
            gain += likely - costs.draft - costs.verify  # likely: that this token and all before it are accepted
            best = max(best, gain)
        return best

    def _rate(self) -> float:
        return self.tally.rate("model", self.draft.acceptance)

    def _look_up(self, text: Sequence[int], room: int, target: Target) -> tuple[Proposal, float]:
        """Return a proposal from earlier text, and its expected gain."""
        proposal, gain = Proposal("lookup"), 0.0
        context = list(text[-self.lookup.trie.order :])
        size, followed = self.lookup.after(context)
        branches = self.draft.branches if target.branching else 1
        for number, token in enumerate(followed[:branches]):
            gain += self._extend(proposal, context, number, size, token, room, target.room - 1)
        return (proposal, gain) if proposal.tokens else (Proposal(), 0.0)

    def _extend(
        self, proposal: Proposal, context: list[int], number: int, size: int, token: int | None, room: int, rows: int
    ) -> float:
        """Append a chain from row 0 that begins with the ``number``-th most frequent token. Returns its expected gain.

        size: tokens of the match. room: most tokens of the chain. rows: most draft tokens of the whole proposal.
        """
        context, row, likely, gain, verify = list(context), 0, 1.0, 0.0, self.draft.costs.verify
        for depth in range(room):
            key = ("lookup", size, number if depth == 0 else 0)
            # prior: longer matches are accepted more often, further branches (key[2]) much less
            likely *= self.tally.rate(key, min(0.8, 0.12 + 0.16 * size) * 0.3 ** key[2])
            if token is None or (self.draft.adaptive and likely < verify) or len(proposal.tokens) >= rows:
                break
            row = proposal.add(token, row, key)
            gain += likely - verify
            context.append(token)
            size, followed = self.lookup.after(context)
            token = followed[0] if followed else None
        return gain

    def _run_model(
        self, target: Target, text: Sequence[int], room: int, sampling: Sampling, rng: torch.Generator
    ) -> Proposal:
        """Return a chain of tokens from the draft model.

        Whether a token is proposed must not depend on which token was drawn, or sampling would not be exact. So it is
        decided by the draft model's confidence, which is known before the draw.
        """
        proposal, likely, costs = Proposal("model"), 1.0, self.draft.costs
        before, token = list(text), text[-1]
        while len(proposal.tokens) < room:
            if self.draft.adaptive and proposal.tokens and likely * self._rate() < costs.draft + costs.verify:
                break
            logits = target.draft(token)
            proposal.steps += 1
            if sampling.temperature == 0:
                chances, token = None, sampling.likeliest(logits, before)
                sure = float((logits[token] - logits.logsumexp(0)).exp())
            else:
                chances = sampling.chances(logits, before)
                chances = chances / chances.sum()
                sure = float(chances.max())
                token = int(torch.multinomial(chances, 1, generator=rng))
            key = ("model", min(BINS - 1, int(sure * BINS)))
            likely *= self.tally.rate(key, (self.draft.acceptance + sure) / 2)
            if self.draft.adaptive and likely < costs.verify:
                break
            proposal.add(token, len(proposal.tokens), key, chances)
            before.append(token)
        target.undraft()
        return proposal
