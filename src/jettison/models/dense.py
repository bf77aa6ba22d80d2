"""A whole model in memory, in full precision."""

import psutil
import torch
from torch import nn
from transformers import GenerationConfig

from jettison.errors import JettisonError
from jettison.models.folder import ModelFolder
from jettison.progress import waiting

ROOM = 1.1  # buffers and activations beside the weights


def compute_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@waiting("loading the model")
def load_dense(source: ModelFolder, dtype: torch.dtype | None = None) -> nn.Module:
    """The causal language model of a folder, all weights in ``dtype`` (default: the type it is stored in).

    Raises JettisonError if the model is larger than the memory that is free.
    """
    dtype = dtype or stored_dtype(source)
    require_memory(source.anatomy.parameters * dtype.itemsize, f"{source.name} in {str(dtype).removeprefix('torch.')}")
    model = source.new_skeleton()
    source.fill(model, dtype=dtype)
    return with_defaults(model, source, dtype)


def with_defaults(model: nn.Module, source: ModelFolder, dtype: torch.dtype) -> nn.Module:
    """Tell a filled skeleton its type and the folder's own settings for generation."""
    model.config.dtype = dtype
    if (source.folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(source.folder)
    return model


def stored_dtype(source: ModelFolder) -> torch.dtype:
    """The type that most of a checkpoint's config says it has; float32 where it says nothing."""
    name = str(getattr(source.config, "dtype", None) or "float32").removeprefix("torch.")
    return getattr(torch, name)


def require_memory(weights: float, what: str) -> None:
    """Raises JettisonError if ``weights`` bytes and some room do not fit in free memory."""
    free = psutil.virtual_memory().available
    if weights * ROOM > free:
        raise JettisonError(
            f"{what} needs {weights * ROOM / 1e9:.3g} GB of memory at once; {free / 1e9:.3g} GB are free. "
            "Methods that go block by block (quantize with calibration on text) need far less"
        )
