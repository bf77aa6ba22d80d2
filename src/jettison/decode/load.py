"""A checkpoint in memory, its weights still packed."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import torch
from torch import nn
from transformers import TextIteratorStreamer

from jettison.formats.compressed_tensors import load_packed
from jettison.formats.peft import FOLDER as ADAPTER
from jettison.formats.peft import attach_adapter
from jettison.models import ModelFolder
from jettison.models.dense import compute_device, load_dense, stored_dtype
from jettison.models.modules import tile_linears


@dataclass
class Loaded:
    """A model and its tokenizer. ``model`` is a transformers model: everything that works on those works on it."""

    source: ModelFolder
    model: nn.Module

    @classmethod
    def ready(cls, source: ModelFolder, model: nn.Module, exact: bool = False) -> "Loaded":
        """On the device where it will run; packed linears for the kernels, unless ``exact``."""
        model = model.to(compute_device()).eval()
        if not exact:
            tile_linears(model)
        return cls(source, model)

    @property
    def tokenizer(self):
        return self.source.tokenizer

    @torch.no_grad()
    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """(batch, length) token ids -> (batch, length, vocabulary)."""
        return self.model(ids.to(self.model.device), use_cache=False).logits

    def generate(self, prompt: str, *, tokens: int = 128, temperature: float = 0.0, seed: int = 0) -> str:
        """Go on from ``prompt``; returns what was added. temperature 0: always the likeliest token."""
        return "".join(self.stream(prompt, tokens=tokens, temperature=temperature, seed=seed))

    def stream(self, prompt: str, *, tokens: int = 128, temperature: float = 0.0, seed: int = 0) -> Iterator[str]:
        """As ``generate``, piece by piece. ``self.speed`` holds tokens per second once it has ended."""
        inputs = self.tokenizer(prompt, return_tensors="pt").to(self.model.device)
        inputs.pop("token_type_ids", None)
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
        )
        written: list[torch.Tensor] = []
        failed: list[Exception] = []
        stopped = Event()

        def work() -> None:
            torch.manual_seed(seed)
            pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
            settings = sampling | {"max_new_tokens": tokens, "pad_token_id": pad, "use_cache": True}
            settings["stopping_criteria"] = [
                lambda ids, _, **__: torch.full_like(ids[:, 0], stopped.is_set(), dtype=torch.bool)
            ]
            try:
                written.append(self.model.generate(**inputs, **settings, streamer=streamer))
            except Exception as error:  # else whoever reads the stream waits forever
                failed.append(error)
                streamer.end()

        start = time.perf_counter()
        thread = Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from streamer
        finally:  # whoever stops reading stops the writing
            stopped.set()
        thread.join()
        if failed:
            raise failed[0]
        self.speed = (written[0].shape[1] - inputs.input_ids.shape[1]) / (time.perf_counter() - start)

    speed: float = 0.0


def load(folder: str | Path, *, adapter: bool = True, dtype: torch.dtype | None = None, exact: bool = False) -> Loaded:
    """Load a checkpoint of Jettison (or any pack-quantized one), or a plain model, for running.

    Quantized linears stay packed in memory. adapter: apply ``adapter/`` where there is one. dtype: of everything else,
    by default the type the checkpoint names. exact: multiply in floating point on the CPU as well, as most engines do,
    where the kernels round activations to int8: slower, and hardly different (docs/kernels.md says how much).
    """
    source = ModelFolder(folder)
    dtype = dtype or stored_dtype(source)
    model = load_packed(source, dtype) if source.quantization else load_dense(source, dtype)
    if adapter and (source.folder / ADAPTER).is_dir():
        attach_adapter(model, source.folder)
    return Loaded.ready(source, model, exact)
