"""Anatomy and sizes computed from a config's numbers equal those of transformers' class, or there is no answer."""

import json

import pytest
import tiny as maker

from jettison.core.errors import UsageError
from jettison.graph.families import families
from jettison.graph.folder import ModelFolder
from jettison.graph.shape import ModelShape, shape_names, shapes
from jettison.graph.sizes import read_sizes

ROWS = [name for name, family in families().items() if family.sizes]
CHANGES = [
    {"attention_bias": True}, {"mlp_bias": True}, {"enable_bias": False}, {"tie_word_embeddings": True},
    {"tie_word_embeddings": False}, {"use_sliding_window": False}, {"use_sliding_window": True},
    {"sliding_window": None}, {"sliding_window": 16}, {"layer_types": ["full_attention", "sliding_attention"]},
    {"layer_types": ["full_attention"]},
    {"sliding_window_pattern": 2}, {"use_bidirectional_attention": True}, {"head_dim": None}, {"head_dim": 32},
    {"head_dim": 7}, {"num_key_value_heads": None}, {"num_key_value_heads": 1}, {"num_key_value_heads": 3},
    {"intermediate_size": 128}, {"n_inner": None}, {"n_inner": 128}, {"ffn_dim": 128}, {"word_embed_proj_dim": 32},
    {"do_layer_norm_before": False}, {"layer_norm_elementwise_affine": False}, {"add_cross_attention": True},
    {"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}, {"num_experts": 8}, {"num_local_experts": 8},
    {"pad_token_id": 4096}, {"eos_token_id": [1, 2]}, {"hidden_size": "64"}, {"num_hidden_layers": True},
    {"vocab_size": 0}, {"max_position_embeddings": None}, {"dtype": "bfloat16"}, {"hidden_act": "none"},
]  # fmt: skip


def of_transformers(config):
    """Return anatomy and sizes from the skeleton; None if transformers refuses the config."""
    shape = ModelShape("mine", config)
    shape._read = None
    try:
        return shape.anatomy, shape.sizes
    except UsageError:
        return None


def config_of(family):
    """Return the config of a tiny model."""
    fields = maker.CONFIGS.get(family, maker.COMMON)
    return json.loads(json.dumps({"model_type": family} | fields))


@pytest.mark.parametrize("name", shape_names())
def test_known_shapes(name):
    config = shapes()[name]["config"]
    assert read_sizes(config) == of_transformers(config)


@pytest.mark.parametrize("family", ROWS)
def test_every_family(family):
    """With every field left out in turn, and with changes that matter to some family, results agree or are None."""
    config = config_of(family)
    assert read_sizes(config) == of_transformers(config) != None  # noqa: E711 (both, and not None)
    changed = [
        {name: config[name] for name in config if name != omitted} for omitted in config if omitted != "model_type"
    ]
    for variant in [*changed, *(config | change for change in CHANGES)]:
        sizes = read_sizes(variant)
        assert sizes is None or sizes == of_transformers(variant), set(variant.items() ^ config.items())


@pytest.mark.parametrize("family", ["gpt2", "gpt_oss", "qwen3"])
def test_a_folder(tiny, family):
    source = ModelFolder(tiny(family))
    assert source._read == (source.anatomy, source.sizes) == of_transformers(source.raw_config)


@pytest.mark.parametrize(
    "change",
    [
        {"quantization_config": {"quant_method": "awq"}},
        {"text_config": {}},
        {"model_type": ["llama"]},
        {"layer_types": [["full_attention"]] * 2},
        {"layer_types": [{}, None]},
    ],
)
def test_transformers_is_asked_about_what_is_unusual(change):
    assert read_sizes(config_of("llama") | change) is None


def test_a_model_cut_short_is_not_the_config_of_the_whole(tiny):
    source = ModelFolder(tiny("llama"))
    assert source.anatomy.blocks == 2 and source.shortened(1).anatomy.blocks == 1
