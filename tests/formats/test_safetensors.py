"""Plain safetensors, for what no other format holds: value tables, convolutions, any mixture."""

import json

import pytest
import torch

from jettison import compress, evaluate, load
from jettison.core.errors import JettisonError, UsageError
from jettison.encodings.table import ValueTable
from jettison.encodings.uniform import UniformGrid
from jettison.formats.format import choose_format, find_format
from jettison.formats.packed import read_grids
from jettison.formats.support import written_formats
from jettison.graph.folder import ModelFolder
from jettison.pipeline.verification import verify

TABLE = {"method": "rtn", "values": "nf4", "group_size": 32}
MIXED = {
    "steps": [
        {"quantize": TABLE, "where": {"role": ["q", "k", "v", "up", "gate"]}},
        {"quantize": {"method": "rtn", "bits": 3, "group_size": 16}, "where": {"role": ["o", "down"]}},
    ]
}
IDS = torch.arange(40).view(2, 20) * 7


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt2"])
def test_tables_and_grids_in_one_checkpoint(tiny, tmp_path, family):
    manifest = compress(tiny(family), MIXED, tmp_path / "out")
    source = ModelFolder(tmp_path / "out")
    grids = read_grids(source)
    assert manifest["format"] == "safetensors"
    if family == "gpt2":  # its matrices are transposed: they are stored dense, with values on their grids
        assert not source.quantization and len(manifest["stored_dense"]) == 8
    else:
        assert source.quantization["quant_method"] == "jettison"
    if family == "llama":
        kinds = {name.rpartition(".")[2]: grid for name, grid in grids.items()}
        assert kinds["q_proj"] == ValueTable("nf4", 32) and kinds["down_proj"] == UniformGrid(3, 16)
    assert verify(tmp_path / "out")["ok"]
    exact = load(tmp_path / "out", exact=True, dtype=torch.float32).logits(IDS)
    assert torch.isfinite(exact).all()
    assert evaluate(tmp_path / "out", texts=["books"], tokens=512, window=64)["texts"]["books"]["kl"] > 0


def test_asked_for_it_holds_what_others_hold_too(tiny, tmp_path):
    for name in ("compressed-tensors", "safetensors"):
        compress(tiny("llama"), "w8", tmp_path / name, format=name)
    one, two = (load(tmp_path / name).logits(IDS) for name in ("compressed-tensors", "safetensors"))
    assert torch.equal(one, two)


def test_the_first_that_can_hold_it_is_taken(tiny):
    anatomy = ModelFolder(tiny("llama")).anatomy
    name = anatomy.linears[1].name
    assert choose_format(anatomy, {name: UniformGrid(4, 32)}) == "compressed-tensors"
    assert choose_format(anatomy, {name: ValueTable("fp4", 32)}) == "safetensors"


def test_what_a_format_or_runtime_cannot_hold(tiny, tmp_path):
    with pytest.raises(UsageError, match=r"compressed-tensors holds no grids but uniform ones \(10, first model"):
        compress(tiny("llama"), MIXED, tmp_path / "a", format="compressed-tensors")
    with pytest.raises(UsageError, match=r"transformers, compressed-tensors: .*values nf4; valid: int"):
        compress(tiny("llama"), MIXED, tmp_path / "b", runtime="transformers")
    with pytest.raises(UsageError, match=r"unknown format 'onnx'; valid: auto-round, awq, compressed-tensors"):
        compress(tiny("llama"), MIXED, tmp_path / "c", format="onnx")
    compress(tiny("llama"), MIXED, tmp_path / "d", runtime="jettison")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(nothing={"encoding": "table"}), "the model has no matrix 'nothing'"),
        (lambda m: next(iter(m.values())).update(encoding="codebook"), "an object with encoding uniform or table"),
        (lambda m: next(iter(m.values())).update(group_size="32"), "group_size = '32'; int is needed"),
        (lambda m: next(iter(m.values())).update(group_size=16), "a weight of nf4 g16 has"),
        (lambda m: next(iter(m.values())).update(colour=1), "unknown field 'colour'"),
        (lambda m: next(iter(m.values())).update(scale_type="float32"), "stored as BF16, the config says float32"),
        (lambda m: m.update({next(iter(m)): 3}), "an object with encoding"),
    ],
)
def test_a_damaged_section_is_named(tiny, tmp_path, change, words):
    compress(tiny("llama"), MIXED, tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"]["matrices"])
    file.write_text(json.dumps(config))
    with pytest.raises(JettisonError, match=words):
        read_grids(ModelFolder(tmp_path / "out"))


@pytest.mark.parametrize("name", written_formats())
def test_a_format_is_a_module_with_these_functions(name):
    from jettison.formats.format import Format

    required = {function for function in vars(Format) if not function.startswith("_")}
    assert required <= set(dir(find_format(name)))
