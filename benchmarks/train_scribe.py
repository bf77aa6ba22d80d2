"""Make scribe, the bundled model, again: from public-domain books to a Hugging Face folder.

    python -m pip install "jettison[data]"
    accelerate launch --cpu --num_processes 2 benchmarks/train_scribe.py --books train.parquet --out runs/scribe

``--books`` is a parquet file with a column ``text``, one row a book. With the 348 books of the model card and the
defaults, two processes on two cores take about an hour. A killed run continues when it is called again. The tokenizer
is the bundled one; ``--new-tokenizer`` trains another of the same kind on the books. ``--passes`` trains longer.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import pyarrow.parquet
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from jettison.core.files import write_json, write_tensors
from jettison.graph.folder import find_folder

END = "<|endoftext|>"
WINDOW, TOKENS_PER_STEP = 256, 8192
LR, MOMENTUM, BETAS, DECAY, CLIP = 4e-3, 0.95, (0.9, 0.95), 0.1, 1.0
WARMUP_STEPS, CONSTANT, LAST = 100, 0.25, 0.02  # constant for a quarter, then linear to 2 %
SAVE_EVERY = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--passes", type=float, default=0.95, help="times through the books")
    parser.add_argument("--steps", type=int, help="stop after so many steps instead")
    parser.add_argument("--new-tokenizer", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with accelerator.main_process_first():
        tokens = tokenize(arguments.books, arguments.out, arguments.new_tokenizer)
    windows = tokens[: len(tokens) // WINDOW * WINDOW].view(-1, WINDOW)
    per_step = TOKENS_PER_STEP // WINDOW
    steps = arguments.steps or int(len(windows) * arguments.passes / per_step)
    accelerator.print(f"{len(tokens) / 1e6:.1f} million tokens, {steps} steps of {TOKENS_PER_STEP}")

    torch.manual_seed(arguments.seed)
    config = AutoConfig.from_pretrained(find_folder("scribe"))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=LR, momentum=MOMENTUM, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LR, betas=BETAS, weight_decay=0.0),
    ]
    model, *optimizers = accelerator.prepare(model, *optimizers)
    done = load_state(arguments.out / "state.safetensors", accelerator.unwrap_model(model), optimizers)
    saved = began = time.monotonic()
    for step in range(done, steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = LR * schedule(step, steps)
        rows = window_order(len(windows), step * per_step, per_step, arguments.seed)
        ids = windows[rows[accelerator.process_index :: accelerator.num_processes]].to(accelerator.device)
        loss = model(ids, labels=ids, use_cache=False).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), CLIP)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0 or step + 1 == steps:
            mean = float(accelerator.reduce(loss.detach(), "mean"))
            left = (time.monotonic() - began) / (step + 1 - done) * (steps - step - 1) / 60
            accelerator.print(f"step {step}: loss {mean:.4f}, {left:.0f} minutes left", flush=True)
        if accelerator.is_main_process and time.monotonic() - saved > SAVE_EVERY:
            save_state(arguments.out / "state.safetensors", accelerator.unwrap_model(model), optimizers, step + 1)
            saved = time.monotonic()
    if accelerator.is_main_process:
        finished = accelerator.unwrap_model(model).to(torch.bfloat16)
        finished.config.use_cache = True
        finished.generation_config.use_cache = True
        finished.save_pretrained(arguments.out)
        shutil.copyfile(find_folder("scribe") / "README.md", arguments.out / "README.md")


def tokenize(books: Path, out: Path, new: bool) -> torch.Tensor:
    """All books end to end as ids, each begun with the end token. Kept in ``out`` for the next call."""
    cache = out / "tokens.safetensors"
    if cache.exists():
        return load_file(cache)["ids"].long()
    texts = pyarrow.parquet.read_table(books, columns=["text"])["text"].to_pylist()
    if new:
        train_tokenizer(texts).save_pretrained(out)
    else:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(find_folder("scribe") / name, out / name)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    ids: list[int] = []
    for text in texts:
        ids += [tokenizer.token_to_id(END), *tokenizer.encode(text, add_special_tokens=False).ids]
    write_tensors(cache, {"ids": torch.tensor(ids, dtype=torch.int32)})
    return torch.tensor(ids)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=4096, special_tokens=[END], initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    named = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=1024, **named)


def schedule(step: int, steps: int) -> float:
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    falling = (step / steps - CONSTANT) / (1 - CONSTANT)
    return 1.0 if falling <= 0 else 1 - (1 - LAST) * falling


def window_order(count: int, start: int, number: int, seed: int) -> torch.Tensor:
    """The windows of one step: every pass is a new order of all, from the seed and the number of the pass alone."""
    rows = []
    for turn in range(start // count, (start + number - 1) // count + 1):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + turn))
        rows.append(order[max(0, start - turn * count) : start + number - turn * count])
    return torch.cat(rows)


def save_state(path: Path, model: torch.nn.Module, optimizers: list, step: int) -> None:
    tensors = {name: parameter for name, parameter in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for at, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            for key, value in optimizer.state[parameter].items():
                if torch.is_tensor(value):
                    tensors[f"optimizer/{number}/{at}/{key}"] = value
    write_tensors(path, tensors, {"step": str(step)})
    write_json(path.with_suffix(".json"), {"step": step})


def load_state(path: Path, model: torch.nn.Module, optimizers: list) -> int:
    if not path.exists():
        return 0
    tensors = load_file(path)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[name])
    for number, optimizer in enumerate(optimizers):
        for at, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            prefix = f"optimizer/{number}/{at}/"
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            optimizer.state[parameter] = state
    return json.loads(path.with_suffix(".json").read_text())["step"]


if __name__ == "__main__":
    main()
