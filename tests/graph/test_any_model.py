"""Any causal language model of transformers: a sample of the types, and every type (slow). See benchmarks/models."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.stablelm.modeling_stablelm import StableLmMLP

from benchmarks.fixtures.causal_types import causal_types, make_small
from benchmarks.models.any_model import IDS, SHORT, logits_of_transformers, state, try_type
from jettison import JettisonError, compress, load
from jettison.graph.dense import load_dense
from jettison.graph.experts import Experts, GroupedExperts
from jettison.graph.folder import ModelFolder
from jettison.pipeline.verification import verify
from jettison.runtime.sampling import Sampling

# Of each kind of difficulty one: blocks that return tuples, experts that a file stores apart, or stacked,
# latent attention, a router that is a linear, state space, a hybrid, stored buffers, a stack of matrices for each of
# attention's and the MLP's linears, a linear that runs twice in a block, a tied matrix under the head's name.
SAMPLE = ["bloom", "mixtral", "granitemoe", "deepseek_v3", "llama4_text", "mamba", "bamba"]
SAMPLE += ["apertus", "jetmoe", "prophetnet"]
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "any_model.json"


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_type_works(tmp_path, model_type):
    """Read exactly, compressed, loaded exactly, run, resumed. If transformers cannot load the result, it is noted."""
    steps = try_type(model_type, tmp_path)
    assert state(steps) == "works", steps


@pytest.mark.slow
@pytest.mark.parametrize("model_type", causal_types())
def test_every_type_ends_as_recorded(tmp_path, model_type):
    """Works, or is refused with a reason; never a traceback. Types that transformers cannot build small are skipped."""
    recorded = json.loads(RESULTS.read_text())["details"]["types"]
    steps = try_type(model_type, tmp_path)
    if "built" in steps:
        pytest.skip(steps["built"])
    assert state(steps) == recorded[model_type]["state"] != "broken", steps


def test_experts_of_an_unknown_form_are_named(tmp_path):
    """Griffin's gates are stacked matrices in a form of their own, so they stay as they are; the run says so."""
    out = {
        kind: compress(make_small(kind, tmp_path / kind), "w8", tmp_path / f"{kind}-w8")
        for kind in ("recurrent_gemma", "mixtral")
    }
    (note,) = [note for note in out["recurrent_gemma"]["check"]["notes"] if note.startswith("not compressed")]
    assert note.endswith("such as model.layers.0.temporal_block.rg_lru.input_gate_weight")
    assert not any(note.startswith("not compressed") for note in out["mixtral"]["check"]["notes"])


class TestExperts:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        return make_small("mixtral", tmp_path_factory.mktemp("mixtral") / "model")

    def test_names_in_the_file_are_found_both_ways(self, folder, tmp_path):
        """Mixtral's files say block_sparse_moe.experts.0.w1; transformers joins them as mlp.experts.gate_up_proj."""
        source = ModelFolder(folder)
        names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
        for projection, stored in names.items():
            located = source.locate(f"model.layers.1.mlp.experts.3.{projection}.weight")
            assert located == (f"model.layers.1.block_sparse_moe.experts.3.{stored}.weight", None, "")
        compress(folder, "w8", tmp_path / "out")
        written = ModelFolder(tmp_path / "out").checkpoint
        assert "model.layers.1.block_sparse_moe.experts.3.w1.weight_packed" in written

    @pytest.mark.parametrize(("model_type", "routers"), [
        ("mixtral", ["mlp.gate"]),
        ("jetmoe", ["mlp.router.layer", "self_attention.experts.router.layer"]),
        ("zaya", ["mlp.gate.down_proj", "mlp.gate.router_mlp.fc1", "mlp.gate.router_mlp.out_proj"]),
    ])  # fmt: skip
    def test_the_router_stays(self, tmp_path, model_type, routers):
        folder = make_small(model_type, tmp_path / "model")
        compress(folder, "w8", tmp_path / "out")
        for router in routers:
            name = f"model.layers.0.{router}.weight"
            assert torch.equal(ModelFolder(tmp_path / "out").read(name), ModelFolder(folder).read(name))

    def test_experts_without_tokens_are_rounded_and_noted(self, tiny, tmp_path):
        """Four tokens choose eight of sixteen experts at most."""
        few = ["calibration.samples=1", "calibration.length=4", "calibration.text=books"]
        manifest = compress(tiny("mixtral", num_local_experts=16), "w4", tmp_path / "out", changes=few)
        starved = [name for name in manifest["uncalibrated"] if "experts" in name]
        assert len(starved) >= 2 * 8 * 3 and load(tmp_path / "out").generate("It was", tokens=2).text is not None

    @pytest.mark.parametrize(
        ("model_type", "matrices"), [("mixtral", 3), ("gpt_oss", 3), ("llama4_text", 3), ("jetmoe", 1)]
    )
    def test_separated_experts_compute_what_the_stacked_ones_do(self, tmp_path, model_type, matrices):
        """An expert has three matrices; JetMoE has a module for each stack of matrices, four in a block."""
        folder = make_small(model_type, tmp_path / "model")
        model, stacked = load_dense(ModelFolder(folder), torch.float32), logits_of_transformers(folder)
        experts = [module for module in model.modules() if isinstance(module, Experts | GroupedExperts)]
        linears = [linear for linear in ModelFolder(folder).anatomy if "expert" in linear.roles]
        assert len(experts) == (16 if model_type == "jetmoe" else 4)
        assert len(linears) == matrices * sum(map(len, experts))
        with torch.no_grad():
            assert torch.allclose(model(IDS, use_cache=False).logits, stacked, atol=1e-5)


def test_experts_without_tokens_are_skipped():
    experts = GroupedExperts(3, 4, 2).to_empty(device="cpu")
    torch.nn.init.normal_(experts[0].expert.weight)
    torch.nn.init.normal_(experts[2].expert.weight)
    x = torch.randn(5, 4)
    expected = torch.cat([x[:2] @ experts[0].expert.weight.T, x[2:] @ experts[2].expert.weight.T])
    assert torch.allclose(experts(x, [2, 0, 3]), expected)


def test_a_tied_matrix_under_the_heads_name_is_written_for_both(tmp_path):
    """ProphetNet's files hold it as lm_head; packed there, the embedding needs a tensor of its own."""
    folder = make_small("prophetnet", tmp_path / "model")
    source = ModelFolder(folder)
    embed = f"{source.anatomy.linears[0].name}.weight"
    stored, tensors = source.locate(embed)[0], load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop(stored)  # which of the tied names transformers writes is left to chance
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    source = ModelFolder(folder)
    assert embed not in source.checkpoint and source.anatomy.tied
    compress(folder, "w8", tmp_path / "out")
    written = ModelFolder(tmp_path / "out")
    assert torch.equal(written.checkpoint.read(embed), source.checkpoint.read("lm_head.weight"))
    assert "lm_head.weight" not in written.checkpoint and "lm_head.weight_packed" in written.checkpoint


def test_names_that_fit_no_mapping_are_shown(tmp_path):
    folder = make_small("mixtral", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({name.replace("experts.", "specialists."): value for name, value in tensors.items()},
              folder / "model.safetensors", {"format": "pt"})  # fmt: skip
    with pytest.raises(
        JettisonError,
        match=r"no tensor for \S+experts\.0\.gate_proj.weight, \S+, \S+ and 45 more; "
        r"it has \S+specialists\.\d\.w\d.weight, \S+, \S+ and 45 more, which the model does not have",
    ):
        compress(folder, "w8", tmp_path / "out")


class TestRefusedBeforeAnyWork:
    """A model whose blocks do not run leaves no folder, whether the recipe calibrates or not."""

    @pytest.mark.parametrize("recipe", ["w8", "w4"])
    def test_a_block_that_does_not_run(self, tiny, tmp_path, monkeypatch, recipe):
        monkeypatch.setattr(StableLmMLP, "forward", lambda self, x: x[..., :3] @ x)
        with pytest.raises(JettisonError, match="the stablelm model does not run with its config"):
            compress(tiny("stablelm"), recipe, tmp_path / "out", changes=SHORT)
        assert not (tmp_path / "out").exists()

    def test_a_cache_that_the_model_makes_itself_is_not_added_to(self, tmp_path):
        """XLM makes one even without use_cache; a block that runs again would see its keys and values twice."""
        compress(make_small("xlm", tmp_path / "model"), "w4", tmp_path / "out", changes=SHORT)
        assert verify(tmp_path / "out")["ok"]


@pytest.mark.parametrize("model_type", ["bert", "cpmant"])
def test_a_model_without_a_cache_that_works_reads_the_text_anew(tmp_path, model_type):
    """Two rows, each the likeliest tokens of the whole text so far."""
    model = load(make_small(model_type, tmp_path / "model"), dtype=torch.float32)
    prompts = [[5, 9, 2], [7, 1, 8, 3]]
    written = {0: [], 1: []}
    for row, token in model.write(prompts, 4, Sampling(temperature=0)):
        written[row].append(token)
    for row, prompt in enumerate(prompts):
        text = list(prompt)
        for _ in range(4):
            text.append(int(model.logits(torch.tensor([text]))[0, -1].argmax()))
        assert written[row] == text[len(prompt) :]
