"""The formats GPTQ, AWQ and auto-round as they are written: bytes, configs, refusals."""

import json
import re

import pytest
import torch
from golden_vectors import golden

from jettison import compress, load
from jettison.core.errors import UsageError
from jettison.encodings.grid import WHOLE_ROW
from jettison.encodings.quantized import QuantizedWeight
from jettison.encodings.table import ValueTable
from jettison.encodings.uniform import UniformGrid
from jettison.formats import auto_round, awq, gptq, gptq_v2
from jettison.formats.packed import read_grids
from jettison.graph.folder import ModelFolder
from jettison.pipeline.verification import verify

IDS = torch.arange(40).view(2, 20) * 7
FORMATS = {"gptq": gptq, "gptq-v2": gptq_v2, "auto-round": auto_round, "awq": awq}
HELD = [  # format, bits, symmetric
    *((name, bits, True) for name in ("gptq", "gptq-v2", "auto-round") for bits in (2, 3, 4, 8)),
    *(("gptq-v2", bits, False) for bits in (2, 3, 4, 8)),
    *(("awq", bits, symmetric) for bits in (4, 8) for symmetric in (True, False)),
]
GOLDEN = {case.key: case for case in golden("compressed_tensors")}
MIXED = {
    "steps": [
        {"quantize": {"method": "rtn", "bits": 4, "group_size": 32}, "where": {"role": ["q", "k", "v", "head"]}},
        {"quantize": {"method": "rtn", "bits": 2, "group_size": 32}, "where": {"role": ["gate", "up"], "block": [1]}},
        {"quantize": {"method": "rtn", "bits": 4, "group_size": 32}, "where": {"role": ["gate", "up"], "block": [0]}},
    ]
}


def random_weight(bits, symmetric, size=32, rows=64, columns=96):
    generator = torch.Generator().manual_seed(bits)
    grid = UniformGrid(bits, size, symmetric)
    groups = grid.groups(columns)
    draw = lambda *shape: torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)
    zero = None if symmetric else draw(rows, groups)  # among them 0 and the highest code
    return QuantizedWeight(draw(rows, columns), torch.rand(rows, groups, generator=generator).bfloat16(), zero, grid)


def assert_equal(weight, other):
    assert torch.equal(weight.codes, other.codes) and torch.equal(weight.scale, other.scale)
    assert weight.zero is other.zero is None or torch.equal(weight.zero, other.zero)


@pytest.mark.parametrize("name, bits, symmetric", HELD)
@pytest.mark.parametrize("size", [32, WHOLE_ROW])
def test_codes_scales_and_zero_points_read_back_bit_by_bit(name, bits, symmetric, size):
    weight, format = random_weight(bits, symmetric, size), FORMATS[name]
    written = format.tensors("m", weight)
    assert all(value.is_contiguous() for value in written.values())
    assert_equal(weight, format.read_weight(written.__getitem__, "m", weight.grid))
    part = format.read_weight(written.__getitem__, "m", weight.grid, slice(8, 40))
    assert torch.equal(part.codes, weight.codes[8:40]) and torch.equal(part.scale, weight.scale[8:40])
    for suffix, expected in format.stored(64, 96, weight.grid).items():
        value = written[f"m.{suffix}"]
        assert value.shape == expected.shape and value.dtype == expected.dtype


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["gptq", "gptq-v2"])
def test_the_bits_of_gptq_lie_where_its_tools_look(name, bits):
    """Code i of an output lies at bit bits · i of a column, across words; zero points minus 1 along a row."""
    weight = random_weight(bits, name == "gptq")
    written = FORMATS[name].tensors("m", weight)
    words = written["m.qweight"].to(torch.int64) % 2**32
    for column in (0, 10, 21, 31, 32, 95):  # codes of 3 bits at 10 and 21 lie in two words
        place, shift = divmod(bits * column, 32)
        value = words[place, 5] >> shift
        if shift + bits > 32:
            value |= words[place + 1, 5] << 32 - shift
        assert int(value) % 2**bits == weight.codes[5, column]
    zeros, last = written["m.qzeros"].to(torch.int64) % 2**32, 64 * bits // 32 - 1
    top = int(zeros[2, last]) >> 32 - bits  # of group 2, output 63
    assert top == (2 ** (bits - 1) - 1 if name == "gptq" else weight.zero[63, 2])
    assert written["m.g_idx"].tolist() == [column // 32 for column in range(96)]
    assert written["m.g_idx"].dtype == torch.int32 and written["m.scales"].dtype == torch.bfloat16


@pytest.mark.parametrize("key", GOLDEN)
@pytest.mark.parametrize("name", ["gptq", "gptq-v2", "awq"])
def test_golden_weights_come_back_as_the_same_bytes(name, key):
    """What the library compressed-tensors packed is written in each format, and packed again."""
    case = GOLDEN[key]
    bits, symmetric = case["num_bits"], case["symmetric"]
    unsigned = lambda values: (values.int() + 2 ** (bits - 1)).to(torch.uint8)
    scale, zero = case.tensor("scale"), None if symmetric else unsigned(case.tensor("zero_point"))
    rows, columns = case.tensor("int_values").shape
    fits = bits in awq.ORDER and rows % len(awq.ORDER[bits]) == 0 if name == "awq" else columns % gptq.SIDE == 0
    if not fits or (name == "gptq" and not symmetric) or bits not in gptq.BITS:
        pytest.skip("the format does not hold it")
    grid = UniformGrid(bits, columns // scale.shape[1], symmetric, str(scale.dtype)[6:])
    weight = QuantizedWeight(unsigned(case.tensor("int_values")), scale, zero, grid)
    written = FORMATS[name].tensors("m", weight)
    again = FORMATS[name].read_weight(written.__getitem__, "m", grid)
    assert torch.equal(again.parts()["weight_packed"], case.tensor("weight_packed"))
    assert torch.equal(again.scale, scale)
    if not symmetric:
        assert torch.equal(again.parts()["weight_zero_point"], case.tensor("weight_zero_point"))


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_library_compressed_tensors_reads_our_awq(symmetric):
    converter = pytest.importorskip("compressed_tensors.entrypoints.convert.converters.autoawq").AutoAWQConverter
    weight = random_weight(4, symmetric)
    converted = converter(4, 32).process(awq.tensors("m", weight))
    assert torch.equal(converted["m.weight_packed"], weight.parts()["weight_packed"])
    assert torch.equal(converted["m.weight_scale"], weight.scale)
    zero = weight.zero if weight.zero is not None else torch.full((64, 3), 8, dtype=torch.uint8)
    asymmetric = QuantizedWeight(weight.codes, weight.scale, zero, UniformGrid(4, 32, False))
    assert torch.equal(converted["m.weight_zero_point"], asymmetric.parts()["weight_zero_point"])


def resolve(section, name):
    """The grid that vLLM and SGLang give a linear by auto-round's config: its whole name first, else the block."""
    if (own := section["extra_config"].get(name)) is not None:
        return (own["bits"], own.get("group_size"))
    inside = any(name.startswith(prefix) for prefix in section["block_name_to_quantize"].split(","))
    return (section["bits"], section["group_size"]) if inside else (16, None)


def resolve_dynamic(section, name):
    """The grid that GPTQModel gives a linear by ``dynamic``: the first pattern that matches."""
    for pattern, own in section["dynamic"].items():
        if re.match(pattern[2:], name):
            return (16, None) if pattern.startswith("-:") else (own["bits"], own["group_size"])
    return section["bits"], section["group_size"]


@pytest.mark.parametrize("name, resolver", [("auto-round", resolve), ("gptq", resolve_dynamic)])
def test_a_model_of_2_and_4_bits(name, resolver, tiny, tmp_path):
    """Every linear has the grid that the config gives it, routers have none, and the model computes the same."""
    for format in (name, "compressed-tensors"):
        compress(tiny("qwen3_moe"), MIXED, tmp_path / format, format=format)
    source = ModelFolder(tmp_path / name)
    grids, section = read_grids(source), source.quantization
    assert grids == read_grids(ModelFolder(tmp_path / "compressed-tensors")) and len(set(grids.values())) == 2
    for linear in source.anatomy:
        if linear.layout == "linear":
            grid = grids.get(linear.name)
            assert resolver(section, linear.name) == ((grid.bits, grid.group_size) if grid else (16, None)), linear.name
    assert resolver(section, "model.layers.0.mlp.gate") == (16, None)
    logits = [
        load(tmp_path / format, exact=True, dtype=torch.float32).logits(IDS) for format in (name, "compressed-tensors")
    ]
    assert torch.equal(*logits)
    assert verify(source.folder)["ok"]


def test_awq_states_one_grid_and_names_what_is_dense(tiny, tmp_path):
    rtn = {"method": "rtn", "bits": 4, "group_size": 32}
    steps = [
        {"quantize": rtn | {"symmetric": symmetric}, "where": {"role": roles}}
        for symmetric, roles in ((True, ["q", "k", "v", "embed"]), (False, ["gate", "up"]))
    ]
    compress(tiny("llama"), {"steps": steps}, tmp_path / "out", format="awq")
    section = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (section["bits"], section["group_size"], section["zero_point"], section["lm_head"]) == (4, 32, True, False)
    others = {f"model.layers.{block}.{name}" for block in (0, 1) for name in ("self_attn.o_proj", "mlp.down_proj")}
    assert set(section["modules_to_not_convert"]) == others | {"lm_head"}
    grids = read_grids(ModelFolder(tmp_path / "out"))
    assert {name.rpartition(".")[2]: grid.symmetric for name, grid in grids.items()} == {
        "q_proj": True, "k_proj": True, "v_proj": True, "gate_proj": False, "up_proj": False,
    }  # fmt: skip
    assert verify(tmp_path / "out")["ok"]


MANY = r" \(14, first model.layers.0.self_attn.q_proj\)"


@pytest.mark.parametrize(
    ("name", "grid", "words"),
    [
        ("gptq", UniformGrid(5, 32), f"gptq holds no bits but 2, 3, 4 and 8{MANY}"),
        (
            "auto-round",
            UniformGrid(4, 32, False),
            f"auto-round holds no zero points of asymmetric .* awq hold them{MANY}",
        ),
        ("gptq", UniformGrid(4, 32, False), "gptq holds no zero points"),
        ("gptq-v2", UniformGrid(6, 32, False), "gptq-v2 holds no bits"),
        ("gptq-v2", ValueTable("nf4", 32), "gptq-v2 holds no grids but uniform ones"),
        ("awq", UniformGrid(2, 32), "awq holds no bits but 4 and 8"),
        ("awq", ValueTable("fp4", 32), "awq holds no grids but uniform ones"),
    ],
)
def test_grids_that_a_format_does_not_have(name, grid, words, tiny):
    model = ModelFolder(tiny("llama")).anatomy
    reasons = FORMATS[name].refuses(model, {linear.name: grid for linear in model if linear.block is not None})
    assert len(reasons) == 1 and re.fullmatch(rf"{words}.*", reasons[0])


def test_several_grids(tiny):
    model = ModelFolder(tiny("llama")).anatomy
    several = {
        linear.name: UniformGrid(4, 16 if "mlp" in linear.name else 32) for linear in model if linear.block is not None
    }
    assert awq.refuses(model, several) == [
        "awq holds one number of bits and one group size for a model; given: "
        "4 bits in groups of 16, 4 bits in groups of 32"
    ]
    assert gptq.refuses(model, several) == auto_round.refuses(model, several) == []
    assert "one grid from a GPTQ config, and this one has 2" in gptq.problems(model, several)[0]


def test_rows_that_do_not_fill_words(tiny, tmp_path):
    small = tiny("llama", intermediate_size=100)
    recipe = {
        "steps": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 32}, "where": {"role": ["gate", "up"]}}]
    }
    for name, words in (("gptq", "a side that 32 does not divide"), ("awq", "rows do not fill words of 32 bits")):
        with pytest.raises(UsageError, match=f"{name} holds no matrices .*{words}"):
            compress(small, recipe, tmp_path / name, format=name)
        assert not (tmp_path / name).exists()
