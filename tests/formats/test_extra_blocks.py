"""Blocks beyond num_hidden_layers (multi-token prediction) are kept dense, and config.json says so of them alone."""

import json
import re

import pytest
import tiny as maker
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from jettison import compress, load
from jettison.pipeline.verification import verify


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_targets_cover_what_is_packed_and_nothing_else(tmp_path, family):
    folder, out = maker.make(family, tmp_path / "model"), tmp_path / "out"
    tensors = load_file(folder / "model.safetensors")
    extra = {name.replace(".layers.1.", ".layers.2."): value.clone() for name, value in tensors.items()}
    save_file(extra | tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    compress(folder, "w8", out)
    section = json.loads((out / "config.json").read_text())["quantization_config"]
    stored = {name for file in out.glob("model-*.safetensors") for name in safe_open(file, "pt").keys()}  # noqa: SIM118
    targets = [target for group in section["config_groups"].values() for target in group["targets"]]
    matches = lambda module, rules: any(
        re.match(rule.removeprefix("re:"), module) if rule.startswith("re:") else rule == module for rule in rules
    )
    packed = {name.removesuffix(".weight_packed") for name in stored if name.endswith(".weight_packed")}
    dense = {name.removesuffix(".weight") for name in stored if name.endswith(".weight")}
    assert packed and all(matches(module, targets) for module in packed)
    assert not [module for module in dense if matches(module, targets)]
    matrices = [module for module in dense if ".layers.2." in module and "norm" not in module]
    assert matrices and all(matches(module, section["ignore"]) for module in matrices)
    assert verify(out)["ok"] and load(out).generate("It was", tokens=2).text is not None
    AutoModelForCausalLM.from_pretrained(out)
