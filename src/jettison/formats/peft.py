"""PEFT's folder: ``adapter_config.json`` and ``adapter_model.safetensors``."""

import re
from collections import Counter
from pathlib import Path

import torch
from peft import LoraConfig
from torch import nn

from jettison.documents import read_json
from jettison.errors import JettisonError
from jettison.files import write_json, write_tensors
from jettison.models.checkpoint import Checkpoint
from jettison.models.modules import Adapted

FOLDER = "adapter"
PREFIX = "base_model.model."


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], rank: int, alpha: float, names: list[str]) -> None:
    """tensors: ``<module>.lora_a`` (rank, in) and ``<module>.lora_b`` (out, rank). names: all linears of the model."""
    adapted = sorted({name.rpartition(".")[0] for name in tensors})
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=_targets(adapted, names), task_type="CAUSAL_LM", inference_mode=True
    )
    described = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    renamed = {
        f"{PREFIX}{name.rpartition('.')[0]}.{'lora_A' if name.endswith('a') else 'lora_B'}.weight": value.bfloat16()
        for name, value in tensors.items()
    }
    write_tensors(folder / FOLDER / "adapter_model.safetensors", renamed)
    write_json(folder / FOLDER / "adapter_config.json", described)


def _targets(adapted: list[str], names: list[str]) -> list[str]:
    """Last parts of names, such as gate_proj, where those say exactly which modules are meant; else whole names."""
    last = lambda name: name.rpartition(".")[2]
    total, found = Counter(map(last, names)), Counter(map(last, adapted))
    return sorted(found) if all(total[part] == found[part] for part in found) else adapted


def attach_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """Put the side paths of ``folder``/adapter beside the linears they were trained for.

    Raises JettisonError if they do not fit the model.
    """
    config = read_json(folder / FOLDER / "adapter_config.json")
    tensors = Checkpoint(folder / FOLDER, [folder / FOLDER / "adapter_model.safetensors"])
    scaling = config["lora_alpha"] / config["r"]
    for stored in tensors:
        found = re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_A\.weight", stored)
        if not found:
            continue
        name = found[1]
        a, b = tensors.read(stored), tensors.read(stored.replace("lora_A", "lora_B"))
        try:
            base = model.get_submodule(name)
        except AttributeError:
            raise JettisonError(f"{folder}/adapter is for a module {name}, which the model does not have") from None
        model.set_submodule(name, Adapted(base, a, b, scaling))
    return model


def adapted_names(folder: Path) -> set[str]:
    """The modules that have a side path."""
    file = folder / FOLDER / "adapter_model.safetensors"
    found = re.compile(re.escape(PREFIX) + r"(.+)\.lora_A\.weight")
    return {match[1] for name in Checkpoint(file.parent, [file]) if (match := found.fullmatch(name))}


def adapter_bytes(folder: Path) -> int:
    file = folder / FOLDER / "adapter_model.safetensors"
    return Checkpoint(folder / FOLDER, [file]).tensor_bytes if file.exists() else 0
