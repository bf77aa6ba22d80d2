"""The native decoder: a loaded model in the C++ decoder (``kernels/cpu/engine.cpp``), one call per batch of tokens.

It supports decoders like llama: RMS norms, rotary positions, gated MLPs. It refuses any other model with the reason;
such a model runs in transformers, with packed linears.
"""

import ctypes
import weakref
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from jettison.core.errors import JettisonError, UsageError
from jettison.graph.modules import Adapted, PackedEmbedding, PackedLinear, QuantizedLinear
from jettison.kernels import native
from jettison.kernels.specs import (
    EXPERT,
    INT,
    INT64,
    POINTER,
    WIDE,
    ExpertSpec,
    LayerSpec,
    LinearSpec,
    ModelSpec,
    RowsSpec,
    check_activation_bits,
)

FAMILIES = (
    "llama",
    "mistral",
    "ministral",
    "qwen2",
    "qwen3",
    "qwen2_moe",
    "qwen3_moe",
    "mixtral",
    "olmoe",
    "phi3",
    "gemma3_text",
)
ROPES = ("default", "linear", "llama3", "yarn")  # types whose frequencies do not depend on the length
CACHES = {"float32": 0, "bfloat16": 1, "int8": 3}  # see Type in cpu/tiles.h
ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1}
FULL = 6  # see Status in cpu/isa.h
AT_ONCE = 512  # rows: kMostAtOnce in cpu/engine.cpp


class Unsupported(JettisonError):
    """The decoder does not support this model; the message says which part of it."""


class NativeDecoder:
    """A model in the C++ decoder. The decoder reads the model's tensors in place, so this object keeps the model alive.

    Raises Unsupported for a model that the decoder does not support.
    """

    def __init__(self, model: nn.Module, stand_ins: Mapping[str, nn.Module] | None = None):
        """model: a causal language model of transformers, on the CPU.

        stand_ins: path of a linear -> module that replaces it (LoRA adapters stay), for a view of the model in fewer
            bits. The view can read and write sessions of the model's own decoder.
        """
        self._kept_alive: list[object] = [model]  # the C++ side holds addresses into these
        originals = {path: model.get_submodule(path) for path in stand_ins or {}}
        originals = {
            path: original.base if isinstance(original, Adapted) else original for path, original in originals.items()
        }
        self._stand_ins = {id(original): stand_ins[path] for path, original in originals.items()}
        config = model.config.get_text_config()
        _require(native.library() is not None, "the CPU kernels are missing")
        _require(config.model_type in FAMILIES, f"{config.model_type} models are not among {', '.join(FAMILIES)}")
        core, head = model.model, model.lm_head
        core = getattr(core, "language_model", core)  # the language half of a multimodal model
        _require(hasattr(core, "layers"), f"the blocks of a {model.config.model_type} model lie elsewhere")
        _require(next(core.parameters()).is_cpu, "it is not on the CPU")
        layers = (LayerSpec * len(core.layers))()
        for layer, block in zip(layers, core.layers, strict=True):
            self._fill(layer, block, config)
        spec, attention = ModelSpec(), core.layers[0].self_attn
        spec.hidden, spec.vocabulary, spec.layers = config.hidden_size, config.vocab_size, len(core.layers)
        spec.heads, spec.kv_heads = config.num_attention_heads, config.num_key_value_heads
        spec.head_dim, spec.intermediate = attention.head_dim, config.intermediate_size
        self._rope(spec, core.rotary_emb, config)
        self._embedding(spec, core.embed_tokens)
        spec.final_norm, spec.head = self._norm(core.norm), self._linear(head)
        spec.epsilon, spec.attention_scale = config.rms_norm_eps, attention.scaling
        activation = getattr(config, "hidden_activation", None) or config.hidden_act
        _require(activation in ACTIVATIONS, f"its activation {activation} is not among {', '.join(ACTIVATIONS)}")
        spec.gelu, spec.layer = ACTIVATIONS[activation], layers
        for name in ("final_logit_softcapping", "attn_logit_softcapping"):
            _require(getattr(config, name, None) is None, f"it has a {name}")
        self.vocabulary, self.limit = config.vocab_size, config.max_position_embeddings
        self.layers = len(core.layers)
        self._library = native.library()
        handle = POINTER()
        status = self._library.jettison_engine_new(ctypes.byref(spec), ctypes.byref(handle))
        native.raise_thrown(status)
        _require(not status, "the sizes of its matrices do not fit its configuration")
        self.handle = handle.value
        weakref.finalize(self, self._library.jettison_engine_free, self.handle)

    def session(self, capacity: int | None = None, cache: str = "bfloat16") -> "Session":
        """Return an empty session.

        capacity: how many tokens it has room for; by default all positions of the model.
        cache: type of keys and values: float32, bfloat16 or int8 (with a scale for every head and position).
        """
        return Session(self, self.limit if capacity is None else capacity, cache)

    def forward(
        self,
        tokens: Sequence[int],
        sessions: Sequence["Session"],
        wanted: Sequence[bool],
        activation_bits: int = 8,
        *,
        parents: Sequence[int] | None = None,
        halves: bytes | None = None,
    ) -> torch.Tensor:
        """Append token i to session i.

        tokens: ids, one per row. Rows of the same session are appended in order.
        sessions: one per row.
        wanted: for every row whether its logits are returned.
        activation_bits: 8 or 15, of activations that are multiplied with packed weights. 15 bits are stored as two int8
            numbers. That costs no time for a few rows, which wait for the weights, and doubles the time of many rows.
        parents: for drafts that branch: for every row the index of the row that it follows, or -1 if it follows the
            tokens that the session already had. See ``Session.keep``. None: every row follows the one before.
        halves: for every block a sum of bits: 1 if its attention runs, 2 if its MLP runs. Attention that does not run
            writes no keys and values. None: everything runs.

        Returns the logits (rows wanted, vocabulary) float32.
        Raises UsageError if a session is full or a token is not in the vocabulary, JettisonError if memory runs out.
        Nothing is appended in these cases.
        """
        check_activation_bits(activation_bits)
        count = len(tokens)
        logits = torch.empty(sum(map(bool, wanted)), self.vocabulary)
        if halves is not None and len(halves) != self.layers:
            raise UsageError(f"halves for {len(halves)} blocks: the model has {self.layers}")
        arrays = [(INT * count)(*tokens), (POINTER * count)(*(session.handle for session in sessions))]
        arrays += [ctypes.create_string_buffer(bytes(map(bool, wanted)), count)]
        arrays += [None if parents is None else (INT64 * count)(*parents)]
        arrays += [None if halves is None else ctypes.create_string_buffer(halves, self.layers)]
        pointers = [None if array is None else ctypes.addressof(array) for array in arrays]
        rows = RowsSpec(count, *pointers, activation_bits == WIDE, torch.get_num_threads())
        status = self._library.jettison_forward(self.handle, ctypes.byref(rows), logits.data_ptr())
        native.raise_thrown(status)
        if status == FULL:
            room = min(session.capacity - session.length for session in sessions)
            raise UsageError(f"{count} more tokens: a session has room for {room}")
        if status:
            raise UsageError(
                f"the tokens {list(tokens)[:8]}...: at least one is needed, each from 0 to {self.vocabulary - 1}"
                + ("" if parents is None else f", and parents must be earlier rows: {list(parents)[:8]}...")
            )
        return logits

    def _embedding(self, spec: ModelSpec, embedding: nn.Module) -> None:
        if isinstance(embedding, PackedEmbedding):  # its rows are those of the packed head
            spec.table, dtype = self._packed(embedding.head, sparse=False), embedding.dtype
        else:
            weight, dtype = embedding.weight, embedding.weight.dtype
            _require(dtype in (torch.float32, torch.bfloat16), f"its embedding is of type {dtype}")
            spec.embedding, spec.embedding_type = self._keep(weight.detach()), int(dtype == torch.bfloat16)
        scale = getattr(embedding, "embed_scale", None)
        spec.embedding_scale = 1.0 if scale is None else float(scale.to(dtype))

    def _fill(self, layer: LayerSpec, block: nn.Module, config) -> None:
        attention, mlp = block.self_attn, block.mlp
        gemma = hasattr(block, "pre_feedforward_layernorm")
        norms = {
            "attention_norm": block.input_layernorm,
            "q_norm": getattr(attention, "q_norm", None),
            "k_norm": getattr(attention, "k_norm", None),
            "after_attention_norm": block.post_attention_layernorm if gemma else None,
            "mlp_norm": block.pre_feedforward_layernorm if gemma else block.post_attention_layernorm,
            "after_mlp_norm": block.post_feedforward_layernorm if gemma else None,
        }
        for name, norm in norms.items():
            setattr(layer, name, None if norm is None else self._norm(norm))
        layer.whole_norms = int(norms["q_norm"] is not None and norms["q_norm"].weight.numel() != attention.head_dim)
        _require(not getattr(config, "clip_qkv", None), "it limits queries, keys and values (clip_qkv)")
        linears = {"o": attention.o_proj}
        if hasattr(attention, "qkv_proj"):
            # phi3: fused projections; without k, v and up, the C++ side splits the outputs of q and gate
            linears |= {"q": attention.qkv_proj, "gate": mlp.gate_up_proj, "down": mlp.down_proj}
        else:
            linears |= {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj}
            if hasattr(mlp, "experts"):
                self._mixture(layer, mlp, config)
            else:
                linears |= {"gate": mlp.gate_proj, "up": mlp.up_proj, "down": mlp.down_proj}
        for name, module in linears.items():
            setattr(layer, name, self._linear(module))
        kinds = getattr(config, "layer_types", None)  # if missing, every block has the window
        sliding = kinds is None or kinds[attention.layer_idx] == "sliding_attention"
        layer.window = sliding * (getattr(config, "sliding_window", None) or 0)
        layer.rope = int(config.model_type == "gemma3_text" and bool(layer.window))

    def _mixture(self, layer: LayerSpec, mlp: nn.Module, config) -> None:
        shared = [mlp.shared_expert] if hasattr(mlp, "shared_expert") else []
        modules = [*mlp.experts, *shared]
        experts = (ExpertSpec * len(modules))()
        for spec, expert in zip(experts, modules, strict=True):
            for name in EXPERT:
                setattr(spec, name, self._linear(getattr(expert, f"{name}_proj")))
        self._kept_alive.append(experts)
        layer.router, layer.experts, layer.expert_count = self._dense(mlp.gate.weight), experts, len(mlp.experts)
        layer.chosen, layer.normalized = config.num_experts_per_tok, bool(getattr(config, "norm_topk_prob", True))
        if shared:
            layer.shared_gate = self._linear(mlp.shared_expert_gate)

    def _rope(self, spec: ModelSpec, rotary: nn.Module, config) -> None:
        rules = config.rope_parameters
        rules = [rules] if "rope_type" in rules else [rules[kind] for kind in ("full_attention", "sliding_attention")]
        prefixes = [""] if len(rules) == 1 else ["full_attention_", "sliding_attention_"]
        for number, (prefix, rule) in enumerate(zip(prefixes, rules, strict=True)):
            _require(rule["rope_type"] in ROPES, f"its positions are of type {rule['rope_type']}")
            frequency = getattr(rotary, f"{prefix}inv_freq", None)
            if frequency is None:  # no block has this kind of attention
                continue
            frequency = frequency.float().contiguous()
            spec.frequency[number], spec.rotary = self._keep(frequency), 2 * len(frequency)
            spec.rope_scale[number] = getattr(rotary, f"{prefix}attention_scaling", 1.0)

    def _norm(self, norm: nn.Module) -> int:
        weight = norm.weight.detach().float()
        # Gemma's norms multiply by 1 + weight
        return self._keep(1.0 + weight if type(norm).__name__.startswith("Gemma") else weight)

    def _linear(self, module: nn.Module) -> LinearSpec:
        module = self._stand_ins.get(id(module), module)
        if isinstance(module, Adapted):
            a, b = module.lora_a.detach().float(), module.lora_b.detach().float().T
            spec = self._linear(module.base)
            spec.lora_a, spec.lora_b, spec.rank, spec.scaling = self._keep(a), self._keep(b), len(a), module.scaling
            return spec
        packed = isinstance(module, QuantizedLinear)
        weight = self._packed(module) if packed else self._dense(module.weight)
        weight.bias = None if module.bias is None else self._keep(module.bias.detach().float())
        return weight

    def _packed(self, module: QuantizedLinear, sparse: bool = True) -> LinearSpec:
        tiled = module.tiled(sparse) if isinstance(module, PackedLinear) else module
        _require(tiled is not None, f"the kernels do not support {module.grid}")
        spec = LinearSpec(rows=tiled.out_features, columns=tiled.in_features)
        spec.tiles, spec.tiles_bytes = self._keep(tiled.tiles), tiled.tiles.nbytes
        if tiled.tile_zero is not None:
            spec.zero, spec.zero_bytes = self._keep(tiled.tile_zero), tiled.tile_zero.nbytes
        _, _, spec.span, spec.bits, spec.middle, spec.scale_type = tiled.tiling.numbers
        return spec

    def _dense(self, weight: torch.Tensor) -> LinearSpec:
        spec, weight = LinearSpec(), weight.detach()
        _require(weight.dtype in (torch.float32, torch.bfloat16), f"a matrix is of type {weight.dtype}")
        spec.rows, spec.columns = weight.shape
        spec.tiles, spec.tiles_bytes, spec.bits = self._keep(weight), weight.nbytes, 8 * weight.itemsize
        return spec

    def _keep(self, tensor: torch.Tensor) -> int:
        """Keep a tensor alive as long as the decoder. Returns its address."""
        tensor = tensor.contiguous()
        self._kept_alive.append(tensor)
        return tensor.data_ptr()


class Session:
    """Keys and values of one sequence in the native decoder.

    Raises UsageError for an unknown type of cache or a capacity that the model has no positions for, JettisonError if
    memory runs out.
    """

    def __init__(self, decoder: NativeDecoder, capacity: int, cache: str):
        if cache not in CACHES:
            raise UsageError(f"cache {cache!r}: it must be one of {', '.join(CACHES)}")
        if not 1 <= capacity <= decoder.limit:
            raise UsageError(f"room for {capacity} tokens: the model has positions for 1 to {decoder.limit}")
        self.decoder, self.capacity, self._library = decoder, capacity, decoder._library
        handle = POINTER()
        if self._library.jettison_session_new(decoder.handle, capacity, CACHES[cache], ctypes.byref(handle)):
            raise JettisonError(f"no memory for the keys and values of {capacity} tokens as {cache}")
        self.handle = handle.value
        weakref.finalize(self, self._library.jettison_session_free, self.handle)

    @property
    def length(self) -> int:
        """Number of tokens in the session."""
        return self._library.jettison_session_length(self.handle)

    def append(self, tokens: Sequence[int], every: bool = False, activation_bits: int = 8, **branches) -> torch.Tensor:
        """Append n tokens to this session; see ``NativeDecoder.forward`` for the options.

        Returns the logits after the last token (1, vocabulary), or with ``every`` after all tokens (n, vocabulary). If
        anything is raised, Ctrl-C included, the session is as before.
        """
        wanted = [every or i == len(tokens) - 1 for i in range(len(tokens))]
        step = len(tokens) if branches.get("parents") or self.length + len(tokens) > self.capacity else AT_ONCE
        parts, before = [], self.length
        # A long prompt goes in parts, as the decoder splits it anyway, so that Ctrl-C takes effect between the calls.
        # Branches and tokens that do not fit go in one call: parents count rows of one call, and the call refuses all.
        try:
            for first in range(0, max(1, len(tokens)), max(1, step)):
                part = slice(first, first + step)
                parts.append(
                    self.decoder.forward(
                        tokens[part], [self] * len(tokens[part]), wanted[part], activation_bits, **branches
                    )
                )
        except BaseException:
            self.cut(before)
            raise
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def cut(self, length: int) -> None:
        """Remove all but the first ``length`` tokens."""
        self._library.jettison_session_cut(self.handle, length)

    def keep(self, length: int, slots: Sequence[int]) -> None:
        """Keep the first ``length`` tokens and, after them, only the tokens at ``slots``.

        slots: positions of at least ``length``, in ascending order: the accepted branch of a verified draft.
        Raises UsageError for other positions.
        """
        status = self._library.jettison_session_keep(
            self.decoder.handle, self.handle, length, (INT64 * len(slots))(*slots), len(slots)
        )
        if status:
            raise UsageError(
                f"slots {list(slots)[:8]} after {length} tokens: they must ascend, from {length} to {self.length - 1}"
            )


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Unsupported(otherwise)
