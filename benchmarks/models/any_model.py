"""Every causal language model of transformers that can be built small: read, compressed, loaded, generated from.

    python -m benchmarks.models.any_model                 # about an hour on two cores; continues type by type
    python -m benchmarks.models.any_model --types mixtral # some types anew, printed, nothing written

The types come from transformers' own registry. For each, a small random model is saved and

- read: our model from the folder gives the logits of transformers, in float32,
- w8 and w4: compressed by these presets (w4 calibrated on 4 windows of 32 tokens),
- exact: `jettison.load(exact=True)` of the w4 folder gives the logits of an independent unpacking (compressed-tensors'
  own functions, into transformers' model), in float32,
- transformers: it loads the w4 folder and gives the same logits; or the folder says that it cannot,
- generate: four tokens,
- resume: the same command again changes nothing.

A step ends as ``ok``, ``refused`` (one line of ours that says why) or ``broken`` (anything else).
"""

import argparse
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from benchmarks.fixtures.causal_types import causal_types, limited, make_small
from benchmarks.witness import RUNS, cell, claim, write_result
from jettison import JettisonError, compress, load
from jettison.graph.dense import load_dense
from jettison.graph.folder import ModelFolder

NAME, EXPERTS = "any_model", "any_model_experts"
SECONDS = 120  # for one step
IDS = torch.arange(1, 25).view(2, 12) * 7 % 4096
# Groups of 16 fit all rows: transformers reads one grid for all experts.
SHORT = ["calibration.samples=4", "calibration.length=32", "calibration.text=books", "quantize.group_size=16"]
CLOSE = 1e-5  # of the largest logit, where two programs add in different orders
ROUNDED = 0.03  # the same for transformers, which unpacks experts in bfloat16
# Types that transformers itself does not load as they were saved, so that there is nothing to compare with.
WRONG = {"youtu": "transformers 5.23 fills the embedding anew after it has loaded it"}
STEPS = ("read", "w8", "w4", "exact", "transformers", "generate", "resume")


def unpacked(folder: Path, out: Path) -> Path:
    """Write a compressed folder as a dense one in float32, by compressed-tensors' own functions."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config))
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("model-*.safetensors")):
        with safe_open(file, "pt") as stored:
            tensors |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no dict)
    for name in [name for name in tensors if name.endswith(".weight_packed")]:
        stem = name.removesuffix("_packed")
        packed, scale = tensors.pop(name), tensors.pop(f"{stem}_scale").float()
        shape = torch.Size(tensors.pop(f"{stem}_shape").tolist())
        bits = 32 * packed.shape[1] // shape[1]
        codes = unpack_from_int32(packed, bits, shape).float()  # centred on 0
        tensors[stem] = (codes.unflatten(1, (scale.shape[1], -1)) * scale.unsqueeze(-1)).flatten(1)
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, out / "model.safetensors", {"format": "pt"}
    )
    return out


def stack_experts(model: torch.nn.Module, folder: Path, missing: set[str]) -> None:
    """Fill stacked experts that transformers missed from the tensors of single experts that Jettison writes.

    missing: the parameters that the folder has under no name that transformers knows.
    The module says how its tensors lie; Llama 4's does not, and is transposed with gate before up. JetMoE's is one
    stack of matrices, called weight.
    """
    with safe_open(folder / "model.safetensors", "pt") as stored:
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if f"{path}.{name}" not in missing or parameter.dim() != 3:
                    continue
                names = ("gate_proj", "up_proj") if name == "gate_up_proj" else (name.replace("weight", "expert"),)
                for number in range(len(parameter)):
                    parts = [stored.get_tensor(f"{path}.{number}.{part}.weight").float() for part in names]
                    joined = getattr(module, "is_concatenated", True) or len(parts) == 1
                    whole = torch.cat(parts) if joined else torch.stack(parts, 1).flatten(0, 1)
                    parameter.data[number] = whole.T if getattr(module, "is_transposed", name != "weight") else whole


def logits_of_transformers(folder: Path) -> torch.Tensor:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"] and (folder / "model.safetensors").exists():
        stack_experts(model, folder, set(info["missing_keys"]))
    model.eval()
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def tried(work: Callable[[], Any]) -> str:
    """How a step ended, in one line."""
    try:
        result = work()
    except (JettisonError, TimeoutError) as error:
        return f"refused: {error}" if isinstance(error, JettisonError) else f"broken: {error}"
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        return f"broken: {type(error).__name__}: {line:.160}"
    return result if isinstance(result, str) else "ok"


def check_nearly_all_close(one: torch.Tensor, other: torch.Tensor) -> str:
    """As ``check_close``, after weights were rounded: where a router is near a tie, a token may take other experts.

    So 1 position of 10 may differ by more. Weights that are wrong would change every position.
    """
    off = (one - other).abs().amax(-1).flatten() / other.abs().max()  # one value a position
    off = float(off.quantile(0.9))
    return "ok" if off <= ROUNDED else f"broken: logits differ by {off:.2g} at 1 position of 10"


def check_close(one: torch.Tensor, other: torch.Tensor) -> str:
    off = float((one - other).abs().max() / other.abs().max())
    return "ok" if off <= CLOSE else f"broken: logits differ by {off:.2g}"


def try_type(model_type: str, at: Path) -> dict[str, str]:
    """How each step ends for a type; only ``built`` if transformers cannot build it small."""
    folder, eight, four = at / "model", at / "w8", at / "w4"
    try:
        make_small(model_type, folder)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        line = (str(error).strip().splitlines() or [""])[0]
        return {"built": f"{type(error).__name__}: {line:.120}"}
    result: dict[str, Any] = {}

    def read() -> str:
        if model_type in WRONG:
            return f"ok: {WRONG[model_type]}"
        result["experts"] = any("expert" in linear.roles for linear in ModelFolder(folder).anatomy)
        model = load_dense(ModelFolder(folder), torch.float32).eval()
        with torch.no_grad():
            return check_close(model(IDS, use_cache=False).logits, logits_of_transformers(folder))

    def eight_bits() -> str:
        notes = compress(folder, "w8", eight)["check"]["notes"]
        return next((f"ok: {note}" for note in notes if note.startswith("not compressed")), "ok")

    def in_transformers() -> str:
        if notes := json.loads((four / "jettison.json").read_text())["not_in_transformers"]:
            return f"refused: {notes[0]}"
        return check_nearly_all_close(logits_of_transformers(four), logits_of_transformers(at / "dense"))

    def resumed() -> str:
        before = {file.name: file.stat().st_mtime_ns for file in four.glob("model-*.safetensors")}
        compress(folder, "w4", four, changes=SHORT)
        after = {file.name: file.stat().st_mtime_ns for file in four.glob("model-*.safetensors")}
        return "ok" if before == after else "broken: shards were written again"

    works = {
        "read": read,
        "w8": eight_bits,
        "w4": lambda: compress(folder, "w4", four, changes=SHORT),
        "exact": lambda: check_close(
            load(four, exact=True, dtype=torch.float32).logits(IDS),
            logits_of_transformers(unpacked(four, at / "dense")),
        ),
        "transformers": in_transformers,
        "generate": lambda: load(four).generate("It was", tokens=4),
        "resume": resumed,
    }
    for step, work in works.items():
        if step not in ("read", "w8", "w4") and result["w4"] != "ok":
            continue
        with limited(SECONDS):
            result[step] = tried(work)
    return result


def state(steps: dict[str, str]) -> str:
    """``works``, ``refused`` or ``broken``; ``not built`` where transformers cannot build the type small."""
    if "built" in steps:
        return "not built"
    ends = {step: end.partition(":")[0] for step, end in steps.items() if step in STEPS}
    if "broken" in ends.values():
        return "broken"
    return "refused" if "refused" in {ends[step] for step in ends if step != "transformers"} else "works"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=[], help="only these, printed and not written")
    args = parser.parse_args()
    rows = {}
    for model_type in args.types or causal_types():
        with TemporaryDirectory() as at:
            work = lambda model_type=model_type, at=at: try_type(model_type, Path(at))
            rows[model_type] = work() if args.types else cell(NAME, model_type, work)
        steps = {step: end for step, end in rows[model_type].items() if step in (*STEPS, "built")}
        print(f"{model_type:28} {state(steps):10} {[f'{s}: {e}' for s, e in steps.items() if e != 'ok']}", flush=True)
    if not args.types:
        write(rows)


def write(rows: dict[str, dict[str, Any]]) -> None:
    steps = {kind: {step: end for step, end in row.items() if step in (*STEPS, "built")} for kind, row in rows.items()}
    states = {kind: state(row) for kind, row in steps.items()}
    count = lambda name: sum(value == name for value in states.values())
    experts = [kind for kind, row in rows.items() if row.get("experts") and states[kind] == "works"]
    commits = sorted({row["commit"][:7] for row in rows.values()})
    note = f"types were tried by the code of {len(commits)} commits: {', '.join(commits)}"
    claims = [
        claim("types_that_work", count("works"), "types", "higher", 60, note),
        claim("types_refused_with_reason", count("refused"), "types", "lower", 40),
        claim("types_broken", count("broken"), "types", "equal", 0),
        claim("moe_families_that_work", len(experts), "types", "higher", 12),
    ]
    plain = lambda end: re.sub(r"/\S*/(model|w8|w4|dense)\b", r"\1", end)[:120]  # without the scratch folder's path
    short = {kind: {step: plain(end) for step, end in row.items() if end != "ok"} for kind, row in steps.items()}
    details = {"types": {kind: {"state": states[kind]} | short[kind] for kind in steps}}
    trained = {file.stem: json.loads(file.read_text()) for file in sorted((RUNS / EXPERTS).glob("*.json"))}
    columns = ["type", "experts' matrices", "without tokens", "w8 KL", "w4 KL", "w4 same token, %"]
    table = [
        [kind, row["experts"], row["uncalibrated"], f"{row['w8']['kl']:.4f}", f"{row['w4']['kl']:.4f}",
         f"{100 * row['w4']['agreement']:.1f}"]
        for kind, row in trained.items()
    ]  # fmt: skip
    details["tables"] = {"mixtures of experts, trained for 200 steps (benchmarks/models/experts.py)":
                         {"columns": columns, "rows": table}}  # fmt: skip
    write_result(NAME, claims, sum(row["seconds"] for row in rows.values()), details, script=__file__)


if __name__ == "__main__":
    main()
