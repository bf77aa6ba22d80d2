"""Mixtures of experts that have learned to route, in 4 bits: KL from the original, and experts without tokens.

    python -m benchmarks.models.experts    # about 20 minutes on two cores; continues type by type

A small random model of each type with experts is trained on books for 200 steps, so that its router has preferences.
Then ``w4`` (calibrated on 32 windows) and ``w8`` are measured against it on other books. benchmarks/models/any_model.py
puts the table into its result.
"""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from transformers import AutoModelForCausalLM

from benchmarks.fixtures.causal_types import limited, make_small
from benchmarks.witness import cell
from jettison import compress, evaluate
from jettison.domains.text.data import token_windows
from jettison.graph.folder import ModelFolder

NAME = "any_model_experts"
TYPES = (
    "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "olmoe", "granitemoe", "phimoe", "glm4_moe", "deepseek_v2",
    "deepseek_v3", "gpt_oss", "llama4_text", "ernie4_5_moe", "hunyuan_v1_moe", "minimax",
)  # fmt: skip
STEPS, BATCH, LENGTH, RATE = 200, 8, 64, 2e-3
SECONDS = 600  # for one type
CALIBRATION = ["calibration.samples=32", "calibration.length=64", "calibration.text=books"]


def train(folder: Path) -> float:
    """Train a saved model on books, in place. Returns the loss of the last step, in nats per token."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    windows = token_windows(ModelFolder(folder), "books", LENGTH, STEPS * BATCH)
    for batch in windows[torch.randperm(len(windows))].split(BATCH):
        loss = model(batch, labels=batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.to(torch.bfloat16).save_pretrained(folder)
    return float(loss)


def measured(model_type: str) -> dict[str, Any]:
    """Train a type, compress it, and measure the KL on books that it was not trained on."""
    with TemporaryDirectory() as at, limited(SECONDS):
        folder = make_small(model_type, Path(at) / "model")
        result: dict[str, Any] = {"loss": round(train(folder), 3)}
        for recipe, changes in (("w8", []), ("w4", CALIBRATION)):
            out = Path(at) / recipe
            manifest = compress(folder, recipe, out, changes=changes)
            scores = evaluate(out, texts=["books-evaluation"], tokens=4096, window=LENGTH)["texts"]["books-evaluation"]
            result[recipe] = {"kl": scores["kl"], "agreement": scores["agreement"]}
            if recipe == "w4":
                result["uncalibrated"] = len(manifest["uncalibrated"])
                source, packed = ModelFolder(folder), json.loads((out / "config.json").read_text())
                experts = [linear for linear in source.anatomy if "expert" in linear.roles]
                result |= {"experts": len(experts), "format": packed["quantization_config"]["quant_method"]}
    return result


def main() -> None:
    for model_type in TYPES:
        try:
            print(model_type, cell(NAME, model_type, lambda model_type=model_type: measured(model_type)), flush=True)
        except Exception as error:
            print(model_type, f"failed: {error}"[:200], flush=True)


if __name__ == "__main__":
    main()
