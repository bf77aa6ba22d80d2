"""Quantized checkpoints and GGUF files as sources: what stays packed, what is quantized again, what is recorded."""

import pytest
import torch

import jettison
from jettison.encodings.offset import OffsetGrid
from jettison.formats.dequantized import DequantizedFolder
from jettison.formats.packed import read_grids
from jettison.graph.folder import ModelFolder
from jettison.pipeline.compression import compress

IDS = torch.randint(0, 4096, (2, 24), generator=torch.Generator().manual_seed(0))
HEAD = {"steps": [{"quantize": {"method": "rtn", "bits": 3, "group_size": 32}, "where": {"role": ["head"]}}]}
WEIGHTS = {"steps": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 64}, "where": {"role": ["gate", "up", "down"]}}]}
EIGHT = {"steps": [{"quantize": {"method": "rtn", "bits": 8, "group_size": 32}}]}


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
