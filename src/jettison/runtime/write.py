"""The token loop: prompts in, tokens out, by the engine or by PyTorch."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from jettison.runtime.native_decoder import Engine
from jettison.runtime.sampling import Sampling

STOP, LENGTH = "stop", "length"  # why a text is over: an end token or a stop text; as many tokens as were asked for


class Reader(Protocol):
    """Sequences that grow. Logits are float32 on the CPU."""

    def read(self, row: int, tokens: Sequence[int]) -> torch.Tensor:
        """Append a prompt to a sequence. Returns the logits (vocabulary) after its last token."""

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Append a token to each of some sequences. Returns the logits (rows, vocabulary)."""


class EngineReader:
    """fine: of the tokens that are written one by one; see ``Engine.forward``."""

    def __init__(self, engine: Engine, capacities: Sequence[int], cache: str, fine: bool):
        self.engine, self.sessions = engine, [engine.session(capacity, cache) for capacity in capacities]
        self.fine = fine

    def read(self, row: int, tokens: Sequence[int]) -> torch.Tensor:
        return self.sessions[row].append(tokens)[0]

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        return self.engine.forward(tokens, [self.sessions[row] for row in rows], [True] * len(rows), self.fine)


class TorchReader:
    """A model of transformers, one sequence at a time."""

    def __init__(self, model: nn.Module, count: int):
        self.model, self.caches = model, [None] * count

    @torch.no_grad()
    def read(self, row: int, tokens: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor([tokens], device=self.model.device)
        found = self.model(ids, past_key_values=self.caches[row], use_cache=True, logits_to_keep=1)
        self.caches[row] = found.past_key_values
        return found.logits[0, -1].float().cpu()

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        return torch.stack([self.read(row, [token]) for row, token in zip(rows, tokens, strict=True)])


@dataclass
class Speed:
    """Tokens and seconds of reading prompts, and of writing after the first token."""

    read: int = 0
    reading: float = 0.0
    written: int = 0
    writing: float = 0.0

    @property
    def prefill(self) -> float:
        """Tokens per second."""
        return self.read / self.reading if self.reading else 0.0

    @property
    def decode(self) -> float:
        return self.written / self.writing if self.writing else 0.0


def write(
    reader: Reader,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    tokens: int,
    ends: set[int],
    speed: Speed,
    reasons: list[str | None],
) -> Iterator[tuple[int, int]]:
    """(row, token) as they come, at most ``tokens`` for each prompt; a row ends before a token of ``ends``.

    reasons: of each row None, and in the end STOP or LENGTH. Whoever reads the tokens may set one before asking for the
    next: the row is then over. Only rows that go on cost a step.
    """
    chances = [sampling.generator(row) for row in range(len(prompts))]
    seen = [list(prompt) for prompt in prompts]
    start = time.perf_counter()
    logits = {row: reader.read(row, prompt) for row, prompt in enumerate(prompts)}
    speed.read += sum(map(len, prompts))
    speed.reading += time.perf_counter() - start
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
        speed.written += len(rows)
        speed.writing += choosing + time.perf_counter() - start
    reasons[:] = [reason or LENGTH for reason in reasons]
