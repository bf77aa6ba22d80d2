"""The second version of GPTQ's packing: as ``formats.gptq``, with zero points as they are, so that it holds any.

Source: GPTQModel (checkpoint_format ``gptq_v2``). Read, not run.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from jettison.formats import gptq
from jettison.formats.gptq import LIBRARIES, METHODS, SCALE, SECOND, packs, problems, stored

__all__ = ["LIBRARIES", "SCALE", "detects", "packs", "problems", "read_dense", "read_grids", "read_reordered"]
__all__ += ["read_weight", "refuses", "section", "stored", "tensors"]

read_grids, read_weight = partial(gptq.read_grids, shift=0), partial(gptq.read_weight, shift=0)
read_reordered, read_dense = partial(gptq.read_reordered, shift=0), partial(gptq.read_dense, shift=0)
tensors = partial(gptq.tensors, shift=0)
refuses = partial(gptq.refuses, name="gptq-v2", symmetric=False)
section = partial(gptq.section, checkpoint_format=SECOND[0])


def detects(quantization: Mapping[str, Any]) -> bool:
    """Whether a section ``quantization_config`` says that a checkpoint is in the second version of GPTQ's packing."""
    method = quantization.get("quant_method")
    version = quantization.get("checkpoint_format" if method == "gptq" else "packing_format")
    return method in ("gptq", *METHODS) and version in SECOND
