"""Measure the native decoder: tokens and prompts at several contexts, against the read limit and other programs."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from jettison.bench.operators import MOST_ROUNDS, READ_BYTES, read_limit
from jettison.core.errors import UsageError
from jettison.core.numbers import check_number
from jettison.core.progress import bar
from jettison.core.timing import calmest, sample
from jettison.graph.experts import Experts
from jettison.graph.modules import PackedEmbedding
from jettison.kernels import native
from jettison.runtime.native_decoder import NativeDecoder, Session
from jettison.runtime.sampling import Sampling

PROMPT = 512  # tokens of a prompt that the decoder reads at once
LONGEST = 10**7  # upper limit of tokens of context
STEPS = 16  # tokens of one run; a sample has at least one run


class Other(Protocol):
    """Another program, with weights of its own."""

    nbytes: int  # size of its weights

    def decode(self, context: int) -> float:
        """Return the seconds per token after ``context`` earlier tokens."""

    def prefill(self, tokens: int) -> float:
        """Return the seconds of reading a prompt."""


def measure_decoding(
    models: Mapping[str, nn.Module],
    *,
    contexts: Sequence[int] = (16, 512),
    rounds: int = 5,
    drafts: Sequence[int] = (),
    others: Mapping[str, Other] | None = None,
) -> dict[str, Any]:
    """Time models in the native decoder, and other programs. Samples of all of them are interleaved.

    models: name -> model that the native decoder supports.
    contexts: numbers of earlier tokens.
    rounds: samples of every measurement.
    drafts: numbers of tokens; reading so many tokens at once, with all their logits, is timed as well, after the first
        context, as it happens when a draft is verified.
    others: name -> another program.

    Returns ``limit`` (the read limit in bytes per second, the median over all samples), ``bytes`` of weights that a
    step reads, ``instruction_set``, ``threads`` and ``rows``, one per context, model and number of tokens at once:

    - ``tokens_per_second``: of greedy generation, as by ``generate``; for drafts, steps per second.
    - ``share``: speed of reading weights and cache, divided by the read limit measured before and after the sample.
    - ``samples``: in seconds; the two numbers above are medians of them.
    - ``fine``: whether activations had 15 bits, which is the default of generation.
    """
    check_decoding(contexts, rounds)
    decoders, others = {name: NativeDecoder(model) for name, model in models.items()}, others or {}
    nbytes = {name: read_bytes(model) for name, model in models.items()}
    nbytes |= {name: other.nbytes for name, other in others.items()}
    caches = {name: cache_bytes(model) for name, model in models.items()}
    data, limits, rows = torch.ones(READ_BYTES // 4), [], []
    prompt = random_prompt(decoders, max(contexts))
    with bar("decoding", len(contexts) * rounds) as progress:
        for context in contexts:
            runs: dict[tuple[str, int, bool], Callable[[], float]] = {}
            for name, decoder in decoders.items():
                session = decoder.session(context + max(STEPS, *drafts, 1))
                _fill(session, prompt[:context])
                runs[name, 1, True] = _steps(session, context, prompt[0])
                for count in drafts if context == contexts[0] else ():
                    for wide in (False, True):
                        bits = 15 if wide else 8
                        runs[name, count, wide] = _read_at_once(session, context, prompt[:count], bits)
                if drafts and context == contexts[0]:
                    runs[name, 1, False] = _read_at_once(session, context, prompt[:1], 8)
            runs |= {(name, 1, True): _calm(other.decode, context) for name, other in others.items()}
            samples, shares = {kind: [] for kind in runs}, {kind: [] for kind in runs}
            limits.append(read_limit(data))
            for _ in range(rounds):
                for kind, run in runs.items():
                    samples[kind].append(run())
                    limits.append(read_limit(data))
                    read = nbytes[kind[0]] + caches.get(kind[0], 0) * context
                    shares[kind].append(read / samples[kind][-1] / statistics.mean(limits[-2:]))
                progress.advance()
            rows += [
                {
                    "model": name,
                    "context": context,
                    "at_once": count,
                    "fine": wide,
                    "tokens_per_second": 1 / statistics.median(samples[name, count, wide]),
                    "share": statistics.median(shares[name, count, wide]),
                    "samples": samples[name, count, wide],
                }
                for name, count, wide in runs
            ]
    result = {"limit": statistics.median(limits), "rows": rows, "bytes": nbytes}
    return result | {"instruction_set": native.instruction_set(), "threads": native.threads()}


def check_decoding(contexts: Sequence[int], rounds: int) -> None:
    """Raise UsageError for numbers that are not valid."""
    check_number("rounds", rounds, 1, MOST_ROUNDS, whole=True)
    if not contexts:
        raise UsageError("contexts: at least one number of tokens is needed")
    for context in contexts:
        check_number("context", context, 1, LONGEST, whole=True)


def measure_prefill(
    models: Mapping[str, nn.Module], *, tokens: int = PROMPT, rounds: int = 3, others: Mapping[str, Other] | None = None
) -> list[dict[str, Any]]:
    """Time reading a prompt, with the arguments of ``measure_decoding``.

    tokens: of the prompt.
    Returns rows of ``model``, ``prompt`` (its tokens), ``tokens_per_second`` and ``samples`` in seconds.
    Raises UsageError for rounds or tokens below 1.
    """
    if rounds < 1 or tokens < 1:
        raise UsageError(f"rounds = {rounds}, tokens = {tokens}: both must be at least 1")
    decoders, others = {name: NativeDecoder(model) for name, model in models.items()}, others or {}
    prompt = random_prompt(decoders, tokens)
    samples: dict[str, list[float]] = {name: [] for name in (*decoders, *others)}
    with bar("prompts", rounds) as progress:
        for _ in range(rounds):
            for name, decoder in decoders.items():
                session = decoder.session(tokens)
                samples[name].append(_calm(_seconds_of_prompt, session, prompt)())
            for name, other in others.items():
                samples[name].append(_calm(other.prefill, tokens)())
            progress.advance()
    rate = lambda name: tokens / statistics.median(samples[name])
    return [
        {"model": name, "prompt": tokens, "tokens_per_second": rate(name), "samples": samples[name]} for name in samples
    ]


def measured_limit() -> float:
    """Measure the read limit of this machine in bytes per second, over 256 MB."""
    return read_limit(torch.ones(READ_BYTES // 16))


def random_prompt(decoders: Mapping[str, NativeDecoder], tokens: int) -> list[int]:
    """Return random token ids that all decoders know, always the same ones."""
    vocabulary = min(decoder.vocabulary for decoder in decoders.values())
    return torch.randint(0, vocabulary, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()


def _calm(measure: Callable[..., float], *arguments) -> Callable[[], float]:
    """Return a function that repeats a measurement while other processes are busy."""
    return lambda: calmest(partial(measure, *arguments))[0]


def _seconds_of_prompt(session: Session, prompt: list[int]) -> float:
    session.cut(0)
    start = time.perf_counter()
    _fill(session, prompt)
    return time.perf_counter() - start


def _fill(session: Session, prompt: list[int]) -> None:
    for first in range(0, len(prompt), PROMPT):
        session.append(prompt[first : first + PROMPT])


def _steps(session: Session, context: int, token: int) -> Callable[[], float]:
    """Return a function that measures the seconds per token of greedy generation after ``context`` tokens."""
    sampling = Sampling()

    def run() -> None:
        last = token
        for _ in range(STEPS):
            last = sampling.choose(session.append([last], activation_bits=15)[0], [], None)
        session.cut(context)

    return lambda: sample(run)[0] / STEPS


def _read_at_once(session: Session, context: int, tokens: list[int], activation_bits: int) -> Callable[[], float]:
    """Return a function that measures the seconds of reading these tokens at once, with all their logits."""

    def run() -> None:
        for _ in range(STEPS // 4):
            session.append(tokens, every=True, activation_bits=activation_bits)
            session.cut(context)

    return lambda: sample(run)[0] / (STEPS // 4)


def read_bytes(model: nn.Module) -> int:
    """Return the bytes of weights that one decoding step reads.

    All weights on the CPU count, except experts that are not chosen and an embedding that is not also the head.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    total = sum(tensor.nbytes for tensor in tensors.values() if tensor.device.type == "cpu")
    for experts in (module for module in model.modules() if isinstance(module, Experts)):
        stored = sum(tensor.nbytes for tensor in [*experts.parameters(), *experts.buffers()])
        total -= stored - stored * model.config.get_text_config().num_experts_per_tok // len(experts)
    if isinstance(embedding, PackedEmbedding) or getattr(head, "weight", None) is embedding.weight:
        return total
    return total - embedding.weight.nbytes


def cache_bytes(model: nn.Module) -> int:
    """Return the bytes of keys and values per token, in bfloat16."""
    config = model.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 4 * config.num_hidden_layers * config.num_key_value_heads * head
