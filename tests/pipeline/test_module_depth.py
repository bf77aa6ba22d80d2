"""``prune_depth`` for a user's own module."""

import pytest
import torch
from killing import Killed, files_of
from torch import nn

from jettison import load, prune_depth
from jettison.core.errors import UsageError
from jettison.core.journal import Journal
from jettison.domains.vision.training_data import augment
from jettison.graph.residual import Residual
from jettison.pipeline import module_depth
from jettison.training import depth

RNG = torch.Generator().manual_seed(0)
LABELS = torch.randint(3, (60,), generator=RNG)
PIXELS = torch.randn(60, 1, 9, 8, generator=RNG) + LABELS[:, None, None, None]
OPTIONS = {"method": "updp", "blocks": 1, "supernet_epochs": 1, "epochs": 2, "batch": 16}


class Block(nn.Module):
    """A user's block: norms of groups, and a shortcut that is its input."""

    def __init__(self, channels=8):
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norm, self.act = nn.GroupNorm(2, channels), nn.SiLU()

    def forward(self, x):
        return torch.relu(x + self.second(self.act(self.norm(self.first(x)))))

    def parts(self):
        return self.first, self.norm, self.act, self.second


def net(block=Block):
    """Return a net for images of one channel."""
    torch.manual_seed(0)
    stem, head = [nn.Conv2d(1, 8, 3), nn.ReLU()], [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)]
    return nn.Sequential(*stem, block(), block(), block(), *head)


def residuals(model):
    """Return the blocks of the net."""
    return [Residual(str(number), model[number].parts(), (), nn.ReLU()) for number in (2, 3, 4)]


@pytest.fixture(autouse=True)
def timed(monkeypatch):
    """Times that are measured are not the same twice, and take a while."""
    monkeypatch.setattr(module_depth, "milliseconds", lambda models, example: dict.fromkeys(models, 1.0))


@pytest.mark.parametrize("listed", [False, True])
def test_a_net_of_ones_own(tmp_path, listed):
    """It is pruned, merged and written; the original stays as it was."""
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    blocks = residuals(model) if listed else residuals
    pruned = prune_depth(model, blocks, PIXELS, LABELS, tmp_path / "out", **OPTIONS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()) and model.training
    kinds = [type(pruned[number]).__name__ for number in (2, 3, 4)]
    assert sorted(kinds) == ["Block", "Block", "ResidualBlock"] and not pruned.training
    merged = pruned[2 + kinds.index("ResidualBlock")]
    assert isinstance(merged.branch, nn.Conv2d) and merged.branch.kernel_size == (3, 3) and merged.shortcut is None
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "out").logits(PIXELS), pruned(PIXELS))
    assert not list((tmp_path / "out" / "depth").glob("*.safetensors"))
    again = prune_depth(net(), residuals, PIXELS, LABELS, tmp_path / "out", **OPTIONS)
    with torch.no_grad():
        assert torch.equal(again(PIXELS), pruned(PIXELS))
    file = tmp_path / "out" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\1\2\3\4")
    again = prune_depth(net(), residuals, PIXELS, LABELS, tmp_path / "out", **OPTIONS)
    with torch.no_grad():
        assert torch.equal(again(PIXELS), pruned(PIXELS)), "a damaged result is made again"


def test_it_learns(tmp_path):
    """The classes are told by brightness: the pruned model knows them."""
    options = {
        "method": "chosen",
        "blocks": [0, 2],
        "fade": 0.4,
        "epochs": 20,
        "batch": 16,
        "rate": 1e-2,
        "distill": 0.0,
    }
    pruned = prune_depth(net(), residuals, PIXELS, LABELS, tmp_path / "out", augment=augment, **options)
    with torch.no_grad():
        assert float((pruned(PIXELS).argmax(-1) == LABELS).float().mean()) > 0.8


def test_killed_in_the_middle(tmp_path, monkeypatch):
    """At several records of the journal: in the supernet, the search, the progressive training and the merge."""
    real = depth.DepthTask
    monkeypatch.setattr(module_depth, "DepthTask", lambda **fields: real(**fields, save_every=0.0))
    run = lambda name: prune_depth(net(), residuals, PIXELS, LABELS, tmp_path / name, **OPTIONS)
    whole, add, seen = run("whole"), Journal.add, []
    written = files_of(tmp_path / "whole")
    for at in (1, 5, 9, 14):

        def dying(journal, at=at, **entry):
            add(journal, **entry)
            seen.append(entry)
            if len(seen) == at:
                raise Killed

        seen.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "add", dying)
            with pytest.raises(Killed):
                run(f"killed-{at}")
        again = run(f"killed-{at}")
        assert files_of(tmp_path / f"killed-{at}") == written
        with torch.no_grad():
            assert torch.equal(again(PIXELS), whole(PIXELS))


class Whole(nn.Module):
    """A net that no description holds, with an output that is an object, and blocks that lie deep."""

    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, pixels):
        return type("Output", (), {"logits": self.body(pixels)})()


def in_body(model):
    return [Residual(f"body.{number}", model.body[number].parts(), (), nn.ReLU()) for number in (2, 3, 4)]


def test_what_cannot_be_written_is_returned(tmp_path, capsys):
    from jettison.core.progress import set_quiet

    run = lambda: prune_depth(Whole(), in_body, PIXELS, LABELS, tmp_path / "out", **OPTIONS)
    set_quiet(False)
    try:
        pruned = run()
    finally:
        set_quiet(True)
    words = " ".join(capsys.readouterr().err.split())
    assert "the pruned model is returned but not written; keep it by torch.export or by write_onnx" in words
    assert "Whole has no description" in words
    assert not (tmp_path / "out" / "modules.json").exists()
    with torch.no_grad():
        expected = pruned(PIXELS).logits
        assert torch.equal(run()(PIXELS).logits, expected), "a finished run is not trained again"


def test_onnx_of_what_cannot_be_written(tmp_path):
    pytest.importorskip("onnxruntime")
    from jettison.formats.onnx_file import open_onnx, run_onnx, write_onnx

    pruned = prune_depth(Whole(), in_body, PIXELS, LABELS, tmp_path / "out", **OPTIONS)
    write_onnx(pruned, PIXELS[:1], tmp_path / "model.onnx")
    with torch.no_grad():
        logits = torch.as_tensor(run_onnx(open_onnx(tmp_path / "model.onnx", 1), PIXELS[:4]))
        torch.testing.assert_close(logits, pruned(PIXELS[:4]).logits, atol=1e-4, rtol=1e-4)


def test_whole_blocks(tmp_path):
    options = {"method": "drop", "blocks": 2, "epochs": 1, "batch": 16}
    pruned = prune_depth(net(), residuals, PIXELS, LABELS, tmp_path / "out", **options)
    assert sorted(type(pruned[number]).__name__ for number in (2, 3, 4)) == ["Block", "Identity", "Identity"]
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "out").logits(PIXELS), pruned(PIXELS))


def test_images_of_a_sequence(tmp_path):
    """Images that are read one by one give the same result as a tensor."""

    class Reader:
        def __len__(self):
            return len(PIXELS)

        def __getitem__(self, index):
            return PIXELS[index].double()

    one = prune_depth(net(), residuals, PIXELS, LABELS, tmp_path / "a", **OPTIONS)
    two = prune_depth(net(), residuals, Reader(), LABELS.tolist(), tmp_path / "b", **OPTIONS)
    with torch.no_grad():
        assert torch.equal(one(PIXELS), two(PIXELS))


class Hidden(Block):
    """A block that does more than its parts."""

    def forward(self, x):
        return super().forward(x) * 1.5


def parts_of(**changes):
    """Return residuals with a fault in the second block."""

    def faulty(model):
        first, second, third = residuals(model)
        fields = {"path": "3", "branch": second.branch, "shortcut": (), "after": nn.ReLU()} | changes
        fields["branch"] = fields["branch"](model) if callable(fields["branch"]) else fields["branch"]
        return [first, Residual(**fields), third]

    return faulty


WRONG = {
    "no blocks": (dict(residuals=[]), "residuals is empty"),
    "no residual": (dict(residuals=lambda model: [model[2]]), "valid: Residual of jettison.graph.residual"),
    "path": (dict(residuals=parts_of(path="9")), "block 9: the model has no module of this path"),
    "twice": (dict(residuals=lambda model: residuals(model) * 2), "block 2: it is named twice"),
    "other parts": (dict(residuals=residuals(net())[:1], model=net()), "block 2: a Conv2d of it is not in the model"),
    "hidden": (dict(model=net(Hidden)), "block 2: its parts, run in order, differ from the block"),
    "order": (
        dict(residuals=parts_of(branch=lambda model: tuple(reversed(model[3].parts())))),
        "block 3: its parts, run in order, differ",
    ),
    "shortcut": (dict(residuals=parts_of(shortcut=None)), "block 3: its parts, run in order, differ"),
    "after": (dict(residuals=parts_of(after=None)), "block 3: its parts, run in order, differ"),
    "pooling": (
        dict(residuals=parts_of(branch=lambda model: (*model[3].parts(), nn.MaxPool2d(2)))), "MaxPool2d in its branch",
    ),
    "too many": (dict(blocks=4), "blocks = 4: the model has 3 blocks"),
    "neither": (dict(blocks=None), "needs one of blocks"),
    "batch": (dict(batch=58), "batch = 58: there are 57 images"),
    "option": (dict(block=1), "unknown option 'block' of depth method 'updp'"),
    "method": (dict(method="updb"), "unknown depth method 'updb'"),
    "few": (dict(pixels=PIXELS[:39], labels=LABELS[:39]), "pixels has 39 images: at least 40"),
    "labels": (dict(labels=LABELS[:50]), "60 images and 50 labels"),
    "float": (dict(labels=LABELS.float()), "labels of shape .60,., torch.float32: .images,. whole numbers"),
    "no labels": (dict(labels=None), "labels cannot be used"),
    "no pixels": (dict(pixels=3), "pixels cannot be used"),
    "class": (dict(labels=LABELS + 1), "labels has 3: the model has classes 0 to 2"),
    "bytes": (dict(pixels=PIXELS.byte()), "pixels.0. is .1, 9, 8. torch.uint8"),
    "channels": (dict(pixels=PIXELS.expand(-1, 3, -1, -1)), "the model does not run on the pixels"),
    "seed": (dict(seed=-1), "seed"),
    "output": (dict(model=net()[:6]), "logits .batch, classes. are needed"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_asked_wrongly(tmp_path, monkeypatch, what):
    """In one line, before any training, and nothing stays behind."""
    changes, words = WRONG[what]
    monkeypatch.setattr(depth, "train", lambda *_, **__: pytest.fail("a training began"))
    asked = {"model": net(), "residuals": residuals, "pixels": PIXELS, "labels": LABELS} | OPTIONS | changes
    with pytest.raises(UsageError, match=words) as error:
        prune_depth(out=tmp_path / "out", **asked)
    assert "\n" not in str(error.value)
    out = tmp_path / "out"
    assert not out.exists() or not [path for path in out.iterdir() if not path.name.startswith(".")]


def test_another_run_in_the_folder(tmp_path):
    prune_depth(net(), residuals, PIXELS, LABELS, tmp_path / "out", **OPTIONS)
    for changes in ({"seed": 1}, {"epochs": 3}, {"pixels": PIXELS * 2}, {"labels": LABELS.flip(0)}):
        asked = {"model": net(), "residuals": residuals, "pixels": PIXELS, "labels": LABELS} | OPTIONS | changes
        with pytest.raises(UsageError, match="holds another run"):
            prune_depth(out=tmp_path / "out", **asked)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="is not empty"):
        prune_depth(net(), residuals, PIXELS, LABELS, tmp_path / "full", **OPTIONS)
