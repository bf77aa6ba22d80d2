"""``jettison export`` into checkpoints of other formats: the same weights, whole or absent, checked in an engine."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from jettison import compress, export, load, recover, verify
from jettison.core.errors import JettisonError, UsageError
from jettison.encodings.offset import OffsetGrid
from jettison.encodings.quantized import QuantizedWeight
from jettison.encodings.table import ValueTable
from jettison.encodings.uniform import UniformGrid
from jettison.formats.dequantized import DequantizedFolder
from jettison.formats.packed import read_grids
from jettison.graph.folder import ModelFolder
from jettison.pipeline import export_check, exporting, folder_export
from jettison.pipeline.folder_export import adapted
from jettison.recipe.recipe import load_recipe

IDS = torch.arange(40).view(2, 20) * 7
ALL = ["gptq", "gptq-v2", "auto-round", "compressed-tensors", "safetensors", "transformers"]
TEXT = __file__  # short, so that it is encoded quickly
SHORT = {"texts": [TEXT], "tokens": 64, "prompts": 1}
RTN = {"method": "rtn", "group_size": 32}
STEPS = [
    {"quantize": RTN | {"bits": 4}, "where": {"role": ["q", "k", "v", "o", "down"]}},
    {"quantize": RTN | {"bits": 2}, "where": {"role": ["gate", "up"]}},
]
DISTILL = {"method": "distill", "rank": 4, "samples": 4, "length": 16, "batch": 2, "data": "books", "lr": 0.05}


@pytest.fixture
def mixed(made_once, tiny):
    """A model of 2 and 4 bits."""
    return made_once("export-mixed", lambda folder: compress(tiny("llama"), {"steps": STEPS}, folder))


@pytest.fixture
def recovered(made_once, mixed):
    """The same with a LoRA adapter."""

    def make(folder):
        shutil.copytree(mixed, folder, dirs_exist_ok=True)
        recover(folder, changes=[f"recover.{name}={value}" for name, value in DISTILL.items()])

    return made_once("export-recovered", make)


def logits(folder, **options):
    return load(folder, exact=True, dtype=torch.float32, cache=False, **options).logits(IDS)


def test_every_format_holds_the_same_weights(recovered, tmp_path):
    """And computes the same with its adapter, in transformers where that loads it."""
    result = export(recovered, tmp_path / "out", to=[*ALL, "awq"])
    *rows, refused = result["formats"]
    assert [row["format"] for row in rows] == ALL and result["adapter"] == "keep"
    assert re.match("awq holds no bits but 4 and 8 .4, first model.layers.0.mlp.gate_proj", refused["refused"][0])
    source = DequantizedFolder(recovered, without_adapter=True)
    for row in rows:
        path = tmp_path / "out" / row["format"]
        files = [file for file in path.rglob("*") if file.is_file() and file.name != "journal.jsonl"]
        assert row["path"] == str(path) and row["bytes"] == sum(file.stat().st_size for file in files)
        plain = row["format"] == "transformers"
        assert read_grids(ModelFolder(path)) == ({} if plain else source.grids)
        for name in source.grids:
            weight = DequantizedFolder(path, without_adapter=True).read(f"{name}.weight")
            assert torch.equal(weight, source.read(f"{name}.weight").to(source.dtype if plain else torch.float32))
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".") == sorted(ALL)
    some = ["gptq", "compressed-tensors", "transformers"]
    for row in export(recovered, tmp_path / "out", to=some, verify=True, **SHORT)["formats"]:
        exact, scores, same = row["format"] != "transformers", row["texts"][TEXT], row["continuations"]
        assert scores["kl"] < (1e-6 if exact else 0.01) and (not exact or same == {"same": 1, "prompts": 1})
        assert abs(scores["perplexity"] / scores["perplexity_ours"] - 1) < (1e-6 if exact else 0.01)
        inside = row["format"] != "gptq"
        assert row["engine"].startswith("transformers 5" if inside else "jettison.load")
        assert inside == (not row["engine_note"])
    checks = {check["check"]: check for check in verify(tmp_path / "out" / "gptq")["checks"]}
    assert all(check["ok"] is not False for check in checks.values()) and "adapter" in checks["runs"]["found"]


def test_what_becomes_of_the_adapter(recovered, tmp_path):
    """Merged and folded results have none; merged, and dequantized, computes nearly what the source does."""
    before, bare = logits(recovered), logits(recovered, adapter=False)
    distance = {"bare": (bare - before).norm()}
    for how, formats in (("merge", ["auto-round", "transformers"]), ("fold", ["auto-round", "transformers"])):
        result = export(recovered, tmp_path / how, to=formats, adapter=how)
        assert result["adapter"] == how
        for row in result["formats"]:
            if "path" in row:
                assert not (tmp_path / how / row["format"] / "adapter").exists() and row["adapter"] == how
                distance[how, row["format"]] = (logits(row["path"]) - before).norm()
    assert result["formats"][1]["refused"] == [
        "transformers: full-precision weights have no scales to fold the LoRA adapter into: merge it"
    ]
    assert 0 < distance["merge", "transformers"] < 0.1 * distance["bare"]
    source, folded = (
        DequantizedFolder(recovered, without_adapter=True),
        DequantizedFolder(tmp_path / "fold" / "auto-round"),
    )
    parts = [model.read_packed("model.layers.0.self_attn.q_proj") for model in (source, folded)]
    assert torch.equal(parts[0].codes, parts[1].codes) and not torch.equal(parts[0].scale, parts[1].scale)


@pytest.mark.parametrize(
    "grid", [UniformGrid(4, 32), UniformGrid(2, 32, False), OffsetGrid(4), ValueTable("nf4", 32)], ids=str
)
def test_merging_and_folding_come_nearer_to_the_sum(grid):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    weight, product = draw(64, 96), 0.3 * draw(64, 4) @ draw(4, 96)
    grouped = grid.grouped(weight)
    quantized = QuantizedWeight.nearest(weight, *grid.scale_zero(grouped.amin(-1), grouped.amax(-1)), grid)
    wanted = quantized.dequantize() + product
    error = lambda other: float((other.dequantize() - wanted).square().sum())
    folded, merged = (adapted(quantized, product, how) for how in ("fold", "merge"))
    assert error(merged) < error(folded) < error(quantized) and error(merged) < 0.6 * error(quantized)
    assert torch.equal(folded.codes, quantized.codes) and merged.scale.dtype == quantized.scale.dtype
    for how in ("fold", "merge"):  # nothing to add, so nothing changes
        assert torch.equal(adapted(quantized, torch.zeros(64, 96), how).dequantize(), quantized.dequantize())


def contents(folder):
    """Return the files below a folder, but for the journals, which tell what was done again."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".jsonl" and path.name[0] != "."
    }


def test_an_adapter_that_does_not_fit(recovered, tmp_path):
    shutil.copytree(recovered, tmp_path / "m")
    file = tmp_path / "m" / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("q_proj.lora_A.weight"))
    save_file(tensors | {name: torch.zeros(4, 7)}, file)
    with pytest.raises(JettisonError, match=r"adapter of model.layers.0.self_attn.q_proj has matrices \(4, 7\)"):
        export(tmp_path / "m", tmp_path / "out", to="gptq", adapter="merge")
    assert not (tmp_path / "out" / "gptq").exists()


def test_a_killed_export_continues_and_is_whole_or_absent(mixed, tmp_path, monkeypatch):
    export(mixed, tmp_path / "one", to="gptq")
    written, original = [], folder_export.write_tensors

    def stop(file, tensors):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(file.name)
        original(file, tensors)

    monkeypatch.setattr(folder_export, "write_tensors", stop)
    with pytest.raises(KeyboardInterrupt):
        export(mixed, tmp_path / "two", to="gptq")
    assert not (tmp_path / "two" / "gptq").exists()
    monkeypatch.setattr(
        folder_export, "write_tensors", lambda file, tensors: (written.append(file.name), original(file, tensors))
    )
    export(mixed, tmp_path / "two", to="gptq")
    assert len(written) == len(set(written)) == 3 and contents(tmp_path / "one") == contents(tmp_path / "two")
    export(mixed, tmp_path / "two", to="gptq,auto-round")  # gptq is finished
    assert len(written) == 6 and (tmp_path / "two" / "auto-round").is_dir()
    (tmp_path / "two" / "gptq" / "model-00002-of-00003.safetensors").write_bytes(b"damaged")
    export(mixed, tmp_path / "two", to="gptq")
    assert len(written) == 7 and contents(tmp_path / "one" / "gptq") == contents(tmp_path / "two" / "gptq")


def test_a_folder_that_holds_something_else(mixed, recovered, tmp_path):
    export(mixed, tmp_path, to="gptq")
    with pytest.raises(UsageError, match='holds another run: its adapter is null, this one\'s is "keep"'):
        export(recovered, tmp_path, to="gptq")
    (tmp_path / "gptq-v2").mkdir()
    (tmp_path / "gptq-v2" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="gptq-v2 exists already and holds no export of Jettison"):
        export(mixed, tmp_path, to="gptq-v2")
    (tmp_path / "auto-round").write_text("mine")
    with pytest.raises(UsageError, match="auto-round exists already and holds no export of Jettison"):
        export(mixed, tmp_path, to="transformers,auto-round")
    assert not (tmp_path / "transformers").exists() and (tmp_path / "auto-round").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--to", "tflite"], "unknown format 'tflite'; valid: auto-round, awq, compressed-tensors"),
        (["--to", "gptqq,awq"], r"unknown format 'gptqq' \(did you mean 'gptq'\?\)"),
        (["--to", ","], "name one or more formats: auto-round, awq"),
        (["--to", "gptq,awq,"], "unknown format ''"),
        (["--to", "gptq", "--adapter", "drop"], "unknown adapter 'drop'; valid: fold, keep, merge"),
        (["--to", "gptq", "--size", "32"], "size = '32': it is for onnx alone"),
        (["--to", "awq"], "awq holds no bits but 4 and 8"),
        (["--to", "awq,onnx"], "awq holds no bits but 4 and 8 .*only an image classifier or a perception model"),
        (["--to", "gptq", "--verify", "--prompts", "0"], "prompts = 0"),
        (["--to", "gptq", "--verify", "--tokens", "0"], "tokens = 0"),
        (["--to", "gptq", "--verify", "--text", "bookz"], "no text 'bookz'"),
    ],
)
def test_what_is_refused(mixed, tmp_path, jettison, options, words):
    code, _, err = jettison("export", mixed, "-o", tmp_path / "out", *options)
    assert code == 2 and re.search(words, " ".join(err.split())) and not (tmp_path / "out").exists()


def test_models_that_these_formats_do_not_hold(tiny, pictures, tmp_path):
    with pytest.raises(UsageError, match="gptq: .* has no quantized matrices: compress it first"):
        export(tiny("llama"), tmp_path / "out", to="gptq")
    with pytest.raises(UsageError, match=r"gptq: only causal language models .* is none \(image classifier\)"):
        export(tiny("vit"), tmp_path / "out", to="gptq")
    compress(tiny("vit"), {"steps": [{"quantize": RTN | {"bits": 8}}]}, tmp_path / "vit")
    with pytest.raises(UsageError, match=r"transformers: only causal .* is none \(image classifier\); gptq: only"):
        export(tmp_path / "vit", tmp_path / "out", to="transformers,gptq")
    (tmp_path / "pipe" / "transformer").mkdir(parents=True)
    (tmp_path / "pipe" / "transformer" / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    parts = {"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"]}
    (tmp_path / "pipe" / "model_index.json").write_text(json.dumps(parts))
    with pytest.raises(UsageError, match=r"gptq: only causal .* is none \(diffusion pipeline\)"):
        export(tmp_path / "pipe", tmp_path / "out", to="gptq")
    assert not (tmp_path / "out").exists()


def test_a_plain_model_is_written_for_transformers(tiny, tmp_path):
    (row,) = export(tiny("llama"), tmp_path, to="transformers")["formats"]
    assert torch.equal(logits(row["path"]), logits(tiny("llama"))) and row["stored_dense"] == []


def test_gguf_is_a_file_with_the_adapter_beside_it(recovered, mixed, tmp_path):
    """Its integers are kept. Checks are without the adapter, which only llama.cpp adds."""
    pytest.importorskip("gguf")
    (row,) = export(recovered, tmp_path / "out", to="gguf", verify=True, **SHORT)["formats"]
    assert row["path"] == str(tmp_path / "out/model.gguf") and row["adapter"] == "keep"
    assert "model-adapter.gguf (--lora)" in row["notes"][-1] and (tmp_path / "out/model-adapter.gguf").exists()
    assert row["relative_error"] == 0 and row["engine_note"] == "llama.cpp is not run"
    assert torch.equal(logits(tmp_path / "out/model.gguf"), logits(mixed))
    (row,) = export(mixed, tmp_path / "plain", to="gguf", verify=True, **SHORT)["formats"]
    assert row["texts"][TEXT]["kl"] < 1e-6 and row["adapter"] is None and row["notes"] == []
    with pytest.raises(UsageError, match="gguf: adapter = 'merge': only keep"):
        export(recovered, tmp_path / "no", to="gguf", adapter="merge")
    assert not (tmp_path / "no").exists()


def test_a_gguf_file_becomes_gptq(tiny, tmp_path):
    """Its blocks are a grid; the head and the embedding, which are one matrix, stay in full precision."""
    gguf_models = pytest.importorskip("gguf_models")
    path = gguf_models.write(tiny("qwen3"), tmp_path / "source.gguf", "Q4_0")
    (row,) = export(path, tmp_path / "out", to="gptq", verify=True, **SHORT)["formats"]
    assert row["stored_dense"][0] == "model.embed_tokens" and row["texts"][TEXT]["kl"] < 1e-4
    assert {str(grid) for grid in read_grids(ModelFolder(row["path"])).values()} == {"int4 g32 sym"}


def test_a_result_that_computes_something_else_is_removed(mixed, tiny, tmp_path, monkeypatch):
    other = load(tiny("llama", seed=5), exact=True, dtype=torch.float32)
    monkeypatch.setattr(export_check, "_open", lambda path, name: ("engine", "", other))
    with pytest.raises(JettisonError, match="gptq: engine computes another function .*It was removed"):
        export(mixed, tmp_path, to="gptq", verify=True, **SHORT)
    assert not (tmp_path / "gptq").exists()


def test_an_engine_that_cannot_load_the_result(mixed, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    def broken(*arguments, **options):
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", broken)
    with pytest.raises(JettisonError, match="transformers cannot load .*: no kernel for this"):
        export(mixed, tmp_path, to="compressed-tensors", verify=True, **SHORT)


def test_the_table_and_json(mixed, tmp_path, jettison):
    options = ["--text", TEXT, "--tokens", 64, "--prompts", 1, "--json", tmp_path / "r.json"]
    code, out, _ = jettison("export", mixed, "--to", "gptq,awq", "-o", tmp_path / "out", "--verify", *options)
    rows = json.loads((tmp_path / "r.json").read_text())["formats"]
    assert code == 0 and [row["format"] for row in rows] == ["gptq", "awq"]
    text = " ".join(out.split())
    assert "KL from" in text and "1 of 1" in text and "awq: refused: awq holds no bits but 4 and 8" in text
    assert "gptq: transformers needs optimum and gptqmodel, not installed" in text


def test_fit_refuses_a_format_before_any_work(tiny):
    source, recipe = ModelFolder(tiny("llama")), load_recipe({"steps": STEPS})
    exporting.check_formats(source, recipe, None, ["gptq", "transformers"])
    with pytest.raises(UsageError, match="awq holds no bits .*; onnx|awq holds no bits .* written as onnx"):
        exporting.check_formats(source, recipe, None, ["gptq", "awq", "onnx"])
    with pytest.raises(UsageError, match="gptq: only causal"):
        exporting.check_formats(
            SimpleNamespace(
                name="resnet", layout=ModelFolder(tiny("resnet")).layout, anatomy=ModelFolder(tiny("resnet")).anatomy
            ),
            recipe,
            None,
            ["gptq"],
        )


@pytest.mark.slow
def test_fit_writes_the_result_in_other_formats(tiny, tmp_path, jettison):
    (tmp_path / "text.txt").write_text("It was a dark night, and nobody was there to see it. " * 60)
    (tmp_path / "recipe.yaml").write_text(json.dumps({"steps": STEPS}))
    options = ["--recipe", tmp_path / "recipe.yaml", "--text", tmp_path / "text.txt", "--context", 64]
    code, out, err = jettison("fit", tiny("llama"), "-o", tmp_path / "run", *options, "--to", "gptq,transformers")
    assert code == 0 and "KL from" in out, err
    assert torch.equal(logits(tmp_path / "run"), logits(tmp_path / "run" / "exports" / "gptq"))
