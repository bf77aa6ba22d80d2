"""Tokens to text, piece by piece, up to an end token, a stop text or a number of tokens."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tokenizers.decoders import DecodeStream

from jettison.core.errors import UsageError, guarded
from jettison.runtime.record import STOP, Speculation, Timings, Tokens


@dataclass(frozen=True)
class Generation:
    """A text that was written. ``str()`` of it is the text.

    tokens: their ids, those of a stop text included. finish_reason: ``stop`` for an end token or a stop text,
    ``length`` for as many tokens as were asked for, None if it was left before its end. timings: of all texts that
    were written side by side. speculation: what became of the draft tokens.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str | None
    timings: Timings
    speculation: Speculation

    def __str__(self) -> str:
        return self.text


class Generations:
    """Texts on their way, side by side. Iterates over (row, piece of text); ``of(row)`` is the text so far."""

    def __init__(self, tokens: Tokens, tokenizer, prompts: Sequence[list[int]], stop: Iterable[str]):
        self._tokens, self.record = tokens, tokens.record
        self._texts = [_Text(tokenizer, prompt, stop) for prompt in prompts]
        self._pieces = self._spoken()

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return self._pieces

    def of(self, row: int) -> Generation:
        text, record = self._texts[row], self.record
        reason = record.finish_reasons[row]
        return Generation(text.said, tuple(text.tokens), reason, record.timings, record.speculation)

    def _spoken(self) -> Iterator[tuple[int, str]]:
        """A row whose stop text came is over: its finish reason tells the writer."""
        for row, token in self._tokens:
            if piece := self._texts[row].add(token):
                yield row, piece
            if self._texts[row].ended:
                self.record.finish_reasons[row] = STOP
            if all(text.ended for text in self._texts):
                break
        for row, text in enumerate(self._texts):
            if piece := text.rest():
                yield row, piece


class Stream:
    """One text on its way. Iterates over its pieces; ``generation`` is the text so far."""

    def __init__(self, generations: Generations):
        self._generations, self._pairs = generations, iter(generations)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> str:
        return next(self._pairs)[1]

    @property
    def generation(self) -> Generation:
        return self._generations.of(0)


class _Text:
    """Tokens -> text as far as it is certain: whole characters, and nothing that may begin a stop text."""

    def __init__(self, tokenizer, prompt: list[int], stop: Iterable[str]):
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise UsageError(
                f"{tokenizer.name_or_path} has a tokenizer without tokenizer.json, which is needed to write"
            )
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(ids=prompt, skip_special_tokens=True)
        self._stop, self._held, self.ended = tuple(filter(None, stop)), "", False
        self.tokens: list[int] = []
        self.said = ""

    def add(self, token: int) -> str:
        if self.ended:
            return ""
        self.tokens.append(token)
        with guarded("the tokenizer fails", rust=True):
            self._held += self._stream.step(self._tokenizer, token) or ""
        found = [place for text in self._stop if (place := self._held.find(text)) >= 0]
        if found:
            piece, self._held, self.ended = self._held[: min(found)], "", True
        else:
            certain = len(self._held) - max((self._begun(text) for text in self._stop), default=0)
            piece, self._held = self._held[:certain], self._held[certain:]
        self.said += piece
        return piece

    def rest(self) -> str:
        piece, self._held = self._held, ""
        self.said += piece
        return piece

    def _begun(self, text: str) -> int:
        """How much of ``text`` stands at the end of what is held."""
        return next((n for n in range(min(len(text), len(self._held)), 0, -1) if self._held.endswith(text[:n])), 0)
