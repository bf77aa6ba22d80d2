"""Evaluation: loss and distances equal those of transformers, sizes; and the whole of ``fit``."""

import importlib
import json
import math
import shutil

import pytest
import torch
from killing import Killed
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from jettison.core.errors import JettisonError, UsageError
from jettison.domains.text.data import token_windows
from jettison.fitting import fit
from jettison.graph.folder import ModelFolder
from jettison.pipeline.compression import compress
from jettison.pipeline.evaluation import evaluate

room = importlib.import_module("jettison.fitting")
W4 = {"steps": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 32}}]}
QUICK = ["recover.samples=16", "recover.length=32", "recover.batch=4", "quantize.group_size=32"]
QUICK += ["calibration.samples=8", "calibration.length=32", "quantize.iterations=2"]
STAGES = ("original", "quantized", "recovered")
SHORT = {"texts": ["books-evaluation"], "tokens": 1024}


class TestQuality:
    def test_perplexity_is_that_of_transformers(self):
        measured = evaluate("scribe", texts=["wikitext2"], tokens=2048, window=256)["texts"]["wikitext2"]
        source = ModelFolder("scribe")
        ids = token_windows(source, "wikitext2", 256, 8)
        model = AutoModelForCausalLM.from_pretrained(source.folder)
        with torch.no_grad():
            loss = float(model(ids, labels=ids).loss)
        assert measured["log_perplexity"] == pytest.approx(loss, abs=2e-3)
        assert measured["perplexity"] == pytest.approx(math.exp(measured["log_perplexity"]), abs=1e-3)
        assert measured["tokens"] == 8 * 255
        assert "kl" not in measured

    def test_a_model_is_at_no_distance_from_a_copy(self, tmp_path):
        shutil.copytree(ModelFolder("scribe").folder, tmp_path / "copy")
        measured = evaluate("scribe", teacher=tmp_path / "copy", **SHORT)["texts"]["books-evaluation"]
        assert measured["agreement"] == 1
        assert abs(measured["kl"]) < 1e-6

    def test_distances_are_those_of_transformers(self, tmp_path):
        """The other model is a copy in which one matrix differs; embedding and head are the same."""
        source = ModelFolder("scribe")
        shutil.copytree(source.folder, tmp_path / "other")
        tensors = load_file(tmp_path / "other" / "model.safetensors")
        name = sorted(name for name in tensors if name.endswith("down_proj.weight"))[3]
        tensors[name] = tensors[name] * 0.25
        save_file(tensors, tmp_path / "other" / "model.safetensors", {"format": "pt"})
        measured = evaluate(tmp_path / "other", teacher="scribe", **SHORT)["texts"]["books-evaluation"]
        ids = token_windows(source, "books-evaluation", 512, 2)
        logits = []
        for folder in (source.folder, tmp_path / "other"):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            with torch.no_grad():
                logits.append(model(ids).logits[:, :-1].log_softmax(-1))
        kl = (logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean()
        agreement = (logits[0].argmax(-1) == logits[1].argmax(-1)).float().mean()
        assert measured["kl"] == pytest.approx(float(kl), rel=0.03) and float(kl) > 0.005
        assert measured["agreement"] == pytest.approx(float(agreement), abs=0.01) and float(agreement) < 0.99
        assert measured["tokens"] == logits[0].shape[0] * logits[0].shape[1]

    def test_fewer_bits_are_further_away(self, scribe_w4, tmp_path):
        for bits in (8, 2):
            steps = {"steps": [{"quantize": {"method": "rtn", "bits": bits, "group_size": 64, "clip": False}}]}
            compress("scribe", steps, tmp_path / f"w{bits}")
        folders = tmp_path / "w8", scribe_w4, tmp_path / "w2"
        results = [evaluate(folder, **SHORT)["texts"]["books-evaluation"] for folder in folders]
        kl, agreement = ([result[name] for result in results] for name in ("kl", "agreement"))
        assert kl == sorted(kl) and kl[0] < 0.01 and kl[2] > 0.3
        assert agreement == sorted(agreement, reverse=True)

    def test_a_file_of_ones_own(self, tmp_path):
        (tmp_path / "mine.txt").write_text("It was the best of times, it was the worst of times. " * 20)
        result = evaluate("scribe", texts=[tmp_path / "mine.txt"], tokens=None, window=64)
        assert list(result["texts"]) == [str(tmp_path / "mine.txt")]

    def test_texts_that_are_none(self, tmp_path):
        with pytest.raises(UsageError, match="no text 'wikitext-2': give a UTF-8 file or one of books, books-eval"):
            evaluate("scribe", texts=["wikitext-2"])
        (tmp_path / "short.txt").write_text("Once.")
        with pytest.raises(UsageError, match="one window of 512 is needed"):
            evaluate("scribe", texts=[tmp_path / "short.txt"])
        (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UsageError, match="is not UTF-8"):
            evaluate("scribe", texts=[tmp_path / "bad.txt"])

    def test_windows_and_originals_that_make_no_sense(self, tiny):
        with pytest.raises(UsageError, match="window = 1"):
            evaluate("scribe", window=1)
        with pytest.raises(UsageError, match="has 512 tokens and scribe.* 4096: they cannot be compared"):
            evaluate("scribe", teacher=tiny("llama", vocab_size=512))

    def test_the_original_has_gone(self, tiny, tmp_path):
        shutil.copytree(tiny("llama"), tmp_path / "original")
        compress(tmp_path / "original", W4, tmp_path / "out")
        shutil.move(tmp_path / "original", tmp_path / "moved")
        options = SHORT | {"window": 128}
        assert "kl" not in evaluate(tmp_path / "out", **options)["texts"]["books-evaluation"]
        assert "kl" in evaluate(tmp_path / "out", teacher=tmp_path / "moved", **options)["texts"]["books-evaluation"]


class TestFit:
    @pytest.fixture(scope="class")
    def whole(self, tiny, tmp_path_factory):
        out = tmp_path_factory.mktemp("fit") / "out"
        return out, fit(tiny("llama"), out=out, recipe="gateup-w4w2", changes=QUICK, **SHORT)

    def test_the_rows(self, whole):
        out, result = whole
        assert {"plan", "original", "quantized", "recovered"} == set(result)
        size = {stage: result[stage]["size"] for stage in ("original", "quantized", "recovered")}
        assert size["original"]["bits_per_weight"] == 16
        assert size["quantized"]["bytes"] < size["recovered"]["bytes"] < size["original"]["bytes"]
        kl = {stage: result[stage]["texts"]["books-evaluation"]["kl"] for stage in size}
        assert kl["original"] == pytest.approx(0, abs=1e-6)
        assert kl["recovered"] < kl["quantized"]
        assert json.loads((out / "jettison.json").read_text())["results"]["recovered"] == result["recovered"]

    def test_all_that_was_asked_and_measured_is_on_the_page(self, whole):
        out, result = whole
        manifest = json.loads((out / "jettison.json").read_text())
        assert manifest["request"]["changes"] == QUICK and manifest["request"]["recipe"] == "gateup-w4w2"
        assert (
            manifest["request"]["predicted"]["original"]["memory"]
            > manifest["request"]["predicted"]["result"]["memory"]
        )
        speed = json.loads((out / "speed.json").read_text())["stages"]
        assert set(speed) == set(STAGES)
        assert all(row["decode_tokens_per_second"] > 0 for row in speed.values())
        page = (out / "report.html").read_text()
        for stage in speed:
            assert len(result[stage]["samples"]) == 3
            assert f"{result[stage]['texts']['books-evaluation']['perplexity']:.2f}" in page
        assert "jettison fit" in page

    def test_tasks_are_compared_item_by_item(self, tiny, tmp_path):
        options = dict(tasks=["jettison_books_agreement"], items=6)
        result = fit(tiny("llama"), out=tmp_path / "out", recipe="gateup-w4w2", changes=QUICK, **options, **SHORT)
        manifest = json.loads((tmp_path / "out" / "jettison.json").read_text())
        scores = {stage: result[stage]["tasks"]["jettison_books_agreement"]["accuracy"] for stage in STAGES}
        assert [row["task"] for row in manifest["tasks"]] == ["jettison_books_agreement"]
        assert manifest["tasks"][0]["lost"] == pytest.approx(scores["original"] - scores["quantized"], abs=1e-5)
        assert "jettison_books_agreement" in (tmp_path / "out" / "report.html").read_text()

    def test_the_prediction_is_what_came_out(self, whole, tiny):
        """The bytes that the planner predicts are those of the checkpoint, including the adapter."""
        out, result = whole
        planned = fit(tiny("llama"), out=out, recipe="gateup-w4w2", changes=QUICK, context=0, dry_run=True)["plan"]
        stored = result["recovered"]["size"]["bytes"]
        assert planned["predicted"]["memory"] == pytest.approx(stored, rel=0.002)

    @pytest.mark.parametrize("stage", ["evaluate", "recover"])
    def test_a_killed_run_continues(self, whole, tiny, tmp_path, monkeypatch, stage):
        def dying(*_, **__):
            raise Killed

        arguments = dict(out=tmp_path / "out", recipe="gateup-w4w2", changes=QUICK, **SHORT)
        with monkeypatch.context() as patch:
            patch.setattr(room, stage, dying)
            with pytest.raises(Killed):
                fit(tiny("llama"), **arguments)
        assert fit(tiny("llama"), **arguments) == whole[1]

    def test_a_finished_run_is_only_told_again(self, whole, tiny, monkeypatch):
        def never(*_, **__):
            raise AssertionError("measured again")

        monkeypatch.setattr(room, "evaluate", never)
        assert fit(tiny("llama"), out=whole[0], recipe="gateup-w4w2", changes=QUICK, **SHORT) == whole[1]

    def test_another_recovery_or_other_texts_are_refused(self, whole, tiny):
        arguments = dict(out=whole[0], recipe="gateup-w4w2")
        with pytest.raises(UsageError, match="holds another run: its steps"):
            fit(tiny("llama"), changes=[*QUICK, "recover.rank=4"], **arguments, **SHORT)
        with pytest.raises(UsageError, match=r"measured on books-evaluation \(\w+\), 1024 tokens, not on wikitext2"):
            fit(tiny("llama"), changes=QUICK, **arguments, texts=["wikitext2"])
        with pytest.raises(
            UsageError, match=r"not on books-evaluation \(\w+\), 1024 tokens, jettison_books_recall \(3 i"
        ):
            fit(tiny("llama"), changes=QUICK, **arguments, **SHORT, tasks=["jettison_books_recall"], items=3)

    def test_the_seed_is_that_of_recovery_too(self, tiny, tmp_path):
        fit(tiny("llama"), out=tmp_path / "out", recipe="gateup-w4w2", changes=QUICK, seed=3, **SHORT)
        manifest = json.loads((tmp_path / "out" / "jettison.json").read_text())
        assert manifest["seed"] == manifest["recovery"]["seed"] == 3

    def test_a_recipe_without_recovery_ends_with_two_rows(self, tiny, tmp_path):
        result = fit(tiny("llama"), out=tmp_path / "out", recipe="w8", changes=["quantize.group_size=32"], **SHORT)
        assert set(result) == {"plan", "original", "quantized"}

    def test_dry_run_does_nothing(self, tiny, tmp_path):
        result = fit(tiny("llama"), out=tmp_path / "out", recipe="w8", changes=QUICK[3:4], dry_run=True)
        assert set(result) == {"plan", "forecast"}
        assert not (tmp_path / "out").exists()

    def test_larger_than_memory(self, whole, tiny, monkeypatch):
        import psutil

        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000, "total": 1000}))
        with pytest.raises(JettisonError, match="GB of memory at once"):
            evaluate(tiny("llama"), **SHORT)
