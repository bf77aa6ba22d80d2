"""How fast the decoder is: whole tokens and prompts, at several contexts, next to the read limit."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from jettison.decode.engine import Engine
from jettison.errors import UsageError
from jettison.evaluate.operators import READ_BYTES, read_limit, sample
from jettison.kernels import native
from jettison.progress import bar

PROMPT = 512  # tokens of a prompt that go through at once
STEPS = 4  # tokens of a sample, at least


def measure_decoding(
    models: Mapping[str, nn.Module], *, contexts: Sequence[int] = (16, 512), rounds: int = 5, drafts: Sequence[int] = ()
) -> dict[str, Any]:
    """Time models in the engine, which must know them; samples of all are interleaved.

    contexts: tokens that were there before. drafts: also time reading so many tokens at once after the first context,
    with all their logits, as verifying a draft does.

    Returns ``limit`` (bytes per second, the median over all samples), and ``rows``, by context, model and number of
    tokens at once: ``tokens_per_second`` (steps, for drafts), the ``share`` of the read limit around each sample that
    weights and cache are read at (medians), ``samples`` in seconds, and ``prefill_tokens_per_second`` of the context.
    """
    if rounds < 1 or not contexts or min(contexts) < 1:
        raise UsageError(f"rounds = {rounds}, contexts = {list(contexts)}: both are at least 1")
    engines = {name: Engine(model) for name, model in models.items()}
    nbytes = {name: read_bytes(model) for name, model in models.items()}
    data, limits, rows = torch.ones(READ_BYTES // 4), [], []
    vocabulary = min(engine.vocabulary for engine in engines.values())
    prompt = torch.randint(0, vocabulary, (max(contexts),), generator=torch.Generator().manual_seed(0)).tolist()
    kinds = [(name, count) for name in engines for count in (1, *drafts)]
    with bar("decoding", len(contexts) * rounds) as progress:
        for context in contexts:
            sessions, prefill = {}, {}
            for name, engine in engines.items():
                sessions[name] = engine.session(context + max(drafts, default=1))
                start = time.perf_counter()
                for first in range(0, context, PROMPT):
                    sessions[name].append(prompt[first : min(context, first + PROMPT)])
                prefill[name] = context / (time.perf_counter() - start)
            here = kinds if context == contexts[0] else [(name, 1) for name in engines]
            samples = {kind: [] for kind in here}
            shares = {kind: [] for kind in here}
            limits.append(read_limit(data))
            for _ in range(rounds):
                for name, count in here:

                    def run(session=sessions[name], tokens=prompt[:count], context=context) -> None:
                        for _ in range(STEPS):
                            session.append(tokens, every=True)
                            session.cut(context)

                    seconds = sample(run)[0] / STEPS
                    limits.append(read_limit(data))
                    samples[name, count].append(seconds)
                    read = nbytes[name] + cache_bytes(models[name]) * context
                    shares[name, count].append(read / seconds / statistics.mean(limits[-2:]))
                progress.advance()
            for name, count in here:
                rows.append(
                    {
                        "model": name,
                        "context": context,
                        "at_once": count,
                        "tokens_per_second": 1 / statistics.median(samples[name, count]),
                        "prefill_tokens_per_second": prefill[name],
                        "share": statistics.median(shares[name, count]),
                        "samples": samples[name, count],
                    }
                )
    found = {"limit": statistics.median(limits), "rows": rows, "bytes": nbytes}
    return found | {"instruction_set": native.instruction_set(), "threads": native.threads()}


def read_bytes(model: nn.Module) -> int:
    """What a step reads of a model: all weights but an embedding that is only looked up."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    held = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    total = sum(tensor.nbytes for tensor in held.values() if tensor.device.type == "cpu")
    return total if getattr(head, "weight", None) is embedding else total - embedding.nbytes


def cache_bytes(model: nn.Module) -> int:
    """Of a token, keys and values in bfloat16."""
    config = model.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 4 * config.num_hidden_layers * config.num_key_value_heads * head
