"""A config as transformers reads it, and what is refused of it."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    PretrainedConfig,
)

from jettison.core.errors import UsageError, guarded
from jettison.graph.anatomy import families
from jettison.graph.sizes import MOST_BLOCKS, MOST_EXPERTS

# Fields that the cost of a model follows from, by transformers' common names.
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
POSITIVE = ("num_key_value_heads", "head_dim", "intermediate_size")  # where there are any; one per layer in some models
WHOLE = ("max_position_embeddings", "sliding_window")  # where there are any; some families write -1 or 0 for none
# The largest of each that is read, several times what any model has: what is built of them would take minutes.
LARGEST = {
    r"(n|num|num_hidden|(en|de)coder)_layers?": MOST_BLOCKS,
    r"(n|num)_(\w+_)?experts": MOST_EXPERTS,
    "num_labels": 1_000_000,
}
OF_EXPERTS = ("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size")


def read_config(raw_config: Mapping[str, Any], path: Path | None, where: str) -> PretrainedConfig:
    """The config of a known shape (no path), of a folder or of a file. where: what errors call it.

    Raises UsageError if it cannot be read, or if a field that a cost needs is absurd or missing: transformers would
    fill in a default of the family, which only shows as a wrong plan.
    """
    _check_largest(raw_config, where)
    try:
        with guarded(f"{where} cannot be used"):
            if path is None:
                config = AutoConfig.for_model(**raw_config)
            else:
                config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except UsageError:
        for section in (raw_config, raw_config.get("text_config")):
            if isinstance(section, dict):  # says more than the error, if the reason is one of these
                _check_numbers(section.get, (*NEEDED, *POSITIVE), {}, where)
        raise
    _check(config, raw_config, where)
    config.return_dict = config.get_text_config().return_dict = True  # what runs the model reads named outputs
    return config


def kind_of(config: PretrainedConfig) -> str:
    """The domain of a config: ``vision`` of an image classifier, else ``text``."""
    named = any(str(name).endswith("ForImageClassification") for name in config.architectures or ())
    images = type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    return "vision" if images and (named or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING) else "text"


def _check_largest(values: Mapping[str, Any], where: str) -> None:
    """Looks at the file as it is: some config classes make a list of as many entries as there are layers."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            _check_largest(value, where)
        limit = next((limit for pattern, limit in LARGEST.items() if re.fullmatch(pattern, name)), None)
        if limit and isinstance(value, int | float) and value > limit:
            raise UsageError(f"{where}: {name} = {value:,}; at most {limit:,} are read")


def _check(config: PretrainedConfig, raw_config: Mapping[str, Any], where: str) -> None:
    text = config.get_text_config()
    if not isinstance(text, PretrainedConfig):
        raise UsageError(f"{where}: the section of its text model is {type(text).__name__}; an object is needed")
    value_of = lambda field: getattr(text, field, None)
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        _check_present(config, text, raw_config, where)
    family = families().get(config.model_type)
    if kind_of(config) == "text":  # in image classifiers some of these are one per stage
        fields = (*NEEDED, *POSITIVE, *(OF_EXPERTS if family and family.experts else ()))
        _check_numbers(value_of, fields, text.attribute_map, where)
    if config.dtype is not None and not isinstance(config.dtype, torch.dtype):
        raise UsageError(f"{where}: dtype = {config.dtype!r:.60}; a type of torch such as bfloat16 is needed")
    for field in WHOLE:
        if (value := value_of(field)) is not None and type(value) is not int:
            raise UsageError(f"{where}: {text.attribute_map.get(field, field)} = {value!r}; a whole number is needed")
    heads, shared = value_of("num_attention_heads"), value_of("num_key_value_heads")
    if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
        raise UsageError(
            f"{where}: num_key_value_heads = {shared}; a divisor of num_attention_heads = {heads} is needed"
        )
    if family and family.experts:
        chosen, experts = value_of("num_experts_per_tok"), value_of("num_local_experts") or value_of("num_experts")
        if chosen and experts and chosen > experts:
            raise UsageError(f"{where}: num_experts_per_tok = {chosen}; there are {experts} experts")


def _check_present(config: PretrainedConfig, text: PretrainedConfig, raw_config: Mapping[str, Any], where: str) -> None:
    """Raises UsageError for a needed field that the config leaves out and transformers therefore made up.

    Sections of multimodal configs were written as differences from their class (Gemma 3's, among others), so there
    only width and depth must stand.
    """
    section = next((key for key, value in vars(config).items() if value is text), None)
    given = {*raw_config, *((raw_config.get(section) or {}) if section else ())}
    for field in NEEDED if section is None else NEEDED[:2]:
        name = text.attribute_map.get(field, field)
        if {field, name} & given or not hasattr(text, name):
            continue
        if getattr(text, name) == getattr(type(text), name, None):  # else it was read from an older name of it
            at = f"{section}." if section else ""
            raise UsageError(f"{where}: {at}{name} is missing; a positive whole number is needed")


def _check_numbers(value_of: Callable[[str], Any], fields: Iterable[str], names: Mapping[str, str], where: str) -> None:
    for field in fields:
        value = value_of(field)
        several = field not in NEEDED and isinstance(value, list | tuple)
        for number in value if several else (value,):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                name = names.get(field, field)
                raise UsageError(f"{where}: {name} = {number!r}; a positive whole number is needed")
