"""How fast the decoder is: whole tokens and prompts, at several contexts, next to the read limit and to others."""

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
from jettison.graph.skeleton import Experts
from jettison.kernels import native
from jettison.runtime.native_decoder import NativeDecoder, Session
from jettison.runtime.sampling import Sampling

PROMPT = 512  # tokens of a prompt that go through at once
LONGEST = 10**7  # tokens of context
STEPS = 16  # tokens of a sample, at least


class Other(Protocol):
    """Another program, with its own weights."""

    nbytes: int  # of its weights

    def decode(self, context: int) -> float:
        """Seconds per token after ``context`` others."""

    def prefill(self, tokens: int) -> float:
        """Seconds of reading a prompt."""


def measure_decoding(
    models: Mapping[str, nn.Module],
    *,
    contexts: Sequence[int] = (16, 512),
    rounds: int = 5,
    drafts: Sequence[int] = (),
    others: Mapping[str, Other] | None = None,
) -> dict[str, Any]:
    """Time models in the decoder, which must know them, and other programs; samples of all are interleaved.

    contexts: tokens that were there before. drafts: also time reading so many tokens at once after the first context,
    with all their logits, as verifying a draft does.

    Returns ``limit`` (bytes per second, the median over all samples), ``bytes`` of weights that a step reads, and
    ``rows``, by context, model and number of tokens at once: ``tokens_per_second`` (steps, for drafts), written as
    ``generate`` does, greedily; the ``share`` of the read limit around each sample that weights and cache are read at;
    medians, with ``samples`` in seconds. ``fine`` says whether activations had 15 bits, as they have by default.
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
    found = {"limit": statistics.median(limits), "rows": rows, "bytes": nbytes}
    return found | {"instruction_set": native.instruction_set(), "threads": native.threads()}


def check_decoding(contexts: Sequence[int], rounds: int) -> None:
    """Raises UsageError for numbers that are not valid."""
    check_number("rounds", rounds, 1, MOST_ROUNDS, whole=True)
    if not contexts:
        raise UsageError("contexts: one number of tokens at least is needed")
    for context in contexts:
        check_number("context", context, 1, LONGEST, whole=True)


def measure_prefill(
    models: Mapping[str, nn.Module], *, tokens: int = PROMPT, rounds: int = 3, others: Mapping[str, Other] | None = None
) -> list[dict[str, Any]]:
    """Time reading a prompt. Rows as those of ``measure_decoding``: ``model``, ``prompt``, ``tokens_per_second``,
    ``samples`` in seconds."""
    if rounds < 1 or tokens < 1:
        raise UsageError(f"rounds = {rounds}, tokens = {tokens}: both are at least 1")
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
    """Bytes per second that this machine reads at most, now, over 256 MB."""
    return read_limit(torch.ones(READ_BYTES // 16))


def random_prompt(decoders: Mapping[str, NativeDecoder], tokens: int) -> list[int]:
    vocabulary = min(decoder.vocabulary for decoder in decoders.values())
    return torch.randint(0, vocabulary, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()


def _calm(measure: Callable[..., float], *given) -> Callable[[], float]:
    return lambda: calmest(partial(measure, *given))[0]


def _seconds_of_prompt(session: Session, prompt: list[int]) -> float:
    session.cut(0)
    start = time.perf_counter()
    _fill(session, prompt)
    return time.perf_counter() - start


def _fill(session: Session, prompt: list[int]) -> None:
    for first in range(0, len(prompt), PROMPT):
        session.append(prompt[first : first + PROMPT])


def _steps(session: Session, context: int, token: int) -> Callable[[], float]:
    """Seconds of a token, written one after the other."""
    sampling = Sampling()

    def run() -> None:
        last = token
        for _ in range(STEPS):
            last = sampling.choose(session.append([last], activation_bits=15)[0], [], None)
        session.cut(context)

    return lambda: sample(run)[0] / STEPS


def _read_at_once(session: Session, context: int, tokens: list[int], activation_bits: int) -> Callable[[], float]:
    def run() -> None:
        for _ in range(STEPS // 4):
            session.append(tokens, every=True, activation_bits=activation_bits)
            session.cut(context)

    return lambda: sample(run)[0] / (STEPS // 4)


def read_bytes(model: nn.Module) -> int:
    """What a step reads of a model: all weights but an embedding that is only looked up, and experts not chosen."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    held = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    total = sum(tensor.nbytes for tensor in held.values() if tensor.device.type == "cpu")
    for experts in (module for module in model.modules() if isinstance(module, Experts)):
        stored = sum(tensor.nbytes for tensor in [*experts.parameters(), *experts.buffers()])
        total -= stored - stored * model.config.get_text_config().num_experts_per_tok // len(experts)
    return total if getattr(head, "weight", None) is embedding else total - embedding.nbytes


def cache_bytes(model: nn.Module) -> int:
    """Of a token, keys and values in bfloat16."""
    config = model.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 4 * config.num_hidden_layers * config.num_key_value_heads * head
