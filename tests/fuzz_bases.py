"""The healthy inputs that the fuzzers change: tiny models, runs in every state, recipes, devices, scenarios."""

import contextlib
import copy
import json
import os
import shutil
import time
from pathlib import Path

import tiny as maker
import tiny_diffusion as diffusion
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 320
TEXT = "It was the best of times, it was the worst of times; the quick brown fox jumps over the lazy dog. " * 30
FAMILIES = ("qwen3", "gpt2", "qwen3_moe", "gemma3_text", "opt", "gpt_oss")
SMALL = {"text": "text.txt", "samples": 4, "length": 16}
ROUND = {"steps": [{"quantize": {"method": "rtn", "bits": 8, "group_size": 32, "clip": False}}]}
CALIBRATED = {
    "calibration": SMALL,
    "steps": [{"quantize": {"method": "gptq", "bits": 4, "group_size": 32}, "where": {"role": ["q", "k", "v", "o"]}}],
}
WHOLE = {
    "name": "whole",
    "use": "for tests",
    "why": ["a reason"],
    "calibration": SMALL,
    "steps": [
        {
            "quantize": {"method": "gptq", "bits": 4, "group_size": 32, "symmetric": True},
            "where": {"role": ["q", "k", "v", "o", "down", "head"], "block": [0, "0-1"]},
        },
        {
            "quantize": {"method": "caldera", "bits": 2, "group_size": 32, "rank": 2, "iterations": 1},
            "where": {"role": ["gate", "up"], "block": ["0-1"]},
        },
        {
            "recover": {
                "train": ["lora", "scales"], "rank": 2, "init": "svd", "data": "text.txt",
                "samples": 6, "length": 16, "batch": 2, "epochs": 1,
            },
            "where": {"role": ["gate", "up"]},
        },
    ],
}  # fmt: skip
del WHOLE["steps"][0]["where"]["block"]
PRUNED = {
    "loss": 0.1,
    "calibration": SMALL,
    "steps": [
        {
            "prune": {"method": "sparsegpt", "sparsity": 0.5, "allocation": "owl", "spread": 0.08},
            "where": [{"role": ["gate", "up"], "block": 0}, {"role": ["down"]}],
        },
        {"quantize": {"method": "hqq", "bits": 4, "group_size": 32, "symmetric": False}, "where": {"role": ["head"]}},
    ],
}
PATTERNED = {
    "calibration": SMALL,
    "steps": [
        {"prune": {"method": "wanda", "pattern": "2:4"}, "where": {"role": ["o"]}},
        {"prune": {"method": "magnitude", "sparsity": 0.25, "scope": "row"}, "where": {"role": ["q", "k", "v"]}},
        {"quantize": {"method": "gptaq", "bits": 3, "group_size": 32}, "where": {"role": ["down"], "block": [1]}},
    ],
}
RECIPES = (ROUND, CALIBRATED, WHOLE, PRUNED, PATTERNED)
DEVICE = {
    "title": "A board", "bandwidth": 30e9, "share": 0.8, "memory": 8e9, "cache": 2e6, "overhead": 1e-6,
    "flops": {"fp32": 1e11, "fp16": 2e11, "int8": 4e11},
    "sources": {"bandwidth": "its maker", "memory": "its label", "flops": "guessed", "cache": "x", "overhead": "y"},
}  # fmt: skip
SKIPPING = {"steps": [{"program": {"method": "interval", "ratio": 0.5, "steps": 4, "guidance": 1.0}}]}
PLAIN_DEVICE = {"bandwidth": "30e9", "memory": 8e9, "flops": 1e11, "source": "its maker"}
SCENARIO = {
    "mine": {
        "title": "Mine",
        "models": {
            "XX": {"title": "A model", "network": "N", "input": [8, 8], "sensor": "camera", "metric": "m",
                   "target": 0.5, "better": "higher", "dataset": "d"},
        },
        "tasks": [
            {"model": "ES", "fps": 60},
            {"model": "GE", "fps": 60, "after": ["ES"], "through": "data", "network": "N"},
            {"model": "KD", "fps": 3},
            {"model": "SR", "fps": 3, "after": ["KD"], "through": "control", "probability": 0.2},
        ],
    }
}  # fmt: skip
COSTS = {
    unit: {model: {"latency_ms": 2.5, "energy_mj": 4.0} for model in ("ES", "GE", "KD", "SR", "XX")}
    for unit in ("one", "two")
}


def tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer of VOCABULARY tokens, with a chat template, into ``folder``."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator([TEXT], trainer)
    model.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|end|>", "eos_token": "<|end|>"}
    config |= {"model_max_length": 128, "clean_up_tokenization_spaces": False, "added_tokens_decoder": {}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<|end|>", "eos_token": "<|end|>"}))
    template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)


def make_bases(folder: Path) -> None:
    """Fill ``folder`` with all healthy inputs. Nothing changes them afterwards."""
    from jettison.formats.manifest import update_manifest
    from jettison.graph.folder import ModelFolder
    from jettison.pipeline.compression import compress
    from jettison.pipeline.recovery import recover
    from jettison.runtime.speculative.draft import Draft, write_draft

    folder.mkdir(parents=True)
    (folder / "text.txt").write_text(TEXT)
    model = make_model("llama", folder / "model")
    for family in FAMILIES:
        make_model(family, folder / family)
    _shard(model, folder / "sharded")
    (folder / "outside").mkdir()
    shutil.copy(folder / "sharded" / "model-00001-of-00003.safetensors", folder / "outside" / "model.safetensors")
    compress(folder / "sharded", ROUND, folder / "sharded-out")
    whole = placed(WHOLE, folder)
    _until(2, lambda: compress(model, whole, folder / "part"))
    compress(model, whole, folder / "run")
    shutil.copytree(folder / "run", folder / "recovering")
    _until(3, lambda: recover(folder / "recovering", save_every=0))
    shutil.copytree(folder / "run", folder / "recovered")
    recover(folder / "recovered", save_every=0)
    shutil.copytree(folder / "recovered", folder / "measured")
    parts, speed = _results()
    update_manifest(folder / "measured", **parts)
    (folder / "measured" / "speed.json").write_text(json.dumps(speed))
    write_draft(ModelFolder(folder / "measured"), Draft(lookup=2, length=4), "a reason", {"rows": [], "tried": []})
    diffusion.make("dit")[0].save_pretrained(folder / "pipeline")
    compress(folder / "pipeline", SKIPPING, folder / "programmed")


def _results() -> tuple[dict, dict]:
    """Return the sections of jettison.json, and the speed.json, of a measured run."""
    from runs import FULL, SPEED

    return {name: copy.deepcopy(FULL[name]) for name in ("request", "results", "tasks")}, SPEED


def placed(recipe: dict, folder: Path) -> dict:
    """Return the recipe with the path of its text in ``folder``."""
    return json.loads(json.dumps(recipe).replace('"text.txt"', json.dumps(str(folder / "text.txt"))))


def make_model(family: str, folder: Path) -> Path:
    """Write a tiny random model with tokenizer and README.md into ``folder``, and return the folder."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    maker.make(family, folder, vocab_size=VOCABULARY)
    tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    return folder


def _shard(model: Path, folder: Path) -> None:
    """Copy a model to ``folder``, with its weights in three shards and an index."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        part = {name: tensors[name] for name in names[number::3]}
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


class Stopped(BaseException):
    """Stands in for a kill."""


def _until(entries: int, work) -> None:
    """Call ``work`` and stop it once its journal has ``entries`` entries."""
    from jettison.core.journal import Journal

    real, entries_left = Journal.add, [entries]

    def add(self, **entry):
        if entries_left[0] == 0:
            raise Stopped
        entries_left[0] -= 1
        real(self, **entry)

    Journal.add = add
    try:
        with contextlib.suppress(Stopped):
            work()
            raise AssertionError(f"done before it had {entries} entries")
    finally:
        Journal.add = real


def wait_for_threads() -> None:
    """Wait until this process has only one thread, so that it may fork.

    Raises RuntimeError if other threads remain after 10 seconds.
    """
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/task")) > 1:
        if time.monotonic() > deadline:
            raise RuntimeError("there are threads before a fork: children would hang")
        time.sleep(0.01)


def ids() -> torch.Tensor:
    """Return token ids for a forward pass, (1, 12)."""
    return torch.arange(1, 13).unsqueeze(0)
