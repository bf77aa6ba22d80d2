"""Kinds of grids: named in a recipe, described in a file; a new kind needs only its class and a row in KINDS."""

import json

import pytest
import torch
from power_of_two import PowerOfTwo

from jettison import load
from jettison.core.errors import UsageError
from jettison.encodings.grid import Grid
from jettison.encodings.kinds import KINDS, describe, make_grid, read_description
from jettison.encodings.offset import OffsetGrid
from jettison.encodings.table import ValueTable
from jettison.encodings.uniform import UniformGrid
from jettison.graph.dense import load_dense
from jettison.graph.folder import ModelFolder

GRIDS = [UniformGrid(3, 32), UniformGrid(8, -1, symmetric=False)]
GRIDS += [ValueTable("nf4", 16), ValueTable("fp4", -1, "float32"), OffsetGrid(4, 32), OffsetGrid(5, -1, "bfloat16")]
IDS = torch.arange(40).view(2, 20) * 7


def test_every_kind_is_in_the_table():
    concrete = {kind for kind in Grid.__subclasses__() if kind is not PowerOfTwo}
    assert concrete == set(KINDS.values()) == {type(grid) for grid in GRIDS}


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_options_and_description_give_the_grid_back(grid):
    options = grid.options()
    if grid.scale_type == "bfloat16" and grid.names():  # a recipe cannot choose the dtype of scales, nor minima
        assert make_grid(options) == grid
    assert read_description(json.loads(json.dumps(describe(grid)))) == grid


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"values": "nf5"}, r"unknown values 'nf5' \(did you mean 'nf4'\?\); valid: fp4, int, nf4"),
        ({"values": "nf4", "bits": 3}, "quantize option bits = 3: a grid of nf4 has 4"),
        ({"values": "nf4", "symmetric": False}, "quantize option symmetric = False: a grid of nf4 has true"),
        ({"values": "int"}, "values = 'int' needs 'bits' too"),
        ({"bits": 9}, "a grid has 2 to 8 bits"),
    ],
)
def test_what_a_recipe_cannot_ask_for(options, words):
    with pytest.raises(UsageError, match=words):
        make_grid(options)


def test_a_new_kind_is_stored_loaded_verified_reported(monkeypatch, jettison, tiny, tmp_path):
    """The new kind also passes a runtime's check; a format that cannot hold it refuses it."""
    monkeypatch.setitem(KINDS, "power", PowerOfTwo)
    recipe, out = tmp_path / "pow2.yaml", tmp_path / "out"
    recipe.write_text("steps: [{quantize: {method: rtn, values: pow2, bits: 4, group_size: 32}}]")
    code, _, err = jettison("compress", tiny("llama"), "--recipe", recipe, "--out", out, "--runtime", "jettison")
    assert code == 0, err
    quantization = json.loads((out / "config.json").read_text())["quantization_config"]
    assert quantization["quant_method"] == "jettison"
    assert set(row["encoding"] for row in quantization["matrices"].values()) == {"power"}
    original = load_dense(ModelFolder(tiny("llama")), torch.float32)(IDS).logits.detach()
    stored = load(out, exact=True, dtype=torch.float32).logits(IDS)
    assert float((stored - original).square().mean() / original.square().mean()) < 1.0, "4 bits are no more than that"
    for command in ("verify", "report"):
        code, _, err = jettison(command, out)
        assert code == 0, err
    assert "pow2 4 bits g32" in (out / "report.html").read_text()
    code, _, err = jettison(
        "compress", tiny("llama"), "--recipe", recipe, "--out", tmp_path / "b", "--format", "compressed-tensors"
    )
    assert code == 2 and "holds no grids but uniform ones" in err
