"""Compress a model that stays whole in memory, block by block: for models that are no chain of blocks.

In a ResNet or a ConvNeXt other modules stand between the blocks. Whoever needs a block's inputs runs the model up to
that block, as it stands then: with the blocks before it compressed, and the others not yet.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

from jettison.graph.activations import Activations
from jettison.graph.folder import ModelFolder
from jettison.graph.skeleton import run_model, running
from jettison.graph.walk import BATCH, Call, Stop, Walk, first_output, split

TOKENS, SIDE = 16, 64  # of random inputs; the side of images where the config names none


def open_walk(
    source: ModelFolder, inputs: torch.Tensor, twice: bool = False, spill: Path | None = None
) -> "Walk | WholeWalk":
    """A walk through a model on ``inputs``, with the original's stream beside it if ``twice``. spill: a folder for the
    states of a chain, in place of memory."""
    if source.anatomy.family.chain:
        return Walk(source, inputs, twice, spill)
    return WholeWalk(source, inputs, twice)


def random_inputs(source: ModelFolder) -> torch.Tensor:
    """One sample with a fixed seed: (1, 16, width) hidden states of a chain, (1, channels, height, width) of others."""
    rng, config = torch.Generator().manual_seed(0), source.config
    if source.anatomy.family.chain:
        return torch.randn(1, TOKENS, source.skeleton.get_input_embeddings().embedding_dim, generator=rng)
    side = getattr(config, "image_size", None) or SIDE
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return torch.randn(1, getattr(config, "num_channels", 3), height, width, generator=rng)


class WholeWalk:
    """As ``Walk``, for any model: blocks are found in ``model``, which is compressed in place.

    inputs: (samples, ...), what the model reads. twice: keep the original model too, for what its blocks are given.
    """

    def __init__(self, source: ModelFolder, inputs: torch.Tensor, twice: bool = False, batch: int = BATCH):
        self.source, self.model = source, source.new_skeleton()
        source.fill(self.model, dtype=torch.float32)
        self._original = deepcopy(self.model) if twice else None
        self.batches = split(inputs, batch)
        self._calls: list[Call] = []  # of the block at hand, batch by batch
        self._originals: list[Call] = []

    @property
    def twice(self) -> bool:
        return self._original is not None

    def new_stream(self, name: str) -> Activations:
        """An empty list of states."""
        return Activations()

    def prefix(self, index: int) -> str:
        """The module path of a block."""
        return self.source.anatomy.path(index)

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """The block, in float32, once the model has run up to it for every batch."""
        self._calls = [self._enter(self.model, index, batch) for batch in self.batches]
        if self._original is not None:
            self._originals = [self._enter(self._original, index, batch) for batch in self.batches]
        try:
            yield self.model.get_submodule(self.prefix(index))
        finally:
            self._calls, self._originals = [], []

    @torch.no_grad()
    def _enter(self, model: nn.Module, index: int, batch: torch.Tensor) -> Call:
        """What the block is called with."""
        calls: list[Call] = []

        def stop(module: nn.Module, args: tuple, kwargs: dict) -> None:
            calls.append((args, kwargs))
            raise Stop

        hook = model.get_submodule(self.prefix(index)).register_forward_pre_hook(stop, with_kwargs=True)
        with suppress(Stop):
            run_model(model, batch)
        hook.remove()
        return calls[0]

    @torch.no_grad()
    def output(self, index: int, number: int) -> torch.Tensor:
        """What the block, as it stands, makes of batch ``number``."""
        return self._run(index, self._calls[number])

    @torch.no_grad()
    def lead_original(self, index: int, number: int) -> None:
        """Run the block, which must still be the original's, on what the original model gives it."""
        self._run(index, self._originals[number])

    advance = output  # the model holds its own state

    def _run(self, index: int, call: Call) -> torch.Tensor:
        args, kwargs = call
        with running(self.model):
            return first_output(self.model.get_submodule(self.prefix(index))(*args, **kwargs))

    @torch.no_grad()
    def run(self) -> None:
        """Run the whole model on every batch, for the statistics of what lies outside the blocks."""
        for batch in self.batches:
            run_model(self.model, batch)
