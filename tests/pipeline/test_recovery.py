"""Recovery: the loss, what is trained, the text that the teacher writes, and kills in the middle of a run."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from killing import check_kills, files_of, killed_at, some_writes
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from jettison.core.errors import JettisonError, UsageError
from jettison.domains.text.domain import training_windows
from jettison.domains.text.synthesize import loops, synthesize
from jettison.graph.folder import ModelFolder
from jettison.kernels import ops
from jettison.numerics.low_rank import best_correction
from jettison.pipeline.compression import compress
from jettison.pipeline.evaluation import evaluate
from jettison.pipeline.recovery import recover
from jettison.pipeline.size import measure_size
from jettison.runtime.load import load
from jettison.training import losses as losses

QUICK = {"samples": 16, "length": 32, "batch": 4, "epochs": 2, "lr": 0.005, "scale_lr": 0.005}


def recipe(**options):
    """Return a recipe that rounds gate and up to 2 bits and the rest to 4, then recovers gate and up."""
    quantize = lambda bits, *roles: {
        "quantize": {"method": "rtn", "bits": bits, "group_size": 32}, "where": {"role": list(roles)},
    }  # fmt: skip
    steps = [quantize(4, "q", "k", "v", "o", "down", "head"), quantize(2, "gate", "up")]
    return {"steps": [*steps, {"recover": QUICK | options, "where": {"role": ["gate", "up"]}}]}


class TestLoss:
    @pytest.fixture
    def heads(self):
        """Return student head, teacher head, and the inputs of both, (23 tokens, 16)."""
        torch.manual_seed(0)
        student, teacher = nn.Linear(16, 50), nn.Linear(16, 50)
        hidden = torch.randn(23, 16), torch.randn(23, 16)
        return student, teacher, *hidden

    @pytest.mark.parametrize("temperature", [1.0, 2.5])
    @pytest.mark.parametrize("chunk", [1, 7, 1000])
    def test_chunks_change_nothing(self, heads, monkeypatch, chunk, temperature):
        student, teacher, guess, target = heads
        monkeypatch.setattr(losses, "LOGITS_AT_ONCE", chunk * 50)
        results = []
        for chunked in (True, False):
            student.zero_grad()
            hidden = guess.clone().requires_grad_()
            parameters = list(student.parameters())
            if chunked:
                value = losses.chunked_kl(hidden, target, student, teacher, parameters, 50, temperature)
            else:
                value = losses.kl(teacher(target).detach(), student(hidden), temperature) / len(hidden)
            (3 * value).backward()
            results.append([value.detach(), hidden.grad, *(p.grad.clone() for p in parameters)])
        for ours, whole in zip(*results, strict=True):
            assert torch.allclose(ours, whole, atol=1e-6)

    def test_it_is_the_divergence_of_torch(self, heads):
        student, teacher, guess, target = heads
        expected = nn.functional.kl_div(
            student(guess).log_softmax(-1), teacher(target).log_softmax(-1), log_target=True, reduction="sum"
        )
        assert torch.allclose(losses.kl(teacher(target), student(guess)), expected)
        assert losses.kl(teacher(target), teacher(target)).abs() < 1e-5


def test_svd_start_is_the_best_correction_of_its_rank():
    """The correction leaves a smaller output error than the unweighted one of the same rank.

    Its error is the optimum: the sum of the squared singular values beyond the rank.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 24, generator=generator) * torch.linspace(0.1, 3, 24)
    error, hessian = torch.randn(32, 24, generator=generator), inputs.T @ inputs / 512
    output_error = lambda a, b: float(((error - b @ a) @ inputs.T).square().mean())
    a, b = best_correction(error, hessian, 4)
    u, s, v = torch.linalg.svd(error)
    plain = output_error(v[:4], u[:, :4] * s[:4])
    assert output_error(a, b) < 0.95 * plain
    values = torch.linalg.svdvals(error.double() @ torch.linalg.cholesky(hessian.double()))
    assert output_error(a, b) * 32 == pytest.approx(float(values[4:].square().sum()), rel=0.01)


class TestSynthesis:
    def test_same_seed_same_text_and_more_only_adds(self):
        source = ModelFolder("scribe")
        first = synthesize(source, samples=20, length=32, seed=1)
        assert first.shape == (20, 32)
        assert torch.equal(synthesize(source, samples=80, length=32, seed=1)[:20], first)
        assert not torch.equal(synthesize(source, samples=20, length=32, seed=2), first)

    def test_a_killed_run_continues_with_its_batches(self, tmp_path, monkeypatch):
        source = ModelFolder("scribe")
        monkeypatch.setenv("JETTISON_CACHE", str(tmp_path / "whole"))
        whole = synthesize(source, samples=130, length=32)
        monkeypatch.setenv("JETTISON_CACHE", str(tmp_path / "killed"))
        with killed_at(1):
            synthesize(source, samples=130, length=32)
        assert torch.equal(synthesize(source, samples=130, length=32), whole)

    def test_it_reads_like_the_teacher(self):
        """The teacher finds its own text much more likely than shuffled text."""
        source = ModelFolder("scribe")
        ids = synthesize(source, samples=20, length=32, seed=1)
        shuffled = ids[:, torch.randperm(32, generator=torch.Generator().manual_seed(0))]
        teacher = load("scribe")
        nll = lambda x: float(
            nn.functional.cross_entropy(teacher.logits(x)[:, :-1].float().flatten(0, 1), x[:, 1:].flatten())
        )
        assert nll(ids) < nll(shuffled) - 2

    def test_a_teacher_that_writes_nothing_is_named(self, tiny, tmp_path):
        """A teacher that ends every sequence at once is refused; short windows of a normal teacher are valid."""
        folder = tmp_path / "mute"
        shutil.copytree(tiny("llama"), folder)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(4096))}))
        with pytest.raises(JettisonError, match="writes nothing to learn from.*Give a text instead"):
            synthesize(ModelFolder(folder), samples=2, length=32)
        assert synthesize(ModelFolder(tiny("llama")), samples=2, length=8).shape == (2, 8)

    def test_loops_are_found(self):
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(0, 4096, (4, 200), generator=generator)
        rows[0, 50:114] = rows[0, 50:60].repeat(7)[:64]  # ten tokens, repeated
        rows[1, 20:70] = 7
        rows[2, 100:140] = rows[2, 40:80]  # repeated once, 60 tokens later: may count as a loop or not
        rows[3, 100:] = -1  # padding is no loop
        assert loops(rows).tolist() == [True, True, True, False] or loops(rows).tolist() == [True, True, False, False]

    def test_chat_models_converse(self, tiny, tmp_path):
        """Every second batch holds a turn of the user and an answer, inside the chat template."""
        folder = tmp_path / "chat"
        shutil.copytree(tiny("llama"), folder)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        template = "{% for m in messages %}USER: {{ m.content }}\nBOT:{% endfor %}"
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
        source = ModelFolder(folder)
        text = [source.tokenizer.decode(row) for row in synthesize(source, samples=256, length=48)]
        assert sum(t.startswith("USER: ") and "\nBOT:" in t for t in text) >= 96
        assert sum("USER: " not in t for t in text) >= 96


class TestOnScribe:
    """One real, small recovery, checked from all sides."""

    @pytest.fixture(scope="class")
    def folders(self, made_once):
        def make(folder):
            steps = recipe(train=["lora", "scales"], samples=96, length=64, batch=8, epochs=2)
            compress("scribe", steps, folder / "run")
            shutil.copytree(folder / "run", folder / "before")
            recover(folder / "run")

        folder = made_once("scribe-recovered", make)
        return folder / "before", folder / "run"

    def test_it_wins_back(self, folders):
        before, after = (evaluate(f, tokens=4096, window=128, texts=["books-evaluation"]) for f in folders)
        kl = [result["texts"]["books-evaluation"]["kl"] for result in (before, after)]
        assert kl[1] < 0.7 * kl[0]

    def test_transformers_and_peft_give_our_logits(self, folders):
        ids = torch.randint(1, 4096, (2, 64), generator=torch.Generator().manual_seed(0))
        base = AutoModelForCausalLM.from_pretrained(folders[1], dtype=torch.float32)
        base(**base.dummy_inputs)  # the first forward pass unpacks the weights
        model = PeftModel.from_pretrained(base, folders[1] / "adapter")
        with torch.no_grad():
            theirs = model(ids).logits
        assert torch.allclose(theirs, load(folders[1], dtype=torch.float32, exact=True).logits(ids), atol=1e-4)
        plain = load(folders[1], dtype=torch.float32, exact=True, adapter=False).logits(ids)
        assert not torch.allclose(theirs, plain, atol=0.1)

    @pytest.mark.parametrize("exact", [True, False])
    def test_weights_stay_packed_in_memory(self, folders, exact):
        model = load(folders[1], exact=exact).model
        kinds = {type(module).__name__ for module in model.modules()}
        assert {"PackedLinear" if exact else "TiledLinear", "Adapted"} <= kinds
        in_memory = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
        assert in_memory < 1.1 * measure_size(folders[1])["bytes"]

    def test_codes_stay_and_scales_move(self, folders):
        moved = 0
        for file in folders[0].glob("model-*.safetensors"):
            old, new = load_file(file), load_file(folders[1] / file.name)
            assert old.keys() == new.keys()
            for name in old:
                if name.endswith("weight_scale"):
                    moved += not torch.equal(old[name], new[name])
                    assert torch.equal(old[name].sign(), new[name].sign())
                else:
                    assert torch.equal(old[name], new[name]), name
        assert moved == 57

    def test_the_adapter_costs_what_was_promised(self, folders):
        size = measure_size(folders[1])
        assert size["adapter_bits_per_weight"] == round(16 * 8 * (256 + 768) / (256 * 768), 4) <= 0.7
        assert size["bits_per_weight"] > size["bits_per_weight_without_adapter"]

    def test_it_is_on_record(self, folders):
        manifest = json.loads((folders[1] / "jettison.json").read_text())
        recovery = manifest["recovery"]
        assert recovery["train"] == ["lora", "scales"]
        assert len(recovery["loss"]) == 24
        assert recovery["loss"][-1] < recovery["loss"][0]

    def test_restart_puts_everything_back(self, folders, tmp_path):
        before, after = folders
        shutil.copytree(after, tmp_path / "again")
        recover(tmp_path / "again", restart=True, changes=["recover.train=[scales]", "recover.samples=8"])
        assert not (tmp_path / "again" / "adapter").exists()
        first = load_file(before / "model-00001-of-00009.safetensors")
        new = load_file(tmp_path / "again" / "model-00001-of-00009.safetensors")
        name = "model.layers.0.mlp.up_proj.weight_scale"
        ratio = (new[name] / first[name]).float()
        assert 0 < (ratio - 1).abs().max() < 0.1  # one step away from the first scales, not from the trained ones

    def test_a_finished_recovery_is_only_told_again(self, folders):
        before = files_of(folders[1])
        assert recover(folders[1])["recovery"]["loss"]
        assert files_of(folders[1]) == before

    def test_another_recovery_is_refused(self, folders):
        with pytest.raises(UsageError, match="holds another run: its step"):
            recover(folders[1], changes=["recover.rank=4"])


@pytest.mark.parametrize("init", ["default", "olora", "svd"])
def test_starts(tiny, tmp_path, init):
    """With default and olora, training starts at the loss of the quantized model; with svd at a lower loss."""
    compress(tiny("llama"), recipe(init=init), tmp_path / "out")
    loss = recover(tmp_path / "out", changes=["recover.samples=64", "recover.epochs=0.05"])["recovery"]["loss"]
    compress(tiny("llama"), recipe(), tmp_path / "plain")
    plain = recover(tmp_path / "plain", changes=["recover.samples=64", "recover.epochs=0.05"])["recovery"]["loss"]
    assert loss[0] < 0.9 * plain[0] if init == "svd" else loss[0] == pytest.approx(plain[0], rel=1e-3)


@pytest.mark.parametrize("init", ["default", "svd"])
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "gpt2", "phi3", "gemma3_text", "granite"])
def test_every_kind_of_layout_recovers(tiny, tmp_path, family, init):
    compress(tiny(family), recipe(init=init, train=["lora", "scales"]), tmp_path / "out")
    loss = recover(tmp_path / "out", changes=["recover.epochs=4"])["recovery"]["loss"]
    assert sum(loss[-3:]) < sum(loss[:3])
    load(tmp_path / "out").logits(torch.arange(1, 20).unsqueeze(0))


def test_experts_that_no_token_reached(tiny, tmp_path):
    """One batch of a few tokens reaches few of the 16 experts: the others stay as they are, and are saved."""
    folder = tiny("qwen3_moe", num_experts=16, num_experts_per_tok=1)
    changes = dict(init="svd", train=["lora", "scales"], samples=1, length=16, batch=1, epochs=2)
    compress(folder, recipe(**changes), tmp_path / "out")
    assert len(recover(tmp_path / "out", save_every=0)["recovery"]["loss"]) == 2


def test_gradient_checkpointing_changes_time_and_memory_only(tiny, tmp_path):
    runs, dequantize = {}, ops.dequantize
    for checkpointing in (False, True):
        out = tmp_path / str(checkpointing)
        compress(tiny("llama"), recipe(gradient_checkpointing=checkpointing), out)
        with pytest.MonkeyPatch.context() as patch:
            calls = []
            patch.setattr(ops, "dequantize", lambda *a, calls=calls: calls.append(1) or dequantize(*a))
            runs[checkpointing] = recover(out)["recovery"]["loss"], len(calls)
    assert runs[True][0] == pytest.approx(runs[False][0], rel=1e-4)
    assert runs[True][1] > 1.3 * runs[False][1]


def test_a_mix_has_equal_parts(tmp_path):
    (tmp_path / "short.txt").write_text("It was the best of times, it was the worst of times. " * 20)
    options = {"data": f"synthetic+{tmp_path / 'short.txt'}", "samples": 40, "length": 32, "seed": 0}
    options["text_temperatures"] = [1.0]
    windows = training_windows(ModelFolder("scribe"), options, (0, 1), lambda: None)
    assert windows.shape == (40, 32)
    assert len(windows[20:].unique(dim=0)) < 20


@pytest.mark.parametrize("data", ["books", "synthetic+books"])
def test_other_data(tiny, tmp_path, data):
    compress(tiny("llama"), recipe(data=data), tmp_path / "out")
    assert len(recover(tmp_path / "out")["recovery"]["loss"]) == 8


@some_writes
def test_a_run_killed_at_any_write_gives_the_same_bytes(tiny, tmp_path, most):
    compress(tiny("llama"), recipe(train=["lora", "scales"], epochs=1), tmp_path / "start")
    check_kills(lambda out: recover(out, save_every=0), tmp_path, most, start=tmp_path / "start")


def test_two_processes_learn_what_one_does(tiny, tmp_path):
    compress(tiny("llama"), recipe(train=["lora", "scales"], samples=130), tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    recover(tmp_path / "one")
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command = [sys.executable, *launcher, "-m", "jettison", "recover", str(tmp_path / "two"), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    curves = [json.loads((tmp_path / n / "jettison.json").read_text())["recovery"]["loss"] for n in ("one", "two")]
    assert len(curves[0]) == 65
    assert torch.allclose(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=0.02)
    one, two = (load_file(tmp_path / n / "adapter" / "adapter_model.safetensors") for n in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=0.02) for name in one)


class TestRefusals:
    @pytest.fixture
    def folder(self, tiny, tmp_path):
        compress(tiny("llama"), recipe(), tmp_path / "out")
        return tmp_path / "out"

    def test_not_a_run(self, tmp_path):
        with pytest.raises(UsageError, match="no folder"):
            recover(tmp_path / "nowhere")
        with pytest.raises(UsageError, match="has no jettison.json"):
            recover(tmp_path)

    def test_another_teacher(self, folder, tiny):
        with pytest.raises(UsageError, match="is not the model .* was made from"):
            recover(folder, teacher=tiny("mistral"))

    def test_the_teacher_has_moved(self, tiny, tmp_path):
        shutil.copytree(tiny("llama"), tmp_path / "original")
        compress(tmp_path / "original", recipe(), tmp_path / "out")
        shutil.move(tmp_path / "original", tmp_path / "elsewhere")
        with pytest.raises(UsageError, match="--teacher"):
            recover(tmp_path / "out")
        recover(tmp_path / "out", teacher=tmp_path / "elsewhere")

    def test_unknown_option(self, folder):
        with pytest.raises(UsageError, match="unknown change 'recover.ranks'.*did you mean 'recover.rank'"):
            recover(folder, changes=["recover.ranks=4"])

    def test_larger_than_memory(self, folder, monkeypatch):
        import psutil

        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000, "total": 1000}))
        with pytest.raises(JettisonError, match="GB of memory at once"):
            recover(folder)

    def test_a_loss_that_explodes_is_named(self, folder):
        with pytest.raises(JettisonError, match="the loss is .* lower lr"):
            recover(folder, changes=["recover.lr=1e30"])
