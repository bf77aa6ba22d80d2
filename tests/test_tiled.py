"""The packed weights that are kept beside a checkpoint, as the kernels read them."""

import json
import os

import pytest
import torch

from jettison.compress import compress
from jettison.decode import load
from jettison.formats import tiled
from jettison.kernels import native
from jettison.models.modules import QuantLinear
from jettison.recipe import load_recipe

pytestmark = pytest.mark.skipif(native.library() is None, reason="built without a compiler")
STEPS = {
    "symmetric": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 32}}],
    "zero points": [{"quantize": {"method": "rtn", "bits": 3, "group_size": 32, "symmetric": False}}],
    "dense head": [{"quantize": {"method": "rtn", "bits": 8, "group_size": 32}, "where": {"role": ["down"]}}],
    "not tiled": [{"quantize": {"method": "rtn", "bits": 2, "group_size": 8}}],
}


@pytest.fixture
def made(tiny, tmp_path):
    def make(family: str = "qwen3", steps: str = "symmetric", **config):
        compress(tiny(family, **config), load_recipe({"steps": STEPS[steps]}), tmp_path / "out")
        return tmp_path / "out"

    return make


@pytest.fixture
def ids():
    return torch.randint(0, 4096, (1, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(tiled, "say", lines.append)
    return lines


@pytest.mark.parametrize(
    ("family", "steps"),
    [("qwen3", "symmetric"), ("qwen2", "zero points"), ("llama", "dense head"), ("gpt2", "symmetric"),
     ("gemma3_text", "zero points"),
        ("llama", "not tiled"), ("opt", "symmetric")],
)  # fmt: skip
def test_the_same_model(made, ids, family, steps):
    folder = made(family, steps)
    expected = load(folder, cache=False)
    assert not (folder / tiled.FILE).exists()
    first, second = load(folder), load(folder)
    assert (folder / tiled.FILE).exists()
    for loaded in (first, second):
        assert torch.equal(loaded.logits(ids), expected.logits(ids))
        for (name, meant), (other, found) in zip(
            expected.model.state_dict().items(), loaded.model.state_dict().items(), strict=True
        ):
            assert name == other and torch.equal(meant, found)


def test_it_is_mapped_and_not_made_again(made, monkeypatch):
    folder = made()
    load(folder)
    monkeypatch.setattr(tiled, "load_packed", lambda *_: pytest.fail("the checkpoint was read"))
    model = load(folder).model
    assert all(module.tiling for module in model.modules() if isinstance(module, QuantLinear))
    starts = [
        tensor.data_ptr() for module in model.modules() if isinstance(module, QuantLinear) for tensor in [module.tiles]
    ]
    assert starts and all(start % tiled.ALIGNED == 0 for start in starts)


def test_tied_weights_stay_one(made):
    folder = made("qwen2", "dense head", tie_word_embeddings=True)
    for _ in range(2):
        model = load(folder).model
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_another_checkpoint_another_file(made, tiny, ids):
    folder = made()
    load(folder)
    before = (folder / tiled.FILE).stat().st_mtime_ns
    shard = next(folder.glob("model-*.safetensors"))
    os.utime(shard)
    load(folder)
    after = (folder / tiled.FILE).stat().st_mtime_ns
    assert after != before
    load(folder, dtype=torch.float32)  # of another type
    assert (folder / tiled.FILE).stat().st_mtime_ns != after


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * 64])
def test_a_damaged_file_is_said_and_made_again(made, ids, said, damage):
    folder = made()
    expected = load(folder).logits(ids)
    file = folder / tiled.FILE
    file.write_bytes(damage(file.read_bytes()))
    assert torch.equal(load(folder).logits(ids), expected)
    assert any("damaged, so it is made again" in line for line in said)
    assert json.loads(tiled.Checkpoint(file.parent, [file]).metadata["shared"]) is not None


def test_where_it_cannot_be_written_the_model_loads(made, ids, said):
    folder = made()
    expected = load(folder, cache=False).logits(ids)
    (folder / tiled.FILE).parent.write_text("a file where the folder would be")
    assert torch.equal(load(folder).logits(ids), expected)
    assert any("loading takes longer" in line for line in said)


def test_exact_loading_needs_none(made):
    folder = made()
    load(folder, exact=True)
    assert not (folder / tiled.FILE).exists()
