"""Part of proof.py: compress large checkpoints of random weights, and run the dry run of each command.

Time, memory and disk are measured in processes of their own.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.witness import ROOT, RUNS
from jettison.core.files import write_json
from jettison.encodings.uniform import UniformGrid
from jettison.graph.folder import ModelFolder
from jettison.methods.quantize.rtn import rtn

NAME = "proof"
FOLDER = RUNS / NAME
SHAPES = {
    "qwen3-4b": dict(
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8
    ),
    "qwen3-0.6b": dict(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8
    ),
}
SHARD = 2 << 30  # bytes
STREAMED = {"name": "w4, full range", "steps": [{"quantize": {"method": "rtn", "bits": 4, "clip": False}}]}


def checkpoint(name: str, blocks: int | None = None) -> Path:
    """Return a folder of random weights in the shape of a public model, with scribe's tokenizer. Makes it once."""
    folder = FOLDER / (f"{name}-{blocks}" if blocks else name)
    if (folder / "config.json").exists():
        return folder
    scribe = ModelFolder("scribe").folder
    folder.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[name] | {"head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True}
    shape |= {"num_hidden_layers": blocks} if blocks else {}
    config = AutoConfig.for_model("qwen3", **shape, max_position_embeddings=40960, dtype="bfloat16")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(0)
    shard, size, number = {}, 0, 0
    for tensor, parameter in model.named_parameters():
        fill = torch.randn if parameter.dim() > 1 else torch.ones
        shard[tensor] = (fill(parameter.shape, dtype=torch.float32) * (0.02 if parameter.dim() > 1 else 1.0)).bfloat16()
        size += shard[tensor].nbytes
        if size > SHARD:
            save_file(shard, folder / f"model-{number:02d}.safetensors", {"format": "pt"})
            shard, size, number = {}, 0, number + 1
    save_file(shard, folder / f"model-{number:02d}.safetensors", {"format": "pt"})
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(scribe / file, folder / file)
    config.architectures = ["Qwen3ForCausalLM"]
    config.save_pretrained(folder)  # last: a folder with a config is complete
    return folder


def watched(*arguments: str) -> dict:
    """Run a command of jettison in a process of its own. Returns seconds, peak resident memory, and its JSON result."""
    result = FOLDER / "result.json"
    command = [sys.executable, "-m", "jettison", *arguments, "--json", str(result), "--quiet"]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(arguments)} ended with {status}")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": usage.ru_maxrss * 1024, "result": json.loads(result.read_text())}


def compression(name: str, recipe: str | dict, changes: list[str] = (), blocks: int | None = None) -> list[str]:
    """Return the command that compresses a large checkpoint. Removes the folder that it will write."""
    out = FOLDER / f"{name}-compressed"
    shutil.rmtree(out, ignore_errors=True)
    if isinstance(recipe, dict):
        write_json(FOLDER / "recipe.json", recipe)
        recipe = str(FOLDER / "recipe.json")
    arguments = ["compress", str(checkpoint(name, blocks)), "--recipe", recipe, "--out", str(out)]
    return arguments + [f"--set={change}" for change in changes]


def dry_run(*arguments: str) -> dict:
    """Run a command with --dry-run. Returns the seconds it takes, and its forecast of each step."""
    run = watched(*arguments, "--dry-run")
    result = run["result"]
    return {"dry_run_seconds": run["seconds"], "said": result.get("forecast", result)["steps"]}


def large(name: str, *options, **more) -> dict:
    """Compress a large checkpoint in a process of its own, with the arguments of ``compression``.

    Returns the checkpoint's size in GB, the cost of the run, and the seconds per block.
    """
    arguments = compression(name, *options, **more)
    run, out = watched(*arguments), Path(arguments[arguments.index("--out") + 1])
    shards = sorted(out.glob("model-*.safetensors"))
    written_at = [shard.stat().st_mtime for shard in shards]
    disk = sum(shard.stat().st_size for shard in shards)
    costs = {
        "file_gb": ModelFolder(arguments[1]).checkpoint.file_bytes / 1e9,
        "took": {"step": "compress", "seconds": run["seconds"], "memory": run["peak"], "disk": disk},
        "seconds_per_block": (written_at[-2] - written_at[0]) / max(1, len(written_at) - 2),
    }
    shutil.rmtree(out)
    return costs


def streaming() -> dict:
    """Compress the 4B checkpoint file to file. Also returns the seconds of a plain copy and of the arithmetic alone."""
    costs = large("qwen3-4b", STREAMED)
    folder = FOLDER / "qwen3-4b"
    start = time.perf_counter()
    shutil.copytree(folder, FOLDER / "copy")
    os.sync()
    copy_seconds = time.perf_counter() - start
    shutil.rmtree(FOLDER / "copy")
    return costs | {"copy_seconds": copy_seconds, "arithmetic_seconds": arithmetic(folder)}


def arithmetic(folder: Path) -> float:
    """Return the seconds of rounding every matrix, with nothing read or written."""
    shapes: dict[tuple[int, int], int] = {}
    for linear in ModelFolder(folder).anatomy:
        if "embed" not in linear.roles:
            shapes[linear.rows, linear.columns] = shapes.get((linear.rows, linear.columns), 0) + 1
    total = 0.0
    for (rows, columns), count in shapes.items():
        height = min(rows, (1 << 25) // columns)
        weight = torch.randn(height, columns)
        start = time.perf_counter()
        rtn(weight, UniformGrid(4, 128), clip=False).dequantize()
        total += (time.perf_counter() - start) * count * rows / height
    return total
