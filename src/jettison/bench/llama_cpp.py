"""Benchmark llama.cpp for comparison: write GGUF files of a known shape with random weights, and time them.

Its own benchmark ``llama-bench`` must be on the PATH or named by LLAMA_BENCH. Build it natively
(``-DGGML_NATIVE=ON``), or the comparison is not fair. Writing the files needs the extra ``gguf``.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import digest
from jettison.core.kept import is_kept, keep
from jettison.core.progress import waiting
from jettison.graph.shape import ModelShape

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
KINDS = {  # name -> (GGUF type of gate and up, type of all other matrices)
    "llama.cpp Q4_0": ("Q4_0", "Q4_0"),
    "llama.cpp Q4_0, gate/up Q2_K": ("Q2_K", "Q4_0"),
}
TOKENS = 32  # tokens of a sample of decoding
ROLES = {
    "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip


@dataclass(frozen=True)
class LlamaCpp:
    """One GGUF file, timed by llama-bench."""

    program: str
    file: Path
    threads: int

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self.file.stat().st_size

    def decode(self, context: int) -> float:
        """Return the seconds per token after ``context`` earlier tokens, over 32 tokens."""
        return 1 / self._rate("-p", "0", "-n", str(TOKENS), "-d", str(context))

    def prefill(self, tokens: int) -> float:
        """Return the seconds of reading a prompt."""
        return tokens / self._rate("-p", str(tokens), "-n", "0")

    def _rate(self, *options: str) -> float:
        command = [self.program, "-m", str(self.file), "-t", str(self.threads), "-r", "1", "-o", "json", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            return float(json.loads(done.stdout)[0]["avg_ts"])
        except (ValueError, LookupError, TypeError):
            raise JettisonError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}") from None


def llama_cpp(shape: ModelShape, folder: Path, threads: int) -> dict[str, LlamaCpp]:
    """Return a runner for every kind of KINDS. Files are written to ``folder`` if they are missing or were changed.

    Raises UsageError if llama-bench or gguf is missing, or for a family that is not in ARCHITECTURES,
    or a model whose modules are replaced.
    """
    shape.require_own_modules("llama.cpp has only the modules of config.json")
    program = os.environ.get("LLAMA_BENCH") or shutil.which("llama-bench")
    if not program or not Path(program).exists():
        raise UsageError("llama.cpp: there is no llama-bench on the PATH, and LLAMA_BENCH does not name one; build it")
    runners = {}
    for name, (gate_up, rest) in KINDS.items():
        file = folder / f"{shape.name.replace('/', '--')[-100:]}-{gate_up}-{rest}.gguf"
        if not is_kept(file, _key(shape, gate_up, rest)):
            write_gguf(shape, {"gate": gate_up, "up": gate_up}, rest, file)
        runners[name] = LlamaCpp(program, file, threads)
    return runners


@waiting("writing a GGUF file")
def write_gguf(shape: ModelShape, kinds: Mapping[str, str], rest: str, path: Path) -> None:
    """Write a GGUF file with random weights and no vocabulary.

    kinds: role -> GGUF type, such as Q4_0.
    rest: type of all other matrices.

    Raises UsageError if gguf is missing or the family is not in ARCHITECTURES, JettisonError if the file cannot be
    written.
    """
    try:
        from gguf import GGMLQuantizationType, GGUFWriter
    except ImportError as error:
        raise UsageError("comparing with llama.cpp needs the package gguf: pip install 'jettison[gguf]'") from error
    config = shape.config.get_text_config()
    if config.model_type not in ARCHITECTURES:
        raise UsageError(
            f"llama.cpp files of {config.model_type} cannot be written, only of {', '.join(ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[config.model_type]

    def write(file: Path) -> None:
        writer = GGUFWriter(file, architecture)
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters.get("rope_theta", 10000.0))
        writer.add_vocab_size(config.vocab_size)
        writer.add_tokenizer_model("no_vocab")
        rng = np.random.default_rng(0)
        for name, rows, columns, role in _matrices(shape, config):
            kind = kinds.get(role, rest)
            data = _random_blocks(kind, rows, columns, rng)
            writer.add_tensor(f"{name}.weight", data, raw_dtype=GGMLQuantizationType[kind])
        for name, size in _vectors(config, head, architecture):
            writer.add_tensor(name, np.ones(size, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    keep(path, _key(shape, kinds.get("gate", rest), rest), write)


def _key(shape: ModelShape, gate_up: str, rest: str) -> str:
    return digest("gguf", shape.raw_config, gate_up, rest)


def _matrices(shape: ModelShape, config) -> Iterator[tuple[str, int, int, str]]:
    """Yield (name, rows, columns, role) of all matrices, without the head if it is tied to the embedding."""
    yield "token_embd", config.vocab_size, config.hidden_size, "embed"
    if not config.tie_word_embeddings:
        yield "output", config.vocab_size, config.hidden_size, "head"
    for linear in shape.anatomy:
        for role in set(linear.roles) & set(ROLES):
            yield f"blk.{linear.block}.{ROLES[role]}", linear.rows, linear.columns, role


def _vectors(config, head: int, architecture: str) -> Iterator[tuple[str, int]]:
    """Yield (name, size) of all norms and biases. head: size of a head."""
    yield "output_norm.weight", config.hidden_size
    for block in range(config.num_hidden_layers):
        yield f"blk.{block}.attn_norm.weight", config.hidden_size
        yield f"blk.{block}.ffn_norm.weight", config.hidden_size
        if architecture == "qwen3":
            yield f"blk.{block}.attn_q_norm.weight", head
            yield f"blk.{block}.attn_k_norm.weight", head
        if architecture == "qwen2":
            yield f"blk.{block}.attn_q.bias", config.num_attention_heads * head
            yield f"blk.{block}.attn_k.bias", config.num_key_value_heads * head
            yield f"blk.{block}.attn_v.bias", config.num_key_value_heads * head


def _random_blocks(kind: str, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Return random weights (rows, bytes) uint8, with random codes and block scales of 0.1 / sqrt(columns)."""
    per_block, nbytes, scales = {"Q4_0": (32, 18, (0,)), "Q2_K": (256, 84, (80, 82))}[kind]
    if columns % per_block:
        raise UsageError(f"{kind} needs a multiple of {per_block} columns: {columns} is none")
    blocks = np.frombuffer(rng.bytes(rows * columns // per_block * nbytes), np.uint8).reshape(-1, nbytes).copy()
    scale = np.frombuffer(np.float16(0.1 / columns**0.5).tobytes(), np.uint8)
    for start in scales:
        blocks[:, start : start + 2] = scale
    return blocks.reshape(rows, -1)
