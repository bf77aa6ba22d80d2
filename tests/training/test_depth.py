"""What depth pruning trains, and on which images."""

import pytest
import tiny as maker
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from jettison.core.errors import UsageError
from jettison.core.journal import Journal
from jettison.domains.vision import training_data
from jettison.domains.vision.data import open_images
from jettison.domains.vision.training_data import TrainingImages, augment, divide, labelled
from jettison.graph.folder import ModelFolder
from jettison.graph.residual import Residual
from jettison.graph.twin import install_twins, set_fades
from jettison.training import depth
from jettison.training.depth import DepthTask, FadingLesson, GateLesson, Labelled, Lesson, SupernetLesson, fade_out
from jettison.training.losses import kl


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))

    def forward(self, x):
        return torch.relu(x + self.branch(x))


def small_task(folder, seed=0, blocks=3):
    """Return a task on a small net and random images."""
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *(Block() for _ in range(blocks)), *head).eval()
    rng = torch.Generator().manual_seed(1)
    pixels, labels = torch.randn(60, 3, 9, 8, generator=rng), torch.randint(3, (60,), generator=rng)
    data = Labelled(
        40, lambda places, step: (pixels[places], labels[places]), [pixels[:20]], [(pixels[40:], labels[40:])]
    )
    residuals = [
        Residual(str(n), tuple(model[n].branch), (), nn.ReLU()) for n in range(1, blocks + 1)
    ]  # fmt: skip
    folder.mkdir(exist_ok=True)
    return DepthTask(
        model, residuals, data, lambda m, x: m(x), lambda models: {}, folder, Journal(folder / "j.jsonl", {}), seed
    )


def batch(task):
    return *task.data.fetch(torch.arange(8), 0), torch.tensor(0)


def test_the_sandwich(tmp_path, monkeypatch):
    """A step runs the whole model, random subnets and the smallest one; the whole model teaches the others."""
    monkeypatch.setattr(depth, "has_fast_bfloat16", lambda device: False)
    task = small_task(tmp_path / "a")
    twins = install_twins(task.model, task.residuals)
    lesson, ran = SupernetLesson(task, twins, middle=2), []
    task.model.register_forward_hook(lambda *_: ran.append([twin.fade for twin in twins]))
    pixels, labels, step = batch(task)
    loss = lesson(pixels, labels, step)
    assert ran[0] == [0, 0, 0] and ran[-1] == [1, 1, 1] and len(ran) == 4
    again, before = ran[:], len(ran)
    lesson(pixels, labels, step)
    assert ran[before:] == again, "the subnets depend on seed and step only"
    middles = set()
    for number in range(12):
        lesson(pixels, labels, torch.tensor(number))
        middles |= {tuple(fades) for fades in ran[-3:-1]}
    assert len(middles) > 4
    outputs = []
    for fades in again:
        set_fades(twins, fades)
        outputs.append(task.model(pixels))
    expected = [cross_entropy(outputs[0], labels, label_smoothing=depth.SMOOTHING)]
    expected += [kl(outputs[0], output) / len(pixels) for output in outputs[1:]]
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    loss.backward()
    assert all(value.grad is not None for value in task.model.parameters())


def test_the_fade_rises_from_zero_to_one(tmp_path):
    task = small_task(tmp_path / "a")
    twins = install_twins(task.model, task.residuals)
    lesson = FadingLesson(task, twins, steps=20, fade=0.5, distill=0.0)
    shares = [lesson.share(step) for step in range(20)]
    assert shares == sorted(shares) and 0 < shares[0] < 0.1 and 0.9 < shares[9] < 1 and shares[10:] == [1.0] * 10
    assert shares[4] + shares[5] == pytest.approx(1), "a cosine is symmetric"
    assert FadingLesson(task, twins, 20, 0.0, 0.0).share(0) == 1.0
    assert FadingLesson(task, twins, 20, 1.0, 0.0).share(19) < 1
    lesson(*batch(task)[:2], torch.tensor(3))
    assert [twin.fade for twin in twins] == [shares[3]] * 3


def test_what_the_original_teaches(tmp_path, monkeypatch):
    monkeypatch.setattr(depth, "has_fast_bfloat16", lambda device: False)
    task = small_task(tmp_path / "a")
    pixels, labels, step = batch(task)
    assert Lesson(task, distill=1.0)(pixels, labels, step).item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        task.model[0].weight.mul_(3)
    assert Lesson(task, distill=1.0)(pixels, labels, step).item() > 1e-3
    apart = Lesson(task, distill=0.25)
    halves = [Lesson(task, distill=share)(pixels, labels, step).item() for share in (0.0, 1.0)]
    assert apart(pixels, labels, step).item() == pytest.approx(0.75 * halves[0] + 0.25 * halves[1], rel=1e-4)


def test_gates_are_straight_through(tmp_path):
    """Forward, a block is pruned or not; backward, its gate gets the gradient of the sigmoid."""
    task = small_task(tmp_path / "a")
    twins = install_twins(task.model, task.residuals)
    lesson = GateLesson(task, twins, blocks=1)
    with torch.no_grad():
        lesson.gates.copy_(torch.tensor([0.3, -0.2, 0.1]))
    assert lesson.pruned == [1]
    lesson(*batch(task)).backward()
    assert [round(float(twin.fade.detach()), 5) for twin in twins] == [0, 1, 0]
    assert (lesson.gates.grad != 0).all()
    with torch.no_grad():
        lesson.gates.zero_()
    assert lesson.pruned == [0], "of equal gates the first"


def test_a_training_continues_and_only_fades_the_chosen(tmp_path, monkeypatch):
    """A training that is done is not done again, and gives the same model; the other blocks stay themselves."""

    def run(folder):
        task = small_task(folder)
        pruned = fade_out(task, [2, 0], kernel=-1, epochs=1, batch=8, rate=1e-2, fade=0.5, distill=0.5)
        return task, pruned

    task, pruned = run(tmp_path / "a")
    assert pruned.blocks == [0, 2] and [twin.fade for twin in pruned.twins] == [1, 1]
    assert [twin.residual.path for twin in pruned.twins] == ["1", "3"] and isinstance(task.model[2], Block)
    first, lesson = {name: value.clone() for name, value in task.model.state_dict().items()}, FadingLesson.forward
    steps = []
    monkeypatch.setattr(FadingLesson, "forward", lambda self, *tensors: steps.append(1) or lesson(self, *tensors))
    again, _ = run(tmp_path / "a")
    assert not steps and all(torch.equal(value, first[name]) for name, value in again.model.state_dict().items())
    assert not torch.equal(task.model[0].weight, task.teacher[0].weight)
    losses = [entry for entry in task.journal.entries if entry.get("training") == "progressive"]
    assert len(losses) == 5 and losses[-1]["step"] + 1 == losses[-1]["steps"]


def test_running_statistics_follow_many_batches(tmp_path):
    """MobileNetV2 of transformers has a momentum of 0.997, with which only the last batch would count."""
    for momentum in (0.997, None):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum))
        task = small_task(tmp_path / "a")
        DepthTask(model, [], task.data, task.logits, task.measure, task.folder, task.journal)
        assert model[1].momentum == 0.1


def test_accuracy_counts_the_held_out_only(tmp_path):
    task = small_task(tmp_path / "a")
    guesses = task.model(task.data.validation[0][0]).argmax(-1)
    expected = float((guesses == task.data.validation[0][1]).float().mean())
    assert task.accuracy(recalibrated=False) == round(expected, 6)
    assert task.data.held_out == 20
    before = task.model[1].branch[1].running_mean.clone()
    task.accuracy()
    assert not torch.equal(task.model[1].branch[1].running_mean, before)
    task.load_original()
    assert torch.equal(task.model[1].branch[1].running_mean, before)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Return a folder with 120 pictures, of which three are broken, the first among them."""
    folder = maker.make_images(tmp_path_factory.mktemp("many") / "p", 40)
    for name in ("cat/00.png", "dog/07.png", "frog/39.png"):
        (folder / name).write_bytes(b"no image")
    return folder


def test_held_out_images_are_not_trained_on(tiny, many):
    images = open_images(many, ModelFolder(tiny("resnet")))
    training, held_out, calibration = divide(len(images), "images")
    assert sorted([*training.tolist(), *held_out.tolist()]) == list(range(120)) and len(held_out) == 6
    read, real = set(), images.load
    data = labelled(images)
    images.load = lambda places: read.update(places.tolist()) or real(places)
    for step in range(4):
        pixels, labels = data.fetch(torch.arange(data.count), step)
        assert len(pixels) == len(labels) == data.count - 3
    assert not read & set(held_out.tolist())
    assert data.count == 114 and data.held_out == 6
    assert all(int(place) < data.count for place in calibration)
    labels = torch.cat([labels for _, labels in data.validation])
    assert labels.tolist() == [images.labels[place] for place in held_out.tolist()]


def test_cached_images_equal_images_that_are_read(tiny, many, monkeypatch):
    """With broken images, also the first one, and batches with an image twice."""
    source, batches = ModelFolder(tiny("resnet")), [torch.tensor(b) for b in ([0, 5, 5, 47], [3, 0, 119, 1], [47, 7])]
    cached = TrainingImages(open_images(many, source))
    kept = [cached.load(places) for _ in range(2) for places in batches]
    monkeypatch.setattr(training_data, "SHARE", 0.0)
    fresh = TrainingImages(open_images(many, source))
    read = [fresh.load(places) for _ in range(2) for places in batches]
    assert fresh._pixels is None and cached._pixels is not None
    for (pixels, labels), (others, of_others) in zip(kept, read, strict=True):
        assert torch.equal(pixels, others) and torch.equal(labels, of_others)
    assert [len(pixels) for pixels, _ in kept] == [2, 2, 1] * 2
    for images in (cached, fresh):
        with pytest.raises(UsageError, match="none of 2 images can be decoded"):
            images.load(torch.tensor([0, 119]))


def test_an_image_is_decoded_once(tiny, many):
    images, places = open_images(many, ModelFolder(tiny("resnet"))), []
    training, real = TrainingImages(images), images._read
    training.load(torch.arange(8))
    images._read = lambda place: places.append(place) or real(place)
    training.load(torch.arange(12))
    assert sorted(places) == [8, 9, 10, 11]


def test_augmentation_is_repeatable_and_keeps_the_shape():
    pixels = torch.arange(1, 1 + 6 * 2 * 16 * 40, dtype=torch.float32).view(6, 2, 16, 40)
    one = augment(pixels, 5)
    assert one.shape == pixels.shape and torch.equal(one, augment(pixels, 5))
    assert not torch.equal(one, augment(pixels, 6))
    expected = {}
    for flip in (False, True):
        source = pixels.flip(-1) if flip else pixels
        padded = nn.functional.pad(source, (2, 2, 2, 2))
        for top in range(5):
            for left in range(5):
                expected[flip, top, left] = padded[:, :, top : top + 16, left : left + 40]
    seen = set()
    for seed in range(20):
        for number, picture in enumerate(augment(pixels, seed)):
            ways = [way for way, shifted in expected.items() if torch.equal(shifted[number], picture)]
            assert len(ways) == 1, "an image is flipped or not, and shifted with zeros at its border"
            seen |= set(ways)
    assert len(seen) > 30


@pytest.mark.parametrize("count", [0, 39])
def test_too_few_images(count):
    with pytest.raises(UsageError, match=f"here has {count} images: at least 40"):
        divide(count, "here")
