"""The target of speculative decoding: one sequence and its key-value cache, in the native decoder or in transformers.

The draft model shares the cache (as in SWIFT, arXiv:2410.06916): it reads the target's keys and values of earlier
tokens, and writes its own after them. Its entries are removed before the target verifies.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Protocol

import torch
from torch import nn
from transformers import DynamicCache

from jettison.graph.anatomy import Family
from jettison.graph.halves import run_bits, skipped_halves, without
from jettison.graph.skeleton import run_model
from jettison.runtime.native_decoder import NativeDecoder


class Target(Protocol):
    """A sequence that can be drafted for and verified. Logits are float32 on the CPU."""

    branching: bool  # whether verified tokens may form a tree, not only a chain
    room: int  # how many more tokens fit

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append a prompt. Returns the logits (vocabulary) after its last token."""

    def draft(self, token: int) -> torch.Tensor:
        """Append a token with the draft model. Returns the draft model's logits (vocabulary)."""

    def undraft(self) -> None:
        """Remove the tokens that the draft model appended."""

    def verify(self, tokens: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
        """Append tokens with the target. Returns the logits (tokens, vocabulary).

        parents: for every token the index of the token that it follows; see ``NativeDecoder.forward``.
        """

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows of the last verified tokens, in ascending order, and remove the others."""


class NativeTarget:
    """A sequence of the native decoder.

    activation_bits: 8 or 15, for all tokens but the prompt; see ``NativeDecoder.forward``.
    skip: names of the units that the draft model leaves out (see ``graph.halves``).
    drafter: the decoder of a view (the draft model), which uses the target's cache; by default the target's decoder.
    """

    branching = True

    def __init__(
        self,
        decoder: NativeDecoder,
        capacity: int,
        cache: str = "bfloat16",
        activation_bits: int = 15,
        *,
        skip: Sequence[str] = (),
        drafter: NativeDecoder | None = None,
    ):
        self.session, self.activation_bits, self.decoder = (
            decoder.session(min(capacity, decoder.limit), cache),
            activation_bits,
            decoder,
        )
        self.drafter, self._halves = drafter or decoder, run_bits(skip, decoder.layers)
        self._before = 0

    @property
    def room(self) -> int:
        """The number of tokens that can still be appended."""
        return self.session.capacity - self.session.length

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        logits = self.session.append(tokens)[0]
        self._before = self.session.length
        return logits

    def draft(self, token: int) -> torch.Tensor:
        return self.drafter.forward([token], [self.session], [True], self.activation_bits, halves=self._halves)[0]

    def undraft(self) -> None:
        self.session.cut(self._before)

    def cut(self, length: int) -> None:
        """Remove all but the first ``length`` tokens."""
        self.session.cut(length)
        self._before = self.session.length

    def verify(self, tokens: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
        chain = all(parent == row - 1 for row, parent in enumerate(parents))
        return self.session.append(
            tokens, every=True, activation_bits=self.activation_bits, parents=None if chain else parents
        )

    def keep(self, rows: Sequence[int]) -> None:
        self.session.keep(self._before, [self._before + row for row in rows])
        self._before = self.session.length


class TorchTarget:
    """A sequence of a transformers model. Its cache keeps all positions, also in layers with windowed attention."""

    branching = False

    def __init__(self, model: nn.Module, family: Family, capacity: int, skip: Sequence[str] = ()):
        self.model, self.family, self._capacity = model, family, capacity
        self._blocks = model.get_submodule(family.blocks)
        self._skipped = skipped_halves(skip, len(self._blocks))
        self._cache, self._before = DynamicCache(), 0

    @property
    def room(self) -> int:
        """The number of tokens that can still be appended."""
        return self._capacity - self._before

    @torch.no_grad()
    def _append(self, tokens: Sequence[int], last: int) -> torch.Tensor:
        ids = torch.tensor([list(tokens)], device=self.model.device)
        output = run_model(self.model, ids, past_key_values=self._cache, use_cache=True, logits_to_keep=last)
        return output.logits[0].float().cpu()

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        self._before += len(tokens)
        return self._append(tokens, 1)[-1]

    def draft(self, token: int) -> torch.Tensor:
        with ExitStack() as stack:
            for block, halves in zip(self._blocks, self._skipped, strict=True):
                stack.enter_context(without(block, self.family, halves))
            return self._append([token], 1)[-1]

    def undraft(self) -> None:
        for layer in self._cache.layers:  # layers that the draft model left out hold fewer positions than the others
            if layer.is_initialized and layer.keys.shape[-2] > self._before:
                layer.keys, layer.values = (tensor[..., : self._before, :] for tensor in (layer.keys, layer.values))

    def verify(self, tokens: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
        return self._append(tokens, len(tokens))

    def keep(self, rows: Sequence[int]) -> None:
        self._before += len(rows)
        self.undraft()
