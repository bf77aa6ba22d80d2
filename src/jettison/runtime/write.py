"""The loop of plain generation: read prompts, then choose tokens one by one, by the native decoder or by PyTorch."""

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import nn

from jettison.core.errors import UsageError
from jettison.core.progress import say
from jettison.graph.skeleton import run_model
from jettison.runtime.native_decoder import NativeDecoder
from jettison.runtime.record import LENGTH, STOP, Record
from jettison.runtime.sampling import Sampling


class Reader(Protocol):
    """A batch of sequences that tokens are appended to. Logits are float32 on the CPU."""

    def read(self, row: int, tokens: Sequence[int]) -> torch.Tensor:
        """Append tokens to one sequence. Returns the logits (vocabulary) after the last token."""

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each sequence of ``rows``. Returns the logits (rows, vocabulary)."""


class NativeReader:
    """Sequences of the native decoder.

    capacities: for every sequence the number of tokens it has room for.
    cache: type of keys and values; see ``NativeDecoder.session``.
    activation_bits: 8 or 15, for the tokens that are written one by one; prompts are read with 8.
    """

    def __init__(self, decoder: NativeDecoder, capacities: Sequence[int], cache: str, activation_bits: int):
        self.decoder, self.sessions = decoder, [decoder.session(capacity, cache) for capacity in capacities]
        self.activation_bits = activation_bits

    def read(self, row: int, tokens: Sequence[int]) -> torch.Tensor:
        return self.sessions[row].append(tokens)[0]

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        return self.decoder.forward(
            tokens, [self.sessions[row] for row in rows], [True] * len(rows), self.activation_bits
        )


class TorchReader:
    """Sequences of a transformers model, which runs one sequence at a time.

    A model that returns no cache, or does not run with the one it returned, reads the whole text anew for every token.
    """

    def __init__(self, model: nn.Module, count: int):
        self.model, self.caches, self.cached = model, [None] * count, True
        self.texts: list[list[int]] = [[] for _ in range(count)]

    @torch.no_grad()
    def read(self, row: int, tokens: Sequence[int]) -> torch.Tensor:
        self.texts[row] += tokens
        output = self._read_cached(row, tokens) if self.cached else None
        if output is None:
            output = self._run(self.texts[row])
        return output.logits[0, -1].float().cpu()

    def _read_cached(self, row: int, tokens: Sequence[int]):
        """Return the outputs for tokens that follow those in the cache; None if there is no cache or it fails."""
        output = None
        try:
            output = self._run(tokens, past_key_values=self.caches[row], use_cache=True)
            self.caches[row] = getattr(output, "past_key_values", None)
        except UsageError:
            self.caches[row] = None
        if self.caches[row] is None:
            self.cached = False
            kind = self.model.config.model_type
            say(f"note: a {kind} model has no cache that works: it reads the whole text anew for every token")
        return output

    def _run(self, tokens: Sequence[int], **options):
        return run_model(self.model, torch.tensor([tokens], device=self.model.device), logits_to_keep=1, **options)

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        return torch.stack([self.read(row, [token]) for row, token in zip(rows, tokens, strict=True)])


def write(
    reader: Reader,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    tokens: int,
    ends: set[int],
    record: Record,
) -> Iterator[tuple[int, int]]:
    """Generate tokens for several prompts at once. Yields (row, token) pairs as tokens are chosen.

    prompts: token ids.
    tokens: how many at most are written after each prompt.
    ends: end tokens; a row ends before the first of them.
    record: filled while tokens are read. Finish reasons are None at first, STOP or LENGTH in the end. The caller may
        set the reason of a row before it asks for the next token; the row then ends. Rows that ended cost no time.
    """
    timings, reasons = record.timings, record.finish_reasons
    generators = [sampling.generator(row) for row in range(len(prompts))]
    seen = [list(prompt) for prompt in prompts]
    start = time.perf_counter()
    logits = {row: reader.read(row, prompt) for row, prompt in enumerate(prompts)}
    timings.read += sum(map(len, prompts))
    timings.reading += time.perf_counter() - start
    for number in range(tokens):
        start, chosen = time.perf_counter(), {}
        for row, row_logits in logits.items():
            token = sampling.choose(row_logits, seen[row], generators[row])
            if token in ends:
                reasons[row] = STOP
            else:
                chosen[row] = token
                seen[row].append(token)
        choosing = time.perf_counter() - start
        yield from chosen.items()
        rows = [row for row in chosen if reasons[row] is None]
        if not rows or number == tokens - 1:
            break
        start = time.perf_counter()
        logits = dict(zip(rows, reader.step(rows, [chosen[row] for row in rows]), strict=True))
        timings.written += len(rows)
        timings.writing += choosing + time.perf_counter() - start
    reasons[:] = [reason or LENGTH for reason in reasons]
