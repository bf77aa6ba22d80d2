"""``jettison export``: the file is right, or there is none."""

import json
import re
import shutil
import sys
from types import ModuleType

import pytest
import torch

from jettison import compress, export
from jettison.core.errors import JettisonError
from jettison.pipeline import onnx_export


@pytest.fixture
def pretended(monkeypatch):
    """Pretend that onnx is installed and onnxruntime is not, and write the shape of the example in place of a file."""
    monkeypatch.setitem(sys.modules, "onnx", ModuleType("onnx"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    write = lambda model, example, path: path.write_text(str(tuple(example.shape)))
    monkeypatch.setattr(onnx_export, "write_onnx", write)


@pytest.mark.parametrize(
    ("family", "size", "shape"),
    [
        ("vit", None, (1, 3, 32, 32)),  # from the config
        ("resnet", None, (1, 3, 32, 32)),  # from the image processor
        ("resnet", "40", (1, 3, 40, 40)),
        ("resnet", "33x47", (1, 3, 33, 47)),
    ],
)
def test_the_size_of_the_images(tiny, tmp_path, pretended, family, size, shape):
    result = export(tiny(family), tmp_path / "m.onnx", size=size)
    assert (tmp_path / "m.onnx").read_text() == str(shape)
    assert result["input"] == {"pixels": ["images", *shape[1:]]} and result["output"] == {"logits": ["images", 3]}
    assert result["difference"] is None and result["bytes"] == len(str(shape))


def test_a_wrong_file_is_removed(tiny, tmp_path, pretended, monkeypatch):
    monkeypatch.setattr(onnx_export, "required", lambda package: None)
    monkeypatch.setattr(onnx_export, "check_onnx", lambda path, model, pixels: float("nan"))
    with pytest.raises(JettisonError, match="would give other logits than the model"):
        export(tiny("resnet"), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (
            "scribe",
            [],
            "scribe is a causal language model: only an image classifier or a perception model can be written as onnx",
        ),
        ("resnet", ["--to", "tflite"], "unknown format 'tflite'; valid: auto-round, awq, .*onnx, .*transformers"),
        ("resnet", ["--size", "0"], "size = 0: a whole number from 1 to 4,096"),
        ("resnet", ["--size", "axb"], "size = 'axb': height and width in pixels are needed"),
        ("vit", ["--size", "40"], "doesn't match model"),
        ("bare", [], "states no size of images .*name one with --size"),
    ],
)
def test_what_is_refused(tiny, tmp_path, jettison, pretended, model, options, words):
    folder = "scribe" if model == "scribe" else tiny("resnet" if model == "bare" else model)
    if model == "bare":
        folder = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("preprocessor*"))
    code, _, err = jettison("export", folder, "-o", tmp_path / "m.onnx", *options)
    assert code == 2 and re.search(words, err) and not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_extra(tiny, tmp_path, jettison, pretended, monkeypatch, package):
    """Without onnx nothing is written; without onnxruntime a note says that the file was not checked."""
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = jettison("export", tiny("vit"), "-o", tmp_path / "m.onnx")
    assert f"{package} is not installed: pip install 'jettison[onnx]'" in " ".join(err.split())
    assert code == (2 if package == "onnx" else 0) and (tmp_path / "m.onnx").exists() == (code == 0)


@pytest.mark.engines
@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_a_compressed_model(tiny, tmp_path, jettison, family):
    pytest.importorskip("onnxruntime")
    compress(tiny(family), "w8", tmp_path / "w8")
    file = tmp_path / "out" / "m.onnx"
    code, out, _ = jettison("export", tmp_path / "w8", "--to", "onnx", "-o", file, "--json", tmp_path / "m.json")
    result = json.loads((tmp_path / "m.json").read_text())
    assert code == 0 and "largest difference" in out and "pixels (images, 3, 32, 32)" in out
    assert 0 <= result["difference"] < 1e-5 * result["largest"] and result["bytes"] == file.stat().st_size
    assert torch.tensor(result["largest"]).isfinite() and sorted(p.name for p in file.parent.iterdir()) == ["m.onnx"]
