"""Run a model one block at a time: only the current block has its weights in memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Cache

from jettison.core.errors import UsageError
from jettison.graph.activations import Activations
from jettison.graph.dense import require_memory
from jettison.graph.folder import ModelFolder
from jettison.graph.skeleton import run_model, running

BATCH = 8
Call = tuple[tuple, dict]  # positional and keyword arguments


class Stop(BaseException):
    """Raised to end a forward pass early. It is a BaseException so that no handler in a model's code catches it."""


class NotAChain(UsageError):
    """Raised for a model whose blocks do not simply pass hidden states on, so that it cannot be walked by block."""


class Walk:
    """The hidden states of some token windows, which the caller moves through the blocks of a model.

    The model's own forward pass prepares embeddings, masks and positions. Every block is then called with the same
    arguments with which the model would call it. ``hidden`` has the states, batch by batch; ``advance`` replaces them
    by the output of a block.

    tokens: (windows, length) ids, or (windows, length, width) embeddings, so that the embedding of a large model need
        not be read.
    twice: keep a second stream of states, ``original``, for the original model.
    spill: a folder that stores the states in place of memory.
    batch: the greatest number of windows in a batch.
    Raises JettisonError if the states do not fit in memory.
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
        self._probed = False
        self._rest: tuple | None = None  # what blocks return after the hidden states, where they return a tuple
        self._calls: list[list[Call]] = []  # [batch][block]: the arguments of a block beside the hidden states
        self.hidden = self.new_stream("hidden")
        self.original = self.new_stream("original") if twice else None
        for batch in self.batches:
            states = self._enter_blocks(batch)
            self.hidden.append(states)
            if twice:
                self.original.append(states)

    def new_stream(self, name: str) -> Activations:
        """Return an empty list of states, stored in memory or on disk as the walk's own states are."""
        return Activations(self._spill / name if self._spill else None)

    def _untied_head(self) -> list[nn.Module]:
        """Return the head, if its weights are not those of the embedding."""
        return [] if self.source.anatomy.tied else [self.head]

    def _run(self, batch: torch.Tensor):
        return run_model(self.model, batch)

    @torch.no_grad()
    def _enter_blocks(self, batch: torch.Tensor) -> torch.Tensor:
        """Embed a batch, and record the arguments of every block beside the hidden states.

        The arguments may depend on the tokens (Gemma 3n's embeddings per layer). Tensors equal to those of the first
        batch are kept once.
        Returns the states (batch, length, width) that enter the first block.
        """
        entered: list[torch.Tensor] = []
        calls: list[Call] = []

        def record(hidden_states: torch.Tensor, *args, **kwargs) -> Any:
            if entered and (hidden_states.shape != entered[0].shape or not torch.equal(hidden_states, entered[0])):
                raise NotAChain("the model changes the hidden states between its blocks")
            entered.append(hidden_states)
            calls.append((args, kwargs))
            if len(calls) == len(self.blocks):  # the head is not needed
                raise Stop
            if not self._probed:
                self._probe(hidden_states, args, kwargs)
            return self._returned(hidden_states)  # every block passes its input on: the first entry is the embeddings

        with self._replaced(record), suppress(Stop):
            self._run(batch)
        if len(calls) < len(self.blocks):
            raise NotAChain("it does not run all of its blocks")
        if self._calls:
            calls = [_shared(call, first) for call, first in zip(calls, self._calls[0], strict=True)]
        self._calls.append(calls)
        return entered[0]

    def _probe(self, states: torch.Tensor, args: tuple, kwargs: dict[str, Any]) -> None:
        """Run the first block of a family without a row, to learn whether blocks return a tensor or a tuple."""
        self._probed = True
        if self.source.anatomy.family.name == "generic":
            with self.block(0) as block:
                output = type(block).forward(block, states, *args, **kwargs)
            if not isinstance(first_output(output), torch.Tensor) or first_output(output).shape != states.shape:
                raise NotAChain("its blocks return no hidden states of the shape that they read")
            self._rest = tuple(output[1:]) if isinstance(output, tuple) else None

    def _returned(self, states: torch.Tensor) -> Any:
        """Return hidden states in the form in which blocks return them: alone, or first in a tuple."""
        return states if self._rest is None else (states, *self._rest)

    @contextmanager
    def _replaced(self, forward: Callable) -> Iterator[None]:
        """Replace the forward method of every block for a while."""
        for block in self.blocks:
            block.forward = forward
        try:
            yield
        finally:
            for block in self.blocks:
                del block.forward

    def prefix(self, index: int) -> str:
        """Return the module path of a block."""
        return self.source.anatomy.path(index)

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Load the weights of a block in float32, and free them at the end of the ``with`` statement."""
        block = self.blocks[index]
        self.source.fill(block, self.prefix(index), torch.float32)
        try:
            yield block
        finally:
            empty(block)

    @property
    def twice(self) -> bool:
        """Whether the walk has a stream for the original model."""
        return self.original is not None

    def output(self, index: int, number: int) -> torch.Tensor:
        """Return the output of block ``index``, with its current weights, for batch ``number``."""
        return self.batch_through(index, number, self.hidden[number])

    def advance(self, index: int, number: int) -> torch.Tensor:
        """Replace the hidden states of batch ``number`` by the output of block ``index``, and return them."""
        self.hidden[number] = output = self.output(index, number)
        return output

    def lead_original(self, index: int, number: int) -> None:
        """Move the original stream through the block, which must still have its original weights."""
        self.original[number] = self.batch_through(index, number, self.original[number])

    @torch.no_grad()
    def batch_through(self, index: int, number: int, part: torch.Tensor) -> torch.Tensor:
        """Return the same as ``through``, without gradients."""
        return self.through(index, number, part)

    def through(self, index: int, number: int, part: torch.Tensor) -> torch.Tensor:
        """Return the output of block ``index`` for other states of batch ``number``. Gradients pass if enabled.

        part: (batch, length, width), the states.
        """
        args, kwargs = unused(self._calls[number][index])
        with running(self.model):
            return first_output(self.blocks[index](part, *args, **kwargs))

    @torch.no_grad()
    def head_inputs(self, stream: Activations) -> Iterator[torch.Tensor]:
        """Yield the inputs of the head, (batch, length, width), for every batch of ``stream``.

        stream: the outputs of the last block.
        """
        seen: list[torch.Tensor] = []

        def stop(module: nn.Module, args: tuple) -> None:
            seen.append(args[0])
            raise Stop

        # The blocks return the states of the stream: only the layers between the last block and the head compute.
        for batch, part in zip(self.batches, stream, strict=True):
            hook = self.head.register_forward_pre_hook(stop)
            try:
                with (
                    self._replaced(lambda hidden_states, *args, part=part, **kwargs: self._returned(part)),
                    suppress(Stop),
                ):
                    self._run(batch)
            finally:
                hook.remove()
            yield seen.pop()

    @contextmanager
    def whole_head(self) -> Iterator[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
        """Load the head's weights for the ``with`` statement, and yield a function that computes logits.

        The function takes the output of the last block for a batch, and the batch itself, as the model's inputs. It
        returns the logits (batch, length, vocabulary). Gradients pass through it.
        """

        def logits(states: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
            with self._replaced(lambda hidden_states, *args, **kwargs: self._returned(states)):
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
    """Raise JettisonError if the hidden states of ``samples`` windows of ``length`` tokens do not fit in memory.

    streams: how many states per token are kept.
    """
    width = source.skeleton.get_input_embeddings().embedding_dim
    require_memory(4.0 * streams * samples * length * width, f"calibrating on {samples:,} windows of {length} tokens")


def split(inputs: torch.Tensor, batch: int) -> tuple[torch.Tensor, ...]:
    """Split samples into batches of equal size, the largest possible that is at most ``batch``."""
    return inputs.split(next(size for size in range(batch, 0, -1) if len(inputs) % size == 0))


def first_output(output):
    """Return the hidden states from the output of a block, which is a tuple if it has more parts."""
    return output[0] if isinstance(output, tuple) else output


def unused(call: Call) -> Call:
    """Return the arguments of a call with every cache copied, since a block appends its keys and values to it.

    Some models (XLM) make a cache even if they are asked not to.
    """
    copied = lambda value: deepcopy(value) if isinstance(value, Cache) else value
    args, kwargs = call
    return tuple(map(copied, args)), {name: copied(value) for name, value in kwargs.items()}


def _shared(value: Any, first: Any) -> Any:
    """Return ``value`` with its tensors replaced by equal ones of ``first``, also inside tuples and mappings."""
    if isinstance(value, torch.Tensor) and isinstance(first, torch.Tensor):
        same = value.shape == first.shape and value.dtype == first.dtype and torch.equal(value, first)
        return first if same else value
    if isinstance(value, tuple) and isinstance(first, tuple) and len(value) == len(first):
        return tuple(map(_shared, value, first))
    if isinstance(value, dict) and isinstance(first, dict):
        return {name: _shared(inner, first.get(name)) for name, inner in value.items()}
    return value


def empty(module: nn.Module) -> None:
    """Move the parameters of a module back to the meta device, which frees their memory."""
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                owner._parameters[name] = torch.nn.Parameter(torch.empty_like(parameter, device="meta"))
