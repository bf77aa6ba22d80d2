"""What a GGUF file says about its model: the rows of architectures.yaml, and the config.json that follows from it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import yaml

from jettison.core.errors import UsageError, shown, unknown
from jettison.graph.gguf.container import GgufFile

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
FACTORS = "rope_freqs.weight"  # divisors of the rotary frequencies
CLOSE = 1e-3  # relative tolerance for them, which are stored as float32
SCALED = ("none", "linear", "yarn")  # values of rope.scaling.type that can be read
PLAIN = ("F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64")  # types that are not quantized
EXACT = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # types that are grids of Jettison's (formats/gguf.py)


@dataclass(frozen=True)
class Architecture:
    """A row of architectures.yaml, which explains the fields."""

    name: str
    config: Mapping[str, list]
    fixed: Mapping[str, Any]
    tensors: Mapping[str, str | None]
    biases: Mapping[str, str] = field(default_factory=dict)
    exceptions: Mapping[str, Mapping[Any, Mapping[str, Any]]] = field(default_factory=dict)
    permuted: Mapping[str, str] = field(default_factory=dict)
    offset: float = 0.0
    transposed: Sequence[str] = ()
    also: Sequence[str] = ()
    beside: Mapping[str, str] = field(default_factory=dict)
    computed: Mapping[str, str] = field(default_factory=dict)
    bare: Sequence[str] = ()
    yarn: Mapping[str, Any] = field(default_factory=dict)
    mixture_of: str = ""

    @property
    def key(self) -> str:
        """The name that files give it, which begins the keys of their metadata."""
        return self.mixture_of or self.name

    def module(self, tensor: str) -> str | None:
        """Return the module of a tensor, both without .weight or .bias; * stands for an expert. None if unknown."""
        block = re.match(r"blk\.(\d+)\.", tensor)
        row = self.tensors.get(re.sub(r"^blk\.\d+\.", "blk.*.", tensor))
        return row if row is None or block is None else row.replace("*", block[1], 1)


@cache
def architectures() -> dict[str, Architecture]:
    """Return the rows of architectures.yaml by name."""
    text = (files("jettison.graph.gguf") / "architectures.yaml").read_text(encoding="utf-8")
    return {name: Architecture(name, **row) for name, row in yaml.safe_load(text).items()}


def find_architecture(file: GgufFile) -> Architecture:
    """Return the architecture of a file. Raises UsageError for one that has no row."""
    name, rows = file.metadata.get("general.architecture"), architectures()
    known = [row.name for row in rows.values() if not row.mixture_of]
    if name not in known:
        raise unknown("architecture", name, known, f" of {file.path}")
    mixture = next((row for row in rows.values() if row.mixture_of == name), None)
    return mixture if mixture and file.metadata.get(f"{name}.expert_count") else rows[name]


class Keys:
    """The metadata of an architecture, by keys without its name. Every number is checked when it is asked for."""

    def __init__(self, file: GgufFile, architecture: Architecture):
        self.metadata, self.prefix, self.where = file.metadata, architecture.key, file.path

    def get(self, key: str) -> Any:
        """Return a value, or None. Raises UsageError for an array, such as one number per block."""
        value = self.metadata.get(f"{self.prefix}.{key}")
        if isinstance(value, np.ndarray):
            if len(value) == 0 or (value != value[0]).any():
                raise UsageError(
                    f"{self.where}: {self.prefix}.{key} differs from block to block; one value can be read"
                )
            value = value[0].item()
        # The shortest number that means the same float32: 1e-05, not 9.999999747378752e-06.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def number(self, key: str) -> int:
        """Return a value that must be a positive whole number."""
        value = self.get(key)
        if type(value) is not int or value < 1:
            raise UsageError(f"{self.where}: {self.prefix}.{key} = {shown(value)}; a positive whole number is needed")
        return value

    def term(self, text: Any) -> Any:
        """Evaluate one alternative of a row: a value, a key, or keys multiplied and divided. None: it is not stated."""
        if not isinstance(text, str):
            return text
        first, *rest = text.split()
        if not rest:
            return self.get(first)
        value = self.number(first)
        for operator, key in zip(rest[::2], rest[1::2], strict=True):
            number = self.number(key)
            value = value * number if operator == "*" else value // number
        return value


def read_config(file: GgufFile, tensors: Mapping[str, str], architecture: Architecture) -> dict[str, Any]:
    """Return the config.json of a file's model.

    tensors: of all files of the model, name -> type.
    Raises UsageError for a key that is missing, and for positions that are scaled in a way that cannot be read.
    """
    keys, config = Keys(file, architecture), dict(architecture.fixed)
    for name, alternatives in architecture.config.items():
        value = next((value for option in alternatives if (value := keys.term(option)) is not None), None)
        if value is None and None not in alternatives:
            raise UsageError(f"{file.path} has no {architecture.key}.{alternatives[0]}, which gives {name}")
        config[name] = value
    for name, tensor in architecture.biases.items():
        config[name] = f"blk.0.{tensor}.bias" in tensors
    for name, values in architecture.exceptions.items():
        config |= values.get(config[name], {})
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config["vocab_size"] = _vocabulary(file, tensors)
    config |= _rope(file, tensors, keys, config, architecture.yarn)
    for name in ("bos", "eos", "padding"):
        token = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        config[f"{name.removesuffix('ding')}_token_id"] = token if type(token) is int else None
    config["dtype"] = _dtype(tensors)
    if any(kind not in PLAIN for kind in tensors.values()):
        config["quantization_config"] = {"quant_method": "gguf"}
    return config


def _vocabulary(file: GgufFile, tensors: Mapping[str, str]) -> int:
    tokens = file.metadata.get("tokenizer.ggml.tokens", ())
    if (embedding := file.tensors.get("token_embd.weight")) is not None:
        return embedding.shape[0]
    if "token_embd.weight" not in tensors or not len(tokens):
        raise UsageError(f"{file.path} has no tensor token_embd.weight, which every language model has")
    return len(tokens)  # the embedding lies in another file of the model


def _dtype(tensors: Mapping[str, str]) -> str:
    """Return the type for what is not quantized: that of the matrices in full precision, or bfloat16."""
    kinds = set(tensors.values())
    if kinds <= {"F32", "F64"}:
        return "float32"
    return "float16" if "F16" in kinds and kinds <= {"F16", "F32"} else "bfloat16"


def _rope(
    file: GgufFile, tensors: Mapping[str, str], keys: Keys, config: Mapping[str, Any], yarn: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the field rope_scaling, if positions are scaled. yarn: what a scaling by YaRN has besides."""
    width, rotary = config.get("head_dim"), keys.get("rope.dimension_count")
    if width and rotary not in (None, width):
        raise UsageError(f"{file.path}: positions rotate {shown(rotary)} of {width} dimensions; only all can be read")
    kind, factor = keys.get("rope.scaling.type") or "none", keys.get("rope.scaling.factor")
    if kind not in SCALED or keys.get("rope.scaling.attn_factor") not in (None, 1.0):
        raise UsageError(f"{file.path}: positions are scaled by {shown(kind)}; valid: {', '.join(SCALED)}")
    if FACTORS in tensors:
        return {"rope_scaling": _llama3(file, width, config["rope_theta"])}
    if kind == "none" or not factor:
        return {}
    scaling = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = keys.number("rope.scaling.original_context_length")
        scaling |= yarn
    return {"rope_scaling": scaling}


def _llama3(file: GgufFile, width: int, theta: float) -> dict[str, Any]:
    """Find the rule of Llama 3 that gives the stored divisors of the frequencies.

    Raises UsageError if no such rule does.
    """
    if FACTORS not in file.tensors:
        raise UsageError(f"{file.path}: {FACTORS} lies in another file of the model, so positions cannot be read")
    stored = file.decode(FACTORS, file.blocks(FACTORS)).astype(np.float64).reshape(-1)
    factor = float(np.float32(stored.max(initial=1.0)))
    expected = llama3_factors(width, theta, factor)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=CLOSE):
        raise UsageError(f"{file.path}: {FACTORS} follows no rule that can be read; valid: that of Llama 3")
    return {"rope_type": "llama3", "factor": factor} | LLAMA3


def llama3_factors(width: int, theta: float, factor: float) -> np.ndarray:
    """Return the divisors of the rotary frequencies by the rule of Llama 3, (width / 2,) float64."""
    low, high, original = LLAMA3.values()
    turns = original * theta ** (-np.arange(0, width, 2) / width) / (2 * np.pi)  # in the original number of positions
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1 / ((1 - smooth) / factor + smooth)
