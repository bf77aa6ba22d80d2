"""From a text to questions about it: reading, choosing evenly, laying out.

A kind (``kinds.py``) finds places where the text's own words are the right answer and a small change of them a wrong
one. Here is what all kinds share.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from jettison.domains.text.data import read_documents

BEFORE, FEWEST = 24, 8  # words of context: at most, unless a kind says otherwise, and at least
WORD = re.compile(r"[A-Za-z]+")
PLAIN = re.compile(r"[a-z]{2,}")
END = re.compile(r"""(.*[a-z,)"'0-9])?[.!?]["')]*""")
ABBREVIATION = re.compile(r"[\"'(]*(Mr|Mrs|Ms|Dr|St|Jr|Sr|No|Capt|Col|Gen|Lt|Rev|vs|etc|ft|\w)\.")
LIKE = 40  # how many words of about the same frequency are offered as others


@dataclass(frozen=True)
class Question:
    """``right`` is what the text has after ``context``. Every choice begins with a space: no tokenizer joins it with
    the context. family, form: of a family of forms (was and were) each is the right one equally often."""

    context: str
    right: str
    wrong: tuple[str, ...]
    family: str = ""
    form: str = ""


@dataclass(frozen=True)
class Text:
    """Passages of words, a word being what stands between spaces. Headings part passages; ends of lines do not."""

    passages: list[list[str]]

    @classmethod
    def read(cls, name: str) -> "Text":
        passages: list[list[str]] = []
        for document in read_documents(name):
            passages.append([])
            for words in map(str.split, _join_marks(document).splitlines()):
                if words and words[0][0] in "=#":
                    passages.append([])
                else:
                    passages[-1] += words
        return cls(passages)

    def __iter__(self) -> Iterator[tuple[list[str], int]]:
        """(passage, position) of every word."""
        return ((words, at) for words in self.passages for at in range(len(words)))

    @cached_property
    def sentences(self) -> list[tuple[list[str], int, int]]:
        """(passage, begin, end) of every sentence, in order."""
        found = []
        for words in self.passages:
            ends = [at for at, word in enumerate(words, 1) if END.fullmatch(word) and not ABBREVIATION.fullmatch(word)]
            found += [(words, begin, end) for begin, end in pairwise([0, *ends])]
        return found

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each word stands in the text, marks around it aside."""
        bare = (word.strip(",.;:!?\"'()_") for words in self.passages for word in words)
        return Counter(word for word in bare if WORD.fullmatch(word) and word != "unk")

    @cached_property
    def ranked(self) -> dict[bool, list[str]]:
        """Words by frequency, those with a capital (True) and those without."""
        words = sorted(self.counts, key=lambda word: (-self.counts[word], word))
        return {capital: [word for word in words if word[0].isupper() == capital] for capital in (True, False)}

    @cached_property
    def rank(self) -> dict[str, int]:
        return {word: rank for words in self.ranked.values() for rank, word in enumerate(words)}

    def others(self, word: str, count: int, rng: random.Random, unlike: Iterable[str] = ()) -> tuple[str, ...]:
        """``count`` words about as frequent and as long as ``word``, capitalized as it is, none among ``unlike``."""
        ranked, rank = self.ranked[word[0].isupper()], self.rank[word]
        near = ranked[max(0, rank - LIKE) : rank + LIKE + 1]
        taboo = {word.lower(), *(each.lower() for each in unlike)}
        fit = [each for each in near if each.lower() not in taboo and abs(len(each) - len(word)) <= 2]
        return tuple(rng.sample(fit, count)) if len(fit) >= count else ()


def _join_marks(text: str) -> str:
    """WikiText keeps marks apart with spaces and @; here they stand where print has them. Other texts stay the same."""
    if " @-@ " not in text:
        return text
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r'" ([^"\n]*) "', r'"\1"', text)
    text = re.sub(r" ([,.;:!?)\]%])", r"\1", text)
    return re.sub(r" ('(?:s|t|d|m|ll|re|ve)?\b)", r"\1", re.sub(r"([(\[$]) ", r"\1", text))


Kind = Callable[[Text, random.Random], Iterator[Question]]


def before(words: list[str], at: int, most: int = BEFORE) -> str:
    """The context of the word at ``at``; empty where too little of the passage stands before it."""
    return " ".join(words[max(0, at - most) : at]) if at >= FEWEST else ""


def phrase(words: Iterable[str]) -> str:
    return "".join(f" {word}" for word in words)


def make_items(kind: Kind, text: Text, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """At most ``count`` items {"context", "choices", "answer"}: no two alike, each form and each position of the right
    answer equally often. Same text and seed, same items."""
    rng = random.Random(seed)
    found: dict[str, dict[str, list[Question]]] = defaultdict(lambda: defaultdict(list))
    seen = set()
    for question in kind(text, rng):
        choices = {question.right, *question.wrong}
        if question.context and len(choices) == 1 + len(question.wrong) > 1 and question.context not in seen:
            seen.add(question.context)
            found[question.family][question.form].append(question)
    sets = []  # one question of each form of a family: to keep whole sets is to keep the balance
    for family, forms in found.items():
        if family and len(forms) == 1:  # the text has only one of them
            continue
        shuffled = [rng.sample(questions, len(questions)) for questions in forms.values()]
        sets += zip(*shuffled, strict=False)
    rng.shuffle(sets)
    questions: list[Question] = []
    for each in sets:
        if len(questions) + len(each) <= count:
            questions += each
    rng.shuffle(questions)
    return [_lay_out(question, number, rng) for number, question in enumerate(questions)]


def _lay_out(question: Question, number: int, rng: random.Random) -> dict[str, Any]:
    """Positions take turns; the questions come shuffled, so turn and question have nothing to do with each other."""
    answer = number % (1 + len(question.wrong))
    choices = rng.sample(question.wrong, len(question.wrong))
    choices.insert(answer, question.right)
    return {"context": question.context, "choices": choices, "answer": answer}
