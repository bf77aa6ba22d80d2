"""A checkpoint in memory, its weights still packed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from jettison.core.errors import UsageError, guarded, unknown
from jettison.core.limits import cpu_limit
from jettison.core.progress import say
from jettison.domains.text.data import encode
from jettison.formats.packed import load_packed
from jettison.formats.peft import FOLDER as ADAPTER
from jettison.formats.peft import attach_adapter
from jettison.formats.tiled import load_tiled
from jettison.graph.dense import compute_device, load_dense, stored_dtype
from jettison.graph.folder import ModelFolder
from jettison.graph.modules import QuantizedLinear, tile_linears
from jettison.graph.skeleton import run_model
from jettison.kernels import native
from jettison.kernels.specs import check_activation_bits
from jettison.runtime.generation import Generation, Generations, Stream
from jettison.runtime.native_decoder import NativeDecoder, Unsupported
from jettison.runtime.record import Record, Tokens
from jettison.runtime.sampling import Sampling
from jettison.runtime.speculative.draft import Draft, View, read_corpus, read_draft
from jettison.runtime.speculative.lookup import Corpus, Lookup
from jettison.runtime.speculative.propose import Proposer, Tally
from jettison.runtime.speculative.speculate import speculate
from jettison.runtime.targets import NativeTarget, Target, TorchTarget
from jettison.runtime.views import view_linears
from jettison.runtime.write import NativeReader, TorchReader, write

TEMPLATE_SECONDS = 5.0  # of work; a chat template takes milliseconds
LOOKUP = 4  # tokens of a match at most, where nothing else is said
Prompt = str | Sequence[dict[str, str]]  # text, or a chat: {"role": ..., "content": ...} each


@dataclass
class Loaded:
    """A model and its tokenizer. ``model`` is a transformers model: everything that works on those works on it."""

    source: ModelFolder
    model: nn.Module
    exact: bool = False
    _views: dict[View, NativeDecoder] = field(default_factory=dict, repr=False)
    _corpora: dict[int, Corpus] = field(default_factory=dict, repr=False)
    _tallies: dict[Draft, Tally] = field(default_factory=dict, repr=False)

    @classmethod
    def ready(cls, source: ModelFolder, model: nn.Module, exact: bool = False) -> "Loaded":
        """On the device where it will run; packed linears for the kernels, unless ``exact``."""
        model = model.to(compute_device()).eval()
        if not exact:
            tile_linears(model, stored_dtype(source))
        return cls(source, model, exact)

    @property
    def tokenizer(self):
        return self.source.tokenizer

    @cached_property
    def decoder(self) -> NativeDecoder | None:
        """The C++ decoder on this model. None where ``exact`` was asked for, and where it does not serve, which is said
        once if something is packed."""
        if self.exact:
            return None
        try:
            return NativeDecoder(self.model)
        except Unsupported as reason:
            if any(isinstance(module, QuantizedLinear) for module in self.model.modules()):
                say(f"note: {self.source.name} is decoded by PyTorch, not by the native decoder: {reason}")
            return None

    @torch.no_grad()
    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """(batch, length) token ids -> (batch, length, vocabulary); (batch, channels, height, width) pixels of an image
        classifier -> (batch, classes)."""
        return run_model(self.model, inputs.to(self.model.device)).logits

    def generate(self, prompt: Prompt | list[str], **options) -> Generation | list[Generation]:
        """Go on from ``prompt``; returns what was added. Options are those of ``stream``.

        Several prompts (a list of texts) go on side by side, and give a list. A text does not depend on its neighbours.
        """
        several = isinstance(prompt, list) and all(isinstance(each, str) for each in prompt)
        written = self._generations(prompt if several else [prompt], **options)
        for _ in written:
            pass
        return [written.of(row) for row in range(len(prompt))] if several else written.of(0)

    def stream(self, prompt: Prompt, **options) -> Stream:
        """As ``generate``, piece by piece; ``generation`` of the stream has the rest.

        tokens: how many at most (128). stop: a text or several that end it, and are left out. cache: of what type keys
        and values are in the native decoder, bfloat16, float32 or int8. activation_bits: what the native decoder rounds
        activations to while it writes, 15 or 8 (prompts are read with 8, in half the time). The rest is ``Sampling``'s:
        temperature (0: always the likeliest token), top_k, top_p, min_p, repetition_penalty, seed. A prompt of messages
        goes through the chat template.

        draft: write by speculative decoding: a ``Draft``, ``lookup`` (from the text at hand), or ``auto``, the one that
        ``jettison draft`` recorded beside the checkpoint. The text is that of plain decoding for temperature 0, else of
        the same distribution. ``speculation`` then has what became of the draft tokens. One prompt only.

        Raises UsageError for an empty prompt, and for more tokens than the model has positions for.
        """
        return Stream(self._generations([prompt], **options))

    def _generations(
        self,
        prompts: Sequence[Prompt],
        *,
        tokens: int = 128,
        stop: str | Iterable[str] = (),
        cache: str = "bfloat16",
        activation_bits: int = 15,
        draft: Draft | str | None = None,
        **sampling,
    ) -> Generations:
        settings, draft = Sampling(**sampling), self.find_draft(draft)
        encoded = [self._encode(prompt) for prompt in prompts]
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        written = self.write(encoded, tokens, settings, self._ends(), cache, activation_bits, draft)
        return Generations(written, self.tokenizer, encoded, stop)

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        sampling: Sampling,
        ends: set[int] = frozenset(),
        cache: str = "bfloat16",
        activation_bits: int = 15,
        draft: Draft | None = None,
    ) -> Tokens:
        """(row, token) as they come, from prompts as ids; see ``stream``. A row ends before a token of ``ends``."""
        check_activation_bits(activation_bits)
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise UsageError(f"tokens = {tokens!r}: a whole number of 1 or more must be asked for")
        for ids in prompts:
            self.source.check_window(len(ids) + tokens, f"{len(ids)} tokens of prompt and {tokens} more")
            self.source.check_tokens(ids, "the prompt")
        if draft and len(prompts) != 1:
            raise UsageError(f"{len(prompts)} prompts with a draft: drafts are for one prompt at a time")
        record = Record([None] * len(prompts))
        if draft:
            target = self.target(draft, len(prompts[0]) + tokens, cache, activation_bits)
            found = speculate(target, self.proposer(draft), prompts[0], sampling, tokens, ends, record)
            return Tokens(((0, token) for token in found), record)
        if self.decoder:
            reader = NativeReader(self.decoder, [len(ids) + tokens for ids in prompts], cache, activation_bits)
        else:
            reader = TorchReader(self.model, len(prompts))
        return Tokens(write(reader, prompts, sampling, tokens, ends, record), record)

    def find_draft(self, draft: Draft | str | None) -> Draft | None:
        """What ``stream`` takes as ``draft``. Raises UsageError for another word."""
        if not isinstance(draft, str):
            return draft
        if draft == "lookup":
            return Draft(lookup=LOOKUP, length=8)
        if draft != "auto":
            raise unknown("draft", draft, ("auto", "lookup"))
        chosen, reason = read_draft(self.source)
        if chosen is None:
            say(f"note: no draft pays for {self.source.name} here: {reason}")
        return chosen

    def target(self, draft: Draft, capacity: int, cache: str = "bfloat16", activation_bits: int = 15) -> Target:
        """An empty sequence to draft for and verify, with room for ``capacity`` tokens."""
        if self.decoder:
            room = capacity + draft.length * draft.branches  # branches take places of their own
            drafter = self._view(draft.view) if draft.view else None
            return NativeTarget(self.decoder, room, cache, activation_bits, skip=draft.skip, drafter=drafter)
        if draft.view:
            raise UsageError(
                f"a draft with {draft.view}: views need the native decoder, which does not serve {self.source.name}"
            )
        return TorchTarget(self.model, self.source.anatomy.family, capacity, draft.skip)

    def proposer(self, draft: Draft) -> Proposer:
        """What is learned of when to draft is kept from text to text; looked-up text is not, but for a corpus."""
        corpus = None
        if draft.corpus:
            if draft.lookup not in self._corpora:
                self._corpora[draft.lookup] = Corpus(read_corpus(self.source), draft.lookup)
            corpus = self._corpora[draft.lookup]
        lookup = Lookup(draft.lookup, corpus) if draft.lookup else None
        return Proposer(draft, lookup, self._tallies.setdefault(draft, Tally()))

    def _view(self, view: View) -> NativeDecoder:
        if view not in self._views:
            self._views[view] = NativeDecoder(self.model, view_linears(self.source, self.model, view))
        return self._views[view]

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            ids = encode(self.tokenizer, prompt)
        elif self.tokenizer.chat_template is None:
            raise UsageError(f"{self.source.name} has no chat template: give the prompt as text")
        else:
            template = f"the chat template of {self.source.name}"
            with guarded(f"{template} does not take this prompt", rust=True), cpu_limit(TEMPLATE_SECONDS, template):
                ids = self.tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=False)
        if not ids:
            raise UsageError("the prompt is empty: it must be one token at least")
        return list(ids)

    def _ends(self) -> set[int]:
        settings = getattr(self.model, "generation_config", None) or self.model.config
        ends = settings.eos_token_id
        return set() if ends is None else set(ends) if isinstance(ends, list) else {ends}


def load(
    folder: str | Path,
    *,
    adapter: bool = True,
    dtype: torch.dtype | None = None,
    exact: bool = False,
    cache: bool = True,
) -> Loaded:
    """Load a checkpoint of Jettison (or any pack-quantized one), or a plain model, for running.

    Quantized linears stay packed in memory. adapter: apply ``adapter/`` where there is one. dtype: of everything else,
    by default the type the checkpoint names. exact: multiply in floating point on the CPU as well, as most runtimes do,
    where the kernels round activations to int8: slower, and hardly different (docs/kernels.md says how much). cache:
    keep the packed weights in ``.tiles`` beside the checkpoint as the kernels read them, so that the next time they
    are there at once, and in memory only once for all who load them.
    """
    source = ModelFolder(folder)
    dtype = dtype or stored_dtype(source)
    if not source.quantization:
        model = load_dense(source, dtype)
    elif cache and not exact and source.tileable and compute_device().type == "cpu" and native.library() is not None:
        model = load_tiled(source, dtype)
    else:
        model = load_packed(source, dtype)
    if adapter and (source.folder / ADAPTER).is_dir():
        attach_adapter(model, source.folder)
    return Loaded.ready(source, model, exact)
