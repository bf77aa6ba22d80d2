"""llama.cpp through its Python package, to compare the native decoder with on the same file."""

import time
from pathlib import Path

import numpy as np
import torch

BATCH = 512  # tokens of a prompt that it reads at once


class LlamaCppPython:
    """A GGUF file in llama-cpp-python; the protocol is that of ``bench.decoding.Other``.

    every: whether ``logits`` returns those of all tokens.
    """

    def __init__(self, file: Path, threads: int, window: int, every: bool = False):
        from llama_cpp import Llama

        self.nbytes = file.stat().st_size
        options = {"n_ctx": window, "n_batch": BATCH, "n_ubatch": BATCH, "n_threads": threads, "verbose": False}
        self._model = Llama(str(file), n_threads_batch=threads, logits_all=every, **options)

    def decode(self, context: int, tokens: int = 32) -> float:
        """Return the seconds per token of greedy decoding after ``context`` tokens."""
        self._model.reset()
        self._model.eval([1] * context)
        token, start = 1, time.perf_counter()
        for _ in range(tokens):
            self._model.eval([token])
            token = int(self._last().argmax())
        return (time.perf_counter() - start) / tokens

    def prefill(self, tokens: int) -> float:
        """Return the seconds of reading a prompt."""
        self._model.reset()
        start = time.perf_counter()
        self._model.eval([1 + number % 1000 for number in range(tokens)])
        self._last()
        return time.perf_counter() - start

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """Return the logits after every token, (tokens, vocabulary) float32."""
        self._model.reset()
        self._model.eval(tokens)
        return torch.from_numpy(np.array(self._model.scores[: len(tokens)], np.float32))

    def _last(self) -> np.ndarray:
        from llama_cpp import llama_get_logits_ith

        return np.ctypeslib.as_array(llama_get_logits_ith(self._model.ctx, -1), shape=(self._model.n_vocab(),))
