"""What a model writes, and how fast, on this machine."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from jettison.calibrate import token_windows
from jettison.decode import load
from jettison.models import ModelFolder
from jettison.progress import waiting

PROMPTS, PROMPT_TOKENS, TOKENS, PREFILL_TOKENS, REPEATS = 3, 24, 48, 256, 3


def sample_prompts(model: str | Path, text: str | Path) -> list[str]:
    """The beginnings of a few windows of a text."""
    tokenizer = ModelFolder(model).tokenizer
    windows = token_windows(tokenizer, text, 4 * PROMPT_TOKENS, PROMPTS)
    return [tokenizer.decode(ids[:PROMPT_TOKENS], skip_special_tokens=True) for ids in windows]


@waiting("timing what is written")
def measure_generation(model: str | Path, prompts: Iterable[str], *, adapter: bool = True) -> dict[str, Any]:
    """``samples``: each prompt with its likeliest continuation. ``speed``: tokens per second of decoding (batch 1; the
    best of the samples) and of reading a prompt of 256 tokens (the best of three). In the engine where it serves, else
    in PyTorch.
    """
    loaded, samples, decode = load(model, adapter=adapter), [], 0.0
    for prompt in prompts:
        samples.append({"prompt": prompt, "text": loaded.generate(prompt, tokens=TOKENS)})
        decode = max(decode, loaded.speed.decode)
    limit = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", PREFILL_TOKENS)
    ids, prefill = torch.zeros(1, min(PREFILL_TOKENS, limit), dtype=torch.int64), 0.0
    for _ in range(REPEATS):
        start = time.perf_counter()
        if loaded.engine:
            loaded.engine.session(ids.shape[1]).append(ids[0].tolist())
        else:
            loaded.logits(ids)
        prefill = max(prefill, ids.shape[1] / (time.perf_counter() - start))
    speed = {"decode_tokens_per_second": round(decode, 2), "prefill_tokens_per_second": round(prefill, 1)}
    return {"samples": samples, "speed": speed}
