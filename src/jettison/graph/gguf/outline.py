"""What the GGUF file of a model will say: its metadata and its tensors, by architectures.yaml read backwards.

The metadata are read back with the reader, and the config that follows must be the model's own. So a field that the
format cannot hold is refused before anything is written, and not lost.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jettison.core.errors import UsageError, shown, unknown
from jettison.core.numbers import figures
from jettison.graph.gguf.architecture import FACTORS, Architecture, architectures, llama3_factors, read_config
from jettison.graph.gguf.container import Stored

if TYPE_CHECKING:
    from jettison.graph.folder import ModelFolder

# Fields of configs that change no output of a model as it is written: for training, for other tasks, for generation,
# or checked elsewhere.
IGNORED = {
    "architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "quantization_config", "use_cache",
    "initializer_range", "cache_implementation", "return_dict", "output_hidden_states", "output_attentions",
    "problem_type", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "pretraining_tp",
    "router_aux_loss_coef", "output_router_logits", "max_window_layers", "original_max_position_embeddings", "id2label",
    "label2id", "is_encoder_decoder", "n_ctx", "reorder_and_upcast_attn", "_name_or_path", "default_theta",
    "chunk_size_feed_forward",
}  # fmt: skip
IGNORED_ENDS = ("_dropout", "_pdrop", "dropout")
IGNORED_STARTS = ("summary_", "task_")
CLOSE = 1e-6  # relative tolerance of numbers, which the file stores as float32
YARN = {"beta_fast": 32, "beta_slow": 1}  # of every model that is scaled by YaRN and states nothing else
SCALED = {"linear": ("factor",), "yarn": ("factor", "original_max_position_embeddings")}
SCALING_KEYS = {"factor": "factor", "original_max_position_embeddings": "original_context_length"}


@dataclass(frozen=True)
class FileTensor:
    """A tensor of the file.

    modules: those whose parameters it holds: one, or all experts of a block in their order.
    part: weight or bias. shape: in the file.
    heads: how many the rows belong to, if they are in another order for the rotary positions; else None.
    offset: what the file adds. transposed: whether the model stores the matrix as (in, out).
    bare: whether ``modules`` are names of parameters.
    """

    name: str
    modules: tuple[str, ...]
    part: str
    shape: tuple[int, ...]
    heads: int | None = None
    offset: float = 0.0
    transposed: bool = False
    bare: bool = False

    def parameter(self, module: str) -> str:
        """Return the name of the parameter of one of its modules."""
        return module if self.bare else f"{module}.{self.part}"

    @property
    def stacked(self) -> bool:
        """Whether it holds a parameter of every expert."""
        return len(self.shape) > 2


@dataclass
class Outline:
    """Metadata and tensors of a file that does not exist yet. The reader takes it for a ``GgufFile``.

    path: of the file, for errors. factors: of the rotary frequencies, stored as ``FACTORS``; None if there are none.
    """

    path: Path
    architecture: Architecture
    metadata: dict[str, Any]
    parts: list[FileTensor]
    factors: np.ndarray | None = None
    tensors: dict[str, Stored] = field(default_factory=dict)

    def blocks(self, name: str) -> np.ndarray:
        """Return the values of ``FACTORS``, float32."""
        return self.factors.astype(np.float32)

    def decode(self, name: str, blocks: np.ndarray) -> np.ndarray:
        """Return ``blocks``, which are values already."""
        return blocks


def outline(source: "ModelFolder", path: Path) -> Outline:
    """Return what the file of a model will hold, without its tokenizer.

    Raises UsageError for a model of another architecture, for a parameter that has no place in the file, and for fields
    of the config that the file cannot hold.
    """
    source.require_text("only language models are written as GGUF")
    source.require_own_modules("GGUF has no place for them")
    kind, config = source.raw_config.get("model_type"), source.config
    rows = {name: row for row in architectures().values() for name in (row.fixed["model_type"], *row.also)}
    if kind not in rows:
        raise unknown("model_type", kind, rows, f" of {source.where}")
    row = rows[kind]
    metadata = dict(_keys(config, row, source.where))
    result = Outline(path, row, metadata, list(_parts(source, row, metadata)))
    if _rules(config).get("rope_type") == "llama3":
        rules = _rules(config)
        result.factors = llama3_factors(config.head_dim, rules["rope_theta"], rules["factor"])
        result.tensors[FACTORS] = Stored(result.factors.shape, "F32", 0, 4 * len(result.factors))
    result.tensors |= {part.name: Stored(part.shape, "F32", 0, 4 * math.prod(part.shape)) for part in result.parts}
    _check(result, source)
    return result


def _rules(config: Any) -> Mapping[str, Any]:
    """Return the rules of the rotary positions, of the layers that attend to everything if there are several kinds."""
    rules = getattr(config, "rope_parameters", None) or {}
    return rules.get("full_attention", rules)


def _value(config: Any, name: str, row: Architecture) -> Any:
    """Return a field of a config, also one that the config leaves out and the table computes."""
    value = _rules(config).get(name) if name == "rope_theta" else getattr(config, name, None)
    if value is None and name in row.computed:
        number, *names = row.computed[name].split(" * ")
        value = math.prod([int(number), *(getattr(config, name) for name in names)])
    return value


def _keys(config: Any, row: Architecture, where: str) -> Iterator[tuple[str, Any]]:
    """Yield the metadata of an architecture: the first key of every field, unless another field has it."""
    seen = set()
    for name, alternatives in row.config.items():
        value, key = _value(config, name, row), alternatives[0]
        if value is None and len(alternatives) == 1:
            raise UsageError(f"{where} has no {name}, which a GGUF file must state")
        if value is not None and key not in seen and isinstance(value, bool | int | float):
            seen.add(key)
            yield f"{row.key}.{key}", value
    for key, name in row.beside.items():
        if (value := _value(config, name, row)) is not None:
            yield f"{row.key}.{key}", value
    rules = _rules(config)
    if (kind := rules.get("rope_type", "default")) in SCALED:
        yield f"{row.key}.rope.scaling.type", kind
        for name in SCALED[kind]:
            if rules.get(name) is not None:
                value = float(rules[name]) if name == "factor" else rules[name]
                yield f"{row.key}.rope.scaling.{SCALING_KEYS[name]}", value


def _parts(source: "ModelFolder", row: Architecture, metadata: Mapping[str, Any]) -> Iterator[FileTensor]:
    """Yield the tensors of the file. Raises UsageError for a parameter that has no place among them."""
    shapes = {name: tuple(value.shape) for name, value in source.skeleton.state_dict().items()}
    if source.anatomy.tied and source.anatomy.head:
        shapes.pop(f"{source.anatomy.head.name}.weight", None)
    left = dict.fromkeys(shapes)
    for block in (None, *range(source.anatomy.blocks)):
        for template, module in row.tensors.items():
            if module is None or template.startswith("blk.") == (block is None):
                continue
            filled = lambda text, block=block: text.replace("*", str(block), 1)
            short = template.removeprefix("blk.*.")
            bare = short in row.bare
            for part in ("weight",) if bare else ("weight", "bias"):
                names = _modules(filled(module), "" if bare else f".{part}", shapes)
                if names:
                    one = FileTensor(f"{filled(template)}.{part}", names, part, (), bare=bare)
                    shape = shapes[one.parameter(names[0])]
                    for name in names:
                        left.pop(one.parameter(name), None)
                    transposed = part == "weight" and short in row.transposed
                    shape = shape[::-1] if transposed else shape
                    key = row.permuted.get(short)
                    heads = key and (metadata.get(f"{row.key}.{key}") or metadata[f"{row.key}.attention.head_count"])
                    offset = row.offset if short.endswith("norm") and part == "weight" else 0.0
                    shape = (len(names), *shape) if "*" in filled(module) else shape
                    yield replace(one, shape=shape, heads=heads, offset=offset, transposed=transposed)
    if left:
        raise UsageError(
            f"{source.name} has {next(iter(left))}, for which GGUF's {row.name} has no tensor ({len(left)} such)"
        )


def _modules(path: str, ending: str, names: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the modules of a path for which a name with ``ending`` exists; * in it is the number of an expert."""
    result = []
    while f"{(name := path.replace('*', str(len(result))))}{ending}" in names:
        result.append(name)
        if "*" not in path:
            break
    return tuple(result)


def _check(draft: Outline, source: "ModelFolder") -> None:
    """Raise UsageError if the config that a reader makes of the metadata differs from the model's."""
    from jettison.graph.config import read_config as read_with_transformers

    kinds = dict.fromkeys(draft.tensors, "F32")
    raw = read_config(draft, kinds, draft.architecture)
    read = read_with_transformers(raw, None, str(draft.path)).to_dict()
    own = source.config.to_dict()
    for name, value in read.items():
        ignored = name in IGNORED or name.endswith(IGNORED_ENDS) or name.startswith(IGNORED_STARTS)
        if ignored or (name in own and _equal(value, own[name])):
            continue
        if name not in own and source.raw_config.get("model_type") != raw["model_type"]:
            continue  # a field that the other class does not have
        if own.get(name) is None and (name in draft.architecture.computed or name in draft.architecture.fixed):
            continue  # a field that a config may leave out, since others or its class say the same
        raise UsageError(
            f"{source.where}: {name} = {shown(own.get(name))} cannot be held by GGUF's {draft.architecture.name}, "
            f"which is read with {shown(value)}"
        )
    window = own.get("sliding_window")
    if "sliding_window" not in read and window and window < draft.metadata[f"{draft.architecture.key}.context_length"]:
        raise UsageError(
            f"{source.where}: sliding_window = {figures(window)} cannot be held by GGUF's {draft.architecture.name}"
        )


def _equal(one: Any, other: Any) -> bool:
    """Return whether two values of configs mean the same: floats within ``CLOSE``, None and defaults left out."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        stated = lambda part: {
            key: value for key, value in part.items() if value is not None and YARN.get(key) != value
        }
        one, other = stated(one), stated(other)
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        return numbers and math.isclose(one, other, rel_tol=CLOSE)
    return one == other
