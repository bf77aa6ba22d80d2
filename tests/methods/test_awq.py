"""AWQ: its scalings preserve the function, and recover what outlier channels cost."""

import pytest
import torch
from killing import check_kills
from tiny import change

from jettison import compress, evaluate, load
from jettison.core.errors import UsageError
from jettison.encodings.uniform import UniformGrid
from jettison.graph.dense import load_dense
from jettison.graph.edits import BlockView, Scale, find_folds
from jettison.graph.families import families
from jettison.graph.folder import ModelFolder
from jettison.methods.quantize.awq import awq
from jettison.statistics.stats import Stats

FOLDED = {"llama": 4, "qwen3": 4, "qwen2": 4, "gemma3_text": 4, "phi3": 2, "gpt2": 2, "opt": 1, "qwen3_moe": 2}
FOLDED |= {"olmo2": 2, "gemma": 4}
ROLES = ["q", "k", "v", "o", "gate", "up", "down"]
IDS = torch.arange(64).view(2, 32) * 31 % 4096


def scalings(source, block):
    """Return folds and AWQ's edits of a block, for inputs whose channels differ by a factor of 100."""
    linears = source.anatomy.of_block(block)
    claimed = [linear for linear in linears if "expert" not in linear.roles and "router" not in linear.roles]
    config = source.config
    heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    path = source.anatomy.path(block)
    folds = list(find_folds(source.anatomy.family, path, linears, claimed, source.has, heads))
    read = lambda linear: source.read_weight(linear.name, linear.layout)
    rng = torch.Generator().manual_seed(block)
    stats = {}
    for linear in claimed:
        x = torch.randn(64, linear.columns, generator=rng) * torch.logspace(-1, 1, linear.columns)
        inputs_stats = Stats.empty(linear.columns, absmean=True)
        inputs_stats.add(x)
        stats.setdefault(linear.inputs, inputs_stats)
    grids = {linear: UniformGrid(3, -1) for linear in claimed}
    return folds, awq(BlockView(claimed, folds, read, source.read), grids, stats)


def test_every_row_with_folds_is_tried(tiny):
    """FOLDED has a family for every distinct set of folds in families.yaml.

    Families that share their folds with one of FOLDED are not repeated.
    """
    tried = {row: ModelFolder(tiny(row)).anatomy.family for row in FOLDED}
    key = lambda family: (family.folds, family.linears, family.norm_offset)
    text = {name: family for name, family in families().items() if family.folds and family.domain == "text"}
    untested = {name for name, family in text.items() if key(family) not in [key(other) for other in tried.values()]}
    assert not untested, "add the new family to FOLDED"


@pytest.mark.parametrize("family", FOLDED)
def test_scalings_alone_preserve_the_function(tiny, family):
    source = ModelFolder(tiny(family))
    model = load_dense(source, torch.float32).eval()
    layouts = {f"{linear.name}.weight": linear.layout for linear in source.anatomy}
    with torch.no_grad():
        before = model(IDS).logits
        for block in range(source.anatomy.blocks):
            folds, edits = scalings(source, block)
            assert len(folds) == FOLDED[family]
            largest = 0.0
            for edit in edits:
                if isinstance(edit, Scale):
                    value = model.get_parameter(edit.name)
                    transposed = layouts.get(edit.name) == "conv1d"
                    value.data = edit.of(value.data.T).T if transposed else edit.of(value.data)
                    largest = max(largest, float(edit.factor.max()))
            assert largest > 1.1, "nothing was scaled"
        after = model(IDS).logits
    assert float((after - before).abs().max() / before.abs().max()) < 1e-4


@pytest.fixture(scope="module")
def outliers(tiny, tmp_path_factory):
    """Return a model whose norms make three channels 40 times larger; the linears divide by 40 again."""
    import shutil

    folder = shutil.copytree(tiny("llama"), tmp_path_factory.mktemp("outliers") / "m")
    factor = torch.ones(64)
    factor[[3, 17, 40]] = 40.0
    changes = {}
    for block in range(2):
        stem = f"model.layers.{block}"
        for norm, readers in (
            ("input_layernorm", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"]),
        ):
            changes[f"{stem}.{norm}.weight"] = lambda value: value * factor
            for reader in readers:
                changes[f"{stem}.{reader}.weight"] = lambda value: value / factor
    change(folder, **changes)
    return folder


def test_outlier_channels_are_recovered(outliers, tmp_path):
    kl = {}
    for method in ("rtn", "awq"):
        step = {"quantize": {"method": method, "bits": 4, "group_size": 32}}
        compress(outliers, {"steps": [step | {"where": {"role": ROLES}}],
                            "calibration": {"samples": 16, "length": 64}}, tmp_path / method)  # fmt: skip
        kl[method] = evaluate(tmp_path / method, texts=["books"], tokens=2048, window=64)["texts"]["books"]["kl"]
    assert kl["awq"] < 0.5 * kl["rtn"], kl


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_killed_run_ends_with_the_same_bytes(tiny, tmp_path, family):
    """Changed norms are read back from the shard of a finished block."""
    recipe = {"steps": [{"quantize": {"method": "awq", "bits": 4, "group_size": 32}, "where": {"role": ROLES}}]}
    recipe |= {"calibration": {"samples": 8, "length": 64}}
    check_kills(lambda out: compress(tiny(family), recipe, out), tmp_path, 6)
    assert "changed" in (tmp_path / "whole" / "journal.jsonl").read_text()
    assert torch.isfinite(load(tmp_path / "whole").logits(IDS)).all()


def test_where_nothing_is_known_of_a_family(tiny, tmp_path):
    recipe = {"steps": [{"quantize": {"method": "awq", "bits": 4, "group_size": 32}}]}
    with pytest.raises(UsageError, match="awq scales the inputs of linears, but families.yaml does not say where"):
        compress(tiny("stablelm"), recipe, tmp_path / "out")


def test_two_steps_do_not_scale_what_the_other_rounds(tiny, tmp_path):
    """Another step quantizes v, so o is not scaled, and the block still computes the same as the shards."""
    grid = {"bits": 4, "group_size": 32}
    steps = [
        {"quantize": {"method": "awq"} | grid, "where": {"role": ["o", "down"]}},
        {"quantize": {"method": "rtn"} | grid, "where": {"role": ["q", "k", "v", "gate", "up"]}},
    ]
    manifest = compress(tiny("llama"), {"steps": steps, "calibration": {"samples": 8}}, tmp_path / "out")
    assert manifest["check"]["block"]["difference"] < 1e-4
    assert "changed" not in (tmp_path / "out" / "journal.jsonl").read_text()
