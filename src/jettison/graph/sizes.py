"""The sizes of a model, from config.json and the ``sizes`` of its family's row in families.yaml.

- No model is built, so a plan does not import transformers, which takes seconds.
- No config is refused. If a config has anything that the row does not foresee, ``read_sizes`` returns None, and
  transformers reads the config.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from jettison.graph.anatomy import Anatomy, Family, Linear, make_embedding, make_linear
from jettison.graph.families import families

KINDS = ("sliding_attention", "full_attention")  # entries of layer_types
# Fields that do not change any size as long as they have one of these values. For other values transformers decides
# whether the config can be used.
USUAL = {
    "hidden_act": ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"),
    "dtype": (None, "float16", "bfloat16", "float32"),
}
USUAL |= {"hidden_activation": USUAL["hidden_act"], "activation_function": USUAL["hidden_act"]}
USUAL |= {"torch_dtype": USUAL["dtype"]}
# Sections of a config that do not describe a model of their own.
SECTIONS = ("rope_scaling", "rope_parameters", "id2label", "label2id", "task_specific_params")
LARGEST, PARAMETERS = 10**8, 10**13  # the limits of any number, and of the number of parameters
MOST_BLOCKS, MOST_EXPERTS = 1024, 65536  # several times what any model has


@dataclass(frozen=True)
class Sizes:
    """The sizes that determine the cost of attention and experts beside the matrices.

    hidden: the width of the hidden states.
    heads: the number of query heads.
    key_value_heads: the number of key and value heads, which the cache stores.
    head_width: the width of one head.
    windows: per block, the greatest number of tokens that its attention looks back; inf without a limit.
    experts_per_token: None if the model has no experts.
    """

    hidden: int
    heads: int
    key_value_heads: int
    head_width: int
    windows: tuple[float, ...]
    experts_per_token: int | None = None

    @classmethod
    def of(cls, config: Any, blocks: int) -> "Sizes":
        """Read the sizes from the config of a text model as transformers reads it."""
        value = lambda name, default=None: getattr(config, name, default)
        window = value("sliding_window") if value("use_sliding_window", True) is not False else None
        return cls(
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            key_value_heads=value("num_key_value_heads") or config.num_attention_heads,
            head_width=value("head_dim") or config.hidden_size // config.num_attention_heads,
            windows=_windows(window, value("layer_types"), blocks),
            experts_per_token=value("num_experts_per_tok"),
        )


def _windows(window: int | None, kinds: list[str] | None, blocks: int) -> tuple[float, ...]:
    """Return the attention window of every block. kinds: as in layer_types; None means that all blocks have one."""
    if not window:
        return (inf,) * blocks
    return tuple(window if "sliding" in kind else inf for kind in kinds or ["sliding_attention"] * blocks)


class Unforeseen(Exception):
    """Raised when a row of families.yaml does not cover a config."""


def read_sizes(raw_config: Mapping[str, Any]) -> tuple[Anatomy, Sizes] | None:
    """Read the anatomy and the sizes from a config.json, the same as those of the model that transformers would build.

    Returns None if the config has no row or a row that does not cover it.
    """
    kind = raw_config.get("model_type")
    family = families().get(kind) if isinstance(kind, str) else None
    if family is None or family.sizes is None:
        return None
    try:
        fields = Fields(raw_config, family.sizes)
        _check_tokens(fields)
        sizes = _sizes(fields)
        return _anatomy(fields, family, len(sizes.windows)), sizes
    except Unforeseen:
        return None


class Fields:
    """The fields of a config by transformers' common names, with the defaults of the family filled in.

    All methods raise Unforeseen for a value that the row does not cover.
    """

    def __init__(self, raw_config: Mapping[str, Any], row: Mapping[str, Any]):
        self.raw_config, self.row = raw_config, row
        self.defaults, self.names = row.get("defaults", {}), row.get("names", {})
        for name, value in raw_config.items():
            if name not in SECTIONS and (isinstance(value, Mapping) or name.endswith("_config")):
                raise Unforeseen
            if name in USUAL and value not in USUAL[name]:
                raise Unforeseen
            if isinstance(value, int | float) and not abs(value) <= LARGEST:
                raise Unforeseen
        for name, valid in row.get("only", {}).items():
            if name in raw_config and not any(self._same(raw_config[name], option) for option in valid):
                raise Unforeseen

    def _same(self, value: Any, valid: Any) -> bool:
        """Return whether a value equals a valid one, in its type too. A valid text is a term."""
        valid = self.term(valid) if isinstance(valid, str) else valid
        return type(value) is type(valid) and value == valid

    def get(self, name: str) -> Any:
        """Return the value of a field, else its default, else None."""
        stated = [key for key in {name, self.names.get(name, name)} if key in self.raw_config]
        if len(stated) > 1:  # both the common name and the family's own
            raise Unforeseen
        default = self.defaults.get(name)
        value = self.raw_config[stated[0]] if stated else default
        if isinstance(default, str) and (value is None or not stated):
            return self.term(default)
        return value

    def count(self, name: str, most: int = LARGEST) -> int:
        """Return the value of a field that must be a whole number from 1 to ``most``."""
        value = self.get(name)
        if type(value) is not int or not 0 < value <= most:
            raise Unforeseen
        return value

    def flag(self, name: str) -> bool:
        """Return the value of a field that must be true or false. Without a value or a default it is false."""
        value = self.raw_config.get(name, self.defaults.get(name, False))
        if type(value) is not bool:
            raise Unforeseen
        return value

    def term(self, text: int | str) -> int:
        """Evaluate a term: numbers and fields, multiplied and divided from left to right."""
        value, operator = 1, "*"
        for part in str(text).split():
            if part in ("*", "/"):
                operator = part
                continue
            number = int(part) if part.isdigit() else self.count(part)
            if operator == "/" and value % number:
                raise Unforeseen
            value = value * number if operator == "*" else value // number
        return value


def _sizes(fields: Fields) -> Sizes:
    """Read the sizes, with the checks that transformers would make."""
    hidden, heads, key_value_heads = map(fields.count, ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    experts = fields.row.get("experts")
    chosen = fields.count("num_experts_per_tok") if experts else None
    width = fields.count("head_dim")
    if fields.raw_config.get("head_dim", width) is None or width % 2:  # rotary embeddings rotate pairs
        raise Unforeseen
    if (
        hidden % heads
        or heads % key_value_heads
        or (experts and chosen > fields.count(experts["number"], MOST_EXPERTS))
    ):
        raise Unforeseen
    if "max_position_embeddings" in fields.raw_config:
        fields.count("max_position_embeddings")
    kinds = _kinds(fields, fields.count("num_hidden_layers", MOST_BLOCKS))
    window = fields.get("sliding_window")
    if window is not None:
        window = fields.count("sliding_window")
    if "use_sliding_window" in {*fields.raw_config, *fields.row.get("only", {})} and not fields.flag(
        "use_sliding_window"
    ):
        window = None
    return Sizes(hidden, heads, key_value_heads, width, _windows(window, kinds, len(kinds)), chosen)


def _check_tokens(fields: Fields) -> None:
    """Raise Unforeseen for special tokens with which transformers could not build the embedding."""
    vocabulary = fields.count("vocab_size")
    padding, ends = fields.get("pad_token_id"), fields.get("eos_token_id")
    for token in (padding, fields.get("bos_token_id"), *(ends if isinstance(ends, list) else [ends])):
        if token is not None and (type(token) is not int or token < 0):
            raise Unforeseen
    if padding is not None and padding >= vocabulary:
        raise Unforeseen


def _kinds(fields: Fields, blocks: int) -> list[str]:
    """Return the kind of attention of every block, as in layer_types, for models with a window."""
    kinds = fields.raw_config.get("layer_types")
    if kinds is None and "full_every" in fields.row:
        every = fields.term(fields.row["full_every"])
        return ["sliding_attention" if (block + 1) % every else "full_attention" for block in range(blocks)]
    if kinds is None:
        return ["sliding_attention"] * blocks
    if not isinstance(kinds, list) or len(kinds) != blocks or not all(kind in KINDS for kind in kinds):
        raise Unforeseen
    return kinds


def _anatomy(fields: Fields, family: Family, blocks: int) -> Anatomy:
    """Make the anatomy of a text model. blocks: their number."""
    row, vocabulary = family.sizes, fields.count("vocab_size")
    hidden, tied = fields.count("hidden_size"), fields.flag("tie_word_embeddings")
    biased = {role for name, roles in row["biases"].items() if name == "always" or fields.flag(name) for role in roles}
    inside = [linear for block in range(blocks) for linear in _block(fields, family, block)]
    embedding = make_embedding(family.ends[0], vocabulary, hidden)
    head = make_linear(family.ends[1], ("head",), vocabulary, hidden, None, family)
    parameters = sum(linear.weights + (linear.rows if biased & set(linear.roles) else 0) for linear in inside)
    parameters += blocks * sum(map(fields.term, row["block"])) + sum(map(fields.term, row["model"]))
    parameters += embedding.weights + (0 if tied else head.weights)
    if parameters > PARAMETERS:
        raise Unforeseen
    return Anatomy(family, blocks, (embedding, *inside, head), parameters, tied)


def _block(fields: Fields, family: Family, block: int) -> Iterator[Linear]:
    """Yield the linears of a block, those of the experts last."""
    hidden, width, row = fields.count("hidden_size"), fields.count("intermediate_size"), family.sizes
    queries, keys = (
        fields.count(name) * fields.count("head_dim") for name in ("num_attention_heads", "num_key_value_heads")
    )
    layout, experts = row.get("layout", "linear"), row.get("experts")

    def linear(path: str, roles: tuple[str, ...], width: int) -> Linear:
        outputs = {"q": queries, "k": keys, "v": keys, "o": hidden, "gate": width, "up": width, "down": hidden}
        inputs = {"o": queries, "down": width}
        parts = [role for role in roles if role != "expert"]
        rows, columns = sum(outputs[role] for role in parts), inputs.get(parts[0], hidden)
        return make_linear(f"{family.blocks}.{block}.{path}", roles, rows, columns, block, family, layout)

    for path, roles in family.linears.items():
        if "expert" not in roles and not (experts and {"gate", "up", "down"} & set(roles)):
            yield linear(path, roles, width)
    if experts:
        expert_width = fields.count(experts["width"])
        for number in range(fields.count(experts["number"])):
            for path, roles in family.linears.items():
                if "expert" in roles:
                    yield linear(path.replace("*", str(number)), roles, expert_width)
