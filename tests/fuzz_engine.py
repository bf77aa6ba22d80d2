"""Random configurations, batches and faults against the C++ decoder: ``python tests/fuzz_engine.py SECONDS [SEED]``.

tests/kernels/test_cpu.py runs it under sanitizers. It prints how many cases passed; any disagreement is an error.
"""

import itertools
import random
import sys
import time

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from jettison.core.errors import UsageError
from jettison.encodings.quantized import QuantizedWeight
from jettison.encodings.uniform import UniformGrid
from jettison.graph.modules import Adapted, PackedLinear, QuantizedLinear
from jettison.kernels.tiles import Tiling
from jettison.runtime.native_decoder import CACHES, NativeDecoder

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3_text")


def random_model(rng: random.Random) -> tuple[nn.Module, bool]:
    """Return a tiny model, dense or partly packed, and whether anything in it is packed."""
    kind, kv_heads, head_dim = (
        rng.choice(FAMILIES),
        rng.choice([1, 2, 3]),
        2 * rng.choice([1, 3, 8, 10, 17, 40]),
    )
    heads = kv_heads * rng.randint(1, 6)
    hidden = heads * (head_dim if kind == "phi3" else rng.randint(1, 12))
    layers = rng.randint(1, 3)
    config = AutoConfig.for_model(
        kind, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
        intermediate_size=rng.randint(1, 90), vocab_size=rng.randint(4, 300), num_hidden_layers=layers,
        max_position_embeddings=rng.choice([1, 2, 17, 70, 140]), pad_token_id=0,
        tie_word_embeddings=rng.random() < 0.5, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    if kind in ("mistral", "phi3", "gemma3_text"):
        config.sliding_window = rng.choice([1, 3, 20, 1000])
    torch.manual_seed(rng.randint(0, 1 << 30))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    packed = rng.random() < 0.6
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and packed and rng.random() < 0.8:
            model.set_submodule(name, pack(rng, module))
        if isinstance(module, nn.Linear) and name != "lm_head" and rng.random() < 0.2:
            a, b = torch.randn(3, module.in_features) / 8, torch.randn(module.out_features, 3) / 8
            model.set_submodule(name, Adapted(model.get_submodule(name), a, b, 0.5))
    return model, any(isinstance(module, QuantizedLinear) for module in model.modules())


def pack(rng: random.Random, linear: nn.Linear) -> nn.Module:
    """Return a packed linear of the same shape with random codes, or ``linear`` if no tiling suits its shape."""
    rows, columns = linear.weight.shape
    group = rng.choice([size for size in (-1, 8, 16, 32, 64) if size == -1 or columns % size == 0])
    grid = UniformGrid(rng.choice([2, 3, 4, 8]), group, rng.random() < 0.5)
    if Tiling.of(grid, rows, columns) is None:
        return linear
    codes = torch.randint(0, 2**grid.bits, (rows, columns), dtype=torch.uint8)
    shape = (rows, grid.groups(columns))
    scale = (torch.rand(shape) / (columns**0.5 * 2**grid.bits)).to(grid.scale_dtype)
    zero = None if grid.symmetric else torch.randint(0, 2**grid.bits, shape, dtype=torch.uint8)
    bias = None if linear.bias is None else linear.bias.detach()
    packed = PackedLinear.of(QuantizedWeight(codes, scale, zero, grid), bias)
    return packed.tiled() or packed


def check(rng: random.Random) -> None:
    """Feed random texts to several sessions in random pieces, and compare the last logits with PyTorch's."""
    model, packed = random_model(rng)
    decoder, vocabulary = NativeDecoder(model), model.config.vocab_size
    texts = [torch.randint(0, vocabulary, (rng.randint(1, decoder.limit),)).tolist() for _ in range(rng.randint(1, 4))]
    cache, bits = rng.choice(sorted(CACHES)), rng.choice((8, 15))
    sessions = [decoder.session(rng.randint(len(text), decoder.limit), cache) for text in texts]
    torch.set_num_threads(rng.choice([1, 2]))  # main resets it
    last_logits: dict[int, torch.Tensor] = {}
    while any(session.length < len(text) for session, text in zip(sessions, texts, strict=True)):
        rows, tokens, places = [], [], []
        for number, (session, text) in enumerate(zip(sessions, texts, strict=True)):
            if session.length and rng.random() < 0.1:
                session.cut(rng.randint(0, session.length))
            count = min(len(text) - session.length, rng.choice([0, 1, 1, 2, 9, 40]))
            rows += [session] * count
            tokens += text[session.length : session.length + count]
            places += [number] * count
        if not tokens:
            continue
        is_last = [i + 1 == len(places) or places[i + 1] != place for i, place in enumerate(places)]
        logits = decoder.forward(tokens, rows, is_last, bits)
        last_logits |= {
            place: row
            for place, row in zip([p for p, end in zip(places, is_last, strict=True) if end], logits, strict=True)
        }
    if bits == 15 or not packed:  # with int8 activations, so few columns are too inexact to compare
        for number, text in enumerate(texts):
            with torch.no_grad():
                expected = reference(model, text)
            error = float((last_logits[number] - expected).norm() / (expected.norm() + 1e-6))
            tolerance = {"float32": 2e-3 if packed else 1e-4, "bfloat16": 5e-2, "int8": 0.2}[cache]
            assert error < tolerance, f"{model.config.model_type}, {cache}, {len(text)} tokens: off by {error:.2g}"
    branch(rng, decoder, texts[0], cache, bits)
    spoil(rng, decoder, vocabulary)


def branch(rng: random.Random, decoder: NativeDecoder, text: list[int], cache: str, bits: int) -> None:
    """Check rows that branch (a token tree), kept rows, and draft tokens that were cut off.

    Every branch must give the same bits as when it is read alone, also after ``keep``. Draft tokens that were computed
    without half of a block must leave no trace once they are cut off.
    """
    if decoder.limit < 12:
        return
    start, vocabulary = text[: rng.randint(0, min(len(text), decoder.limit - 10))], range(decoder.vocabulary)
    session, parents, tokens = decoder.session(decoder.limit, cache), [], []
    if start:
        session.append(start, activation_bits=bits)
    halves = bytes(rng.choice([0, 1, 2, 3]) for _ in range(decoder.layers))
    session.append([rng.choice(vocabulary) for _ in range(3)], activation_bits=bits, halves=halves)
    session.cut(len(start))
    for row in range(rng.randint(1, 8)):
        parents.append(rng.randint(-1, row - 1))
        tokens.append(rng.choice(vocabulary))
    logits = session.append(tokens, every=True, activation_bits=bits, parents=parents)
    row, path = rng.randrange(len(tokens)), []
    while row >= 0:
        path.insert(0, row)
        row = parents[row]
    alone = decoder.session(decoder.limit, cache)
    if start:
        alone.append(start, activation_bits=bits)
    expected = torch.cat([alone.append([tokens[row]], activation_bits=bits) for row in path])
    assert torch.equal(logits[path], expected), f"branches {parents} after {len(start)} tokens, {cache}: other bits"
    session.keep(len(start), [len(start) + row for row in path])
    token = rng.choice(vocabulary)
    assert torch.equal(session.append([token], activation_bits=bits), alone.append([token], activation_bits=bits)), (
        "kept rows give other bits"
    )
    length = session.length
    for before, slots in ((0, [0, 0]), (0, [length]), (0, [-1]), (length + 1, []), (-1, [])):
        try:
            session.keep(before, slots)
        except UsageError:
            continue
        raise AssertionError(f"slots {slots} after {before}: no error")
    assert session.length == length


def reference(model: nn.Module, text: list[int]) -> torch.Tensor:
    """Return the logits after the last token, computed by PyTorch with dequantized weights."""
    packed = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    for name, module in packed.items():
        dense = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        dense.weight = nn.Parameter(module.weight, requires_grad=False)
        dense.bias = None if module.bias is None else nn.Parameter(module.bias, requires_grad=False)
        model.set_submodule(name, dense)
    logits = model(torch.tensor([text])).logits[0, -1]
    for name, module in packed.items():
        model.set_submodule(name, module)
    return logits


def spoil(rng: random.Random, decoder: NativeDecoder, vocabulary: int) -> None:
    """Check that too many, invalid or no tokens are an error that leaves the session unchanged."""
    capacity = rng.randint(1, decoder.limit)
    session = decoder.session(capacity)
    session.append([0] * (capacity - 1) or [0])
    length = session.length
    for tokens in ([0] * (capacity - length + 1), [vocabulary], [-1], []):
        try:
            decoder.forward(tokens, [session] * len(tokens), [True] * len(tokens))
        except UsageError:
            assert session.length == length, "a failed call changed the session"
        else:
            raise AssertionError(f"{tokens[:3]}...: no error")


def main(seconds: float, seed: int) -> None:
    """Check random cases for so many seconds. Raises AssertionError, with the seed, at the first disagreement."""
    deadline, threads = time.monotonic() + seconds, torch.get_num_threads()
    for number in itertools.count():
        if time.monotonic() > deadline:
            break
        try:
            check(random.Random(seed + number))
        except AssertionError as error:
            raise AssertionError(f"seed {seed + number}: {error}") from error
    torch.set_num_threads(threads)
    print(f"{number} cases passed")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
