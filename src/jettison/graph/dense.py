"""Load a whole model into memory in full precision."""

from collections import Counter

import psutil
import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from jettison.core.documents import read_json
from jettison.core.errors import JettisonError, UsageError, guarded
from jettison.core.numbers import figures
from jettison.core.progress import waiting
from jettison.graph.folder import FULL_PRECISION, ModelFolder

ROOM = 1.1  # factor on the size of the weights: buffers and activations take memory, too


def compute_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@waiting("loading the model")
def load_dense(source: ModelFolder, dtype: torch.dtype | None = None) -> nn.Module:
    """Load the model of a folder, with all weights in ``dtype`` (default: the type they are stored in).

    Raises JettisonError if the model is larger than the free memory.
    """
    dtype = dtype or stored_dtype(source)
    require_memory(source.anatomy.parameters * dtype.itemsize, f"{source.name} in {str(dtype).removeprefix('torch.')}")
    model = source.new_skeleton()
    source.fill(model, dtype=dtype)
    return with_defaults(model, source, dtype)


def with_defaults(model: nn.Module, source: ModelFolder, dtype: torch.dtype) -> nn.Module:
    """Set the type of a filled skeleton, and the folder's own settings for generation. Returns the model.

    Raises UsageError if these settings cannot be read or eos_token_id is not a whole number or several.
    """
    if not isinstance(model, PreTrainedModel):
        return model
    model.config.dtype = dtype
    file = source.companions / "generation_config.json"
    if not model.can_generate():
        return model
    if file.exists():
        values = read_json(file)
        with guarded(f"{file} cannot be used"):
            model.generation_config = GenerationConfig.from_dict(values)
    for ends in (model.generation_config.eos_token_id, model.config.get_text_config().eos_token_id):
        if any(type(end) is not int for end in (ends if isinstance(ends, list) else [ends])) and ends is not None:
            raise UsageError(f"{source.folder}: eos_token_id = {ends!r:.60}; a whole number or several are needed")
    return model


def stored_dtype(source: ModelFolder) -> torch.dtype:
    """Return the type that the config states for the weights, float32 if it states none.

    Raises UsageError for a type that is not in ``FULL_PRECISION``.
    """
    stated = getattr(source.config, "dtype", None) or (_usual_dtype(source) if source.layout.part else "float32")
    name = str(stated).removeprefix("torch.")
    known = {kind: getattr(torch, kind) for kind in FULL_PRECISION}
    if name not in known:
        raise UsageError(f"{source.where}: dtype = {name!r:.60}; valid: {', '.join(known)}")
    return known[name]


def _usual_dtype(source: ModelFolder) -> str:
    """Return the type of most full-precision tensors. Configs of diffusers state none."""
    kinds = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
    counts = Counter(kind for name in source.checkpoint if (kind := source.checkpoint.dtype(name)) in kinds)
    return kinds[counts.most_common(1)[0][0]] if counts else "float32"


def require_memory(weights: float, what: str) -> None:
    """Raise JettisonError if ``weights`` bytes, times ``ROOM``, exceed the free memory. what: the name in the error."""
    free = psutil.virtual_memory().available
    if weights * ROOM > free:
        raise JettisonError(
            f"{what} needs {figures(weights * ROOM / 1e9)} GB of memory at once; {figures(free / 1e9)} GB are free. "
            "Methods that go block by block (quantize with calibration on text) need far less"
        )


def training_dtype() -> torch.dtype:
    """Return the type in which the teacher is loaded: bfloat16 where the device is fast at it, else float32."""
    return torch.bfloat16 if has_fast_bfloat16(compute_device()) else torch.float32


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether this device multiplies bfloat16 natively; on other CPUs bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
