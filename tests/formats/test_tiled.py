"""The cached packed weights beside a checkpoint, in the layout that the kernels read."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from jettison.core import kept
from jettison.core.errors import JettisonError
from jettison.formats import tiled
from jettison.graph.folder import ModelFolder
from jettison.graph.modules import QuantizedLinear, TiledLinear
from jettison.kernels import native
from jettison.pipeline.compression import compress
from jettison.recipe.recipe import load_recipe
from jettison.runtime.load import load
from jettison.runtime.speculative.draft import Draft, read_corpus, read_draft, write_corpus, write_draft

pytestmark = pytest.mark.skipif(native.library() is None, reason="built without a compiler")
STEPS = {
    "symmetric": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 32}}],
    "zero points": [{"quantize": {"method": "rtn", "bits": 3, "group_size": 32, "symmetric": False}}],
    "dense head": [{"quantize": {"method": "rtn", "bits": 8, "group_size": 32}, "where": {"role": ["down"]}}],
    "not tiled": [{"quantize": {"method": "rtn", "bits": 2, "group_size": 8}}],
}


@pytest.fixture
def made(tiny, tmp_path):
    """Return a function that compresses a tiny model: (family, steps) -> folder."""

    def make(family: str = "qwen3", steps: str = "symmetric", **config):
        compress(tiny(family, **config), load_recipe({"steps": STEPS[steps]}), tmp_path / "out")
        return tmp_path / "out"

    return make


@pytest.fixture
def ids():
    return torch.randint(0, 4096, (1, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def said(monkeypatch):
    """Return the list of the notes that are printed."""
    lines = []
    for module in (tiled, kept):
        monkeypatch.setattr(module, "say", lines.append)
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
        for (name, expected_tensor), (other, tensor) in zip(
            expected.model.state_dict().items(), loaded.model.state_dict().items(), strict=True
        ):
            assert name == other and torch.equal(expected_tensor, tensor)


def test_it_is_mapped_and_not_made_again(made, monkeypatch):
    folder = made()
    load(folder)
    monkeypatch.setattr(tiled, "load_packed", lambda *_: pytest.fail("the checkpoint was read"))
    model = load(folder).model
    assert all(isinstance(module, TiledLinear) for module in model.modules() if isinstance(module, QuantizedLinear))
    starts = [
        tensor.data_ptr() for module in model.modules() if isinstance(module, TiledLinear) for tensor in [module.tiles]
    ]
    assert starts and all(start % tiled.ALIGNED == 0 for start in starts)


def test_tied_weights_stay_one(made):
    folder = made("qwen2", "dense head", tie_word_embeddings=True)
    for _ in range(2):
        model = load(folder).model
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_another_checkpoint_another_file(made, ids):
    """The file belongs to the checkpoint's content; a change of time stamps does not matter."""
    folder = made()
    before = load(folder).logits(ids), (folder / tiled.FILE).stat().st_ino
    shard = next(folder.glob("model-*.safetensors"))
    os.utime(shard)
    load(folder)
    assert (folder / tiled.FILE).stat().st_ino == before[1]
    tensors = load_file(shard)
    name = next(name for name in tensors if name.endswith("weight_scale"))
    save_file(tensors | {name: 2 * tensors[name]}, shard, {"format": "pt"})
    after = load(folder).logits(ids), (folder / tiled.FILE).stat().st_ino
    assert not torch.equal(after[0], before[0]) and after[1] != before[1]
    assert torch.equal(after[0], load(folder, cache=False).logits(ids))
    load(folder, dtype=torch.float32)  # another dtype makes another file
    assert (folder / tiled.FILE).stat().st_ino != after[1]


def flip(data: bytes, part: float) -> bytes:
    """Flip one bit of the byte at this part of the data (0 to 1)."""
    at = int(part * len(data))
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + bytes(64),
    "empty": lambda data: b"",
    "garbage": lambda data: b"\xff" * 64,
    "a header of absurd size": lambda data: b"\xff" * 7 + b"\x7f" + data[8:],
    "a header flipped": lambda data: flip(data, 0.002),
    "data flipped": lambda data: flip(data, 0.5),
    "the last byte flipped": lambda data: flip(data, 0.999999),
    "a shape": lambda data: data.replace(b'"shape": [', b'"shape": [9', 1)[: len(data)],
    "wrong types": lambda data: data.replace(b'"shape": [', b'"shape": {', 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_said_and_made_again(made, ids, said, damage):
    folder = made()
    expected = load(folder).logits(ids)
    file = folder / tiled.FILE
    good, times, mapped = file.read_bytes(), file.stat(), load(folder)
    bad = DAMAGE[damage](good)
    assert bad != good
    os.rename(file, file.with_name("mapped"))  # the loaded model still maps this inode, so it is not overwritten
    file.write_bytes(bad)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    inode = file.stat().st_ino
    assert torch.equal(load(folder).logits(ids), expected)
    assert any("damaged, so it is made again" in line for line in said)
    assert file.read_bytes() == good and file.stat().st_ino != inode  # a new file, not the old one overwritten
    assert torch.equal(mapped.logits(ids), expected)
    said.clear()
    assert torch.equal(load(folder).logits(ids), expected) and not said


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"key": 1}', '{"key": null, "digest": null}', "\xff", "[" * 9999]
)
def test_a_damaged_seal(made, ids, text):
    folder = made()
    expected = load(folder).logits(ids)
    seal = (folder / tiled.FILE).with_suffix(".json")
    good = seal.read_bytes()
    for damaged in (text.encode("latin-1"), flip(good, 0.3), flip(good, 0.7)):
        seal.write_bytes(damaged)
        assert torch.equal(load(folder).logits(ids), expected)
        assert seal.read_bytes() == good


def test_a_file_without_its_seal_is_made_again(made, ids):
    """A kill between the writes of file and seal leaves this."""
    folder = made()
    expected = load(folder).logits(ids)
    file = folder / tiled.FILE
    file.with_suffix(".json").unlink()
    file.write_bytes(flip(file.read_bytes(), 0.9))
    assert torch.equal(load(folder).logits(ids), expected)


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """Return an empty cache folder that the test uses."""
    monkeypatch.setenv("JETTISON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("what", ["folder", "full folder", "pipe"])
def test_something_else_in_its_place(made, ids, said, own_cache, what):
    folder = made()
    expected = load(folder).logits(ids)
    file = folder / tiled.FILE
    file.unlink()
    if what == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
        if what == "full folder":
            (file / "mine").write_text("")
    assert torch.equal(load(folder).logits(ids), expected)
    assert any("is damaged, so it is made again" in line for line in said)
    assert torch.equal(load(folder).logits(ids), expected)
    assert what == "pipe" or len(list(own_cache.glob("tiles/*/model.safetensors"))) == 1
    assert what != "full folder" or (file / "mine").exists()


class TestPlaces:
    def test_in_the_cache_where_the_folder_cannot_be_written_to(self, made, ids, own_cache, monkeypatch):
        folder = made()
        (folder / tiled.FILE).parent.write_text("a file where the folder would be")
        expected = load(folder, cache=False).logits(ids)
        assert torch.equal(load(folder).logits(ids), expected)
        kept = list(own_cache.glob("tiles/*/model.safetensors"))
        assert len(kept) == 1
        monkeypatch.setattr(tiled, "load_packed", lambda *_: pytest.fail("the checkpoint was read"))
        assert torch.equal(load(folder).logits(ids), expected)

    def test_where_nothing_can_be_written_the_model_loads(self, made, ids, said, monkeypatch):
        folder = made()
        expected = load(folder, cache=False).logits(ids)
        (folder / tiled.FILE).parent.write_text("a file where the folder would be")
        monkeypatch.setenv("JETTISON_CACHE", os.devnull)
        assert torch.equal(load(folder).logits(ids), expected)
        assert any("loading takes longer" in line for line in said)

    def test_a_snapshot_of_the_hub_is_not_written_to(self, made, ids, own_cache, said, monkeypatch, tmp_path):
        snapshot = tmp_path / "hub" / "models--me--it" / "snapshots" / "0123abcd"
        snapshot.parent.mkdir(parents=True)
        made().rename(snapshot)
        before = sorted(path.name for path in snapshot.iterdir())
        expected = load(snapshot, cache=False).logits(ids)
        assert torch.equal(load(snapshot).logits(ids), expected)
        write_draft(ModelFolder(snapshot), Draft(lookup=2, corpus=True), "fast", {})
        write_corpus(ModelFolder(snapshot), torch.tensor([1, 2, 3]))
        assert read_draft(ModelFolder(snapshot))[1] == "fast" and read_corpus(ModelFolder(snapshot)).tolist() == [
            1,
            2,
            3,
        ]
        assert sorted(path.name for path in snapshot.iterdir()) == before
        (snapshot / tiled.FILE).parent.mkdir()  # tiles that come with a repository are not ours
        for name in ("model.safetensors", "model.json"):
            (snapshot / ".tiles" / name).write_bytes(b"theirs")
        monkeypatch.setattr(tiled, "load_packed", lambda *_: pytest.fail("the checkpoint was read"))
        assert torch.equal(load(snapshot).logits(ids), expected) and not said
        assert (snapshot / ".tiles" / "model.json").read_bytes() == b"theirs"
        monkeypatch.setenv("JETTISON_CACHE", os.devnull)
        with pytest.raises(JettisonError, match="JETTISON_CACHE"):
            write_draft(ModelFolder(snapshot), Draft(lookup=2), "fast", {})


def test_exact_loading_needs_none(made):
    folder = made()
    load(folder, exact=True)
    assert not (folder / tiled.FILE).exists()
