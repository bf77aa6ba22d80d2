"""auto-round checkpoints with matrices in GPTQ's packing: the only format with 2 and 4 bits in one model that both vLLM
and SGLang accept.

- Tensors are those of ``formats.gptq``, without ``g_idx``. Written: 2, 3, 4 and 8 bits, symmetric.
- The config states the grid of most weights, for the linears of ``block_name_to_quantize``. ``extra_config`` lists
  every other linear by its whole name: with its grid, or with 16 bits if it is dense. vLLM searches a pattern in a name
  and SGLang matches it with the whole name, so no patterns are written. Both ask for the parts of a fused matrix one by
  one, and want the same grid for all.

Source: vLLM, quantization/inc/config_parser.py and inc.py; SGLang, layers/quantization/auto_round.py; both read.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jettison.encodings.grid import Grid
from jettison.formats import gptq, transposed
from jettison.formats.gptq import (
    FIRST,
    LIBRARIES,
    METHODS,
    SCALE,
    packs,
    read_dense,
    read_grids,
    read_reordered,
    read_weight,
    stored,
)
from jettison.graph.anatomy import Anatomy, Linear

__all__ = ["LIBRARIES", "SCALE", "detects", "packs", "problems", "read_dense", "read_grids", "read_reordered"]
__all__ += ["read_weight", "refuses", "section", "stored", "tensors"]

DENSE = {"bits": 16, "data_type": "float"}
tensors = partial(gptq.tensors, order=False)
refuses = partial(gptq.refuses, name="auto-round")


def detects(quantization: Mapping[str, Any]) -> bool:
    """Whether a section ``quantization_config`` says that a checkpoint is auto-round's, in GPTQ's first packing."""
    return quantization.get("quant_method") in METHODS and quantization.get("packing_format", FIRST[0]) in FIRST


def section(
    anatomy: Anatomy, grids: Mapping[str, Grid], dense: Sequence[str] = (), extra: Sequence[Linear] = ()
) -> dict[str, Any]:
    """Return ``quantization_config`` for config.json.

    grids: linear name -> grid of the packed linears.
    dense, extra: matrices of blocks that the model does not have: dense ones, and packed ones.
    """
    main, head = transposed.main_grid(anatomy, grids, extra), anatomy.head
    others = {
        linear.name: transposed.described(grids[linear.name]) | {"data_type": "int"}
        for linear in (*anatomy, *extra)
        if linear.name in grids and (linear.block is None or grids[linear.name] != main)
    }
    inside = [name for name in transposed.left_dense(anatomy, grids, dense) if head is None or name != head.name]
    return {
        "quant_method": METHODS[0],
        **transposed.described(main),
        "data_type": "int",
        "packing_format": FIRST[0],
        "block_name_to_quantize": ",".join(anatomy.family.blocks.split()),
        "extra_config": others | dict.fromkeys(inside, DENSE),
    }


def problems(anatomy: Anatomy, grids: Mapping[str, Grid]) -> list[str]:
    """List the reasons why transformers cannot load this checkpoint, as sentences. Empty for most models."""
    return transposed.problems("auto-round", anatomy, grids, one_grid=False)
