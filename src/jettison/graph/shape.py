"""What follows from a config alone: skeleton and anatomy, no weights. ``shapes.yaml`` has configs of known models."""

import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PretrainedConfig

from jettison.core.errors import UsageError, guarded
from jettison.graph.anatomy import Anatomy, Family, families, read_anatomy
from jettison.graph.skeleton import build_skeleton, collector_at_rest

# Fields that the cost of a model follows from, by transformers' common names.
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
POSITIVE = ("num_key_value_heads", "head_dim", "intermediate_size")  # where there are any; one per layer in some models
WHOLE = ("max_position_embeddings", "sliding_window")  # where there are any; some families write -1 or 0 for none
# The largest of each that is read, several times what any model has: what is built of them would take minutes.
LARGEST = {r"(n|num|num_hidden|(en|de)coder)_layers?": 1024, r"(n|num)_(\w+_)?experts": 65536, "num_labels": 1_000_000}
OF_EXPERTS = ("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size")


@cache
def shapes() -> dict[str, dict[str, Any]]:
    """The rows of shapes.yaml: name -> hub, license, parameters, config."""
    return yaml.safe_load((files("jettison.graph") / "shapes.yaml").read_text(encoding="utf-8"))


def shape_names() -> list[str]:
    """The known shapes, in the file's order: by family, then by size."""
    return list(shapes())


class ModelShape:
    """A model of which only the config is known: enough to count its weights and its cache, nothing to compress.

    path: the folder or file that holds the config; None for a row of shapes.yaml. Opening it builds nothing yet.
    """

    weights = False  # whether the tensors are there, too

    def __init__(self, name: str, raw_config: Mapping[str, Any], path: Path | None = None):
        self.name, self.raw_config, self.path = name, deepcopy(dict(raw_config)), path

    @classmethod
    def known(cls, name: str) -> "ModelShape":
        """The shape of that name in shapes.yaml."""
        return cls(name, shapes()[name]["config"])

    @property
    def hub(self) -> str:
        """The hub id of a known shape, where its weights are; '' for a model on disk."""
        return shapes()[self.name]["hub"] if self.path is None else ""

    @property
    def license(self) -> str:
        """The licence of a known shape's weights; '' if it is not known."""
        return shapes()[self.name]["license"] if self.path is None else ""

    @property
    def where(self) -> str:
        """What errors call the config."""
        if self.path is None:
            return f"shape {self.name}"
        return str(self.path / "config.json" if self.path.is_dir() else self.path)

    @cached_property
    def config(self) -> PretrainedConfig:
        """As transformers reads it.

        Raises UsageError if it cannot be read, or if a field that a cost needs is absurd or missing: transformers would
        fill in a default of the family, which only shows as a wrong plan.
        """
        self._check_largest(self.raw_config)
        _ = self.quantization
        try:
            with guarded(f"{self.where} cannot be used"):
                if self.path is None:
                    config = AutoConfig.for_model(**self.raw_config)
                else:
                    config = AutoConfig.from_pretrained(self.path, trust_remote_code=False)
        except UsageError:
            for section in (self.raw_config, self.raw_config.get("text_config")):
                if isinstance(section, dict):  # says more than the error, if the reason is one of these
                    self._check_numbers(section.get, (*NEEDED, *POSITIVE), {})
            raise
        self._check(config)
        config.return_dict = config.get_text_config().return_dict = True  # what runs the model reads named outputs
        return config

    def _check_largest(self, values: Mapping[str, Any]) -> None:
        """Looks at the file as it is: some config classes make a list of as many entries as there are layers."""
        for name, value in values.items():
            if isinstance(value, Mapping):
                self._check_largest(value)
            limit = next((limit for pattern, limit in LARGEST.items() if re.fullmatch(pattern, name)), None)
            if limit and isinstance(value, int | float) and value > limit:
                raise UsageError(f"{self.where}: {name} = {value:,}; at most {limit:,} are read")

    def _check(self, config: PretrainedConfig) -> None:
        text = config.get_text_config()
        if not isinstance(text, PretrainedConfig):
            raise UsageError(
                f"{self.where}: the section of its text model is {type(text).__name__}; an object is needed"
            )
        value_of = lambda field: getattr(text, field, None)
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            self._check_present(config, text)
        family = families().get(config.model_type)
        fields = (*NEEDED, *POSITIVE, *(OF_EXPERTS if family and family.experts else ()))
        self._check_numbers(value_of, fields, text.attribute_map)
        if config.dtype is not None and not isinstance(config.dtype, torch.dtype):
            raise UsageError(f"{self.where}: dtype = {config.dtype!r:.60}; a type of torch such as bfloat16 is needed")
        for field in WHOLE:
            if (value := value_of(field)) is not None and type(value) is not int:
                raise UsageError(
                    f"{self.where}: {text.attribute_map.get(field, field)} = {value!r}; a whole number is needed"
                )
        heads, shared = value_of("num_attention_heads"), value_of("num_key_value_heads")
        if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
            raise UsageError(
                f"{self.where}: num_key_value_heads = {shared}; a divisor of num_attention_heads = {heads} is needed"
            )
        if family and family.experts:
            chosen, experts = value_of("num_experts_per_tok"), value_of("num_local_experts") or value_of("num_experts")
            if chosen and experts and chosen > experts:
                raise UsageError(f"{self.where}: num_experts_per_tok = {chosen}; there are {experts} experts")

    def _check_present(self, config: PretrainedConfig, text: PretrainedConfig) -> None:
        """Raises UsageError for a needed field that the config leaves out and transformers therefore made up.

        Sections of multimodal configs were written as differences from their class (Gemma 3's, among others), so there
        only width and depth must stand.
        """
        section = next((key for key, value in vars(config).items() if value is text), None)
        given = {*self.raw_config, *((self.raw_config.get(section) or {}) if section else ())}
        for field in NEEDED if section is None else NEEDED[:2]:
            name = text.attribute_map.get(field, field)
            if {field, name} & given or not hasattr(text, name):
                continue
            if getattr(text, name) == getattr(type(text), name, None):  # else it was read from an older name of it
                at = f"{section}." if section else ""
                raise UsageError(f"{self.where}: {at}{name} is missing; a positive whole number is needed")

    def _check_numbers(self, value_of: Callable[[str], Any], fields: Iterable[str], names: Mapping[str, str]) -> None:
        for field in fields:
            value = value_of(field)
            several = field not in NEEDED and isinstance(value, list | tuple)
            for number in value if several else (value,):
                if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                    name = names.get(field, field)
                    raise UsageError(f"{self.where}: {name} = {number!r}; a positive whole number is needed")

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows: 0 to one less."""
        return self.config.get_text_config().vocab_size

    @property
    def positions(self) -> int | None:
        """How many tokens it sees at once at most; None where the config sets no limit."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    def window(self, length: int) -> int:
        """``length``, or what the model has positions for if that is less: for lengths that nobody asked for."""
        return min(length, self.positions or length)

    def check_window(self, length: int, what: str) -> None:
        """what: how the error calls the length. Raises UsageError if the model does not have so many positions."""
        if length > (self.positions or length):
            raise UsageError(f"{what} = {length} tokens: {self.name} has positions for at most {self.positions}")

    def check_tokens(self, ids: torch.Tensor | Iterable[int], what: str) -> None:
        """what: whose tokens they are, for the error. Raises UsageError for one that the model does not know, such as
        of a tokenizer to which tokens were added without the embedding being resized."""
        ids = torch.as_tensor(ids)
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= self.vocabulary):
            wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise UsageError(f"{what} has token {wrong}: {self.name} has tokens 0 to {self.vocabulary - 1}")

    def shortened(self, blocks: int) -> "ModelShape":
        """The same model cut down to its first blocks (all, if there are no more), to try something on."""
        short = self._opened_again()
        config = short.config.get_text_config()
        config.num_hidden_layers = min(blocks, config.num_hidden_layers)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:blocks]
        return short

    def _opened_again(self) -> "ModelShape":
        return ModelShape(self.name, self.raw_config, self.path)

    @cached_property
    def _built(self) -> tuple[torch.nn.Module, Family]:
        return build_skeleton(self.config)

    @property
    def skeleton(self) -> torch.nn.Module:
        """Shared: for reading only. ``new_skeleton`` makes one to fill."""
        return self._built[0]

    def new_skeleton(self) -> torch.nn.Module:
        return build_skeleton(self.config)[0]

    @cached_property
    def anatomy(self) -> Anatomy:
        with collector_at_rest():
            return read_anatomy(*self._built)

    @property
    def quantization(self) -> dict | None:
        """``quantization_config`` of config.json, if the weights are already quantized. Raises UsageError if it is no
        object."""
        found = self.raw_config.get("quantization_config")
        if found is not None and not isinstance(found, dict):
            raise UsageError(f"{self.where}: quantization_config is {type(found).__name__}; an object is needed")
        return found
