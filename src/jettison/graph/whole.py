"""Compress a model block by block while it stays whole in memory, for models that are not a chain of blocks.

In a ResNet or a ConvNeXt other modules stand between the blocks. To get the inputs of a block, the model is run up to
that block, with the blocks before it already compressed.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

from jettison.core.errors import UsageError
from jettison.core.progress import say
from jettison.graph.activations import Activations
from jettison.graph.anatomy import Linear
from jettison.graph.folder import ModelFolder
from jettison.graph.skeleton import run_model, running
from jettison.graph.walk import BATCH, Call, Stop, Walk, first_output, split, unused

TOKENS = 16  # of random states


def open_walk(
    source: ModelFolder, inputs: torch.Tensor, twice: bool = False, spill: Path | None = None
) -> "Walk | WholeWalk":
    """Start a walk through a model.

    inputs: see ``Walk`` and ``WholeWalk``.
    twice: also keep the states of the original model.
    spill: a folder that stores the states of a chain in place of memory.
    """
    if is_chain(source):
        return Walk(source, inputs, twice, spill)
    return WholeWalk(source, inputs, twice)


def is_chain(source: ModelFolder) -> bool:
    """Return whether a model can be walked block by block.

    A family with a row says so itself. Any other language model is tried on a few tokens, once for a folder.
    """
    family = source.anatomy.family
    if not family.chain or family.name != "generic":
        return family.chain
    if source.chain is None:
        try:
            walk = Walk(source, torch.arange(TOKENS).unsqueeze(0) % source.vocabulary)
            with walk.block(0):
                walk.output(0, 0)
            source.chain = True
        except UsageError as error:
            say(f"note: {source.name} stays whole in memory, since it cannot be run block by block: {error}")
            source.chain = False
    return source.chain


def require_runs(source: ModelFolder, inputs: torch.Tensor, linears: Iterable[Linear]) -> None:
    """Try, before any work, whether the blocks of a model without a row run on their own, more than once.

    inputs: a few inputs of the model.
    linears: those that will be compressed; one block of every kind that has some is tried.
    Raises UsageError if a block does not run.
    """
    if source.anatomy.family.name != "generic":
        return
    paths: dict[int, list[str]] = defaultdict(list)
    for linear in linears:
        if linear.block is not None:
            paths[linear.block].append(linear.name.removeprefix(source.anatomy.path(linear.block)))
    kinds = {tuple(inside): block for block, inside in sorted(paths.items(), reverse=True)}  # the first of every kind
    walk = open_walk(source, inputs) if kinds else None
    for block in sorted(kinds.values()):
        with walk.block(block):
            for _ in range(2):  # as the original and as the compressed block, on the same inputs
                walk.output(block, 0)


def random_states(source: ModelFolder) -> torch.Tensor:
    """Make random states (1, 16, width) for the first block of a chain, with a fixed seed."""
    width = source.skeleton.get_input_embeddings().embedding_dim
    return torch.randn(1, TOKENS, width, generator=torch.Generator().manual_seed(0))


def _flat(output) -> list[torch.Tensor]:
    """Return all tensors of an output, also inside tuples, as vectors."""
    if isinstance(output, torch.Tensor):
        return [output.flatten()]
    return [vector for part in output or () for vector in _flat(part)]


class WholeWalk:
    """A walk as ``Walk``, for any model: ``model`` is compressed in place.

    inputs: (samples, ...), the inputs of the model.
    twice: also keep the original model, whose blocks receive the original inputs.
    batch: the greatest number of samples in a batch.
    """

    def __init__(self, source: ModelFolder, inputs: torch.Tensor, twice: bool = False, batch: int = BATCH):
        self.source, self.model = source, source.new_skeleton()
        source.fill(self.model, dtype=torch.float32)
        self._original = deepcopy(self.model) if twice else None
        self.batches = split(inputs, batch)
        self._calls: list[Call] = []  # the arguments of the current block, batch by batch
        self._original_calls: list[Call] = []

    @property
    def twice(self) -> bool:
        """Whether the walk also has the original model."""
        return self._original is not None

    def new_stream(self, name: str) -> Activations:
        """Return an empty list of states in memory."""
        return Activations()

    def prefix(self, index: int) -> str:
        """Return the module path of a block."""
        return self.source.anatomy.path(index)

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Run the model up to a block for every batch, and yield the block, in float32."""
        self._calls = [self._inputs_of_block(self.model, index, batch) for batch in self.batches]
        if self._original is not None:
            self._original_calls = [self._inputs_of_block(self._original, index, batch) for batch in self.batches]
        try:
            yield self.model.get_submodule(self.prefix(index))
        finally:
            self._calls, self._original_calls = [], []

    @torch.no_grad()
    def _inputs_of_block(self, model: nn.Module, index: int, batch: torch.Tensor) -> Call:
        """Run a model up to block ``index`` and return the arguments of this block."""
        calls: list[Call] = []

        def stop(module: nn.Module, args: tuple, kwargs: dict) -> None:
            calls.append((args, kwargs))
            raise Stop

        hook = model.get_submodule(self.prefix(index)).register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with suppress(Stop):
                run_model(model, batch)
        finally:
            hook.remove()
        if not calls:
            raise UsageError(
                f"block {self.prefix(index)} of {self.source.name} is not run by its inputs alone, so it has no "
                "activations to measure: compress the other blocks (where: {block: ...}), or by a method without data"
            )
        return calls[0]

    @torch.no_grad()
    def output(self, index: int, number: int) -> torch.Tensor:
        """Return the output of block ``index``, with its current weights, for batch ``number``."""
        return self._run(index, self._calls[number])

    @torch.no_grad()
    def lead_original(self, index: int, number: int) -> None:
        """Run the block, which must still have its original weights, on its inputs in the original model."""
        self._run(index, self._original_calls[number])

    advance = output  # there are no states to replace: ``block`` computes the inputs of every block anew

    def _run(self, index: int, call: Call) -> torch.Tensor:
        args, kwargs = unused(call)
        with running(self.model):
            output = self.model.get_submodule(self.prefix(index))(*args, **kwargs)
        # Blocks of denoisers return several states of equal weight: of image and text, or of all resolutions.
        return torch.cat(_flat(output)) if self.source.layout.part else first_output(output)

    @torch.no_grad()
    def run(self) -> None:
        """Run the whole model on every batch, for the statistics of the linears outside the blocks."""
        for batch in self.batches:
            run_model(self.model, batch)
