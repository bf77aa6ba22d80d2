"""Sample texts from a model and measure its speed on this machine."""

import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from jettison.core.errors import guarded
from jettison.core.progress import waiting
from jettison.domains.text.data import token_windows
from jettison.graph.folder import ModelFolder
from jettison.runtime.load import load

PROMPTS, PROMPT_TOKENS, TOKENS, PREFILL_TOKENS, REPEATS = 3, 24, 48, 256, 3  # TOKENS: to generate per prompt


def sample_prompts(model: str | Path, text: str | Path) -> list[str]:
    """Return the first 24 tokens of each of the first 3 windows of a text, decoded."""
    source = ModelFolder(model)
    windows = token_windows(source, text, 4 * PROMPT_TOKENS, PROMPTS)
    with guarded(f"the tokenizer of {source.name} fails", rust=True):
        return [source.tokenizer.decode(ids[:PROMPT_TOKENS], skip_special_tokens=True) for ids in windows]


@waiting("timing what is written")
def measure_generation(model: str | Path, prompts: Iterable[str], *, adapter: bool = True) -> dict[str, Any]:
    """Continue prompts greedily and measure decoding and prefill speed.

    The native decoder is used for models that it supports, else PyTorch.

    Returns ``samples``: each prompt with its likeliest continuation; and ``speed``, in tokens per second: of decoding
    (batch 1, one sample per prompt) and of prefilling a prompt of 256 tokens (three samples), as medians with their
    samples.
    """
    loaded, samples, decode, prefill = load(model, adapter=adapter), [], [], []
    for prompt in prompts:
        written = loaded.generate(prompt, tokens=TOKENS)
        samples.append({"prompt": prompt, "text": written.text})
        if written.timings.decode:  # 0 if the first token ended the text
            decode.append(written.timings.decode)
    ids = torch.zeros(1, loaded.source.window(PREFILL_TOKENS), dtype=torch.int64)
    for _ in range(REPEATS):
        start = time.perf_counter()
        if loaded.decoder:
            loaded.decoder.session(ids.shape[1]).append(ids[0].tolist())
        else:
            loaded.logits(ids)
        prefill.append(ids.shape[1] / (time.perf_counter() - start))
    return {"samples": samples, "speed": _speed("decode", decode) | _speed("prefill", prefill)}


def _speed(kind: str, rates: list[float]) -> dict[str, Any]:
    """Return median and samples under the keys of ``speed``. rates: tokens per second."""
    median = statistics.median(rates) if rates else 0.0
    return {f"{kind}_tokens_per_second": round(median, 2), f"{kind}_samples": [round(rate, 2) for rate in rates]}
