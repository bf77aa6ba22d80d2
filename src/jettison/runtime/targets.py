"""A sequence that is read, drafted and verified in one cache of keys and values: in the decoder, or in transformers.

The draft model writes its keys and values where the target's will be, and reads the target's for what came before; what
it wrote is forgotten before the target verifies (SWIFT, arXiv:2410.06916, shares its cache in this way).
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
    """Logits are float32 on the CPU. ``branching``: whether rows may follow others than the one before."""

    branching: bool
    room: int  # for so many tokens more

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append a prompt. Returns the logits (vocabulary) after its last token."""

    def draft(self, token: int) -> torch.Tensor:
        """Append a token by the draft model. Returns its logits (vocabulary)."""

    def undraft(self) -> None:
        """Forget what the draft model appended."""

    def verify(self, tokens: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
        """Append tokens; see ``NativeDecoder.forward`` for parents. Returns the logits (tokens, vocabulary)."""

    def keep(self, rows: Sequence[int]) -> None:
        """Of what was verified last, keep these rows, rising, and forget the rest."""


class NativeTarget:
    """activation_bits: for all but the prompt; see ``NativeDecoder.forward``. drafter: the decoder of a view, whose
    keys and values lie where the target's do; the target's own without one."""

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
        return self.session.capacity - self.session.length

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        found = self.session.append(tokens)[0]
        self._before = self.session.length
        return found

    def draft(self, token: int) -> torch.Tensor:
        return self.drafter.forward([token], [self.session], [True], self.activation_bits, halves=self._halves)[0]

    def undraft(self) -> None:
        self.session.cut(self._before)

    def cut(self, length: int) -> None:
        """Forget what follows the first ``length`` tokens."""
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
    """A model of transformers. Its cache keeps all positions, also where attention has a window."""

    branching = False

    def __init__(self, model: nn.Module, family: Family, capacity: int, skip: Sequence[str] = ()):
        self.model, self.family, self._capacity = model, family, capacity
        self._blocks = model.get_submodule(family.blocks)
        self._skipped = skipped_halves(skip, len(self._blocks))
        self._cache, self._before = DynamicCache(), 0

    @property
    def room(self) -> int:
        return self._capacity - self._before

    @torch.no_grad()
    def _append(self, tokens: Sequence[int], last: int) -> torch.Tensor:
        ids = torch.tensor([list(tokens)], device=self.model.device)
        found = run_model(self.model, ids, past_key_values=self._cache, use_cache=True, logits_to_keep=last)
        return found.logits[0].float().cpu()

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        self._before += len(tokens)
        return self._append(tokens, 1)[-1]

    def draft(self, token: int) -> torch.Tensor:
        with ExitStack() as stack:
            for block, halves in zip(self._blocks, self._skipped, strict=True):
                stack.enter_context(without(block, self.family, halves))
            return self._append([token], 1)[-1]

    def undraft(self) -> None:
        """Layers that the draft left out hold fewer positions than the others."""
        for layer in self._cache.layers:
            if layer.is_initialized and layer.keys.shape[-2] > self._before:
                layer.keys, layer.values = (each[..., : self._before, :] for each in (layer.keys, layer.values))

    def verify(self, tokens: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
        return self._append(tokens, len(tokens))

    def keep(self, rows: Sequence[int]) -> None:
        self._before += len(rows)
        self.undraft()
