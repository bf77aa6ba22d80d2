"""Draft tokens without a draft model: find earlier places of the last tokens, and propose what followed there.

- ``Trie``: the n-grams of the text being written (Lookahead, arXiv:2312.12728; with one branch it is prompt lookup).
- ``Corpus``: the n-grams of a larger text, as sorted hashes that are searched by bisection.
- ``Lookup``: both together.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: multiplying by it spreads the bits of a hash
MOST = 256  # places in the corpus, evenly spread over all matches, whose next tokens are counted


class Trie:
    """The n-grams of a growing text: for every context of 1 to ``order`` tokens, how often which token followed."""

    def __init__(self, order: int):
        self.order = order
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], Counter[int]] = {}

    def learn(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text."""
        for token in tokens:
            end = len(self._text)
            for size in range(1, min(self.order, end) + 1):
                followed = self._after.setdefault(tuple(self._text[end - size :]), Counter())
                count = followed.pop(token, 0)
                followed[token] = count + 1  # at the end of the dict: the newest of equally frequent tokens wins
            self._text.append(token)

    def after(self, context: Sequence[int]) -> tuple[int, list[int]]:
        """Find the longest suffix of ``context`` that occurred before.

        Returns its length and the tokens that followed it, most frequent first; 0 and an empty list without a match.
        """
        for size in range(min(self.order, len(context)), 0, -1):
            if followed := self._after.get(tuple(context[len(context) - size :])):
                newest_first = list(reversed(followed.items()))
                return size, [token for token, _ in sorted(newest_first, key=lambda pair: -pair[1])]
        return 0, []


class Corpus:
    """The n-grams of a fixed text. tokens: (n) ids, texts one after the other."""

    def __init__(self, tokens: np.ndarray, order: int):
        self.order, self._tokens = order, np.ascontiguousarray(tokens, dtype=np.int64)
        self._hashes, self._places = [], []
        hashes = np.zeros(max(0, len(tokens) - 1), dtype=np.uint64)
        for size in range(1, order + 1):
            # hashes[i] is of the ``size`` tokens that end at i. The last token is hashed first, so that a longer
            # context extends the hash of the shorter one.
            shifted = np.roll(self._tokens[:-1], size - 1).astype(np.uint64)
            hashes = _grown(hashes, shifted)
            order_of = np.argsort(hashes[size - 1 :], kind="stable")
            self._hashes.append(hashes[size - 1 :][order_of])
            self._places.append(order_of + size)  # places of the tokens that follow the contexts

    def after(self, context: Sequence[int]) -> tuple[int, list[int]]:
        """Find the longest suffix of ``context`` in the text; returns as ``Trie.after``."""
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
                followed = self._tokens[self._places[size - 1][first:last:step]]  # (at most MOST,)
                tokens, counts = np.unique(followed, return_counts=True)
                return size, tokens[np.argsort(-counts, kind="stable")].tolist()
        return 0, []


def _grown(hashes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Extend every hash by one token."""
    mixed = (hashes ^ (tokens + np.uint64(1))) * MIX  # wraps around
    return mixed ^ (mixed >> np.uint64(29))


class Lookup:
    """Looks up in the text being written and in a corpus; the longer match wins, the text's own if both are equal."""

    def __init__(self, order: int, corpus: Corpus | None = None):
        self.trie, self.corpus = Trie(order), corpus

    def learn(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text being written."""
        self.trie.learn(tokens)

    def after(self, context: Sequence[int]) -> tuple[int, list[int]]:
        """Find the longest match of the end of ``context``; returns as ``Trie.after``."""
        in_text = self.trie.after(context)
        if self.corpus is None or in_text[0] == self.trie.order:
            return in_text
        in_corpus = self.corpus.after(context)
        return in_corpus if in_corpus[0] > in_text[0] else in_text
