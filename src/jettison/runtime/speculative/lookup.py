"""Drafts without a model: what followed the last tokens when they stood somewhere before.

The text at hand is a trie of its n-grams (Lookahead, arXiv:2312.12728; prompt lookup is the same with one branch); a
larger corpus is an index of them, searched by halving.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

MIX = np.uint64(0x9E3779B97F4A7C15)
MOST = 256  # places in the corpus whose continuations are counted


class Trie:
    """n-grams of a growing text: after every context of 1 to ``order`` tokens, how often which token followed."""

    def __init__(self, order: int):
        self.order = order
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], Counter[int]] = {}

    def learn(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            end = len(self._text)
            for size in range(1, min(self.order, end) + 1):
                followed = self._after.setdefault(tuple(self._text[end - size :]), Counter())
                count = followed.pop(token, 0)
                followed[token] = count + 1  # last: of tokens equally frequent the newest is preferred
            self._text.append(token)

    def after(self, context: Sequence[int]) -> tuple[int, list[int]]:
        """The length of the longest match, and what followed it, the most frequent first; 0 and nothing without one."""
        for size in range(min(self.order, len(context)), 0, -1):
            if followed := self._after.get(tuple(context[len(context) - size :])):
                newest_first = list(reversed(followed.items()))
                return size, [token for token, _ in sorted(newest_first, key=lambda pair: -pair[1])]
        return 0, []


class Corpus:
    """The same of a text that stays as it is. tokens: (n) ids, texts end to end."""

    def __init__(self, tokens: np.ndarray, order: int):
        self.order, self._tokens = order, np.ascontiguousarray(tokens, dtype=np.int64)
        self._hashes, self._places = [], []
        hashes = np.zeros(max(0, len(tokens) - 1), dtype=np.uint64)
        for size in range(1, order + 1):
            # of the context that ends at each place: the newest token counts first, so that it can grow backward
            shifted = np.roll(self._tokens[:-1], size - 1).astype(np.uint64)
            hashes = _grown(hashes, shifted)
            order_of = np.argsort(hashes[size - 1 :], kind="stable")
            self._hashes.append(hashes[size - 1 :][order_of])
            self._places.append(order_of + size)  # of what follows

    def after(self, context: Sequence[int]) -> tuple[int, list[int]]:
        hashed, hashes = np.zeros(1, dtype=np.uint64), []
        for token in reversed(context[max(0, len(context) - self.order) :]):
            hashed = _grown(hashed, np.array([token], dtype=np.uint64))
            hashes.append(hashed[0])
        for size in range(len(hashes), 0, -1):
            first, last = (
                np.searchsorted(self._hashes[size - 1], hashes[size - 1], side) for side in ("left", "right")
            )
            if first < last:
                step = -(-(last - first) // MOST)
                followed = self._tokens[self._places[size - 1][first:last:step]]
                tokens, counts = np.unique(followed, return_counts=True)
                return size, tokens[np.argsort(-counts, kind="stable")].tolist()
        return 0, []


def _grown(hashes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    mixed = (hashes ^ (tokens + np.uint64(1))) * MIX  # wraps around
    return mixed ^ (mixed >> np.uint64(29))


class Lookup:
    """The text at hand first, then the corpus, whichever matches more tokens."""

    def __init__(self, order: int, corpus: Corpus | None = None):
        self.trie, self.corpus = Trie(order), corpus

    def learn(self, tokens: Sequence[int]) -> None:
        self.trie.learn(tokens)

    def after(self, context: Sequence[int]) -> tuple[int, list[int]]:
        found = self.trie.after(context)
        if self.corpus is None or found[0] == self.trie.order:
            return found
        other = self.corpus.after(context)
        return other if other[0] > found[0] else found
