"""A checkpoint in memory, its weights still packed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from tokenizers.decoders import DecodeStream
from torch import nn

from jettison.calibrate import encode
from jettison.decode.draft import Draft, View, read_corpus, read_draft
from jettison.decode.engine import Engine, Unsupported
from jettison.decode.lookup import Corpus, Lookup
from jettison.decode.propose import Proposer, Tally
from jettison.decode.sampling import Sampling
from jettison.decode.speculate import Speculation, speculate
from jettison.decode.targets import EngineTarget, Target, TorchTarget
from jettison.decode.view import view_linears
from jettison.decode.write import STOP, EngineReader, Speed, TorchReader, write
from jettison.errors import UsageError, guarded, unknown
from jettison.formats.compressed_tensors import load_packed
from jettison.formats.peft import FOLDER as ADAPTER
from jettison.formats.peft import attach_adapter
from jettison.formats.tiled import load_tiled
from jettison.kernels import native
from jettison.models import ModelFolder
from jettison.models.dense import compute_device, load_dense, stored_dtype
from jettison.models.modules import QuantLinear, tile_linears
from jettison.progress import say

LOOKUP = 4  # tokens of a match at most, where nothing else is said
Prompt = str | Sequence[dict[str, str]]  # text, or a chat: {"role": ..., "content": ...} each


@dataclass
class Loaded:
    """A model and its tokenizer. ``model`` is a transformers model: everything that works on those works on it.

    ``speed``, ``speculation`` and ``finish_reasons`` are of the last text written, or the last texts: of each, ``stop``
    for an end token or a stop text, ``length`` for as many tokens as were asked for; None while it is being written.
    """

    source: ModelFolder
    model: nn.Module
    exact: bool = False
    speed: Speed = field(default_factory=Speed)
    speculation: Speculation = field(default_factory=Speculation)
    finish_reasons: list[str | None] = field(default_factory=list)
    _views: dict[View, Engine] = field(default_factory=dict, repr=False)
    _corpora: dict[int, Corpus] = field(default_factory=dict, repr=False)
    _tallies: dict[Draft, Tally] = field(default_factory=dict, repr=False)

    @classmethod
    def ready(cls, source: ModelFolder, model: nn.Module, exact: bool = False) -> "Loaded":
        """On the device where it will run; packed linears for the kernels, unless ``exact``."""
        model = model.to(compute_device()).eval()
        if not exact:
            tile_linears(model)
        return cls(source, model, exact)

    @property
    def tokenizer(self):
        return self.source.tokenizer

    @property
    def finish_reason(self) -> str | None:
        """Of the first, or only, text written last."""
        return self.finish_reasons[0] if self.finish_reasons else None

    @cached_property
    def engine(self) -> Engine | None:
        """The C++ decoder on this model. None where ``exact`` was asked for, and where it does not serve, which is said
        once if something is packed."""
        if self.exact:
            return None
        try:
            return Engine(self.model)
        except Unsupported as reason:
            if any(isinstance(module, QuantLinear) for module in self.model.modules()):
                say(f"note: {self.source.name} is decoded by PyTorch, not by the engine: {reason}")
            return None

    @torch.no_grad()
    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """(batch, length) token ids -> (batch, length, vocabulary)."""
        return self.model(ids.to(self.model.device), use_cache=False).logits

    def generate(self, prompt: Prompt | list[str], **options) -> str | list[str]:
        """Go on from ``prompt``; returns what was added. Options are those of ``stream``.

        Several prompts (a list of texts) go on side by side, and give a list. A text does not depend on its neighbours.
        """
        several = isinstance(prompt, list) and all(isinstance(each, str) for each in prompt)
        prompts = prompt if several else [prompt]
        texts = [""] * len(prompts)
        for row, piece in self._pieces(prompts, **options):
            texts[row] += piece
        return texts if several else texts[0]

    def stream(self, prompt: Prompt, **options) -> Iterator[str]:
        """As ``generate``, piece by piece.

        tokens: how many at most (128). stop: a text or several that end it, and are left out. cache: of what type keys
        and values are in the engine, bfloat16, float32 or int8. activations: what the engine rounds them to while it
        writes, int16 or int8 (prompts are read with int8, in half the time). The rest is ``Sampling``'s: temperature
        (0: always the likeliest token), top_k, top_p, min_p, repetition_penalty, seed. A prompt of messages goes
        through the chat template.

        draft: write by speculative decoding: a ``Draft``, ``lookup`` (from the text at hand), or ``auto``, the one that
        ``jettison draft`` recorded beside the checkpoint. The text is that of plain decoding for temperature 0, else of
        the same distribution. ``speculation`` then has what became of the drafts. One prompt only.

        Raises UsageError for an empty prompt, and for more tokens than the model has positions for.
        """
        return (piece for _, piece in self._pieces([prompt], **options))

    def _pieces(
        self,
        prompts: Sequence[Prompt],
        *,
        tokens: int = 128,
        stop: str | Iterable[str] = (),
        cache: str = "bfloat16",
        activations: str = "int16",
        draft: Draft | str | None = None,
        **sampling,
    ) -> Iterator[tuple[int, str]]:
        settings, draft = Sampling(**sampling), self.find_draft(draft)
        if activations not in ("int16", "int8"):
            raise UsageError(f"activations {activations!r}: it is int16 or int8")
        encoded = [self._encode(prompt) for prompt in prompts]
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        texts = [_Text(self.tokenizer, ids, stop) for ids in encoded]
        pairs = self.write(encoded, tokens, settings, self._ends(), cache, activations == "int16", draft)
        return _spoken(pairs, texts, self.finish_reasons)

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        sampling: Sampling,
        ends: set[int] = frozenset(),
        cache: str = "bfloat16",
        fine: bool = True,
        draft: Draft | None = None,
    ) -> Iterator[tuple[int, int]]:
        """(row, token) as they come, from prompts as ids; see ``stream``. A row ends before a token of ``ends``."""
        self.speed, self.speculation, self.finish_reasons = Speed(), Speculation(), [None] * len(prompts)
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise UsageError(f"tokens = {tokens!r}: a whole number of 1 or more must be asked for")
        for ids in prompts:
            self.source.check_window(len(ids) + tokens, f"{len(ids)} tokens of prompt and {tokens} more")
            self.source.check_tokens(ids, "the prompt")
        if draft and len(prompts) != 1:
            raise UsageError(f"{len(prompts)} prompts with a draft: drafts are for one prompt at a time")
        if draft:
            target, proposer = self.target(draft, len(prompts[0]) + tokens, cache, fine), self.proposer(draft)
            found = speculate(
                target, proposer, prompts[0], sampling, tokens, ends, self.speed, self.speculation, self.finish_reasons
            )
            return ((0, token) for token in found)
        if self.engine:
            reader = EngineReader(self.engine, [len(ids) + tokens for ids in prompts], cache, fine)
        else:
            reader = TorchReader(self.model, len(prompts))
        return write(reader, prompts, sampling, tokens, ends, self.speed, self.finish_reasons)

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

    def target(self, draft: Draft, capacity: int, cache: str = "bfloat16", fine: bool = True) -> Target:
        """An empty sequence to draft for and verify, with room for ``capacity`` tokens."""
        if self.engine:
            room = capacity + draft.length * draft.branches  # branches take places of their own
            drafter = self._view(draft.view) if draft.view else None
            return EngineTarget(self.engine, room, cache, fine, skip=draft.skip, drafter=drafter)
        if draft.view:
            raise UsageError(
                f"a draft with {draft.view}: views need the engine, which does not serve {self.source.name}"
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

    def _view(self, view: View) -> Engine:
        if view not in self._views:
            self._views[view] = Engine(self.model, view_linears(self.source, self.model, view))
        return self._views[view]

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            ids = encode(self.tokenizer, prompt)
        elif self.tokenizer.chat_template is None:
            raise UsageError(f"{self.source.name} has no chat template: give the prompt as text")
        else:
            with guarded(f"the chat template of {self.source.name} does not take this prompt", rust=True):
                ids = self.tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=False)
        if not ids:
            raise UsageError("the prompt is empty: it must be one token at least")
        return list(ids)

    def _ends(self) -> set[int]:
        settings = getattr(self.model, "generation_config", None) or self.model.config
        ends = settings.eos_token_id
        return set() if ends is None else set(ends) if isinstance(ends, list) else {ends}


def _spoken(
    pairs: Iterator[tuple[int, int]], texts: Sequence["_Text"], reasons: list[str | None]
) -> Iterator[tuple[int, str]]:
    """(row, piece of text) from (row, token). A row whose stop text came is over: ``reasons`` tells the writer."""
    for row, token in pairs:
        if piece := texts[row].add(token):
            yield row, piece
        if texts[row].ended:
            reasons[row] = STOP
        if all(text.ended for text in texts):
            break
    for row, text in enumerate(texts):
        if piece := text.rest():
            yield row, piece


class _Text:
    """Tokens -> text as far as it is certain: whole characters, and nothing that may begin a stop text."""

    def __init__(self, tokenizer, prompt: list[int], stop: Iterable[str]):
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise UsageError(
                f"{tokenizer.name_or_path} has a tokenizer without tokenizer.json, which is needed to write"
            )
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(ids=prompt, skip_special_tokens=True)
        self._stop, self._held, self.ended = tuple(filter(None, stop)), "", False

    def add(self, token: int) -> str:
        if self.ended:
            return ""
        with guarded("the tokenizer fails", rust=True):
            self._held += self._stream.step(self._tokenizer, token) or ""
        found = [place for text in self._stop if (place := self._held.find(text)) >= 0]
        if found:
            piece, self._held, self.ended = self._held[: min(found)], "", True
            return piece
        certain = len(self._held) - max((self._begun(text) for text in self._stop), default=0)
        piece, self._held = self._held[:certain], self._held[certain:]
        return piece

    def rest(self) -> str:
        piece, self._held = self._held, ""
        return piece

    def _begun(self, text: str) -> int:
        """How much of ``text`` stands at the end of what is held."""
        return next((n for n in range(min(len(text), len(self._held)), 0, -1) if self._held.endswith(text[:n])), 0)


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
    by default the type the checkpoint names. exact: multiply in floating point on the CPU as well, as most engines do,
    where the kernels round activations to int8: slower, and hardly different (docs/kernels.md says how much). cache:
    keep the packed weights in ``.tiles`` beside the checkpoint as the kernels read them, so that the next time they
    are there at once, and in memory only once for all who load them.
    """
    source = ModelFolder(folder)
    dtype = dtype or stored_dtype(source)
    if not source.quantization:
        model = load_dense(source, dtype)
    elif cache and not exact and compute_device().type == "cpu" and native.library() is not None:
        model = load_tiled(source, dtype)
    else:
        model = load_packed(source, dtype)
    if adapter and (source.folder / ADAPTER).is_dir():
        attach_adapter(model, source.folder)
    return Loaded.ready(source, model, exact)
