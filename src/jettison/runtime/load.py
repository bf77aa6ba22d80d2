"""Load a checkpoint with its weights still packed, and generate text with it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

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
from jettison.graph.described_files import is_described
from jettison.graph.folder import ModelFolder
from jettison.graph.modules import QuantizedLinear, tile_linears
from jettison.graph.skeleton import run_model
from jettison.kernels import native
from jettison.kernels.specs import check_activation_bits
from jettison.runtime.generation import Generation, Generations, Stream
from jettison.runtime.native_decoder import NativeDecoder, Unsupported
from jettison.runtime.own_modules import LoadedModule
from jettison.runtime.record import Record, Tokens
from jettison.runtime.sampling import Sampling
from jettison.runtime.speculative.draft import Draft, View, read_corpus, read_draft
from jettison.runtime.speculative.lookup import Corpus, Lookup
from jettison.runtime.speculative.propose import Proposer, Tally
from jettison.runtime.speculative.speculate import speculate
from jettison.runtime.targets import NativeTarget, Target, TorchTarget
from jettison.runtime.views import view_linears
from jettison.runtime.write import NativeReader, TorchReader, write

if TYPE_CHECKING:
    from jettison.domains.diffusion.running import Handle

TEMPLATE_SECONDS = 5.0  # limit of CPU time: a chat template takes milliseconds, a malicious one might never end
LOOKUP = 4  # default for the most tokens of a match in earlier text
Prompt = str | Sequence[dict[str, str]]  # text, or the messages of a chat: {"role": ..., "content": ...}


@dataclass
class Loaded:
    """A model and its tokenizer, ready to generate.

    source: the checkpoint's folder.
    model: a transformers model, usable as any other; its quantized linears may be packed.
    exact: multiply in floating point, without rounding activations.
    running: the program that the last pipeline of this model runs, or None; its ``detach`` ends it.
    """

    source: ModelFolder
    model: nn.Module
    exact: bool = False
    running: "Handle | None" = field(default=None, init=False, repr=False)
    _views: dict[View, NativeDecoder] = field(default_factory=dict, repr=False)
    _corpora: dict[int, Corpus] = field(default_factory=dict, repr=False)
    _tallies: dict[Draft, Tally] = field(default_factory=dict, repr=False)

    @classmethod
    def ready(cls, source: ModelFolder, model: nn.Module, exact: bool = False) -> "Loaded":
        """Move a model to the device where it will run. Tile packed linears for the kernels, unless ``exact``."""
        model = model.to(compute_device()).eval()
        if not exact:
            tile_linears(model, stored_dtype(source))
        return cls(source, model, exact)

    @property
    def tokenizer(self):
        """The checkpoint's tokenizer."""
        return self.source.tokenizer

    @cached_property
    def decoder(self) -> NativeDecoder | None:
        """The C++ decoder for this model; None if ``exact`` or if the decoder does not support the model.

        Prints one note in the second case if any linear is packed.
        """
        if self.exact or self.source.replaced:  # the decoder knows the modules of the config
            return None
        try:
            return NativeDecoder(self.model)
        except Unsupported as reason:
            if any(isinstance(module, QuantizedLinear) for module in self.model.modules()):
                say(f"note: {self.source.name} is decoded by PyTorch, not by the native decoder: {reason}")
            return None

    @torch.no_grad()
    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Run the model once.

        inputs: (batch, length) token ids, or (batch, channels, height, width) pixels for an image classifier.
        Returns (batch, length, vocabulary), or (batch, classes).
        """
        return run_model(self.model, inputs.to(self.model.device)).logits

    def pipeline(self, program: str | Path | bool | None = True):
        """Return the pipeline of diffusers that the folder holds, with this model as its denoiser.

        program: what it skips is not computed. True: the folder's own program, if it has one. False or None: none, so
            everything is computed. Or the file of a program, which may have been found on this model, or on the
            original that it was compressed from. All pipelines of this model share the denoiser: a program that was
            attached before is detached.
        Raises UsageError if the folder holds no pipeline, diffusers cannot load its other parts, or the program is for
        another model or sampler.
        """
        if not self.source.layout.part:
            raise UsageError(f"{self.source.name} is no pipeline of diffusers")
        from jettison.domains.diffusion.pipelines import attach_to_folder, open_pipeline, own_program

        pipe = open_pipeline(self.source, self.model)
        if self.running is not None:
            self.running.detach()
        path = own_program(self.source) if program is True else program or None
        self.running = None if path is None else attach_to_folder(pipe, self.source, path)
        return pipe

    def generate(self, prompt: Prompt | list[str], **options) -> Generation | list[Generation]:
        """Continue ``prompt``. Options are those of ``stream``.

        Several prompts (a list of texts) are continued as one batch. A text does not depend on the others of its batch.
        Returns the new text, without the prompt; a list for several prompts.
        """
        several = isinstance(prompt, list) and all(isinstance(text, str) for text in prompt)
        generations = self._generations(prompt if several else [prompt], **options)
        for _ in generations:
            pass
        return [generations.of(row) for row in range(len(prompt))] if several else generations.of(0)

    def stream(self, prompt: Prompt, **options) -> Stream:
        """Continue ``prompt`` piece by piece; the stream's ``generation`` is the text so far, with timings.

        prompt: a text, or messages of a chat, which go through the chat template.
        tokens: how many at most (128).
        stop: one text or several that end the generation; the result does not contain them.
        cache: type of keys and values in the native decoder: bfloat16, float32 or int8.
        activation_bits: 15 or 8, to which the native decoder rounds activations while it writes (prompts are read with
            8, in half the time).
        draft: use speculative decoding, for one prompt only: a ``Draft``, ``lookup`` (draft tokens from the text so
            far), or ``auto``, the draft that ``jettison draft`` recorded beside the checkpoint. For temperature 0 the
            text equals that of plain decoding, else it has the same distribution. ``generation.speculation`` then
            tells how many draft tokens were accepted.
        Other options are those of ``Sampling``: temperature (0: always the likeliest token), top_k, top_p, min_p,
        repetition_penalty, seed.

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
        self.source.require_text("it writes no text")
        settings, draft = Sampling(**sampling), self.find_draft(draft)
        encoded = [self._encode(prompt) for prompt in prompts]
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        generated = self.write(encoded, tokens, settings, self._end_tokens(), cache, activation_bits, draft)
        return Generations(generated, self.tokenizer, encoded, stop)

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
        """Generate tokens; see ``stream`` for the options. Returns (row, token) pairs and their record.

        prompts: token ids.
        ends: end tokens; a row ends before the first of them.

        Raises UsageError for options that are not valid, prompts that are too long, and several prompts with a draft.
        """
        check_activation_bits(activation_bits)
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise UsageError(f"tokens = {tokens!r}: it must be a whole number of 1 or more")
        for ids in prompts:
            self.source.check_window(len(ids) + tokens, f"{len(ids)} tokens of prompt and {tokens} more")
            self.source.check_tokens(ids, "the prompt")
        if draft and len(prompts) != 1:
            raise UsageError(f"{len(prompts)} prompts with a draft: drafts are for one prompt at a time")
        record = Record([None] * len(prompts))
        if draft:
            target = self.target(draft, len(prompts[0]) + tokens, cache, activation_bits)
            generated = speculate(target, self.proposer(draft), prompts[0], sampling, tokens, ends, record)
            return Tokens(((0, token) for token in generated), record)
        if self.decoder:
            reader = NativeReader(self.decoder, [len(ids) + tokens for ids in prompts], cache, activation_bits)
        else:
            reader = TorchReader(self.model, len(prompts))
        return Tokens(write(reader, prompts, sampling, tokens, ends, record), record)

    def find_draft(self, draft: Draft | str | None) -> Draft | None:
        """Turn the ``draft`` option of ``stream`` into a Draft; None for plain decoding, also if no draft pays here.

        Raises UsageError for a word other than ``lookup`` and ``auto``.
        """
        if not isinstance(draft, str):
            return draft
        if draft == "lookup":
            return Draft(lookup=LOOKUP, length=8)
        if draft != "auto":
            raise unknown("draft", draft, ("auto", "lookup"))
        chosen, reason = read_draft(self.source)
        if chosen is None:
            say(f"note: no draft makes {self.source.name} faster on this machine: {reason}")
        return chosen

    def target(self, draft: Draft, capacity: int, cache: str = "bfloat16", activation_bits: int = 15) -> Target:
        """Return an empty sequence for speculative decoding, with room for ``capacity`` tokens.

        Raises UsageError for a draft with a view if the native decoder does not support the model.
        """
        if self.decoder:
            room = capacity + draft.length * draft.branches  # every branch has its own places until it is rejected
            drafter = self._view(draft.view) if draft.view else None
            return NativeTarget(self.decoder, room, cache, activation_bits, skip=draft.skip, drafter=drafter)
        if draft.view:
            raise UsageError(
                f"a draft with {draft.view}: views need the native decoder, which does not support {self.source.name}"
            )
        return TorchTarget(self.model, self.source.anatomy.family, capacity, draft.skip)

    def proposer(self, draft: Draft) -> Proposer:
        """Return a proposer of draft tokens for a new text.

        Acceptance statistics carry over from text to text. Earlier texts are not looked up in, only a corpus is.
        """
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
            raise UsageError("the prompt is empty: it must have at least one token")
        return list(ids)

    def _end_tokens(self) -> set[int]:
        settings = getattr(self.model, "generation_config", None) or self.model.config
        tokens = settings.eos_token_id  # None, one id or a list
        return set() if tokens is None else set(tokens) if isinstance(tokens, list) else {tokens}


def load(
    folder: str | Path,
    *,
    adapter: bool = True,
    dtype: torch.dtype | None = None,
    exact: bool = False,
    cache: bool = True,
) -> Loaded | LoadedModule:
    """Load a checkpoint of Jettison (or any pack-quantized one), or a plain model, for running.

    Quantized linears stay packed in memory.

    folder: of a checkpoint; or ``scribe``, or a hub id.
    adapter: apply the LoRA adapter in ``adapter/``, if the folder exists.
    dtype: type of everything that is not quantized; by default the type that the checkpoint names.
    exact: multiply in floating point on the CPU, without rounding activations (the kernels round them to int8; the
        native decoder writes with 15 bits). It is slower; docs/studies/kernels.md says how little the results differ.
    cache: keep the packed weights, in the kernels' layout, in ``.tiles`` beside the checkpoint. The next load then only
        maps that file, and all processes that load it share its memory.

    A folder of a model that transformers does not have (modules.json without config.json) gives a ``LoadedModule``,
    which has ``model`` and ``logits``. For such a folder only ``dtype`` counts.
    """
    if is_described(Path(folder)):
        return LoadedModule.of(Path(folder), dtype)
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
