"""The loop of plain generation: read prompts, then choose tokens one by one, by the native decoder or by PyTorch."""

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import nn

from jettison.core.errors import UsageError
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
    """Sequences of a transformers model, which runs one sequence at a time."""

    def __init__(self, model: nn.Module, count: int):
        self.model, self.caches = model, [None] * count

    @torch.no_grad()
    def read(self, row: int, tokens: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor([tokens], device=self.model.device)
        output = run_model(self.model, ids, past_key_values=self.caches[row], use_cache=True, logits_to_keep=1)
        if self.caches[row] is None and getattr(output, "past_key_values", None) is None:
            raise UsageError(f"a {self.model.config.model_type} model returns no cache, so it cannot be generated from")
        self.caches[row] = output.past_key_values
        return output.logits[0, -1].float().cpu()

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
