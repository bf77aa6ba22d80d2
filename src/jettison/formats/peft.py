"""Reads and writes LoRA adapters in PEFT's folder: ``adapter_config.json`` and ``adapter_model.safetensors``.

An adapter is read by PEFT's own rules, or refused.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from jettison.core.documents import read_json
from jettison.core.errors import JettisonError
from jettison.core.files import digest, file_digest, write_json
from jettison.core.tensors import write_tensors
from jettison.formats.manifest import NAME, read_manifest
from jettison.graph.checkpoint import Checkpoint
from jettison.graph.modules import Adapted

FOLDER = "adapter"
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
LORA_TENSOR = re.compile(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight")
BASE = "jettison_base"  # metadata key: the hash of the weights that the adapter was trained for

# Fields that PEFT's rules for scaling, and for the choice of modules, use.
SCALE = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
WHERE = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
# Fields that have no effect once an adapter is trained. lora_dropout is for training; fan_in_fan_out says how the base
# lies in memory, which A and B do not depend on; the others configure the initial values, or merging.
INERT = {
    "peft_type",
    "task_type",
    "inference_mode",
    "base_model_name_or_path",
    "revision",
    "auto_mapping",
    "peft_version",
}
INERT |= {"lora_dropout", "fan_in_fan_out", "megatron_core", "loftq_config", "eva_config", "corda_config"}
INERT |= {"lora_ga_config", "qalora_group_size", "ensure_weight_tying", "runtime_config"}
STARTS = (True, False, "gaussian", "eva", "orthogonal")  # other values of init_lora_weights also change the base


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], rank: int, alpha: float, names: list[str]) -> None:
    """Write ``folder``/adapter for the weights that the folder holds now, and record the hash of these weights.

    tensors: ``<module>.lora_a`` (rank, in) and ``<module>.lora_b`` (out, rank).
    names: all linears of the model.
    """
    adapted = sorted({name.rpartition(".")[0] for name in tensors})
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=_targets(adapted, names), task_type="CAUSAL_LM", inference_mode=True
    )
    described = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    renamed = {
        f"{PREFIX}{name.rpartition('.')[0]}.{'lora_A' if name.endswith('a') else 'lora_B'}.weight": value.bfloat16()
        for name, value in tensors.items()
    }
    write_tensors(folder / FOLDER / TENSORS, renamed, {"format": "pt", BASE: base_hash(folder)})
    write_json(folder / FOLDER / CONFIG, described)


def base_hash(folder: Path) -> str:
    """Return a hash of the weights of a folder, made from the hashes of its shards.

    jettison.json records the hashes of the shards; without it they are computed.
    """
    hashes = read_manifest(folder).get("hashes") if (folder / NAME).exists() else None
    if not isinstance(hashes, dict):
        hashes = {file.name: file_digest(file) for file in folder.glob("model*.safetensors")}
    return digest(hashes)


def _targets(adapted: list[str], names: list[str]) -> list[str]:
    """Last parts of names, such as gate_proj, if these select exactly the adapted modules; else whole names."""
    last = lambda name: name.rpartition(".")[2]
    total, chosen = Counter(map(last, names)), Counter(map(last, adapted))
    return sorted(chosen) if all(total[part] == chosen[part] for part in chosen) else adapted


class LoRA(NamedTuple):
    """The LoRA adapter of one module, whose output it adds scaling · b(a(x)) to.

    a: (rank, in). b: (out, rank), both as stored. rank: the one that the config states for the module.
    """

    name: str
    a: torch.Tensor
    b: torch.Tensor
    rank: int
    scaling: float


def read_adapters(folder: Path, modules: Collection[str]) -> Iterator[LoRA]:
    """Yield the LoRA adapters of ``folder``/adapter.

    modules: the names of the model's modules.
    PEFT's rules apply for scaling (rsLoRA, rank and alpha patterns) and for the choice of modules.
    Raises JettisonError, which names the field or the tensor, for an adapter that uses other features of PEFT, is for
    another module, or records another base.
    """
    path = folder / FOLDER
    tensors, config = Checkpoint(path, [path / TENSORS]), _read_config(path / CONFIG)
    recorded = tensors.metadata.get(BASE)
    if recorded is not None and recorded != (current := base_hash(folder)):
        raise JettisonError(
            f"{path} was trained for other weights ({recorded}) than {folder} holds ({current}): "
            "recover that folder again, or load it without its adapter"
        )
    for name in _adapted_modules(tensors, path / TENSORS):
        if name not in modules:
            raise JettisonError(f"{path} is for a module {name}, which the model does not have")
        a, b = (tensors.read(f"{PREFIX}{name}.lora_{part}.weight") for part in "AB")
        try:
            rank, scaling = _scaling(config, name)
            targeted = config.target_modules in (None, "all-linear") or check_target_module_exists(config, name)
        except (re.error, TypeError) as error:
            raise JettisonError(f"{path / CONFIG} has a pattern that cannot be read: {error}") from error
        if not targeted:
            raise JettisonError(f"{path} has tensors for {name}, which target_modules of its {CONFIG} leaves out")
        yield LoRA(name, a, b, rank, scaling)


def attach_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """Attach the LoRA adapters of ``folder``/adapter to the linears that they were trained for.

    Returns the model, which is changed in place.
    Raises JettisonError as ``read_adapters`` does, and for an adapter that does not fit the model.
    """
    modules = {name for name, _ in model.named_modules()}
    for name, a, b, rank, scaling in read_adapters(folder, modules):
        base = model.get_submodule(name)
        _check_fit(folder / FOLDER, name, base, rank, a, b)
        model.set_submodule(name, Adapted(base, a, b, scaling))
    return model


def copy_adapter(folder: Path, out: Path) -> None:
    """Copy ``folder``/adapter into ``out``, and record the hash of the weights that ``out`` holds."""
    path = folder / FOLDER
    tensors = Checkpoint(path, [path / TENSORS])
    write_json(out / FOLDER / CONFIG, read_json(path / CONFIG))
    copied = {name: tensors.read(name) for name in tensors}
    write_tensors(out / FOLDER / TENSORS, copied, {"format": "pt", BASE: base_hash(out)})


def _read_config(file: Path) -> LoraConfig:
    """Read the config of a plain LoRA adapter. Raises JettisonError, which names the field, for any other."""
    values, plain = read_json(file), LoraConfig()
    if values.get("peft_type") != "LORA":
        raise JettisonError(f"{file}: peft_type = {values.get('peft_type')!r}: only LORA can be applied")
    start = values.get("init_lora_weights", True)
    if not any(start is known or start == known for known in STARTS):
        raise JettisonError(f"{file}: init_lora_weights = {start!r} changes the base: save it with PEFT as plain LoRA")
    for name, value in values.items():
        known = name in SCALE | WHERE | INERT or name == "init_lora_weights"
        if value and not known and value != getattr(plain, name, None):
            raise JettisonError(
                f"{file}: {name} = {value!r} cannot be applied: merge the adapter with PEFT, or load without it"
            )
    try:
        config = LoraConfig(**{name: values[name] for name in sorted(SCALE | WHERE) if name in values})
    except Exception as error:  # the checks of PEFT raise exceptions of any class
        raise JettisonError(f"{file} cannot be used: {' '.join(str(error).split())}") from error
    whole = lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0
    number = lambda value: isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    _check_numbers(file, "r", config.r, config.rank_pattern, whole, "a positive whole number")
    _check_numbers(file, "lora_alpha", config.lora_alpha, config.alpha_pattern, number, "a number")
    return config


def _check_numbers(file: Path, name: str, value: Any, pattern: Any, is_valid, valid: str) -> None:
    kind = {"r": "rank_pattern"}.get(name, "alpha_pattern")
    if not isinstance(pattern or {}, dict):
        raise JettisonError(f"{file}: {kind} = {pattern!r}: it must map names to numbers")
    for field, number in ((name, value), *((f"{kind}[{key!r}]", entry) for key, entry in (pattern or {}).items())):
        if not is_valid(number):
            raise JettisonError(f"{file}: {field} = {number!r}: it must be {valid}")


def _scaling(config: LoraConfig, name: str) -> tuple[int, float]:
    """The rank of a module's LoRA adapter, and the factor of its output."""
    rank = _by_pattern(config.rank_pattern or {}, name, config.r)
    alpha = _by_pattern(config.alpha_pattern or {}, name, config.lora_alpha)
    return rank, alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _by_pattern(patterns: dict[str, Any], name: str, default: Any) -> Any:
    """The value of the first pattern that matches whole last parts of the name, as in PEFT's get_pattern_key."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _adapted_modules(tensors: Checkpoint, file: Path) -> list[str]:
    """The modules that have a LoRA adapter. Raises JettisonError for other tensors, and if A or B is missing."""
    parts: dict[str, set[str]] = defaultdict(set)
    for stored in tensors:
        if not (match := LORA_TENSOR.fullmatch(stored)):
            raise JettisonError(f"{file} has a tensor {stored}, which is no part of a LoRA adapter of a linear")
        parts[match[1]].add(match[2])
    for name, halves in parts.items():
        if halves != {"A", "B"}:
            raise JettisonError(f"{file} has lora_{min(halves)} of {name} without the other half of its LoRA adapter")
    if not parts:
        raise JettisonError(f"{file} has no tensors")
    return list(parts)


def _check_fit(path: Path, name: str, base: nn.Module, rank: int, a: torch.Tensor, b: torch.Tensor) -> None:
    if hasattr(base, "in_features"):
        rows, columns = base.out_features, base.in_features
    elif hasattr(base, "nf"):  # Conv1D of transformers
        rows, columns = base.nf, base.nx
    else:
        raise JettisonError(f"{path} is for {name}, which is a {type(base).__name__} and not a linear")
    if tuple(a.shape) != (rank, columns) or tuple(b.shape) != (rows, rank):
        raise JettisonError(
            f"{path}: {name} has {rows} rows, {columns} columns and, by {CONFIG}, a LoRA adapter of rank {rank}: "
            f"lora_A must be {(rank, columns)} and lora_B {(rows, rank)}, not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    for part, tensor in (("lora_A", a), ("lora_B", b)):
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise JettisonError(f"{path}: {part} of {name} has values that are not finite numbers")


def adapted_names(folder: Path) -> set[str]:
    """Return the names of the modules that have a LoRA adapter in ``folder``/adapter."""
    file = folder / FOLDER / TENSORS
    return {match[1] for name in Checkpoint(file.parent, [file]) if (match := LORA_TENSOR.fullmatch(name))}


def adapter_bytes(folder: Path) -> int:
    """Return the bytes of the tensors of ``folder``/adapter, 0 if there is none."""
    file = folder / FOLDER / TENSORS
    return Checkpoint(folder / FOLDER, [file]).tensor_bytes if file.exists() else 0
