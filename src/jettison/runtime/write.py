"""The token loop: prompts in, tokens out, by the decoder or by PyTorch."""

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import nn

from jettison.graph.skeleton import run_model
from jettison.runtime.native_decoder import NativeDecoder
from jettison.runtime.record import LENGTH, STOP, Record
from jettison.runtime.sampling import Sampling


class Reader(Protocol):
    """Sequences that grow. Logits are float32 on the CPU."""

    def read(self, row: int, tokens: Sequence[int]) -> torch.Tensor:
        """Append a prompt to a sequence. Returns the logits (vocabulary) after its last token."""

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Append a token to each of some sequences. Returns the logits (rows, vocabulary)."""


class NativeReader:
    """activation_bits: for the tokens that are written one by one; see ``NativeDecoder.forward``."""

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
    """A model of transformers, one sequence at a time."""

    def __init__(self, model: nn.Module, count: int):
        self.model, self.caches = model, [None] * count

    @torch.no_grad()
    def read(self, row: int, tokens: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor([tokens], device=self.model.device)
        found = run_model(self.model, ids, past_key_values=self.caches[row], use_cache=True, logits_to_keep=1)
        self.caches[row] = found.past_key_values
        return found.logits[0, -1].float().cpu()

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
    """(row, token) as they come, at most ``tokens`` for each prompt; a row ends before a token of ``ends``.

    record: its finish reasons are None, and in the end STOP or LENGTH. Whoever reads the tokens may set one before
    asking for the next: the row is then over. Only rows that go on cost a step.
    """
    timings, reasons = record.timings, record.finish_reasons
    chances = [sampling.generator(row) for row in range(len(prompts))]
    seen = [list(prompt) for prompt in prompts]
    start = time.perf_counter()
    logits = {row: reader.read(row, prompt) for row, prompt in enumerate(prompts)}
    timings.read += sum(map(len, prompts))
    timings.reading += time.perf_counter() - start
    for number in range(tokens):
        start, chosen = time.perf_counter(), {}
        for row, each in logits.items():
            token = sampling.choose(each, seen[row], chances[row])
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
