"""Adapters that PEFT wrote: they give PEFT's outputs, or are refused with the name of the field or tensor."""

import json
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from jettison.core.documents import read_json
from jettison.core.errors import JettisonError
from jettison.core.files import digest, file_digest, write_json
from jettison.formats.peft import BASE
from jettison.graph.checkpoint import Checkpoint
from jettison.pipeline.compression import compress
from jettison.pipeline.recovery import recover
from jettison.runtime.load import load

Q0, DOWN1 = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
RULES = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, r"layers\.1\..*down_proj": 6}, "alpha_pattern": {"down_proj": 40}},
    "both": {
        "use_rslora": True,
        "rank_pattern": {f"^{Q0}": 3, ".*down_proj": 5},
        "alpha_pattern": {r"layers\.\d.*q_proj": 9},
    },
    "layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "excluded": {"exclude_modules": [Q0]},
}


@pytest.fixture
def adapted(tiny, tmp_path):
    """Return a function that makes a model with an adapter of random values.

    adapted(family, **options of LoraConfig) -> (folder, the model that PEFT loads from it).
    """

    def make(family="llama", **options):
        folder = shutil.copytree(tiny(family), tmp_path / family)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        targets = ["c_attn", "c_proj"] if family == "gpt2" else ["q_proj", "down_proj"]
        options = {"r": 4, "lora_alpha": 12, "target_modules": targets, "task_type": "CAUSAL_LM"} | options
        model = get_peft_model(base, LoraConfig(**options))
        generator = torch.Generator().manual_seed(0)
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.data = 0.2 * torch.randn(value.shape, generator=generator)
        model.save_pretrained(folder / "adapter")
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return folder, PeftModel.from_pretrained(again, folder / "adapter").eval()

    return make


IDS = torch.arange(5, 29).unsqueeze(0)


@pytest.mark.parametrize("rule", RULES)
def test_it_computes_what_peft_computes(adapted, rule):
    folder, theirs = adapted(**RULES[rule])
    with torch.no_grad():
        expected = theirs(IDS).logits
    ours = load(folder, dtype=torch.float32, exact=True).logits(IDS)
    plain = load(folder, adapter=False, dtype=torch.float32, exact=True).logits(IDS)
    assert float((ours - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert float((plain - expected).abs().max()) > 0.1  # fails if the adapter does nothing


def test_conv1d_is_adapted_too(adapted):
    folder, theirs = adapted("gpt2", use_rslora=True, fan_in_fan_out=True)
    with torch.no_grad():
        expected = theirs(IDS).logits
    ours = load(folder, dtype=torch.float32, exact=True).logits(IDS)
    assert float((ours - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def change(folder, **fields):
    """Change fields of the adapter's config."""
    write_json(
        folder / "adapter" / "adapter_config.json", read_json(folder / "adapter" / "adapter_config.json") | fields
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\]"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters = "),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"of_some_later_version": 3}, "of_some_later_version = 3"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"init_lora_weights": 1.5}, "init_lora_weights = 1.5"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
        ({"peft_type": None}, "peft_type = None"),
        ({"target_modules": ["q_proj"]}, f"{DOWN1.replace('1', '.')}, which target_modules"),
        ({"layers_to_transform": [1]}, r"layers\.0\..*, which target_modules"),
        ({"layers_to_transform": "1"}, "a pattern that cannot be read"),
        ({"target_modules": "(q_proj"}, "a pattern that cannot be read"),
        ({"rank_pattern": {"(": 4}}, "a pattern that cannot be read"),
        ({"rank_pattern": [4]}, r"rank_pattern = \[4\]"),
        ({"rank_pattern": {"q_proj": 2.5}}, r"rank_pattern\['q_proj'\] = 2.5: it must be a positive whole number"),
        ({"alpha_pattern": {"q_proj": "x"}}, r"alpha_pattern\['q_proj'\] = 'x': it must be a number"),
        ({"r": 8}, "rank 8: lora_A must be"),
        ({"r": 0}, "r = 0: it must be a positive whole number"),
        ({"r": True}, "r = True"),
        ({"lora_alpha": None}, "lora_alpha = None: it must be a number"),
        ({"layers_pattern": "layers"}, "cannot be used: .*layers_to_transform"),
    ],
)
def test_a_config_that_asks_for_more_is_refused_by_name(adapted, fields, said):
    folder, _ = adapted()
    change(folder, **fields)
    with pytest.raises(JettisonError, match=said):
        load(folder)
    assert load(folder, adapter=False)


A, B = f"base_model.model.{Q0}.lora_A.weight", f"base_model.model.{Q0}.lora_B.weight"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda tensors: tensors.pop(B), f"lora_A of {Q0} without the other half"),
        (lambda tensors: tensors.pop(A), f"lora_B of {Q0} without the other half"),
        (lambda tensors: tensors.clear(), "has no tensors"),
        (lambda tensors: tensors.update({A: torch.zeros(4, 63)}), r"lora_A must be \(4, 64\) .*, not \(4, 63\)"),
        (lambda tensors: tensors.update({B: torch.zeros(96, 4)}), r"lora_B \(64, 4\), not .* \(96, 4\)"),
        (lambda tensors: tensors.update({A: torch.zeros(64)}), "lora_A must be"),
        (lambda tensors: tensors.update({A: torch.full((4, 64), torch.nan)}), "lora_A .* not finite"),
        (lambda tensors: tensors.update({B: torch.ones(64, 4, dtype=torch.int32)}), "lora_B .* not finite numbers"),
        (lambda tensors: tensors.update({A.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(64)}), "magn"),
        (
            lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.ones(2, 2)}),
            "lm_head.weight, which",
        ),
        (
            lambda tensors: tensors.update({key.replace("q_proj", "r_proj"): tensors[key].clone() for key in (A, B)}),
            "r_proj, which the model does not have",
        ),
        (
            lambda tensors: tensors.update(
                {key.replace(Q0, "model.embed_tokens"): tensors[key].clone() for key in (A, B)}
            ),
            "embed_tokens, which target_modules",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(adapted, edit, said):
    folder, _ = adapted()
    file = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
    with pytest.raises(JettisonError, match=said):
        load(folder)


def test_a_file_that_is_no_config_is_one_error(adapted):
    folder, _ = adapted()
    for text in ("", "[1]", json.dumps({"peft_type": ["LORA"]})):
        (folder / "adapter" / "adapter_config.json").write_text(text)
        with pytest.raises(JettisonError, match="adapter_config.json"):
            load(folder)


class TestBase:
    """Jettison's own adapters record the weights that they were trained for."""

    @pytest.fixture(scope="class")
    def folder(self, tiny, made_once):
        """Return a run recovered with scales: that rewrites shards after training."""
        steps = [
            {"quantize": {"method": "rtn", "bits": 4, "group_size": 32}},
            {"recover": {"train": ["lora", "scales"], "data": "books", "samples": 4, "length": 16, "batch": 4}},
        ]
        return made_once("peft", lambda folder: (compress(tiny("llama"), {"steps": steps}, folder), recover(folder)))

    def test_it_is_that_of_the_final_shards(self, folder, tmp_path):
        recorded = Checkpoint(folder, [folder / "adapter" / "adapter_model.safetensors"]).metadata[BASE]
        assert recorded == digest({file.name: file_digest(file) for file in folder.glob("model-*.safetensors")})
        alone = shutil.copytree(folder, tmp_path / "alone")
        (alone / "jettison.json").unlink()
        assert torch.equal(load(alone).logits(IDS), load(folder).logits(IDS))

    def test_peft_reads_its_config_without_a_warning(self, folder):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            config = PeftConfig.from_pretrained(folder / "adapter")
        assert config.r == 8 and config.lora_alpha == 16

    def test_an_adapter_of_other_weights_is_refused(self, folder, tiny, tmp_path):
        steps = [{"quantize": {"method": "rtn", "bits": 3, "group_size": 32}}]
        compress(tiny("llama"), {"steps": steps}, tmp_path / "other")
        shutil.copytree(folder / "adapter", tmp_path / "other" / "adapter")
        with pytest.raises(JettisonError, match="adapter was trained for other weights .* than .*other holds"):
            load(tmp_path / "other")
        assert load(tmp_path / "other", adapter=False)
        foreign = tmp_path / "other" / "adapter" / "adapter_model.safetensors"
        save_file(load_file(foreign), foreign)  # has no record of its base, so nothing is checked
        assert load(tmp_path / "other")
