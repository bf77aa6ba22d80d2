"""Read a model's config with transformers, and refuse values that cannot be right."""

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
from jettison.graph.families import families
from jettison.graph.gguf.container import SUFFIX
from jettison.graph.sizes import MOST_BLOCKS, MOST_EXPERTS

# Fields that determine the cost of a model, by transformers' common names.
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
# Optional fields that must be positive; in some models they are lists of one number per layer.
POSITIVE = ("num_key_value_heads", "head_dim", "intermediate_size")
WHOLE = ("max_position_embeddings", "sliding_window")  # optional; some families write -1 or 0 for none
# Name pattern -> the largest value that is accepted, several times what any model has. Larger models would take minutes
# to build.
LARGEST = {
    r"(n|num|num_hidden|(en|de)coder)_layers?": MOST_BLOCKS,
    r"(n|num)_(\w+_)?experts": MOST_EXPERTS,
    "num_labels": 1_000_000,
}
OF_EXPERTS = ("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size")


def read_config(raw_config: Mapping[str, Any], path: Path | None, where: str) -> PretrainedConfig:
    """Read the config of a known shape, a folder or a file.

    path: the folder or file; None for a known shape. A GGUF file has no config.json, so ``raw_config`` is read.
    where: the name of the config in errors.
    Raises UsageError if transformers cannot read it, or if a field that determines the cost is missing or impossible:
    transformers would fill in a default of the family, which would show only as a wrong plan.
    """
    _check_largest(raw_config, where)
    try:
        with guarded(f"{where} cannot be used"):
            if path is None or path.suffix.lower() == SUFFIX:
                config = AutoConfig.for_model(**raw_config)
            else:
                config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except UsageError:
        for section in (raw_config, raw_config.get("text_config")):
            if isinstance(section, dict):  # if a number is the reason, this error is clearer than transformers' own
                _check_numbers(section.get, (*NEEDED, *POSITIVE), {}, where)
        raise
    _check(config, raw_config, where)
    config.return_dict = config.get_text_config().return_dict = True  # callers read the outputs by name
    return config


def kind_of(config: PretrainedConfig) -> str:
    """Return the domain of a config: ``vision`` for an image classifier, else ``text``."""
    named = any(str(name).endswith("ForImageClassification") for name in config.architectures or ())
    images = type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    return "vision" if images and (named or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING) else "text"


def _check_largest(values: Mapping[str, Any], where: str) -> None:
    """Raise UsageError for a field above its limit in ``LARGEST``.

    This checks the raw file, before transformers reads it: some config classes make a list with an entry per layer.
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            _check_largest(value, where)
        limit = next((limit for pattern, limit in LARGEST.items() if re.fullmatch(pattern, name)), None)
        if limit and isinstance(value, int | float) and value > limit:
            raise UsageError(f"{where}: {name} = {value:,}; at most {limit:,} are read")


def _check(config: PretrainedConfig, raw_config: Mapping[str, Any], where: str) -> None:
    """Raise UsageError if a config that transformers could read is missing a field or has an impossible value."""
    text = config.get_text_config()
    if not isinstance(text, PretrainedConfig):
        raise UsageError(f"{where}: the section of its text model is {type(text).__name__}; an object is needed")
    value_of = lambda field: getattr(text, field, None)
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        _check_present(config, text, raw_config, where)
    family = families().get(config.model_type)
    if kind_of(config) == "text":  # image classifiers have some of these fields as lists, one number per stage
        fields = (*NEEDED, *POSITIVE, *(OF_EXPERTS if family and family.experts else ()))
        _check_numbers(value_of, fields, text.attribute_map, where)
    if config.dtype is not None and not isinstance(config.dtype, torch.dtype):
        raise UsageError(f"{where}: dtype = {config.dtype!r:.60}; a type of torch such as bfloat16 is needed")
    for field in WHOLE:
        if (value := value_of(field)) is not None and type(value) is not int:
            raise UsageError(f"{where}: {text.attribute_map.get(field, field)} = {value!r}; a whole number is needed")
    heads, key_value_heads = value_of("num_attention_heads"), value_of("num_key_value_heads")
    if isinstance(heads, int) and isinstance(key_value_heads, int) and heads % key_value_heads:
        raise UsageError(
            f"{where}: num_key_value_heads = {key_value_heads}; a divisor of num_attention_heads = {heads} is needed"
        )
    if family and family.experts:
        chosen, experts = value_of("num_experts_per_tok"), value_of("num_local_experts") or value_of("num_experts")
        if chosen and experts and chosen > experts:
            raise UsageError(f"{where}: num_experts_per_tok = {chosen}; there are {experts} experts")


def _check_present(config: PretrainedConfig, text: PretrainedConfig, raw_config: Mapping[str, Any], where: str) -> None:
    """Raise UsageError for a needed field that the file leaves out, which transformers filled with a default.

    Some multimodal models (Gemma 3 among others) write only the fields of a section that differ from the defaults of
    its class. In a section only width and depth are therefore required.
    """
    section = next((key for key, value in vars(config).items() if value is text), None)
    stated = {*raw_config, *((raw_config.get(section) or {}) if section else ())}
    for field in NEEDED if section is None else NEEDED[:2]:
        name = text.attribute_map.get(field, field)
        if {field, name} & stated or not hasattr(text, name):
            continue
        # A value other than the default was read from an older name of the field.
        if getattr(text, name) == getattr(type(text), name, None):
            at = f"{section}." if section else ""
            raise UsageError(f"{where}: {at}{name} is missing; a positive whole number is needed")


def _check_numbers(value_of: Callable[[str], Any], fields: Iterable[str], names: Mapping[str, str], where: str) -> None:
    """Raise UsageError for a field that is not a positive whole number, or a list of them where one is allowed."""
    for field in fields:
        value = value_of(field)
        several = field not in NEEDED and isinstance(value, list | tuple)
        for number in value if several else (value,):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                name = names.get(field, field)
                raise UsageError(f"{where}: {name} = {number!r}; a positive whole number is needed")
