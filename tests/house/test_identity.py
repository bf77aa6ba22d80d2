"""Identity checks: fingerprints of models, changed originals, faulty sources, and which files are copied."""

import json
import os
import shutil

import pytest
import tiny as maker
import torch
from killing import files_of
from safetensors.torch import load_file, save_file
from tiny import change

from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import content_digest
from jettison.formats.writer import copy_companions
from jettison.graph.find import BUNDLED
from jettison.graph.folder import ModelFolder
from jettison.graph.source_check import check_source
from jettison.pipeline.compression import compress
from jettison.pipeline.evaluation import evaluate
from jettison.pipeline.recovery import recover

CALIBRATION = {"text": "books", "samples": 4, "length": 32}
GPTQ = {
    "calibration": CALIBRATION,
    "steps": [{"quantize": {"method": "gptq", "bits": 4, "group_size": 32}, "where": {"role": ["up", "gate"]}}],
}
QUICK = {"samples": 8, "length": 32, "batch": 4, "train": ["lora", "scales"]}
RECOVERED = GPTQ | {"steps": [*GPTQ["steps"], {"recover": QUICK, "where": {"role": ["up"]}}]}
SHORT = {"texts": ["books-evaluation"], "tokens": 512, "window": 128}


@pytest.fixture
def model(tiny, tmp_path):
    """Return a copy of a tiny model that a test may change."""
    return shutil.copytree(tiny("llama"), tmp_path / "model")


class TestContent:
    def test_every_byte_counts(self, tmp_path):
        """Scribe with a part in the middle of its weights zeroed and its times reset is another model."""
        folder = shutil.copytree(BUNDLED["scribe"], tmp_path / "scribe")
        before = ModelFolder(folder).fingerprint()
        assert before == ModelFolder("scribe").fingerprint()
        file = folder / "model.safetensors"
        status, size = file.stat(), file.stat().st_size
        with open(file, "r+b") as handle:
            handle.seek(size // 3)
            handle.write(bytes(4096))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert ModelFolder(folder).fingerprint() != before

    def test_an_edit_with_its_time_put_back_is_seen(self, tmp_path, monkeypatch):
        monkeypatch.setattr("jettison.core.files.RACY", 0.0)
        file = tmp_path / "a"
        file.write_bytes(b"one")
        times = file.stat().st_atime_ns, file.stat().st_mtime_ns
        first = content_digest(file)
        file.write_bytes(b"two")
        os.utime(file, ns=times)
        assert content_digest(file) != first

    def test_what_is_known_is_not_read_again(self, tmp_path, monkeypatch):
        monkeypatch.setattr("jettison.core.files.RACY", -1.0)
        (tmp_path / "a").write_bytes(b"one")
        first = content_digest(tmp_path / "a")
        monkeypatch.setattr("jettison.core.files._hash", lambda *_: pytest.fail("read again"))
        assert content_digest(tmp_path / "a") == first

    @pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "config.json"])
    def test_what_shapes_the_outputs_counts(self, model, name):
        before = ModelFolder(model).fingerprint()
        if name == "config.json":
            (model / name).write_text(json.dumps(json.loads((model / name).read_text()) | {"rms_norm_eps": 1e-3}))
        else:
            with open(model / name, "a") as handle:
                handle.write(" ")
        assert ModelFolder(model).fingerprint() != before


class TestOriginal:
    def test_distances_are_measured(self, tiny, model):
        """The distance of a copy with a changed matrix is measured on its logits, not assumed from its name."""
        change(model, model__layers__1__mlp__up_proj__weight=torch.zeros_like)
        measured = evaluate(model, teacher=tiny("llama"), **SHORT)["texts"]["books-evaluation"]
        assert measured["kl"] > 0.01 and measured["agreement"] < 1

    def test_an_original_that_changed_is_refused(self, model, tmp_path):
        compress(model, GPTQ, tmp_path / "out")
        change(model, model__norm__weight=lambda value: value * 1.01)
        with pytest.raises(UsageError, match=r"model has changed since .*out was made from it"):
            evaluate(tmp_path / "out", **SHORT)
        with pytest.raises(UsageError, match="is not the model"):
            recover(tmp_path / "out", changes=["recover.samples=4", "recover.length=32"])

    def test_another_teacher_is_named(self, tiny, model, tmp_path):
        compress(model, GPTQ, tmp_path / "out")
        assert "teacher" not in evaluate(tmp_path / "out", teacher=tiny("llama"), **SHORT)
        other = maker.make("llama", tmp_path / "other", seed=1)
        assert evaluate(tmp_path / "out", teacher=other, **SHORT)["teacher"] == str(other)


TURNED = "model.layers.0.mlp.down_proj.weight"
FAULTS = {
    "transposed": ({TURNED: lambda value: value.T}, rf"{TURNED} of .* has shape \(96, 64\), the config asks for"),
    "cut embedding": ({"model.embed_tokens.weight": lambda value: value[:-1]}, r"has shape \(4095, 64\)"),
    "a norm of width 7": ({"model.norm.weight": lambda value: value[:7]}, r"model.norm.weight of .* has shape \(7,\)"),
    "integers": ({"model.norm.weight": lambda value: value.to(torch.int32)}, "is stored as I32"),
    "NaN in a norm": (
        {"model.layers.0.input_layernorm.weight": lambda value: value.index_fill(0, torch.tensor(3), float("nan"))},
        "model.layers.0.input_layernorm.weight of .* has 1 values that are NaN",
    ),
    "infinity in the embedding": (
        {"model.embed_tokens.weight": lambda value: value.index_fill(0, torch.tensor(4000), float("inf"))},
        "model.embed_tokens.weight of .* has 64 values that are NaN or infinite",
    ),
}


class TestSource:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_faults_are_found_before_work(self, model, tmp_path, fault):
        changes, words = FAULTS[fault]
        change(model, **changes)
        with pytest.raises(JettisonError, match=words):
            compress(model, GPTQ, tmp_path / "out", changes=["quantize.method=rtn"])
        assert not list((tmp_path / "out").glob("*.safetensors"))

    def test_a_missing_tensor(self, model):
        tensors = load_file(model / "model.safetensors")
        del tensors["model.layers.1.self_attn.o_proj.weight"]
        save_file(tensors, model / "model.safetensors")
        with pytest.raises(JettisonError, match=r"has no tensor for model.layers.1.self_attn.o_proj.weight"):
            check_source(ModelFolder(model))

    @pytest.mark.parametrize("family", list(maker.CONFIGS))
    def test_sound_models_pass(self, tiny, family):
        check_source(ModelFolder(tiny(family)))

    @pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
    def test_experts_in_one_tensor(self, tmp_path, family):
        folder = maker.make(family, tmp_path / family)
        tensors = load_file(folder / "model.safetensors")
        name = next(name for name in tensors if "experts" in name and "down" in name and "bias" not in name)
        tensors[name] = tensors[name][..., :-1].contiguous()
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(JettisonError, match=rf"{name} of .* has shape"):
            check_source(ModelFolder(folder))


class TestCopies:
    def test_the_journal_and_the_results_of_the_source_stay_there(self, model, tmp_path):
        """After pruning and then quantizing, both folders have their own journal, manifest and results."""
        pruned = {"steps": [{"prune": {"method": "magnitude", "pattern": "2:4"}}]}
        compress(model, pruned, tmp_path / "pruned")
        manifest = json.loads((tmp_path / "pruned" / "jettison.json").read_text())
        (tmp_path / "pruned" / "jettison.json").write_text(json.dumps(manifest | {"results": {}}))
        (tmp_path / "pruned" / "speed.json").write_text("{}")
        out = compress(tmp_path / "pruned", GPTQ, tmp_path / "out")
        assert out["recipe"]["steps"][0].keys() == {"quantize", "where"}
        assert "results" not in out and not (tmp_path / "out" / "speed.json").exists()
        before = files_of(tmp_path / "out")
        compress(tmp_path / "pruned", GPTQ, tmp_path / "out")
        assert files_of(tmp_path / "out") == before

    def test_only_what_belongs_to_a_model_is_copied(self, tmp_path):
        source, out = tmp_path / "source", tmp_path / "out"
        copied = ["tokenizer.json", "LICENSE", "chat_template.jinja", "additional_chat_templates/tools.jinja"]
        extra = ["modeling_evil.py", "notes.txt", "jettison.json", "journal.jsonl", "draft.json", ".env", "config.json"]
        for name in [*copied, *extra]:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_text(name)
        out.mkdir()
        copy_companions(source, out)
        assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == set(copied)

    def test_a_link_out_of_the_folder_is_not_published(self, tmp_path):
        source, out = tmp_path / "source", tmp_path / "out"
        source.mkdir()
        out.mkdir()
        (tmp_path / "secret").write_text("secret")
        (source / "chat_template.jinja").symlink_to(tmp_path / "secret")
        (source / "LICENSE").symlink_to("/etc/passwd")
        (source / "real.txt").write_text("inside")
        (source / "tokenizer.json").symlink_to(source / "real.txt")
        copy_companions(source, out)
        assert [path.name for path in out.iterdir()] == ["tokenizer.json"]

    def test_links_of_a_hub_cache_are_followed(self, tmp_path):
        source, out = tmp_path / "models--me--small" / "snapshots" / "abc", tmp_path / "out"
        source.mkdir(parents=True)
        out.mkdir()
        (tmp_path / "models--me--small" / "blobs").mkdir()
        (tmp_path / "models--me--small" / "blobs" / "123").write_text("{}")
        (source / "tokenizer.json").symlink_to("../../blobs/123")
        (source / "LICENSE").symlink_to("../../../outside")
        (tmp_path / "outside").write_text("secret")
        copy_companions(source, out)
        assert [path.name for path in out.iterdir()] == ["tokenizer.json"]
