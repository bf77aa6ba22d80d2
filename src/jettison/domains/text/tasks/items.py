"""Makes multiple-choice questions from a text: reading it, balanced selection of questions, layout of choices.

A kind of question (``kinds.py``) finds places where the text's own words are the right answer, and a small change of
them is a wrong one. This file has what all kinds share.
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

BEFORE, FEWEST = 24, 8  # most (by default) and fewest words of context
WORD = re.compile(r"[A-Za-z]+")
PLAIN = re.compile(r"[a-z]{2,}")
END = re.compile(r"""(.*[a-z,)"'0-9])?[.!?]["')]*""")
ABBREVIATION = re.compile(r"[\"'(]*(Mr|Mrs|Ms|Dr|St|Jr|Sr|No|Capt|Col|Gen|Lt|Rev|vs|etc|ft|\w)\.")
LIKE = 40  # ranks on both sides of a word from which other words of similar frequency are taken


@dataclass(frozen=True)
class Question:
    """A question with one right choice and some wrong ones.

    context: words before the question.
    right: the text's own words after ``context``. Every choice begins with a space, so that no tokenizer joins it with
        the context.
    family, form: every form of a family (was and were) is the right choice equally often.
    """

    context: str
    right: str
    wrong: tuple[str, ...]
    family: str = ""
    form: str = ""


@dataclass(frozen=True)
class Text:
    """A text as passages of words, which are separated by spaces. Headings end a passage; line ends do not."""

    passages: list[list[str]]

    @classmethod
    def read(cls, name: str) -> "Text":
        """Read a bundled text or a UTF-8 file, see ``read_documents``."""
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
        """Iterate over (passage, position) of every word."""
        return ((words, at) for words in self.passages for at in range(len(words)))

    @cached_property
    def sentences(self) -> list[tuple[list[str], int, int]]:
        """(passage, begin, end) of every sentence, in order."""
        sentences = []
        for words in self.passages:
            ends = [at for at, word in enumerate(words, 1) if END.fullmatch(word) and not ABBREVIATION.fullmatch(word)]
            sentences += [(words, begin, end) for begin, end in pairwise([0, *ends])]
        return sentences

    @cached_property
    def counts(self) -> Counter[str]:
        """How often every word occurs in the text, without the punctuation around it."""
        bare = (word.strip(",.;:!?\"'()_") for words in self.passages for word in words)
        return Counter(word for word in bare if WORD.fullmatch(word) and word != "unk")

    @cached_property
    def ranked(self) -> dict[bool, list[str]]:
        """Words by falling frequency, those with a capital letter (True) and those without (False)."""
        words = sorted(self.counts, key=lambda word: (-self.counts[word], word))
        return {capital: [word for word in words if word[0].isupper() == capital] for capital in (True, False)}

    @cached_property
    def rank(self) -> dict[str, int]:
        """Word -> its position in its list of ``ranked``."""
        return {word: rank for words in self.ranked.values() for rank, word in enumerate(words)}

    def others(self, word: str, count: int, rng: random.Random, unlike: Iterable[str] = ()) -> tuple[str, ...]:
        """Choose words that are about as frequent and as long as ``word`` and capitalized like it.

        unlike: words that must not be chosen.
        Returns ``count`` words, or none if there are too few.
        """
        ranked, rank = self.ranked[word[0].isupper()], self.rank[word]
        near = ranked[max(0, rank - LIKE) : rank + LIKE + 1]
        excluded = {word.lower(), *(other.lower() for other in unlike)}
        fit = [other for other in near if other.lower() not in excluded and abs(len(other) - len(word)) <= 2]
        return tuple(rng.sample(fit, count)) if len(fit) >= count else ()


def _join_marks(text: str) -> str:
    """Remove the spaces and the @ that WikiText puts around punctuation. Other texts stay the same."""
    if " @-@ " not in text:
        return text
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r'" ([^"\n]*) "', r'"\1"', text)
    text = re.sub(r" ([,.;:!?)\]%])", r"\1", text)
    return re.sub(r" ('(?:s|t|d|m|ll|re|ve)?\b)", r"\1", re.sub(r"([(\[$]) ", r"\1", text))


Kind = Callable[[Text, random.Random], Iterator[Question]]


def before(words: list[str], at: int, most: int = BEFORE) -> str:
    """Return the context of the word at ``at``; empty if fewer than ``FEWEST`` words of the passage precede it.

    most: words at most.
    """
    return " ".join(words[max(0, at - most) : at]) if at >= FEWEST else ""


def phrase(words: Iterable[str]) -> str:
    """Join words, with a space before every one."""
    return "".join(f" {word}" for word in words)


def make_items(kind: Kind, text: Text, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Make items {"context", "choices", "answer"} from a text.

    No two items have the same context. Every form, and every position of the right answer, occurs equally often. The
    same text and seed give the same items.

    count: items at most.
    """
    rng = random.Random(seed)
    by_form: dict[str, dict[str, list[Question]]] = defaultdict(lambda: defaultdict(list))
    seen = set()
    for question in kind(text, rng):
        choices = {question.right, *question.wrong}
        if question.context and len(choices) == 1 + len(question.wrong) > 1 and question.context not in seen:
            seen.add(question.context)
            by_form[question.family][question.form].append(question)
    sets = []  # one question of every form of a family; only whole sets are kept, so that forms stay balanced
    for family, forms in by_form.items():
        if family and len(forms) == 1:  # the text has only one form of the family, which nothing balances
            continue
        shuffled = [rng.sample(questions, len(questions)) for questions in forms.values()]
        sets += zip(*shuffled, strict=False)
    rng.shuffle(sets)
    questions: list[Question] = []
    for members in sets:
        if len(questions) + len(members) <= count:
            questions += members
    rng.shuffle(questions)
    return [_lay_out(question, number, rng) for number, question in enumerate(questions)]


def _lay_out(question: Question, number: int, rng: random.Random) -> dict[str, Any]:
    """An item of the number ``number``. The position of the right answer cycles; it is independent of the question
    because the questions are shuffled before."""
    answer = number % (1 + len(question.wrong))
    choices = rng.sample(question.wrong, len(question.wrong))
    choices.insert(answer, question.right)
    return {"context": question.context, "choices": choices, "answer": answer}
