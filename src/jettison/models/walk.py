"""Run a model one block at a time: only the block at hand has its weights in memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn

from jettison.models.folder import ModelFolder, empty

BATCH = 8


class _Stop(Exception):
    """Raised inside a forward pass once what was wanted has been seen."""


class Walk:
    """The hidden states of some token windows on their way through the blocks of a model.

    tokens: (windows, length). The model's own forward pass prepares masks, positions and embeddings; each block is
    then called with just what the model would have called it with. ``hidden`` is (windows, length, width), float32;
    whoever walks moves it on. With ``twice``, ``original`` is a second stream, for the model as it was.
    """

    def __init__(self, source: ModelFolder, tokens: torch.Tensor, twice: bool = False):
        self.source = source
        self.model = source.new_skeleton()
        self.blocks = self.model.get_submodule(source.anatomy.family.blocks)
        self.head = self.model.get_output_embeddings()
        source.fill(self.model, dtype=torch.float32, skip=[*self.blocks, *self._untied_head()])
        size = next(size for size in range(BATCH, 0, -1) if len(tokens) % size == 0)
        self.batches = tokens.split(size)
        self._calls: list[tuple[tuple, dict]] = []
        self.hidden = torch.cat([self._enter(batch) for batch in self.batches])
        self.original = self.hidden if twice else None

    def _untied_head(self) -> list[nn.Module]:
        return [] if self.source.anatomy.tied else [self.head]

    @torch.no_grad()
    def _enter(self, batch: torch.Tensor) -> torch.Tensor:
        """Embed a batch; the first one also shows what each block is called with beside the hidden states."""
        entered: list[torch.Tensor] = []
        calls: list[tuple[tuple, dict]] = []

        def record(hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
            entered.append(hidden_states)
            calls.append((args, kwargs))
            if len(calls) == len(self.blocks):
                raise _Stop
            return hidden_states

        with self._replaced(record), suppress(_Stop):
            self.model(batch, use_cache=False)
        self._calls = self._calls or calls
        return entered[0]

    @contextmanager
    def _replaced(self, forward: Callable) -> Iterator[None]:
        for block in self.blocks:
            block.forward = forward
        try:
            yield
        finally:
            for block in self.blocks:
                del block.forward

    def prefix(self, index: int) -> str:
        """The module path of a block."""
        return f"{self.source.anatomy.family.blocks}.{index}"

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """The block with its weights in float32; they are let go at the end."""
        block = self.blocks[index]
        self.source.fill(block, self.prefix(index), torch.float32)
        try:
            yield block
        finally:
            empty(block)

    def through(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """What block ``index``, as it stands, makes of hidden states."""
        return torch.cat([self.batch_through(index, part) for part in self.split(hidden)])

    def split(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return hidden.split(len(self.batches[0]))

    @torch.no_grad()
    def batch_through(self, index: int, part: torch.Tensor) -> torch.Tensor:
        args, kwargs = self._calls[index]
        output = self.blocks[index](part, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    @torch.no_grad()
    def head_inputs(self, hidden: torch.Tensor) -> torch.Tensor:
        """(windows, length, width): what the head is given when ``hidden`` leaves the last block."""
        seen: list[torch.Tensor] = []

        def stop(module: nn.Module, args: tuple) -> None:
            seen.append(args[0])
            raise _Stop

        hook = self.head.register_forward_pre_hook(stop)
        for batch, part in zip(self.batches, self.split(hidden), strict=True):
            with self._replaced(lambda hidden_states, *args, part=part, **kwargs: part), suppress(_Stop):
                self.model(batch, use_cache=False)
        hook.remove()
        return torch.cat(seen)
