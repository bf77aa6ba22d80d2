"""``verify`` detects every kind of damage, and reports none in an undamaged model."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from jettison import verify
from jettison.core.errors import UsageError
from jettison.pipeline.compression import compress
from jettison.pipeline.recovery import recover

RECIPE = {
    "calibration": {"text": "books", "samples": 4, "length": 32},
    "steps": [
        {"quantize": {"method": "rtn", "bits": 4, "group_size": 32}, "where": {"role": ["gate", "up", "embed"]}},
        {"recover": {"samples": 2, "length": 32, "batch": 1, "data": "books"}, "where": {"role": ["gate", "up"]}},
    ],
}
NAMES = ["files", "recorded hashes", "tensors", "finite values", "reader", "runs", "self-check"]
SHARD = "model-00001-of-00003.safetensors"


@pytest.fixture(scope="module")
def written(tiny, made_once):
    return made_once("verify", lambda folder: (compress(tiny("llama"), RECIPE, folder), recover(folder)))


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "out")


def run_checks(folder, **options):
    """Verify a folder. Returns (ok, {check: (ok, found)})."""
    result = verify(folder, **options)
    return result["ok"], {row["check"]: (row["ok"], row["found"]) for row in result["checks"]}


def test_what_is_whole(written):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    ok, checks = run_checks(written)
    assert ok and list(checks) == NAMES and all(ok for ok, _ in checks.values())
    assert checks["runs"][1] == "16 tokens, finite outputs, with its adapter"
    assert checks["recorded hashes"][1] == "3 files are as they were written"
    assert before == {path: path.stat().st_mtime_ns for path in written.rglob("*")}


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "gpt_oss", "gpt2"])
def test_plain_models(tiny, family):
    """The families cover tied heads, experts apart and stacked in one tensor, and transposed matrices."""
    ok, checks = run_checks(tiny(family))
    assert ok and checks["recorded hashes"][0] is checks["self-check"][0] is None
    assert all(checks[name][0] for name in NAMES[:1] + NAMES[2:6])


def change(folder, name, value):
    """Replace a tensor in its shard by ``value`` of it."""
    file = next(shard for shard in folder.glob("model-*.safetensors") if name in load_file(shard))
    save_file(load_file(file) | {name: value(load_file(file)[name])}, file, {"format": "pt"})


def poisoned(tensor):
    """Return the tensor with NaN in its first row."""
    return tensor.index_fill(0, torch.tensor([0]), float("nan"))


def drop(folder):
    """Remove the q projections from the first shard."""
    tensors = load_file(folder / SHARD)
    save_file({name: value for name, value in tensors.items() if "q_proj" not in name}, folder / SHARD)


def edit_json(folder, name, **changes):
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))


LAYER = "model.layers.0"
DAMAGE = {
    "a bit": (lambda f: change(f, f"{LAYER}.mlp.up_proj.weight_packed", lambda t: t ^ 1), {"recorded hashes"}),
    "a transposed matrix": (
        lambda f: change(f, f"{LAYER}.mlp.down_proj.weight", lambda t: t.T.contiguous()),
        {"recorded hashes", "tensors", "runs"},
    ),
    "a NaN in a norm": (
        lambda f: change(f, f"{LAYER}.input_layernorm.weight", poisoned),
        {"recorded hashes", "finite values", "runs"},
    ),
    "scales that are cut": (
        lambda f: change(f, f"{LAYER}.mlp.up_proj.weight_scale", lambda t: t[:, :1].contiguous()),
        {"recorded hashes", "tensors"},
    ),
    "a tensor that is missing": (drop, {"files"}),
    "a shard that is missing": (lambda f: (f / SHARD).unlink(), {"files"}),
    "a shard that is cut": (lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes()[:-99]), {"files"}),
    "an index of another model": (lambda f: edit_json(f, "model.safetensors.index.json", weight_map={}), {"files"}),
    "a tokenizer that is missing": (
        lambda f: [path.unlink() for path in f.glob("tokenizer*")], {"reader"},
    ),
    "a tokenizer that is garbage": (lambda f: (f / "tokenizer.json").write_text('{"model": 3}'), {"reader"}),
    "an adapter that is cut": (
        lambda f: (f / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 99), {"finite values", "runs"},
    ),
    "a run that was not finished": (lambda f: (f / "jettison.json").unlink(), {"files"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage(folder, kind):
    """The check of the damaged part fails; ``runs`` and ``self-check`` depend on it and may fail too."""
    damage, failing = DAMAGE[kind]
    damage(folder)
    ok, checks = run_checks(folder)
    failed = {name for name, (passed, _) in checks.items() if passed is False}
    assert not ok and failing <= failed <= failing | {"runs", "self-check"}, checks
    assert all("\n" not in text for _, text in checks.values())


def test_the_original(folder, tiny):
    original = {"name": "o", "folder": str(folder / "moved")}
    edit_json(folder, "jettison.json", teacher=json.loads((folder / "jettison.json").read_text())["teacher"] | original)
    ok, checks = run_checks(folder)
    assert ok and checks["self-check"][0] is None and "--original" in checks["self-check"][1]
    assert run_checks(folder, original=tiny("llama"))[1]["self-check"][0] is True
    ok, checks = run_checks(folder, original=tiny("llama", hidden_size=32, head_dim=8))
    assert ok and checks["self-check"] == (
        None,
        f"{tiny('llama', hidden_size=32, head_dim=8)} is not the original o any more",
    )


def test_the_command(jettison, folder, tmp_path):
    code, out, err = jettison("verify", folder, "--json", tmp_path / "v.json")
    assert code == 0 and "self-check" in out and "Traceback" not in err
    assert json.loads((tmp_path / "v.json").read_text())["ok"] is True
    change(folder, f"{LAYER}.mlp.up_proj.weight_packed", lambda tensor: tensor ^ 1)
    code, out, _ = jettison("verify", folder)
    assert code == 1 and "failed" in out and SHARD in out
    code, _, err = jettison("verify", tmp_path)
    assert code == 2 and "config.json" in err


def test_no_model(tmp_path):
    with pytest.raises(UsageError, match=r"no config.json"):
        verify(tmp_path)
