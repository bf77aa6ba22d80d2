"""The model card of a checkpoint: its original, recipe, licence, measured quality and how to load it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jettison.formats.schema import Stage
from jettison.formats.support import written_formats

STAGES = ("original", "quantized", "recovered")


def stage_words(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return stage -> its name for people: nothing is quantized by a recipe that only prunes, so it is compressed."""
    steps = recipe.get("steps") or []
    quantizes = not steps or any("quantize" in step for step in steps)
    return {stage: "compressed" if stage == "quantized" and not quantizes else stage for stage in STAGES}


def write_card(manifest: dict[str, Any]) -> str:
    """Return the text of a folder's README.md, made from its jettison.json. The licence is the original's.

    manifest: the content of jettison.json.
    """
    teacher, recipe = manifest["teacher"], manifest["recipe"]
    name = teacher["name"]
    elsewhere = not manifest.get("replaced")  # transformers would give replaced modules random weights
    library = manifest.get("library", "transformers")
    head: dict[str, Any] = {
        "library_name": library if elsewhere else "jettison",
        "tags": ["jettison", manifest.get("format", written_formats()[0])],
    }
    if f"models--{name.replace('/', '--')}" in teacher["folder"]:  # a folder of the Hugging Face cache
        head["base_model"] = name
    name = " ".join(Path(name).name.split())
    stated = manifest.get("license", "")
    if stated.startswith("LICENSE"):
        head |= {"license": "other", "license_link": stated}
    elif stated:
        head |= {"license": stated}
    lines = ["---", yaml.safe_dump(head, sort_keys=False).strip(), "---", "", f"# {name}, compressed", ""]
    lines += [f"Made from {name} by Jettison {manifest.get('jettison', '')} with the recipe `{recipe['name']}`.", ""]
    if stated:
        lines += [f"The original's licence ({stated}) holds for this folder too.", ""]
    else:
        lines += ["**The original states no licence: ask its makers before you pass this on.**", ""]
    lines += _results(manifest.get("results") or {}, stage_words(recipe))
    lines += _depth(manifest.get("depth"))
    lines += _program(manifest.get("program"))
    lines += [
        "## The recipe",
        "",
        "```yaml",
        yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip(),
        "```",
        "",
    ]
    loaders = "`jettison.load(folder)`" + (f", or with {library}" + _adapter(manifest) if elsewhere else " only")
    lines += ["## Loading", "", f"{loaders}.", ""]
    notes = [*manifest.get("not_in_transformers", []), *(manifest.get("check") or {}).get("notes", [])]
    lines += [f"- {note}" for note in notes] + ([""] if notes else [])
    return "\n".join(lines)


def _adapter(manifest: dict[str, Any]) -> str:
    recovery = manifest.get("recovery") or {}
    return " and, for the LoRA adapters in `adapter/`, PEFT" if "lora" in recovery.get("train", ()) else ""


def _depth(depth: dict[str, Any] | None) -> list[str]:
    """Return the section about what a depth step pruned."""
    if not depth:
        return []
    pruned, accuracy = depth["pruned"], depth["accuracy"]
    how = "left out" if depth.get("dropped") else "merged into fewer layers"
    numbers = ", ".join(map(str, pruned))
    return [
        "## Depth", "",
        f"{len(pruned)} of {depth['blocks']} blocks were {how} by the method `{depth['method']}` (numbers {numbers}, "
        f"from 0). On {accuracy['images']} images that were not trained on, accuracy is {accuracy['pruned']:.1%}; the "
        f"original's is {accuracy['original']:.1%}.",
        "",
    ]  # fmt: skip


def program_words(section: Mapping[str, Any]) -> str:
    """Return in words what a program saves. section: the section ``program`` of jettison.json."""
    return (
        f"{section['computed']} of {section['blocks']} blocks are computed in a run of {section['sampler']}, found by "
        f"{section['method']}: {1 - section['flops']:.1%} fewer FLOPs than {section['steps']} full steps, which is "
        f"{section['speedup']:.2f} times as fast, as counted"
    )


def _program(section: dict[str, Any] | None) -> list[str]:
    """Return the section about the program of a pipeline."""
    if not section:
        return []
    return [
        "## Program", "",
        f"`program.json` says which blocks are computed at which step: {program_words(section)}. "
        "`jettison.load(folder).pipeline()` runs it; `.pipeline(program=False)` does not, and neither does diffusers.",
        "",
    ]  # fmt: skip


def _results(results: dict[str, Any], words: Mapping[str, str]) -> list[str]:
    stages = [stage for stage in STAGES if stage in results]
    if not stages:
        return []
    texts, images = (list(results[stages[0]].get(kind, {})) for kind in ("texts", "images"))
    # A line break or an unescaped bar in a name would end the cell of the table.
    cell = lambda text: " ".join(text.split()).replace("|", "\\|")
    columns = ["", "bytes", "bits per weight"]
    columns += [f"{cell(text)}: {kind}" for text in texts for kind in ("perplexity", "KL")]
    columns += [f"{cell(name)}: {kind}" for name in images for kind in ("accuracy", "KL")]
    lines = ["## Measured", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for stage in stages:
        size = results[stage]["size"]
        row = [words[stage], f"{size['bytes']:,}", f"{size['bits_per_weight']:.2f}"]
        for scores in (results[stage].get("texts", {}).get(text, {}) for text in texts):
            row += [f"{scores[kind]:.4g}" if kind in scores else "" for kind in ("perplexity", "kl")]
        for scores in (results[stage].get("images", {}).get(name, {}) for name in images):
            row += [f"{scores[kind]:.4g}" if kind in scores else "" for kind in ("accuracy", "kl")]
        lines.append("| " + " | ".join(row) + " |")
    for kind in dict.fromkeys(kind for stage in stages for kind in results[stage] if kind not in Stage.model_fields):
        for stage in stages:
            for name, scores in list(results[stage].get(kind, {}).items())[:1]:  # the first stands for all of them
                figures = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in scores.items())
                lines += ["", f"{stage}: {kind}, {cell(name)}: {figures}"]
    return [*lines, ""]
