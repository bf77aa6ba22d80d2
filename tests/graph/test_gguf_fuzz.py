"""Mutated GGUF files are read or end in one of our errors, and allocate at most 8 times the file's size.

The files are small, and their vocabulary is short, so that one takes milliseconds even where allocations are traced.
"""

import random
import struct
import time
import tracemalloc

import fuzz_mutations as mutate
import gguf_models
import pytest
import tiny

from jettison.core.errors import JettisonError
from jettison.graph.folder import ModelFolder

MOST, FIXED = 8, 1 << 18  # times the file's size; bytes that opening any file takes: config, modules without weights
LONGEST = 20.0  # seconds; no file takes longer, on a busy machine either
TOKENS, SIZES = 64, dict(vocab_size=64, hidden_size=32, intermediate_size=32, head_dim=8, num_hidden_layers=1)
NUMBERS = (0, 1, 2, 7, 8, 9, 31, 255, 1 << 16, (1 << 31) - 1, (1 << 32) - 1)
LONG = (0, 1, 1 << 20, 1 << 31, 1 << 40, 1 << 60, (1 << 63) - 1, (1 << 64) - 1)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return make_bases(tmp_path_factory.mktemp("bases"))


def make_bases(folder):
    """Return the bytes of small files of several types, and the end of each one's header."""
    model, experts = tiny.make("llama", folder / "model", **SIZES), tiny.make("qwen3_moe", folder / "experts", **SIZES)
    files = []
    for source, kind in ((model, "F32"), (model, "Q4_1"), (model, "Q8_0"), (experts, "Q5_0")):
        path = gguf_models.write(source, folder / f"{source.name}-{kind}.gguf", kind, tokens=TOKENS)
        header = min(stored.start for stored in ModelFolder(path).checkpoint.first.tensors.values())
        files.append((path.read_bytes(), header))
    return files


def change_number(rng, data, header):
    """Replace a number in the header, of 4 or 8 bytes, by an extreme one. Tensors' records count most."""
    end = min(header, len(data) - 8)
    place = rng.choice((rng.randrange(4, 200), rng.randrange(4, end), rng.randrange(end - 700, end)))
    code, value = rng.choice((("<I", rng.choice(NUMBERS)), ("<Q", rng.choice(LONG))))
    return data[:place] + struct.pack(code, value) + data[place + struct.calcsize(code) :], f"{place}: {value}"


def read_all(path):
    """Open a model, read its tokenizer's metadata and every tensor."""
    source = ModelFolder(path)
    for name in source.checkpoint:
        source.checkpoint.read(name)
    list(source.checkpoint.metadata.get("tokenizer.ggml.tokens", ()))


def mutated(rng, bases):
    data, header = rng.choice(bases)
    if rng.random() < 0.6:
        return change_number(rng, data, header)
    if rng.random() < 0.3:
        cut = rng.choice((rng.randrange(len(data)), rng.randrange(header), header))
        return data[:cut], f"cut at {cut}"
    return mutate.change_bytes(rng, data[:header] if rng.random() < 0.5 else data)


def run(bases, path, count, seed):
    """Try mutated files. Returns how many were refused; raises what is not one of our errors."""
    refused = 0
    for data, _ in bases:  # fills the caches of modules
        path.write_bytes(data)
        read_all(path)
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        data, note = mutated(rng, bases)
        path.write_bytes(data)
        start = time.monotonic()
        tracemalloc.start()
        try:
            read_all(path)
        except JettisonError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"input {seed}/{number} ({note}): {type(error).__name__}: {error}") from error
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert time.monotonic() - start < LONGEST, f"input {seed}/{number} ({note}) took too long"
        assert peak <= MOST * len(data) + FIXED, f"input {seed}/{number} ({note}): {peak:,} of {len(data):,} bytes"
    return refused


def test_some_mutated_files(bases, tmp_path):
    assert 100 < run(bases, tmp_path / "x.gguf", 200, 0) < 200  # some changes do not matter: of weights, of texts


@pytest.mark.slow
def test_many_mutated_files(bases, tmp_path):
    assert run(bases, tmp_path / "x.gguf", 20_000, 1) > 10_000


@pytest.mark.parametrize("key", ["tokenizer.ggml.tokens", "tokenizer.ggml.token_type"])
@pytest.mark.parametrize("count", [1 << 24, 1 << 40, (1 << 64) - 1])
def test_an_array_longer_than_the_file_allocates_nothing(bases, tmp_path, key, count):
    data, _ = bases[1]
    place = data.index(key.encode() + struct.pack("<I", 9)) + len(key) + 8  # after the types of array and of its values
    (tmp_path / "x.gguf").write_bytes(data[:place] + struct.pack("<Q", count) + data[place + 8 :])
    tracemalloc.start()
    try:
        with pytest.raises(JettisonError, match="truncated or damaged"):
            ModelFolder(tmp_path / "x.gguf")
        assert tracemalloc.get_traced_memory()[1] <= MOST * len(data) + FIXED
    finally:
        tracemalloc.stop()


def test_a_cut_file_is_refused_at_every_place(bases, tmp_path):
    data, header = bases[1]
    for cut in (0, 3, 23, 24, 100, header // 2, header, len(data) - 1):
        (tmp_path / "x.gguf").write_bytes(data[:cut])
        with pytest.raises(JettisonError, match=r"truncated or damaged|no GGUF file|has no"):
            ModelFolder(tmp_path / "x.gguf")
