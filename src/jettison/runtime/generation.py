"""Turn generated tokens into text, piece by piece, up to an end token, a stop text or a number of tokens."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tokenizers.decoders import DecodeStream

from jettison.core.errors import UsageError, guarded
from jettison.runtime.record import STOP, Speculation, Timings, Tokens


@dataclass(frozen=True)
class Generation:
    """A generated text; ``str()`` returns the text.

    tokens: ids, including those of a stop text.
    finish_reason: ``stop`` for an end token or a stop text, ``length`` if the requested number of tokens was reached,
        None if the caller stopped reading before the end.
    timings: of all texts of the batch together.
    speculation: how many draft tokens were proposed and accepted.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str | None
    timings: Timings
    speculation: Speculation

    def __str__(self) -> str:
        return self.text


class Generations:
    """Texts of a batch while they are generated. Iterating yields (row, piece of text) pairs."""

    def __init__(self, tokens: Tokens, tokenizer, prompts: Sequence[list[int]], stop: Iterable[str]):
        self._tokens, self.record = tokens, tokens.record
        self._texts = [_Text(tokenizer, prompt, stop) for prompt in prompts]
        self._pieces = self._decode()

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return self._pieces

    def of(self, row: int) -> Generation:
        """Return the text of one row so far."""
        text, record = self._texts[row], self.record
        reason = record.finish_reasons[row]
        return Generation(text.text, tuple(text.tokens), reason, record.timings, record.speculation)

    def _decode(self) -> Iterator[tuple[int, str]]:
        """Yield (row, piece of text). The finish reason of a row is set when its stop text appears: ``write`` then
        ends the row."""
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
    """One text while it is generated. Iterating yields pieces of text; ``generation`` is the text so far."""

    def __init__(self, generations: Generations):
        self._generations, self._pairs = generations, iter(generations)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> str:
        return next(self._pairs)[1]

    @property
    def generation(self) -> Generation:
        """The text so far, with its tokens, finish reason and timings."""
        return self._generations.of(0)


class _Text:
    """Decode the tokens of one text. Only certain text is returned: whole characters that begin no stop text."""

    def __init__(self, tokenizer, prompt: list[int], stop: Iterable[str]):
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise UsageError(f"{tokenizer.name_or_path} has a tokenizer without tokenizer.json, which generation needs")
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(ids=prompt, skip_special_tokens=True)
        self._stop, self._pending, self.ended = tuple(filter(None, stop)), "", False
        self.tokens: list[int] = []
        self.text = ""

    def add(self, token: int) -> str:
        if self.ended:
            return ""
        self.tokens.append(token)
        with guarded("the tokenizer fails", rust=True):
            self._pending += self._stream.step(self._tokenizer, token) or ""
        places = [place for text in self._stop if (place := self._pending.find(text)) >= 0]
        if places:
            piece, self._pending, self.ended = self._pending[: min(places)], "", True
        else:
            certain = len(self._pending) - max((self._overlap(text) for text in self._stop), default=0)
            piece, self._pending = self._pending[:certain], self._pending[certain:]
        self.text += piece
        return piece

    def rest(self) -> str:
        piece, self._pending = self._pending, ""
        self.text += piece
        return piece

    def _overlap(self, text: str) -> int:
        """Return how many first characters of ``text`` are at the end of the pending text."""
        return next(
            (n for n in range(min(len(text), len(self._pending)), 0, -1) if self._pending.endswith(text[:n])), 0
        )
