"""Writes the LoRA adapter of a folder as a GGUF adapter, which llama.cpp loads beside a model (--lora).

Every matrix of the model that has an adapter gets two tensors, NAME.lora_a (rank, in) and NAME.lora_b (out, rank). What
they add is scaled by alpha / rank, with one alpha for the whole file. PEFT may have another scaling for each module
(rsLoRA, patterns); b is then multiplied by what is missing. Experts without an adapter get zeros.

Source: convert_lora_to_gguf.py and llama-adapter.cpp of llama.cpp (2026-11).
"""

from pathlib import Path

import numpy as np
import torch

from jettison.core.errors import JettisonError
from jettison.core.files import write_atomic
from jettison.formats.gguf_writer import add_info, begin, in_file_order, open_writer
from jettison.formats.peft import LoRA, read_adapters
from jettison.graph.folder import ModelFolder
from jettison.graph.gguf.outline import FileTensor, Outline


def write_adapter_file(source: ModelFolder, draft: Outline, path: Path) -> None:
    """Write the LoRA adapter of a folder as a GGUF file, float32.

    draft: of the model's file, which says how its tensors are called and ordered.
    Raises JettisonError for an adapter that cannot be read, or is for a module that the file does not hold.
    """
    weights = [part for part in draft.parts if part.part == "weight"]
    modules = {name for part in weights for name in part.modules}
    adapters = {adapter.name: adapter for adapter in read_adapters(source.folder, modules)}
    first = next(iter(adapters.values()))
    alpha = first.scaling * first.rank or 1.0  # llama.cpp does not scale with 0
    adapted = [part for part in weights if adapters.keys() & set(part.modules)]
    tensors = {
        f"{part.name}.lora_{half}": value
        for part in adapted
        for half, value in zip("ab", _pair(part, adapters, alpha), strict=True)
    }
    architecture = draft.architecture.key
    metadata = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": float(alpha)}
    metadata["general.name"] = draft.metadata["general.name"]

    def write(temporary: Path) -> None:
        writer = open_writer(temporary, architecture, metadata)
        try:
            for name, value in tensors.items():
                add_info(writer, name, tuple(value.shape), "F32")
            begin(writer)
            for value in tensors.values():
                writer.write_tensor_data(np.ascontiguousarray(value.numpy()))
        finally:
            writer.close()

    write_atomic(path, write)


def _pair(part: FileTensor, adapters: dict[str, LoRA], alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a and b of a tensor of the file, (rank, in) and (out, rank), or of all its experts, stacked."""
    rows, columns = part.shape[-2:]
    rank = max(adapters[name].rank for name in part.modules if name in adapters)
    a, b = torch.zeros(len(part.modules), rank, columns), torch.zeros(len(part.modules), rows, rank)
    for number, name in enumerate(part.modules):
        if (one := adapters.get(name)) is not None:  # experts of a smaller rank are filled up with zeros
            if tuple(one.a.shape) != (one.rank, columns) or tuple(one.b.shape) != (rows, one.rank):
                raise JettisonError(
                    f"the LoRA adapter of {name} has shapes {tuple(one.a.shape)} and {tuple(one.b.shape)}; "
                    f"{(one.rank, columns)} and {(rows, one.rank)} are needed"
                )
            a[number, : one.rank] = one.a.float()
            b[number, :, : one.rank] = in_file_order(one.b.float() * (one.scaling * rank / alpha), part)
    return (a, b) if part.stacked else (a[0], b[0])
