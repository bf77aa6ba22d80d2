"""What is proposed to the target: a chain from the draft model, or looked-up tokens, as long as that is expected to
pay.

In steps of plain decoding, a token that is verified costs ``verify`` and one from the draft model ``draft`` more; it
brings one token with the probability that the target takes it and all before it. Those probabilities are learned while
writing, by how long the match was, and by how sure the draft model was. (When to stop is our reconstruction; SDFP has a
fixed length, and so has ``adaptive=False``.)
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch

from jettison.runtime.sampling import Sampling
from jettison.runtime.speculative.draft import Draft
from jettison.runtime.speculative.lookup import Lookup
from jettison.runtime.targets import Target

BINS = 10  # of the draft model's confidence
BELIEF, MEMORY = 8.0, 200.0  # what a prior counts for, and what is remembered
PATIENCE = 16  # rounds after which the draft model is asked again, however little it was taken before
FEW = 2  # tokens of a match that a draft of fixed length prefers to the draft model


@dataclass
class Proposal:
    """Rows after the last token of the text, which is row 0. tokens[i], of row i + 1, follows row parents[i].
    chances[i]: (vocabulary) what it was drawn from, None where it was not drawn. keys: what it is remembered by."""

    kind: str = "none"
    steps: int = 0  # of the draft model
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    chances: list[torch.Tensor | None] = field(default_factory=list)
    keys: list[Hashable] = field(default_factory=list)

    def add(self, token: int, parent: int, key: Hashable, chances: torch.Tensor | None = None) -> int:
        self.tokens.append(token)
        self.parents.append(parent)
        self.chances.append(chances)
        self.keys.append(key)
        return len(self.tokens)

    def children(self, row: int) -> list[int]:
        return [at + 1 for at, parent in enumerate(self.parents) if parent == row]


class Tally:
    """How often tokens of a kind were taken."""

    def __init__(self):
        self._seen: dict[Hashable, list[float]] = {}  # taken, of so many

    def rate(self, key: Hashable, prior: float) -> float:
        taken, count = self._seen.get(key, (0.0, 0.0))
        return (taken + BELIEF * prior) / (count + BELIEF)

    def add(self, key: Hashable, taken: bool) -> None:
        seen = self._seen.setdefault(key, [0.0, 0.0])
        seen[0] += taken
        seen[1] += 1.0
        if seen[1] > MEMORY:
            seen[:] = [seen[0] / 2, seen[1] / 2]


class Proposer:
    """Proposes for one text; learns it, and what is taken."""

    def __init__(self, draft: Draft, lookup: Lookup | None = None, tally: Tally | None = None):
        self.draft, self.tally = draft, tally or Tally()
        self.lookup = lookup if lookup or not draft.lookup else Lookup(draft.lookup)
        self._since = 0  # rounds since the draft model was asked

    def learn(self, tokens: Sequence[int]) -> None:
        if self.lookup:
            self.lookup.learn(tokens)

    def judged(self, proposal: Proposal, path: Sequence[int]) -> None:
        """path: the rows that were taken, row 0 first."""
        for row in path:
            for child in proposal.children(row):
                taken = child in path
                self.tally.add(proposal.keys[child - 1], taken)
                if proposal.kind == "model":
                    self.tally.add("model", taken)
                if taken:
                    break

    def propose(
        self, target: Target, text: Sequence[int], room: int, sampling: Sampling, rng: torch.Generator
    ) -> Proposal:
        """text: all tokens, the last one not yet read. room: tokens that may be written after it."""
        room = min(room, self.draft.length)
        if room < 1:
            return Proposal()
        looked, gain = self._look(text, room, target) if self.lookup else (Proposal(), 0.0)
        if not self.draft.model:
            return looked
        if not self.draft.adaptive:
            matched = looked.tokens and looked.keys[0][1] >= FEW
            return looked if matched else self._ask(target, text, room, sampling, rng)
        if gain >= self._expected(room) and self._since < PATIENCE:
            self._since += 1
            return looked if gain > 0 else Proposal()
        self._since = 0
        return self._ask(target, text, room, sampling, rng)

    def _expected(self, room: int) -> float:
        """What asking the draft model is expected to gain, at the best length."""
        rate, costs, gain, best, likely = self._rate(), self.draft.costs, 0.0, 0.0, 1.0
        for _ in range(room):
            likely *= rate
            gain += likely - costs.draft - costs.verify
            best = max(best, gain)
        return best

    def _rate(self) -> float:
        return self.tally.rate("model", self.draft.acceptance)

    def _look(self, text: Sequence[int], room: int, target: Target) -> tuple[Proposal, float]:
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
        """A chain from the root on, beginning with the ``number``-th likeliest token. Returns what it is expected to
        gain."""
        context, row, likely, gain, verify = list(context), 0, 1.0, 0.0, self.draft.costs.verify
        for depth in range(room):
            key = ("lookup", size, number if depth == 0 else 0)
            likely *= self.tally.rate(key, min(0.8, 0.12 + 0.16 * size) * 0.3 ** key[2])
            if token is None or (self.draft.adaptive and likely < verify) or len(proposal.tokens) >= rows:
                break
            row = proposal.add(token, row, key)
            gain += likely - verify
            context.append(token)
            size, followed = self.lookup.after(context)
            token = followed[0] if followed else None
        return gain

    def _ask(
        self, target: Target, text: Sequence[int], room: int, sampling: Sampling, rng: torch.Generator
    ) -> Proposal:
        """Whether a token is proposed must not depend on which one it is, or sampling would not be exact: so it is
        decided by how sure the draft model is before one is drawn."""
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
