"""The structures of ``cpu/engine.h`` for ctypes; their fields are explained there.

``native`` compares their sizes with those of the library.
"""

import ctypes

from jettison.core.errors import UsageError

POINTER, INT, INT64, FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
NARROW, WIDE = ACTIVATION_BITS = (8, 15)  # of activations, in products with packed weights; 15: two int8 numbers


def check_activation_bits(activation_bits: int) -> None:
    """Raise UsageError for a number of bits that the kernels do not support."""
    if activation_bits not in ACTIVATION_BITS:
        raise UsageError(f"activation_bits = {activation_bits!r}: it must be {NARROW} or {WIDE}")


class LinearSpec(ctypes.Structure):
    """A linear layer, packed or dense, with its bias and LoRA adapter."""

    _fields_ = (
        [(name, POINTER) for name in ("tiles", "zero", "bias", "lora_a", "lora_b")]
        + [(name, INT64) for name in ("tiles_bytes", "zero_bytes", "rows", "columns", "span")]
        + [(name, INT) for name in ("bits", "middle", "scale_type", "rank")]
        + [("scaling", FLOAT)]
    )


NORMS = ("attention_norm", "q_norm", "k_norm", "after_attention_norm", "mlp_norm", "after_mlp_norm")
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
EXPERT = ("gate", "up", "down")


class ExpertSpec(ctypes.Structure):
    """The linears of one expert."""

    _fields_ = [(name, LinearSpec) for name in EXPERT]


class LayerSpec(ctypes.Structure):
    """A block: its norms, linears, window and experts."""

    _fields_ = [(name, POINTER) for name in NORMS] + [(name, LinearSpec) for name in LINEARS]
    _fields_ += [("window", INT64), ("rope", INT), ("router", LinearSpec), ("experts", ctypes.POINTER(ExpertSpec))]
    _fields_ += [("expert_count", INT64), ("chosen", INT), ("normalized", INT)]
    _fields_ += [("shared_gate", LinearSpec), ("whole_norms", INT64)]


class ModelSpec(ctypes.Structure):
    """A model: its sizes, embedding, rotary frequencies, head and blocks."""

    _fields_ = [
        *((name, INT64) for name in ("hidden", "heads", "kv_heads", "head_dim", "rotary", "intermediate")),
        *((name, INT64) for name in ("vocabulary", "layers")),
        ("embedding", POINTER), ("table", LinearSpec), ("final_norm", POINTER), ("frequency", POINTER * 2),
        ("head", LinearSpec),
        ("epsilon", FLOAT), ("attention_scale", FLOAT), ("embedding_scale", FLOAT), ("rope_scale", FLOAT * 2),
        ("gelu", INT), ("embedding_type", INT), ("layer", ctypes.POINTER(LayerSpec)),
    ]  # fmt: skip


class RowsSpec(ctypes.Structure):
    """The rows of one call of ``jettison_forward``. fine: 1 if activations have 15 bits."""

    _fields_ = [("count", INT64)]
    _fields_ += [(name, POINTER) for name in ("token", "session", "wanted", "parent", "halves")]
    _fields_ += [("fine", INT), ("threads", INT)]


SPECS = (LinearSpec, ExpertSpec, LayerSpec, ModelSpec, RowsSpec)
