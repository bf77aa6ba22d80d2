"""The command line program: help, exit codes, one-line errors, JSON. tests/house/test_interrupts.py tests Ctrl-C."""

import importlib
import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import tiny as maker
from safetensors.torch import load_file, save_file

from jettison.cli.app import COMMANDS
from jettison.recipe.recipe import load_recipe

STEPS = ["--set", "quantize.group_size=32", "--set", "calibration.samples=8", "--set", "calibration.length=32"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(jettison, command):
    code, out, _ = jettison(command, "--help")
    assert code == 0
    assert f"$ jettison {command}" in out


def test_no_arguments_shows_help(jettison):
    _, out, err = jettison()
    assert all(command in out + err for command in COMMANDS)


class TestAJob:
    @pytest.fixture(scope="class")
    def folder(self, tiny, tmp_path_factory):
        return tmp_path_factory.mktemp("cli") / "out"

    def test_compress_then_evaluate_then_generate(self, jettison, tiny, folder, tmp_path):
        code, out, _ = jettison(
            "compress", tiny("llama"), "--recipe", "gateup-w4w2", "-o", folder, *STEPS, "--set", "recover.length=32"
        )
        assert code == 0 and "bits per weight" in out
        code, out, _ = jettison(
            "evaluate", folder, "--text", "wikitext2", "--tokens", 1024, "--window", 128, "--json", tmp_path / "e.json"
        )
        assert code == 0 and "perplexity" in out
        measured = json.loads((tmp_path / "e.json").read_text())
        assert measured["texts"]["wikitext2"]["kl"] > 0
        code, out, _ = jettison("generate", folder, "-p", "Once upon", "-n", 5, "-t", 0, "--json", tmp_path / "g.json")
        assert code == 0 and out.startswith("Once upon")
        assert json.loads((tmp_path / "g.json").read_text())["tokens_per_second"] > 0
        code, out, _ = jettison("recover", folder, "--dry-run")
        assert code == 0 and "recover" in out and not (folder / "recover").exists()
        code, out, _ = jettison("recover", folder, "--set", "recover.samples=8", "--set", "recover.length=32")
        assert code == 0 and "KL per token" in out

    def test_quiet_says_nothing_on_stderr(self, jettison, tiny, tmp_path):
        code, _, err = jettison("compress", tiny("llama"), "--recipe", "w8", "-o", tmp_path / "o", *STEPS[:2], "-q")
        assert (code, err) == (0, "")


def test_plan_writes_a_recipe_that_compress_takes(jettison, tiny, tmp_path):
    arguments = ("--memory", "650KB", "--context", 0, "--device", "raspberry-pi-5", "-o", tmp_path / "recipe.yaml")
    files = ("--json", tmp_path / "plan.json", "--report", tmp_path / "plan.html")
    code, out, _ = jettison("plan", tiny("llama"), *arguments, "--pareto", "--no-recovery", *files)
    assert code == 0 and "gate_up" in out and "this plan" in out
    result = json.loads((tmp_path / "plan.json").read_text())
    assert result["plan"]["memory"] <= 650e3 and result["recipe"]["steps"] and len(result["plan"]["front"]) > 3
    assert "Bits of every block" in (tmp_path / "plan.html").read_text()
    code, *_ = jettison("compress", tiny("llama"), "--recipe", tmp_path / "recipe.yaml", "-o", tmp_path / "o")
    assert code == 0


def test_plan_writes_no_recipe_that_does_nothing(jettison, tmp_path):
    code, out, _ = jettison(
        "plan", "scribe", "--memory", "1GB", "--device", "raspberry-pi-5", "-o", tmp_path / "r.yaml"
    )
    assert code == 0 and "scribe meets this budget as it is" in out and not list(tmp_path.iterdir())


def test_plan_says_what_cannot_be_written(jettison, tmp_path):
    arguments = (
        "qwen3-4b",
        "--device",
        "strix-halo",
        "--memory",
        "3GB",
        "--engine",
        "llama.cpp",
        "-o",
        tmp_path / "r.yaml",
    )
    code, out, _ = jettison("plan", *arguments)
    words = "llama.cpp loads gguf, which compress does not write"
    assert code == 0 and words in out and any(words in reason for reason in load_recipe(tmp_path / "r.yaml").why)


def test_what_cannot_be_written_is_not_fitted(jettison, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("jettison.fitting"), "make_plan", None)  # a plan would fail
    code, _, err = jettison("fit", "scribe", "--memory", "6MB", "--engine", "llama.cpp", "-o", tmp_path / "out")
    assert code == 2 and not (tmp_path / "out").exists()
    assert_one_line(err, "compress does not write")


def test_a_draft_is_not_written_over_anything(jettison, tiny, tmp_path):
    import shutil

    from jettison.graph.folder import ModelFolder
    from jettison.runtime.speculative.draft import Draft, write_draft

    folder = shutil.copytree(tiny("llama", num_hidden_layers=3), tmp_path / "model")
    write_draft(ModelFolder(folder), Draft(skip=("1",)), "", {})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    for target, words in (("full", "is not empty"), ("model", "is not empty"), ("full/letter.txt", "is a file")):
        code, _, err = jettison("draft", folder, "--export", tmp_path / target)
        assert code == 2
        assert_one_line(err, words)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]
    assert (
        jettison("draft", folder, "--export", tmp_path / "cut")[0] == 0 and (tmp_path / "cut" / "config.json").exists()
    )


def test_lists(jettison, tmp_path):
    code, out, _ = jettison("recipes", "--json", tmp_path / "r.json")
    assert code == 0 and "gateup-w4w2" in out and "gptaq" in out
    assert {"recipes", "methods"} == set(json.loads((tmp_path / "r.json").read_text()))


def damaged(tmp_path, damage):
    """Return a model folder that was changed by ``damage``."""
    folder = maker.make("llama", tmp_path / "model")
    damage(folder)
    return folder


def truncate(folder):
    """Cut the weights in half."""
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def corrupt(folder):
    """Replace the weights by other bytes."""
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)


def poison(folder):
    """Set one weight to NaN."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")


DAMAGE = {
    "a truncated shard": (truncate, 1, "model.safetensors"),
    "a corrupted shard": (corrupt, 1, "model.safetensors"),
    "NaN weights": (poison, 1, "model.layers.0.mlp.up_proj.weight"),
    "no config": (lambda folder: (folder / "config.json").unlink(), 2, "config.json"),
    "an empty config": (lambda folder: (folder / "config.json").write_text("{}"), 2, "model_type"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_models(jettison, tmp_path, name):
    damage, expected, words = DAMAGE[name]
    code, _, err = jettison("compress", damaged(tmp_path, damage), "--recipe", "w8", "-o", tmp_path / "o", *STEPS[:2])
    assert_one_line(err, words)
    assert code == expected


WRONG = {
    "model": (["compress", "./nowhere", "--recipe", "w4", "-o", "OUT"], "nowhere"),
    "preset": (["compress", "scribe", "--recipe", "w5", "-o", "OUT"], "unknown recipe 'w5'"),
    "method": (["compress", "scribe", "--recipe", "w4", "--set", "quantize.method=gptx", "-o", "OUT"], "'gptx'"),
    "option": (["compress", "scribe", "--recipe", "w4", "--set", "quantize.dampp=1", "-o", "OUT"], "quantize.dampp"),
    "value": (["compress", "scribe", "--recipe", "w4", "--set", "quantize.bits=9", "-o", "OUT"], "9"),
    "role": (["compress", "scribe", "--recipe", "ROLE", "-o", "OUT"], "unknown role 'gates'"),
    "group": (
        ["compress", "scribe", "--recipe", "w4", "--set", "quantize.group_size=0", "-o", "OUT"],
        "group_size = 0",
    ),
    "block": (["compress", "scribe", "--recipe", "BLOCK", "-o", "OUT"], "scribe has blocks 0 to 7"),
    "device": (["plan", "scribe", "--device", "abacus", "--tps", "5"], "unknown device 'abacus'"),
    "engine": (["compress", "scribe", "--recipe", "w3", "--engine", "sglang", "-o", "OUT"], "valid: 4, 8"),
    "no writer": (
        ["compress", "scribe", "--recipe", "w4", "--engine", "llama.cpp", "-o", "OUT"],
        "compress does not write",
    ),
    "shape": (["compress", "qwen3-4b", "--recipe", "w4", "-o", "OUT"], "a shape without weights"),
    "ample": (["fit", "scribe", "--memory", "1GB", "-o", "OUT"], "meets this budget as it is"),
    "memory": (["plan", "scribe", "--memory", "lots"], "'lots'"),
    "no budget": (["fit", "scribe", "-o", "OUT"], "needs a budget"),
    "budget": (["fit", "scribe", "--memory", "10KB", "-o", "OUT"], "no plan meets the budget"),
    "text": (["evaluate", "scribe", "--text", "bookz"], "no text 'bookz'"),
    "full folder": (["compress", "scribe", "--recipe", "w8", "-o", "FULL"], "is not empty"),
    "not a run": (["recover", "FULL"], "jettison.json"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_asked_wrongly(jettison, tmp_path, name):
    arguments, words = WRONG[name]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    (tmp_path / "role.yaml").write_text("steps:\n- quantize: {method: rtn, bits: 4}\n  where: {role: [gates]}\n")
    (tmp_path / "block.yaml").write_text("steps:\n- quantize: {method: rtn, bits: 4}\n  where: {block: [0, 99]}\n")
    places = {"OUT": tmp_path / "out", "FULL": tmp_path / "full"}
    places |= {name.upper(): tmp_path / f"{name}.yaml" for name in ("role", "block")}
    code, _, err = jettison(*(places.get(argument, argument) for argument in arguments))
    assert_one_line(err, words)
    assert code == 2
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "full" / "letter.txt").read_text() == "dear"


def test_an_option_that_is_none(jettison):
    code, _, err = jettison("fit", "scribe", "--budget", "3")
    assert code == 2 and "--budget" in err


def assert_one_line(err, words):
    """Check that stderr has one error line, with ``words``, and no traceback."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and words in lines[0], err
    assert "Traceback" not in err


def test_version_and_completion_need_no_torch():
    """Runs in new processes, as a shell asks for completions at every key."""
    program = "import sys; from jettison.cli import main; sys.argv[0] = 'jettison'\n"
    program += "try: main()\nfinally: assert 'torch' not in sys.modules"
    run = lambda *arguments, **more: subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=os.environ | more
    )
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"jettison {version('jettison')}\n")
    done = run("--show-completion", "bash")
    assert done.returncode == 0 and "complete -o default -F" in done.stdout
    done = run(_JETTISON_COMPLETE="complete_bash", COMP_WORDS="jettison re", COMP_CWORD="1")
    assert done.stdout.split() == ["recover", "report", "recipes"]


def test_help_says_the_exit_codes(jettison):
    _, out, _ = jettison("--help")
    assert "130 stopped by Ctrl-C, 143 by SIGTERM" in " ".join(out.split())
