"""Quantized checkpoints and GGUF files as sources: what stays packed, what is quantized again, what is recorded."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import jettison
from jettison import recover, verify
from jettison.core.errors import JettisonError, UsageError
from jettison.encodings.offset import OffsetGrid
from jettison.formats.dequantized import DequantizedFolder
from jettison.formats.packed import read_grids
from jettison.graph.folder import ModelFolder
from jettison.pipeline.compression import compress
from jettison.planning.forecast import forecast
from jettison.planning.planner import make_plan
from jettison.recipe.recipe import load_recipe
from jettison.runtime.speculative.choose import export_draft
from jettison.runtime.speculative.draft import Draft

IDS = torch.randint(0, 4096, (2, 24), generator=torch.Generator().manual_seed(0))
HEAD = {"steps": [{"quantize": {"method": "rtn", "bits": 3, "group_size": 32}, "where": {"role": ["head"]}}]}
WEIGHTS = {
    "steps": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 64}, "where": {"role": ["gate", "up", "down"]}}]
}
THREE = {"steps": [{"quantize": {"method": "rtn", "bits": 3, "group_size": 32}, "where": {"role": ["down", "o"]}}]}
EIGHT = {"steps": [{"quantize": {"method": "rtn", "bits": 8, "group_size": 32}}]}


def _words(codes, bits):
    """Pack codes (n, m) along the first dimension, each in turn into the next bits of a little-endian stream."""
    width = len(codes) * bits
    stream = np.zeros((width, codes.shape[1]), np.uint64)
    for place, row in enumerate(codes.astype(np.uint64)):
        for bit in range(bits):
            stream[place * bits + bit] = row >> np.uint64(bit) & np.uint64(1)
    words = sum(stream[bit::32] << np.uint64(bit) for bit in range(32))
    return torch.from_numpy(words.astype(np.uint32).view(np.int32).copy())


def write_foreign(folder, out, kind, bits=4, group=32, symmetric=False, shuffled=()):
    """Write a model as GPTQ, GPTQ version 2, auto-round or AWQ, and return the dense weights by name.

    shuffled: linears of GPTQ whose inputs are spread over the groups as desc_act leaves them.
    """
    source, dense, tensors = ModelFolder(folder), {}, {}
    rng = np.random.default_rng(0)
    for linear in source.anatomy:
        if linear.block is None:
            continue
        groups = linear.columns // group
        codes = rng.integers(0, 2**bits, (linear.columns, linear.rows))
        zero = (
            np.full((groups, linear.rows), 2 ** (bits - 1))
            if symmetric
            else rng.integers(1, 2**bits, (groups, linear.rows))
        )
        scale = torch.from_numpy(rng.uniform(0.01, 0.05, (groups, linear.rows)).astype(np.float16))
        of_input = np.arange(linear.columns) // group
        if linear.name in shuffled:
            rng.shuffle(of_input)
        value = (codes - zero[of_input]) * scale.float().numpy()[of_input]
        dense[linear.name] = torch.from_numpy(value.T.astype(np.float32).copy())
        if kind == "awq":
            order = np.arange(linear.rows).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(-1)
            parts = {"qweight": _words(codes.T[order], 4).T, "qzeros": _words(zero.T[order], 4).T}
        else:
            shift = 0 if kind == "gptq_v2" else 1
            parts = {"qweight": _words(codes, bits), "qzeros": _words((zero - shift).T, bits).T}
            parts["g_idx"] = torch.from_numpy(of_input.astype(np.int32))
        tensors |= {f"{linear.name}.{part}": value.contiguous() for part, value in (parts | {"scales": scale}).items()}
    for name in source.checkpoint:
        if name.removesuffix(".weight") not in dense:
            tensors[name] = source.checkpoint.read(name)
    shutil.copytree(folder, out)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    section = {"gptq_v2": {"quant_method": "gptq", "checkpoint_format": "gptq_v2"},
               "auto-round": {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"},
               "awq": {"quant_method": "awq", "version": "gemm"}, "gptq": {"quant_method": "gptq"}}[kind]  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(
        json.dumps(config | {"quantization_config": section | {"bits": bits, "group_size": group}})
    )
    return dense


@pytest.mark.parametrize(
    "kind, bits, symmetric",
    [("gptq", 4, True), ("gptq", 3, False), ("gptq", 2, False), ("gptq", 8, True), ("gptq_v2", 4, False),
     ("auto-round", 2, False), ("awq", 4, False)],
)  # fmt: skip
def test_checkpoints_of_other_tools_read_exactly_and_stay_packed(kind, bits, symmetric, tiny, tmp_path):
    dense = write_foreign(tiny("llama"), tmp_path / "source", kind, bits, symmetric=symmetric)
    source = DequantizedFolder(tmp_path / "source")
    assert set(source.grids) == set(dense)
    assert {(grid.bits, grid.group_size, grid.symmetric) for grid in source.grids.values()} == {(bits, 32, symmetric)}
    loaded = jettison.load(tmp_path / "source", exact=True, dtype=torch.float32)
    for name, weight in dense.items():
        assert torch.allclose(source.read(f"{name}.weight"), weight, rtol=1e-6, atol=0)
        assert torch.equal(loaded.model.get_submodule(name).weight, source.read(f"{name}.weight"))
    manifest = compress(source.folder, HEAD, tmp_path / "out")
    assert manifest["quantized_before"] == {
        "method": source.quantization["quant_method"],
        "matrices": 14,
        "kept": list(dense),
    }
    result = DequantizedFolder(tmp_path / "out")
    assert all(torch.equal(result.read(f"{name}.weight"), source.read(f"{name}.weight")) for name in dense)
    assert str(result.grids["lm_head"]) == "int3 g32 sym"
    assert not [name for name in result.packed.checkpoint if "qweight" in name or "g_idx" in name]


@pytest.mark.parametrize("kind", ["gptq", "awq", "Q4_1"])
def test_quantized_sources_are_planned_recovered_and_verified(kind, tiny, tmp_path):
    """Everything that needs the source's dense weights reads them: losses, forecasts, the teacher, the self-check."""
    path = tmp_path / "source"
    if kind == "Q4_1":
        path = pytest.importorskip("gguf_models").write(tiny("llama"), tmp_path / "source.gguf", kind)
    else:
        write_foreign(tiny("llama"), path, kind)
    for losses in ("gradients", "measured"):
        plan = make_plan(path, memory="1.1MB", context=16, bits=(3, 16), group_sizes=(32,), losses=losses)
        assert plan.losses == losses and 0 < plan.loss < 10
    distill = {"method": "distill", "rank": 4, "samples": 4, "length": 16, "batch": 2, "data": "books"}
    recipe = {"steps": [*THREE["steps"], {"recover": distill}]}
    expected = forecast(path, load_recipe(recipe), texts=["books"], tokens=64)
    assert [step["step"] for step in expected["steps"]] == ["compress", "evaluate", "recover", "evaluate again"]
    compress(path, recipe, tmp_path / "out")
    recover(tmp_path / "out")
    result = verify(tmp_path / "out")
    assert result["ok"] and "differs by 0 of" in result["checks"][-1]["found"]


def test_a_draft_model_of_a_format_that_is_only_read_is_refused(tiny, tmp_path):
    path = pytest.importorskip("gguf_models").write(tiny("llama"), tmp_path / "source.gguf", "Q8_0")
    with pytest.raises(UsageError, match="gguf is a format that is only read; compress the model, then draft"):
        export_draft(path, Draft(skip=("1",)), tmp_path / "draft")


def test_a_draft_model_of_a_checkpoint_of_another_tool(tiny, tmp_path):
    write_foreign(tiny("llama"), tmp_path / "source", "gptq", symmetric=True)
    export_draft(tmp_path / "source", Draft(skip=("1",)), tmp_path / "draft")
    assert verify(tmp_path / "draft")["ok"] and len(read_grids(ModelFolder(tmp_path / "draft"))) == 7


def test_compressing_twice_changes_nothing_that_is_packed(tiny, tmp_path):
    """The same recipe asks for as many bits as the result has, so every matrix is kept, bit by bit."""
    compress(tiny("llama"), WEIGHTS, tmp_path / "one")
    manifest = compress(tmp_path / "one", WEIGHTS, tmp_path / "two")
    first, second = ModelFolder(tmp_path / "one"), ModelFolder(tmp_path / "two")
    assert set(manifest["quantized_before"]["kept"]) == set(read_grids(first)) and read_grids(first)
    assert set(first.checkpoint) == set(second.checkpoint)
    for name in first.checkpoint:
        assert torch.equal(first.checkpoint.read(name), second.checkpoint.read(name)), name


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_a_quantized_image_classifier_is_refused(family, tiny, pictures, tmp_path):
    compress(tiny(family), EIGHT, tmp_path / "one", images=pictures)
    with pytest.raises(UsageError, match=r"is already quantized \(jettison\): start from the original"):
        compress(tmp_path / "one", EIGHT, tmp_path / "two", images=pictures)


@pytest.mark.parametrize("kind, symmetric", [("gptq", True), ("gptq_v2", False)])
def test_gptq_in_the_order_of_activations_is_read_dense(kind, symmetric, tiny, tmp_path):
    """Such matrices are read exactly, loaded dense, and stored in 16 bits or quantized again; others stay packed."""
    shuffled = ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj", "model.layers.1.mlp.down_proj")
    dense = write_foreign(tiny("llama"), tmp_path / "source", kind, symmetric=symmetric, shuffled=shuffled)
    source = DequantizedFolder(tmp_path / "source")
    assert set(source.reordered) == set(shuffled) and set(source.grids) == set(dense) - set(shuffled)
    loaded = jettison.load(tmp_path / "source", exact=True, dtype=torch.float32)
    for name, weight in dense.items():
        assert torch.allclose(source.read(f"{name}.weight"), weight, rtol=1e-6, atol=0)
        assert torch.allclose(loaded.model.get_submodule(name).weight, weight, rtol=1e-6, atol=0)
    part = source.read_weight(shuffled[0], "linear", slice(3, 9))
    assert torch.allclose(part, dense[shuffled[0]][3:9], rtol=1e-6, atol=0)
    assert len(jettison.inspect(tmp_path / "source")["matrices"]) == len(source.anatomy.linears)
    manifest = compress(source.folder, HEAD, tmp_path / "out")
    assert set(manifest["quantized_before"]["kept"]) == set(source.grids)
    assert manifest["quantized_before"]["matrices"] == len(dense)
    out = DequantizedFolder(tmp_path / "out")
    assert not set(shuffled) & set(out.grids)
    for name in shuffled:
        assert torch.equal(out.read(f"{name}.weight").float(), dense[name].to(source.dtype).float())


def test_groups_that_do_not_exist_are_refused(tiny, tmp_path):
    write_foreign(tiny("llama"), tmp_path / "source", "gptq")
    from tiny import change

    change(tmp_path / "source", model__layers__0__mlp__up_proj__g_idx=lambda order: order + 1)
    with pytest.raises(JettisonError, match="up_proj.g_idx does not name one of 2 groups"):
        DequantizedFolder(tmp_path / "source")


def folder_of(tiny, kind, tmp_path):
    """A source of each kind: a folder that Jettison wrote, and GGUF files."""
    if kind == "folder":
        steps = [{"quantize": {"method": "rtn", "bits": 4, "group_size": 32, "symmetric": False},
                  "where": {"role": ["q", "k", "v", "o", "gate", "up", "down"]}}]  # fmt: skip
        compress(tiny("llama"), {"steps": steps}, tmp_path / "source")
        return tmp_path / "source"
    gguf_models = pytest.importorskip("gguf_models")
    return gguf_models.write(tiny("llama"), tmp_path / "source.gguf", kind)


@pytest.mark.parametrize("kind", ["folder", "Q4_0", "Q4_1", "Q8_0"])
def test_only_the_head_is_quantized_again(kind, tiny, tmp_path):
    """Matrices that no step claims keep every bit; the record says that they were quantized before."""
    source = DequantizedFolder(folder_of(tiny, kind, tmp_path))
    manifest = compress(source.folder, HEAD, tmp_path / "out")
    out, grids = ModelFolder(tmp_path / "out"), read_grids(ModelFolder(tmp_path / "out"))
    result = DequantizedFolder(tmp_path / "out")
    for linear in source.anatomy:
        if "head" not in linear.roles and linear.name in source.grids:
            assert grids[linear.name] == source.grids[linear.name]
            assert torch.equal(result.read(f"{linear.name}.weight"), source.read(f"{linear.name}.weight"))
    assert str(grids["lm_head"]) == "int3 g32 sym" and out.quantization
    before = manifest["quantized_before"]
    assert before["method"] == source.quantization["quant_method"] and before["matrices"] == len(source.grids)
    assert set(before["kept"]) == set(source.grids) - {"lm_head"}
    head = jettison.load(tmp_path / "out", exact=True).model.lm_head.weight
    assert 0 < (head - source.read("lm_head.weight")).norm() < 0.4 * head.norm()
    logits = [jettison.load(path, exact=True, dtype=torch.float32).logits(IDS) for path in (source.folder, out.folder)]
    assert (logits[0] - logits[1]).norm() < 0.5 * logits[0].norm()


def test_steps_that_ask_for_less_quantize_again_and_those_for_more_do_not(tiny, tmp_path):
    source = DequantizedFolder(folder_of(tiny, "Q4_1", tmp_path))
    compress(source.folder, WEIGHTS, tmp_path / "four")
    grids = read_grids(ModelFolder(tmp_path / "four"))
    assert str(grids["model.layers.0.mlp.up_proj"]).startswith("int4 g64 sym")
    assert isinstance(grids["model.layers.0.self_attn.q_proj"], OffsetGrid)
    manifest = compress(source.folder, EIGHT, tmp_path / "eight")
    assert set(manifest["quantized_before"]["kept"]) == set(source.grids)
    again = read_grids(ModelFolder(tmp_path / "eight"))
    assert {str(grid) for grid in again.values()} == {"int4 g32 min"}


def test_parts_that_runtimes_fuse_stay_packed_together_or_not_at_all(tiny, tmp_path):
    """6 bits are fewer than q has and more than k and v have; all three get one grid."""
    gguf_models = pytest.importorskip("gguf_models")
    kinds = {f"blk.{block}.attn_q.weight": "Q8_0" for block in range(2)}
    path = gguf_models.write(tiny("llama"), tmp_path / "source.gguf", "Q4_0", kinds)
    six = {"steps": [{"quantize": {"method": "rtn", "bits": 6, "group_size": 32}, "where": {"role": ["q", "k", "v"]}}]}
    manifest = compress(path, six, tmp_path / "out")
    grids = read_grids(ModelFolder(tmp_path / "out"))
    assert {str(grids[f"model.layers.0.self_attn.{part}_proj"]) for part in "qkv"} == {"int6 g32 sym"}
    kept = manifest["quantized_before"]["kept"]
    assert "model.layers.0.self_attn.o_proj" in kept
    assert not [name for name in kept if name.endswith(("k_proj", "v_proj"))]


def test_a_runtime_that_cannot_load_a_grid_gets_the_matrices_in_16_bits(tiny, tmp_path):
    source = DequantizedFolder(folder_of(tiny, "Q4_1", tmp_path))
    manifest = compress(source.folder, WEIGHTS, tmp_path / "out", runtime="vllm")
    assert manifest["format"] == "compressed-tensors" and manifest["quantized_before"]["kept"] == []
    stored = ModelFolder(tmp_path / "out").checkpoint
    assert stored.dtype("model.layers.0.self_attn.q_proj.weight") == "BF16"


@pytest.mark.parametrize("bits", [4, 5, 8])
@pytest.mark.parametrize("activation_bits", [8, 15])
def test_kernels_multiply_weights_with_minima(bits, activation_bits):
    """Codes, scales and minima in tiles give the product of the dequantized weight."""
    from jettison.encodings.quantized import QuantizedWeight
    from jettison.graph.modules import PackedLinear
    from jettison.kernels import native

    if native.library() is None:
        pytest.skip("the CPU kernels were not built")
    generator, grid = torch.Generator().manual_seed(bits), OffsetGrid(bits)
    weight = torch.randn(70, 160, generator=generator) + 0.5
    grouped = grid.grouped(weight)
    scale, low = grid.scale_zero(grouped.amin(-1), grouped.amax(-1))
    quantized = QuantizedWeight.nearest(weight, scale, low, grid)
    assert (quantized.dequantize() - weight).abs().max() < 4 / 2**bits
    packed = PackedLinear.of(quantized)
    tiled = packed.tiled()
    assert torch.equal(tiled.weight, quantized.dequantize())
    assert all(torch.equal(a, b) for a, b in zip(tiled.packed().buffers(), packed.buffers(), strict=True))
    x = torch.randn(5, 160, generator=generator)
    exact = x @ quantized.dequantize().T
    y = native.linear(x, tiled.tiles, tiled.tile_zero, None, tiled.tiling, activation_bits=activation_bits)
    assert (y - exact).norm() < {8: 0.01, 15: 1e-4}[activation_bits] * exact.norm()
