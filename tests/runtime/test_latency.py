"""Models are timed round by round, under equal conditions. No test asserts a time."""

import pytest
import torch
from torch import nn

from jettison.core.errors import UsageError
from jettison.runtime import latency
from jettison.runtime.latency import latencies, ratio

PIXELS = torch.zeros(1, 3, 8, 8)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(latency, "SAMPLE", 1e-9)  # one run is a sample
    monkeypatch.setattr(latency, "WARM_UP", 1)


class Noted(nn.Module):
    """Notes every run in a list that is shared with the copies of the module: name, threads, whether in eval mode."""

    def __init__(self, name, log):
        super().__init__()
        self.name, self.log = name, lambda *entry: log.append(entry)  # a function is not copied by deepcopy
        self.conv, self.norm = nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)

    def forward(self, pixels):
        self.log(self.name, torch.get_num_threads(), type(self.norm), torch.is_inference_mode_enabled())
        return self.norm(self.conv(pixels)).mean((2, 3))


def test_every_round_runs_every_model(two_threads):
    log = []
    models = {name: Noted(name, log) for name in "abc"}
    measured = latencies(models, PIXELS, threads=1, rounds=20)
    assert list(measured) == ["a", "b", "c"] and torch.get_num_threads() == 2
    for found in measured.values():
        assert len(found["samples_ms"]) == 20
        assert min(found["samples_ms"]) <= found["median_ms"] <= max(found["samples_ms"])
    timed = [entry for entry in log if entry[2] is nn.Identity]  # not the runs that look for what can be folded
    assert {entry[1:] for entry in timed} == {(1, nn.Identity, True)}
    names = [entry[0] for entry in timed][3:]  # after the warm-up
    rounds = [
        tuple(names[start : start + 6 : 2]) for start in range(0, len(names), 6)
    ]  # each sample has a run before it that is not measured
    assert len(rounds) == 20 and all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 1, "the order changes"
    assert all(isinstance(model.norm, nn.BatchNorm2d) and model.training for model in models.values())


def test_the_time_is_limited():
    measured = latencies({"a": Noted("a", [])}, PIXELS, threads=1, rounds=1000, seconds=0)
    assert len(measured["a"]["samples_ms"]) == latency.FEWEST


def test_threads_are_restored_after_an_error(two_threads):
    class Broken(nn.Module):
        def forward(self, pixels):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        latencies({"a": Broken()}, PIXELS, threads=1)
    assert torch.get_num_threads() == 2


def test_other_work_is_noted(monkeypatch):
    said = []
    monkeypatch.setattr(latency, "say", said.append)
    monkeypatch.setattr(latency, "watched", lambda run: (run(), 1.5))
    latencies({"a": Noted("a", [])}, PIXELS, threads=1, rounds=1)
    assert len(said) == 1 and "other processes used 1.5 cores" in said[0]


@pytest.mark.engines
def test_onnxruntime(tmp_path, two_threads, monkeypatch):
    pytest.importorskip("onnxruntime")
    from jettison.formats.onnx_file import write_onnx

    opened = []
    real = latency.open_onnx
    monkeypatch.setattr(latency, "open_onnx", lambda path, threads: opened.append(threads) or real(path, threads))
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    write_onnx(model, PIXELS, tmp_path / "m.onnx")
    measured = latencies({"module": model, "file": tmp_path / "m.onnx"}, PIXELS, "onnxruntime", threads=1, rounds=3)
    assert {name: len(found["samples_ms"]) for name, found in measured.items()} == {"module": 3, "file": 3}
    assert opened == [1, 1] and torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (({}, PIXELS), {}, "models is empty"),
        (({"a": nn.Identity()}, PIXELS, "tflite"), {}, "unknown runtime 'tflite'; valid: onnxruntime, pytorch"),
        (({"a": nn.Identity()}, PIXELS[0]), {}, r"shape \(3, 8, 8\).*\(1, channels, height, width\)"),
        (({"a": "a.onnx"}, PIXELS), {}, "model 'a' is 'a.onnx'.*valid: an nn.Module"),
        (({"a": nn.Identity()}, PIXELS), {"threads": 0}, "threads = 0"),
        (({"a": nn.Identity()}, PIXELS), {"rounds": 0}, "rounds = 0"),
        (({"a": nn.Identity()}, PIXELS), {"seconds": -1}, "seconds = -1"),
    ],
)
def test_what_is_asked_wrongly(arguments, options, words):
    with pytest.raises(UsageError, match=words):
        latencies(*arguments, **options)


class TestRatio:
    def test_pairs_are_compared(self):
        """A drift that hits both models alike leaves the ratio as it is."""
        drift = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
        found = ratio([3 * value for value in drift], drift)
        assert found == {"ratio": 3.0, "low": 3.0, "high": 3.0}

    @pytest.mark.parametrize(("count", "rank"), [(1, 0), (5, 0), (6, 0), (9, 1), (20, 5), (100, 39)])
    def test_the_interval_has_the_ranks_of_the_sign_test(self, count, rank):
        values = torch.randperm(count, generator=torch.Generator().manual_seed(0)).add(1).tolist()
        found = ratio(values, [1.0] * count)
        assert (found["low"], found["ratio"], found["high"]) == (rank + 1, (count + 1) / 2, count - rank)

    @pytest.mark.parametrize(
        ("a", "b", "words"), [([1.0], [], "1 and 0 samples"), ([], [], "0 and 0"), ([0.0], [1.0], "a sample of 0.0")]
    )
    def test_bad_samples(self, a, b, words):
        with pytest.raises(UsageError, match=words):
            ratio(a, b)
