"""Run a model one block at a time: only the block at hand has its weights in memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jettison.graph.activations import Activations
from jettison.graph.dense import require_memory
from jettison.graph.folder import ModelFolder, empty
from jettison.graph.skeleton import run_model, running

BATCH = 8
Call = tuple[tuple, dict]  # positional and keyword arguments


class Stop(BaseException):
    """Raised inside a forward pass once what was wanted has been seen. No handler in a model's own code catches it."""


class Walk:
    """The hidden states of some token windows on their way through the blocks of a model.

    tokens: (windows, length) ids, or (windows, length, width) embeddings, which spares reading the embedding of a large
    model. The model's own forward pass prepares masks, positions and embeddings; each block is
    then called with just what the model would have called it with. ``hidden`` are the states, batch by batch; whoever
    walks moves them on with ``advance``. With ``twice``, ``original`` is a second stream, for the model as it was.
    spill: a folder to keep the states in, in place of memory. batch: windows of a batch, at most.
    """

    def __init__(
        self,
        source: ModelFolder,
        tokens: torch.Tensor,
        twice: bool = False,
        spill: Path | None = None,
        batch: int = BATCH,
    ):
        if spill is None:
            require_states(source, *tokens.shape[:2], streams=1 + twice)
        self.source, self._spill = source, spill
        self.model = source.new_skeleton()
        self.blocks = self.model.get_submodule(source.anatomy.family.blocks)
        self.head = self.model.get_output_embeddings()
        unused = [*self.blocks, *self._untied_head()]
        if tokens.is_floating_point():
            unused += [self.model.get_input_embeddings(), self.head]
        source.fill(self.model, dtype=torch.float32, skip=unused)
        self.batches = split(tokens, batch)
        self._calls: list[list[Call]] = []  # batch by batch, of each block, beside the hidden states
        self.hidden = self.new_stream("hidden")
        self.original = self.new_stream("original") if twice else None
        for batch in self.batches:
            entered = self._enter(batch)
            self.hidden.append(entered)
            if twice:
                self.original.append(entered)

    def new_stream(self, name: str) -> Activations:
        """An empty list of states, kept where this walk keeps its own."""
        return Activations(self._spill / name if self._spill else None)

    def _untied_head(self) -> list[nn.Module]:
        return [] if self.source.anatomy.tied else [self.head]

    def _run(self, batch: torch.Tensor):
        return run_model(self.model, batch)

    @torch.no_grad()
    def _enter(self, batch: torch.Tensor) -> torch.Tensor:
        """Embed a batch, and note what each block is called with beside the hidden states: some models give blocks
        what follows from the tokens (Gemma 3n's embeddings per layer). What equals the first batch's is kept once."""
        entered: list[torch.Tensor] = []
        calls: list[Call] = []

        def record(hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
            entered.append(hidden_states)
            calls.append((args, kwargs))
            if len(calls) == len(self.blocks):
                raise Stop
            return hidden_states

        with self._replaced(record), suppress(Stop):
            self._run(batch)
        if self._calls:
            calls = [_shared(call, first) for call, first in zip(calls, self._calls[0], strict=True)]
        self._calls.append(calls)
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
        return self.source.anatomy.path(index)

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """The block with its weights in float32; they are let go at the end."""
        block = self.blocks[index]
        self.source.fill(block, self.prefix(index), torch.float32)
        try:
            yield block
        finally:
            empty(block)

    @property
    def twice(self) -> bool:
        return self.original is not None

    def output(self, index: int, number: int) -> torch.Tensor:
        """What the block, as it stands, makes of batch ``number``."""
        return self.batch_through(index, number, self.hidden[number])

    def advance(self, index: int, number: int) -> torch.Tensor:
        """As ``output``, which then is the hidden states of the batch."""
        self.hidden[number] = output = self.output(index, number)
        return output

    def lead_original(self, index: int, number: int) -> None:
        """Lead the original's stream through the block, which must still be the original's."""
        self.original[number] = self.batch_through(index, number, self.original[number])

    @torch.no_grad()
    def batch_through(self, index: int, number: int, part: torch.Tensor) -> torch.Tensor:
        return self.through(index, number, part)

    def through(self, index: int, number: int, part: torch.Tensor) -> torch.Tensor:
        """The block's output for states (batch, length, width) of batch ``number``, with gradients where they are
        enabled."""
        args, kwargs = self._calls[number][index]
        with running(self.model):
            return first_output(self.blocks[index](part, *args, **kwargs))

    @torch.no_grad()
    def head_inputs(self, stream: Activations) -> Iterator[torch.Tensor]:
        """(batch, length, width) each: what the head is given when ``stream`` leaves the last block."""
        seen: list[torch.Tensor] = []

        def stop(module: nn.Module, args: tuple) -> None:
            seen.append(args[0])
            raise Stop

        for batch, part in zip(self.batches, stream, strict=True):
            hook = self.head.register_forward_pre_hook(stop)
            with self._replaced(lambda hidden_states, *args, part=part, **kwargs: part), suppress(Stop):
                self._run(batch)
            hook.remove()
            yield seen.pop()

    @contextmanager
    def whole_head(self) -> Iterator[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
        """A function from what leaves the last block for a batch, and the batch, to logits (batch, length, vocabulary).
        The head's weights are in memory meanwhile; gradients pass."""

        def logits(states: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
            with self._replaced(lambda hidden_states, *args, **kwargs: states):
                return self._run(batch).logits

        untied = self._untied_head()
        for head in untied:
            self.source.fill(head, self.source.anatomy.head.name, torch.float32)
        try:
            yield logits
        finally:
            for head in untied:
                empty(head)


def require_states(source: ModelFolder, samples: int, length: int, streams: int = 1) -> None:
    """Raises JettisonError if the hidden states of so many windows do not fit in memory."""
    width = source.skeleton.get_input_embeddings().embedding_dim
    require_memory(4.0 * streams * samples * length * width, f"calibrating on {samples:,} windows of {length} tokens")


def split(inputs: torch.Tensor, batch: int) -> tuple[torch.Tensor, ...]:
    """Batches of one size, of at most ``batch`` samples."""
    return inputs.split(next(size for size in range(batch, 0, -1) if len(inputs) % size == 0))


def first_output(output):
    """The states, of a block that returns more."""
    return output[0] if isinstance(output, tuple) else output


def _shared(value: Any, first: Any) -> Any:
    """``value`` with the tensors of ``first`` where they are equal, also inside tuples and mappings."""
    if isinstance(value, torch.Tensor) and isinstance(first, torch.Tensor):
        same = value.shape == first.shape and value.dtype == first.dtype and torch.equal(value, first)
        return first if same else value
    if isinstance(value, tuple) and isinstance(first, tuple) and len(value) == len(first):
        return tuple(map(_shared, value, first))
    if isinstance(value, dict) and isinstance(first, dict):
        return {name: _shared(each, first.get(name)) for name, each in value.items()}
    return value
