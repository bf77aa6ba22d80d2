"""A tied head and embedding as one packed matrix: stored once, looked up and multiplied from the same codes."""

import pytest
import torch

from jettison.core.errors import UsageError
from jettison.devices.device import find_device
from jettison.encodings.uniform import UniformGrid
from jettison.formats.packed import read_grids
from jettison.formats.runtimes import find_runtime
from jettison.graph.folder import ModelFolder
from jettison.graph.modules import PackedEmbedding, TiledLinear
from jettison.kernels import native
from jettison.pipeline.compression import compress
from jettison.pipeline.inspection import inspect
from jettison.pipeline.recovery import recover
from jettison.pipeline.size import measure_size
from jettison.pipeline.verification import verify
from jettison.planning.cost import Setting, operators, predict
from jettison.planning.picture import role_rows
from jettison.planning.planner import make_plan
from jettison.recipe.recipe import load_recipe
from jettison.runtime.load import load

BLOCKS = ["q", "k", "v", "o", "gate", "up", "down"]
IDS = torch.randint(1, 4096, (1, 40), generator=torch.Generator().manual_seed(0))
TABLE = 4096 * 64  # weights of the matrix


def recipe(roles, method="gptq", bits=4, **grid):
    step = {"quantize": {"method": method, "bits": bits, "group_size": 32} | grid, "where": {"role": roles}}
    return load_recipe({"calibration": {"text": "books", "samples": 8, "length": 32}, "steps": [step]})


def tied(tiny, family="llama"):
    return tiny(family, tie_word_embeddings=True)


def native_logits(loaded):
    session = loaded.decoder.session(40, cache="float32")
    return session.append(IDS[0].tolist(), every=True, activation_bits=15)


@pytest.mark.parametrize(
    "family, grid", [("llama", {}), ("gemma3_text", {}), ("llama", {"bits": 3, "symmetric": False})]
)
def test_it_is_stored_once_and_all_readers_give_the_same_logits(family, grid, tiny, tmp_path):
    """The model in full precision, with the dequantized matrix in both places, is the reference."""
    manifest = compress(tied(tiny, family), recipe(["head", "embed"], **grid), tmp_path / "out")
    out = ModelFolder(tmp_path / "out")
    assert out.anatomy.tied and set(read_grids(out)) == {"model.embed_tokens", "lm_head"}
    assert not [name for name in out.checkpoint if name.startswith("lm_head") or name.endswith("embed_tokens.weight")]
    assert any("packed embedding" in note for note in manifest["not_in_transformers"])
    exact = load(out.folder, dtype=torch.float32, exact=True)
    embedding = exact.model.get_input_embeddings()
    assert isinstance(embedding, PackedEmbedding) and embedding.head is exact.model.lm_head
    reference = load(tied(tiny, family), dtype=torch.float32, exact=True)
    weight = torch.nn.Parameter(exact.model.lm_head.weight)
    reference.model.get_input_embeddings().weight = reference.model.lm_head.weight = weight
    expected = reference.logits(IDS)[0]
    assert torch.allclose(exact.logits(IDS)[0], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    if native.library() is None:
        pytest.skip("built without a compiler")
    loaded = load(out.folder, dtype=torch.float32)
    again = load(out.folder, dtype=torch.float32)  # from the tiles that the first one kept
    assert isinstance(loaded.model.lm_head, TiledLinear) and again.model.get_input_embeddings().head.tiling
    assert torch.equal(again.logits(IDS), loaded.logits(IDS))
    assert (native_logits(loaded) - expected).norm() < 1e-3 * expected.norm()  # activations of 15 bits
    assert loaded.generate("One day", tokens=6, temperature=0).tokens


def test_its_bytes_are_counted_once(tiny, tmp_path):
    """By the files, by ``inspect``, by the cost of a recipe, and by the plan."""
    source = ModelFolder(tied(tiny))
    both = recipe([*BLOCKS, "head", "embed"], "rtn")
    compress(source.folder, both, tmp_path / "out")
    rest = sum(linear.weights for linear in source.anatomy if linear.block is not None)
    size = measure_size(tmp_path / "out")["bytes"]
    assert (TABLE + rest) * 4.5 / 8 < size < (TABLE + rest) * 4.5 / 8 + 2000
    rows = [row["bytes"] for row in inspect(tmp_path / "out")["matrices"] if row["role"] in ("head", "embed")]
    assert sorted(rows) == [0, TABLE * 9 // 16]
    predicted = predict(source, both, find_device("rtx-4090"), Setting(context=0)).memory
    assert abs(predicted - size) < 2000
    stored = {op.role: op.stored for op in operators(source, both, Setting(context=0))}
    assert (stored["embed"], stored["head"]) == (0.0, TABLE * 9 / 16)
    preset = recipe([*BLOCKS, "head"], "rtn")  # names only the head
    apart, once = (
        predict(source, preset, find_device("rtx-4090"), Setting(context=0, runtime=runtime)).memory
        for runtime in (None, find_runtime("jettison"))
    )
    assert apart - once == 2 * TABLE


def test_a_plan_for_a_runtime_that_reads_it_shares_it_and_meets_its_budget(tiny, tmp_path):
    source = ModelFolder(tied(tiny))
    options = {"memory": 260_000, "context": 16, "bits": (4, 8, 16), "group_sizes": (32,)}
    with pytest.raises(UsageError, match="no plan meets"):  # the embedding alone takes more in 16 bits
        make_plan(source.folder, **options)
    plan = make_plan(source.folder, runtime="jettison", **options)
    step = next(step for step in plan.recipe.of("quantize") if "head" in step.where.role)
    assert "embed" in step.where.role and plan.cost.memory <= 260_000
    stored = {row["role"]: row["bytes"] for row in role_rows(plan)}
    assert stored["embed"] == 0 and stored["head"] >= TABLE * 4.5 / 8
    compress(source.folder, plan.recipe, tmp_path / "out")  # without --runtime: the recipe says it
    assert measure_size(tmp_path / "out")["bytes"] <= 260_000 and ModelFolder(tmp_path / "out").anatomy.tied


def test_a_runtime_decides_for_a_recipe_that_names_only_the_head(tiny, tmp_path):
    preset = recipe(["down", "head"])
    compress(tied(tiny), preset, tmp_path / "ours", runtime="jettison")
    assert ModelFolder(tmp_path / "ours").anatomy.tied
    note = "reads no packed matrix that is both head and embedding: the embedding is stored in 16 bits"
    assert note not in (tmp_path / "ours" / "progress.log").read_text()
    compress(tied(tiny), preset, tmp_path / "theirs", runtime="transformers")
    theirs = ModelFolder(tmp_path / "theirs")
    assert not theirs.anatomy.tied and theirs.checkpoint.dtype("model.embed_tokens.weight") == "BF16"
    assert note in (tmp_path / "theirs" / "progress.log").read_text()
    compress(tied(tiny), preset, tmp_path / "any")
    assert not ModelFolder(tmp_path / "any").anatomy.tied


def test_it_is_recovered_around_and_verified(tiny, tmp_path):
    """Recovery trains the scales of the blocks; those of the shared matrix stay."""
    compress(tied(tiny), recipe([*BLOCKS, "head", "embed"], "rtn"), tmp_path / "out")
    before = ModelFolder(tmp_path / "out").read("lm_head.weight_scale").clone()
    options = {"train": "[scales]", "samples": 8, "length": 16, "batch": 4, "data": "books"}
    recover(tmp_path / "out", changes=[f"recover.{name}={value}" for name, value in options.items()])
    assert torch.equal(ModelFolder(tmp_path / "out").read("lm_head.weight_scale"), before)
    assert verify(tmp_path / "out")["ok"]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_a_tied_gguf_matrix_stays_packed_once(kind, tiny, tmp_path):
    gguf_models = pytest.importorskip("gguf_models")
    path = gguf_models.write(tied(tiny), tmp_path / "m.gguf", kind)
    source = load(path, dtype=torch.float32, exact=True)
    assert isinstance(source.model.get_input_embeddings(), PackedEmbedding)
    compress(path, recipe(["down"], "rtn", bits=3), tmp_path / "out")
    out = ModelFolder(tmp_path / "out")
    assert out.anatomy.tied and read_grids(out)["lm_head"] == read_grids(out)["model.embed_tokens"]
    assert not [name for name in out.checkpoint if "lm_head" in name or name.endswith("embed_tokens.weight")]
    loaded = load(out.folder, dtype=torch.float32, exact=True)
    weights = [model.get_submodule("lm_head").weight for model in (source.model, loaded.model)]
    assert torch.equal(*weights)
    if native.library() is not None:
        given = load(path, dtype=torch.float32)
        expected = source.logits(IDS)[0]
        assert (native_logits(given) - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.skipif(native.library() is None, reason="built without a compiler")
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_are_those_of_the_dequantized_matrix(bits, symmetric):
    """From the layout of checkpoints and from tiles, with rows and groups that fill neither."""
    from products import random_weight

    from jettison.graph.modules import PackedLinear

    weight = random_weight(UniformGrid(bits, -1 if bits == 3 else 48, symmetric), 70, 144)
    packed, rows = PackedLinear.of(weight), torch.tensor([69, 0, 33, 15, 16, 69])
    expected = weight.dequantize()[rows]
    assert torch.equal(packed.rows(rows), expected)
    assert torch.equal(packed.tiled(sparse=False).rows(rows), expected)
    for wrong in ([70], [-1]):
        with pytest.raises(UsageError, match="from 0 to 69"):
            packed.tiled(sparse=False).rows(torch.tensor(wrong))
