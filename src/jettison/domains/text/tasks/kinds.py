"""The kinds of questions. Every function yields all questions of its kind that a text offers."""

import random
from collections.abc import Iterator
from itertools import pairwise

from jettison.domains.text.tasks.items import BEFORE, PLAIN, WORD, Question, Text, before, phrase

COMMON = 150  # the most frequent words are too easy to tell from others, and so is their place
FORMS = [("was", "were"), ("is", "are"), ("has", "have"), ("does", "do"), ("this", "these"), ("This", "These")]
PRONOUNS = [("he", "she"), ("He", "She"), ("his", "her"), ("him", "her"), ("himself", "herself")]
PRONOUNS += [("it", "they"), ("It", "They"), ("its", "their"), ("itself", "themselves")]
BETWEEN = {"and", "or", "of", "in", "on", "to", "the", "a", "his", "her", "with", "for", "from", "by", "at", "as"}
PREPOSITIONS = ("in", "with", "for", "on", "at", "from", "by")
FUNCTION = {"a", "an", "the", "and", "or", "but", "to", "in", "on", "at", "of", "for", "with", "by", "from", "as"}
FUNCTION |= {"that", "which", "who", "when", "if", "than", "so", "not", "had", "was"}


def last_word(text: Text, rng: random.Random) -> Iterator[Question]:
    """Ask which of four words ends the sentence."""
    for words, begin, end in text.sentences:
        at = end - 1
        word = words[at].rstrip(".!?\"')")
        if at > begin and word in text.rank:
            yield Question(before(words, at), f" {word}", tuple(f" {other}" for other in text.others(word, 3, rng)))


def next_sentence(text: Text, rng: random.Random, length: int = 8) -> Iterator[Question]:
    """Ask which of four sentence beginnings comes next. length: words of each that are shown."""
    long = [sentence for sentence in text.sentences if sentence[2] - sentence[1] >= length]
    for words, begin, _ in long:
        others = [other[at : at + length] for other, at, _ in rng.sample(long, 3)]
        yield Question(before(words, begin), phrase(words[begin : begin + length]), tuple(map(phrase, others)))


def sentence_order(text: Text, rng: random.Random, longest: int = 22) -> Iterator[Question]:
    """Ask for the order of two sentences: the text's, or exchanged. longest: words of one sentence."""
    for (words, begin, middle), (other, start, end) in pairwise(text.sentences):
        if words is other and middle == start and 3 <= middle - begin <= longest and 3 <= end - start <= longest:
            first, second = phrase(words[begin:middle]), phrase(words[middle:end])
            yield Question(before(words, begin), first + second, (second + first,))


def word_order(text: Text, rng: random.Random) -> Iterator[Question]:
    """Ask for the order of two words around a small one, such as ``and``: the text's, or exchanged."""
    for words, at in text:
        three = words[at : at + 3]
        content = [word for word in three[::2] if PLAIN.fullmatch(word) and text.rank[word] >= COMMON]
        if len(three) == 3 and len(content) == 2 and three[1] in BETWEEN:
            yield Question(before(words, at), phrase(three), (phrase(three[::-1]),))


def intruder(text: Text, rng: random.Random, after: int = 1) -> Iterator[Question]:
    """Ask for a word of the text, or another one about as frequent. after: words that follow in every choice."""
    for words, at in text:
        if PLAIN.fullmatch(words[at]) and text.rank[words[at]] >= COMMON:
            rest = words[at + 1 : at + 1 + after]
            others = text.others(words[at], 1, rng)
            yield Question(before(words, at), phrase([words[at], *rest]), tuple(phrase([o, *rest]) for o in others))


def recall(text: Text, rng: random.Random, most: int = 40) -> Iterator[Question]:
    """Ask which of four words comes next. Only the right one occurs in the last ``most`` words."""
    for words, at in text:
        word = words[at].rstrip(",.;:!?\"'")
        earlier = words[max(0, at - most) : at]
        if text.rank.get(word, 0) >= (20 if word[:1].isupper() else COMMON) and word in earlier[:-2]:
            others = text.others(word, 3, rng, unlike=earlier)
            yield Question(before(words, at, most), f" {word}", tuple(f" {other}" for other in others))


def agreement(text: Text, rng: random.Random, after: int = 1) -> Iterator[Question]:
    """Ask for singular or plural: was or were, this or these. after: words that follow in every choice."""
    other = {one: two for pair in FORMS for one, two in (pair, pair[::-1])}
    for words, at in text:
        if words[at] in other:
            rest = words[at + 1 : at + 1 + after]
            right, wrong = (phrase([form, *rest]) for form in (words[at], other[words[at]]))
            yield Question(before(words, at), right, (wrong,), _pair(words[at], other[words[at]]), words[at])


def pronoun(text: Text, rng: random.Random, most: int = 32, after: int = 1) -> Iterator[Question]:
    """Ask for a pronoun or its counterpart: he or she, its or their. after: words that follow in every choice."""
    other = {one: two for pair in PRONOUNS for one, two in (pair, pair[::-1])}
    for words, at in text:
        word, rest = words[at], words[at + 1 : at + 1 + after]
        if word in other and rest:
            wrong = other[word]
            if word == "her":  # the counterpart of him, or of his if a noun follows
                wrong = "him" if rest[0].strip(",.") in FUNCTION or not WORD.match(rest[0]) else "his"
            right, changed = phrase([word, *rest]), phrase([wrong, *rest])
            yield Question(before(words, at, most), right, (changed,), _pair(word, wrong), word)


def preposition(text: Text, rng: random.Random, after: int = 2) -> Iterator[Question]:
    """Ask which of the text's four most frequent prepositions, except of and to, comes next. after: words after it."""
    forms = sorted(PREPOSITIONS, key=lambda word: -text.counts[word])[:4]
    for words, at in text:
        if words[at] in forms:
            rest = words[at + 1 : at + 1 + after]
            wrong = tuple(phrase([other, *rest]) for other in forms if other != words[at])
            yield Question(before(words, at), phrase([words[at], *rest]), wrong, form=words[at])


def punctuation(text: Text, rng: random.Random) -> Iterator[Question]:
    """Ask for a comma or the end of the sentence. The next word is capitalized as the mark needs it."""
    for words, at in text:
        word, mark, following = words[at][:-1], words[at][-1], (words[at + 1 : at + 2] or [""])[0]
        small, capital = following.lower(), following.lower().capitalize()
        known = PLAIN.fullmatch(word) and text.counts[small]
        if known and (mark, following) in ((",", small), (".", capital)) and small != capital:
            choices = {",": f" {word}, {small}", ".": f" {word}. {capital}"}
            yield Question(before(words, at), choices.pop(mark), tuple(choices.values()), "marks", mark)


def quotation(text: Text, rng: random.Random) -> Iterator[Question]:
    """Ask whether the quotation closes after this word, or goes on."""
    for words, at in text:
        marks = [word for word in words[max(0, at - BEFORE) : at] if '"' in word]
        word, rest = words[at], words[at + 1 : at + 2]
        bare = word.removesuffix('"')
        if marks and not marks[-1].endswith('"') and rest and bare and '"' not in bare + rest[0]:  # within a quotation
            other = bare if word.endswith('"') else f'{word}"'
            family = "word" if bare[-1].isalnum() else "mark"
            right, wrong = phrase([word, *rest]), phrase([other, *rest])
            yield Question(before(words, at), right, (wrong,), family, "closes" if other == bare else "goes on")


def _pair(one: str, two: str) -> str:
    return "/".join(sorted((one, two)))
