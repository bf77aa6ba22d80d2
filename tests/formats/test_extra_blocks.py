"""Blocks that only a checkpoint has (multi-token prediction) stay dense, or are rounded if a recipe says so.

config.json says of each what it is, and of nothing else.
"""

import json
import re
import shutil

import pytest
import tiny as maker
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from jettison import compress, load
from jettison.core.errors import UsageError
from jettison.encodings.uniform import UniformGrid
from jettison.formats.parts import read_weight
from jettison.graph.checkpoint import Checkpoint
from jettison.methods.quantize.rtn import rtn
from jettison.pipeline.verification import verify

IDS = torch.arange(1, 13).view(1, 12)
SHORT = ["calibration.samples=4", "calibration.length=32", "calibration.text=books", "quantize.group_size=32"]


def make(family, folder, root=".layers.2."):
    """A model whose checkpoint has a third block, and beside it what DeepSeek has there: eh_proj and a head."""
    maker.make(family, folder)
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    noise = lambda value: (value.float() + torch.randn(value.shape) * 0.02).to(value.dtype)
    first = next(name for name in tensors if ".layers.1." in name)
    renamed = lambda name: name[name.index(".layers.1.") :].replace(".layers.1.", root)
    prefix = "" if not root.startswith(".") else first[: first.index(".layers.1.")]
    extra = {prefix + renamed(name): noise(value) for name, value in tensors.items() if ".layers.1." in name}
    at = prefix + root
    extra |= {f"{at}eh_proj.weight": torch.randn(64, 128), f"{at}shared_head.head.weight": torch.randn(96, 64)}
    extra |= {f"{at}enorm.weight": torch.ones(64)}
    save_file(extra | tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    return folder


def check_targets(out):
    """Targets match every packed module and no dense one; returns both by name."""
    section = json.loads((out / "config.json").read_text())["quantization_config"]
    stored = {name for file in out.glob("model-*.safetensors") for name in safe_open(file, "pt").keys()}  # noqa: SIM118
    groups = section["config_groups"].values()
    targets = [target for group in groups for target in group["targets"]]
    matches = lambda module, rules: any(
        re.match(rule.removeprefix("re:"), module) if rule.startswith("re:") else rule == module for rule in rules
    )
    packed = {name.removesuffix(".weight_packed") for name in stored if name.endswith(".weight_packed")}
    dense = {name.removesuffix(".weight") for name in stored if name.endswith(".weight")}
    bits = {
        module: {group["weights"]["num_bits"] for group in groups if matches(module, group["targets"])}
        for module in packed
    }
    assert packed and all(len(found) == 1 for found in bits.values())
    assert not [module for module in dense if matches(module, targets)]
    is_matrix = lambda module: "norm" not in module and (".layers.2." in module or module.startswith("mtp."))
    matrices = {module for module in dense if is_matrix(module)}
    assert matrices and all(matches(module, section["ignore"]) for module in matrices)
    assert not [module for module in packed if matches(module, section["ignore"])]
    return {module: found.pop() for module, found in bits.items()}, matrices


def opens(out):
    AutoModelForCausalLM.from_pretrained(out)
    return verify(out)["ok"] and load(out).generate("It was", tokens=2).text is not None


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_by_default_they_stay_dense(tmp_path, family):
    compress(make(family, tmp_path / "model"), "w8", tmp_path / "out")
    packed, _ = check_targets(tmp_path / "out")
    assert not [module for module in packed if ".layers.2." in module] and opens(tmp_path / "out")


class TestRounded:
    """``quantize.mtp=8`` rounds the matrices that the model's own blocks have too; eh_proj and the head stay."""

    @pytest.mark.parametrize(("family", "root"), [("llama", ".layers.2."), ("qwen3_moe", ".layers.2."),
                                                  ("llama", "mtp.layers.0.")])  # fmt: skip
    def test_the_rest_is_as_without_it(self, tmp_path, family, root):
        folder, out, without = make(family, tmp_path / "model", root), tmp_path / "out", tmp_path / "without"
        compress(folder, "w4", without, changes=SHORT)
        assert "blocks for multi-token prediction stay as they are" in (without / "progress.log").read_text()
        compress(folder, "w4", out, changes=[*SHORT, "quantize.mtp=8"])
        assert (
            "of blocks for multi-token prediction become int8 g32 sym (rtn): no calibration"
            in (out / "progress.log").read_text()
        )
        packed, dense = check_targets(out)
        extra = {module for module in packed if ".layers.2." in module or module.startswith("mtp.")}
        own = {module for module in packed if ".layers.1." in module}
        assert len(extra) == len(own) and {packed[module] for module in extra} == {8}
        assert {packed[module] for module in packed.keys() - extra} == {4}
        left = {module.rpartition(".")[2] for module in dense}
        assert left == {"eh_proj", "head"} | ({"gate"} if family == "qwen3_moe" else set())
        files = [Checkpoint(at) for at in (out, without)]
        for name in files[0]:
            if not any(name.startswith(f"{module}.") for module in extra):
                assert torch.equal(*(file.read(name) for file in files)), name
        assert opens(out) and torch.equal(*(load(at, exact=True).logits(IDS) for at in (out, without)))

    def test_the_values_are_those_of_rtn(self, tmp_path):
        folder, out = make("qwen3_moe", tmp_path / "model"), tmp_path / "out"
        compress(folder, "w8", out, changes=["quantize.group_size=32", "quantize.mtp=5"])
        original, written, grid = Checkpoint(folder), Checkpoint(out), UniformGrid(5, 32)
        for name in ("self_attn.q_proj", "mlp.experts.3.down_proj"):
            weight = original.read(f"model.layers.2.{name}.weight").float()
            stored = read_weight(written.read, f"model.layers.2.{name}", grid)
            assert torch.equal(stored.dequantize(), rtn(weight, grid).dequantize())

    def test_a_killed_run_continues_with_the_same_bytes(self, tmp_path):
        folder, changes = make("llama", tmp_path / "model"), [*SHORT, "quantize.mtp=4"]
        compress(folder, "w4", tmp_path / "whole", changes=changes)
        shutil.copytree(tmp_path / "whole", tmp_path / "part")
        lines = (tmp_path / "part" / "journal.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in lines if '"unit": 2' not in line and '"finished"' not in line]
        assert len(kept) == len(lines) - 2
        (tmp_path / "part" / "journal.jsonl").write_text("".join(kept))
        last = "model-00003-of-00003.safetensors"
        (tmp_path / "part" / last).unlink()
        compress(folder, "w4", tmp_path / "part", changes=changes)
        for name in (last, "config.json"):
            assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    @pytest.mark.parametrize(("change", "message"), [
        ("quantize.mtp=9", "mtp: bits = 9: a grid has 2 to 8 bits"),
        ("quantize.mtp=true", "mtp = True: a number of bits is needed"),
    ])  # fmt: skip
    def test_other_values_are_refused(self, tmp_path, change, message):
        with pytest.raises(UsageError, match=message):
            compress(make("llama", tmp_path / "model"), "w8", tmp_path / "out", changes=[change])
        assert not (tmp_path / "out").exists()

    def test_a_model_without_such_blocks_is_refused(self, tiny, tmp_path):
        with pytest.raises(UsageError, match="mtp = 8: .* has no blocks for multi-token prediction"):
            compress(tiny("llama"), "w8", tmp_path / "out", changes=["quantize.mtp=8"])
        assert not (tmp_path / "out").exists()
