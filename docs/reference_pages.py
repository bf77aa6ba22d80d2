"""The pages of the reference that are made from code and data: commands, verbs, recipes, methods, families, devices,
runtimes, papers.

Nothing on them is written twice: a docstring, a help text or a row of a table is the only source.
"""

import inspect
import re
from importlib import import_module
from pathlib import Path

import click
import typer
import yaml
from typer.cli import get_docs_for_click

import jettison
from jettison.cli.app import build
from jettison.core.bytesize import format_bytes
from jettison.devices.device import device_names, find_device
from jettison.formats.runtimes import Support, find_runtime, runtime_names
from jettison.graph.families import families
from jettison.graph.shape import shapes
from jettison.recipe import registry
from jettison.recipe.recipe import load_recipe, preset_names

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "jettison"
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")


def commands() -> str:
    """All commands with their options, from their help texts."""
    group = typer.main.get_command(build())
    text = get_docs_for_click(obj=group, ctx=click.Context(group), name="jettison", title="Commands")
    return re.sub(r"\n{3,}", "\n\n", text)


def api() -> str:
    """The public names of the package and of what its verbs return, from their docstrings."""
    lines = ["# Python", "", "The verbs are attributes of `jettison`. Each is imported when it is first used.", ""]
    for name in jettison.__all__:
        lines += _entry(getattr(jettison, name), f"jettison.{name}", "##")
    lines += ["# What the verbs return", ""]
    for path in RETURNED:
        module, _, name = path.rpartition(".")
        lines += _entry(getattr(import_module(module), name), path, "##")
    return "\n".join(lines)


RETURNED = (
    "jettison.planning.planner.Plan",
    "jettison.runtime.load.Loaded",
    "jettison.runtime.generation.Generation",
    "jettison.runtime.speculative.draft.Draft",
    "jettison.runtime.sampling.Sampling",
)


def _entry(thing: object, name: str, level: str) -> list[str]:
    """A heading, the signature and the docstring; of a class its public methods too."""
    lines = [f"{level} {name}", ""]
    if not (inspect.isclass(thing) and issubclass(thing, Exception)):
        lines += ["```python", f"{name.rpartition('.')[2]}{_signature(thing)}", "```", ""]
    lines += [*_markdown(inspect.getdoc(thing) or ""), ""]
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        for key, member in vars(thing).items():
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if not key.startswith("_") and inspect.isfunction(function):
                lines += _entry(function, f"{name.rpartition('.')[2]}.{key}", level + "#")
    return lines


def _signature(thing: object) -> str:
    parameters = inspect.signature(thing).parameters.values()
    shown = [
        str(parameter.replace(annotation=parameter.empty)) for parameter in parameters if parameter.name not in SELVES
    ]
    return f"({', '.join(shown)})".replace("<factory>", "...")


SELVES = ("self", "cls")


def _markdown(doc: str) -> list[str]:
    """A docstring as Markdown: a line ``name: text`` becomes an item of a list, and the lines below it continue it."""
    lines: list[str] = []
    for line in doc.replace("``", "`").split("\n"):
        item = re.match(r"([a-z_]+(?:, [a-z_]+)*): (.*)", line)
        inside = bool(lines) and lines[-1].startswith(("- ", "  "))
        if item:
            lines += [""] * (not inside) + [f"- `{item[1]}`: {item[2]}"]
        elif inside and line and not line.startswith(("Returns", "Raises", "Source")):
            lines.append(f"  {line.strip()}")
        else:
            lines += [""] * inside + [line]
    return lines


def recipes() -> str:
    """The presets, as their files."""
    lines = ["# Presets", "", "A recipe says what to do to which part of a model. These come with the package:", ""]
    for name in preset_names():
        recipe = load_recipe(name)
        text = (SOURCE / "recipe" / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
        lines += [f"## {name}", "", recipe.use, "", "```yaml", text.strip(), "```", ""]
    lines += [
        "`loss` is the log-perplexity lost on books with `scribe`, in nats (`benchmarks/recovery/presets.py`).",
        "",
    ]
    return "\n".join(lines)


def methods() -> str:
    """Every method with its source and its options."""
    lines = ["# Methods", "", "What a step of a recipe can name. Options are set in the step, or by `--set`.", ""]
    for verb in registry.verbs():
        for method in registry.methods(verb).values():
            lines += [f"## {verb}: {method.name}", "", *_markdown(inspect.getdoc(method.function)), ""]
            lines += [f"Source: {method.paper}.", "", "| option | default |", "|---|---|"]
            lines += [f"| `{option}` | `{default}` |" for option, default in method.defaults.items()]
            lines += [""]
    return "\n".join(lines)


def model_families() -> str:
    """The rows of families.yaml and shapes.yaml."""
    rows = families()
    of = lambda domain: ", ".join(f"`{name}`" for name, row in sorted(rows.items()) if row.domain == domain)
    lines = [
        "# Model families and shapes",
        "",
        "A model is a folder with `config.json`, `*.safetensors` and a tokenizer, or a hub id. Nothing in it is "
        "executed. Families with a row in `families.yaml` are known by role:",
        "",
        f"- **Language models**: {of('text')}.",
        f"- **Image classifiers**: {of('vision')}.",
        "",
        "Of any other causal language model or image classifier of transformers every linear inside its blocks "
        "is read, with roles guessed from names (`linear` where there is no guess).",
        "",
        "## Shapes",
        "",
        "`jettison plan` and `jettison bench` know these shapes without a network and without weights:",
        "",
        *_table(
            [
                ["shape", "hub id", "parameters"],
                *([name, row["hub"], f"{row['parameters']:,}"] for name, row in shapes().items()),
            ]
        ),
        "",
    ]
    return "\n".join(lines)


def devices() -> str:
    """The rows of devices.yaml, as a plan uses them."""
    rows = [["device", "what it is", "reads", "memory", "fp16", "int8", "unverified"]]
    for name in device_names():
        device = find_device(name)
        peak = lambda kind, device=device: f"{device.flops[kind] / 1e12:,.4g} Tflop/s" if kind in device.flops else ""
        rows.append([
            f"`{name}`", device.title, f"{format_bytes(device.bandwidth)}/s", format_bytes(device.memory), peak("fp16"),
            peak("int8"), ", ".join(device.unverified),
        ])  # fmt: skip
    fields = re.findall(
        r"^# (\w+): +(.*(?:\n#  +.*)*)", (SOURCE / "devices" / "devices.yaml").read_text(encoding="utf-8"), re.M
    )
    lines = [
        "# Devices",
        "",
        "[How to describe another one](../how-to/device.md).",
        "",
        *_table(rows),
        "",
        "## Fields",
        "",
    ]
    lines += [f"- `{name}`: {re.sub(chr(10) + '# +', ' ', text)}" for name, text in fields]
    return "\n".join([*lines, ""])


def papers() -> str:
    """Every paper that the source names: the methods from it, the files, and whether a file departs from it.

    A file says *reconstruction* where its paper is silent; such files are marked.
    """
    known = yaml.safe_load((ROOT / "docs" / "papers.yaml").read_text(encoding="utf-8"))
    named = {
        (paper, verb): f"`{method.name}`"
        for verb in registry.verbs()
        for method in registry.methods(verb).values()
        for paper in ARXIV.findall(method.paper)
    }
    rows = [["paper", "arXiv", "method", "files"]]
    for paper, files in sorted(cited().items()):
        by = [f"{name} ({verb})" for (number, verb), name in named.items() if number == paper]
        marked = [f"`{file}`" + (" *" if "reconstruction" in text.lower() else "") for file, text in files]
        rows.append([known[paper], f"[{paper}](https://arxiv.org/abs/{paper})", ", ".join(by), ", ".join(marked)])
    lines = [
        "# Papers",
        "",
        "Every paper that the source names, and where. Files with * say what in them is our reconstruction, "
        "where the paper is silent.",
        "",
        *_table(rows),
        "",
    ]
    return "\n".join(lines)


def cited() -> dict[str, list[tuple[str, str]]]:
    """arXiv id -> the files of the package that name it, with their text."""
    found: dict[str, list[tuple[str, str]]] = {}
    for file in sorted(path for path in SOURCE.rglob("*") if path.suffix in (".py", ".yaml", ".h", ".cpp")):
        text = file.read_text(encoding="utf-8")
        for paper in sorted(set(ARXIV.findall(text))):
            found.setdefault(paper, []).append((file.relative_to(SOURCE).as_posix(), text))
    return found


def _table(rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]


def runtimes() -> str:
    """reference/runtimes.md, with its tables and the notes under them made anew."""
    grids = [["runtime", "format", "what", "bits", "group sizes", "symmetric", "columns", "rows"]]
    parts = [["runtime", "format", "head", "embedding", "experts", "share one grid"]]
    notes = []
    for runtime in map(find_runtime, runtime_names()):
        for format in runtime.formats:
            start = [runtime.name, format.name]
            grids += [[*start, *row] for row in _grids(format)]
            shared = [SHARED[format.share] if group == "experts" else group for group in format.fused]
            parts.append(
                [*start, *(_loads(format, sort) for sort in ("head", "embedding", "experts")), ", ".join(shared)]
            )
            said = [f"on {format.where}"] + (
                [f"LoRA adapters up to rank {runtime.max_rank}"] if runtime.max_rank else []
            )
            said += [format.note] * bool(format.note) + ["not written yet"] * (not format.written)
            checked = "Read in" if format.parts["linears"].verified else "**Not verified**:"
            notes.append(f"- {runtime.title}, {format.name}: {'; '.join(said)}. {checked} {format.source}.")
    lines = ["<!-- made by generate.py -->", *_table(grids), "", *_table(parts), "", *notes, "<!-- end -->"]
    text = (ROOT / "docs" / "reference" / "runtimes.md").read_text(encoding="utf-8")
    return re.sub(f"{lines[0]}.*{lines[-1]}", lambda _: "\n".join(lines), text, flags=re.DOTALL)


SHARED = {"fused": "a projection of a block's experts", "block": "a block's experts", "model": "all experts"}


def _grids(format: Support) -> list[list[str]]:
    """A row per kind of grid: those for all matrices first, then those that head, embedding or experts have alone."""
    own = {sort: part for sort, part in format.parts.items() if part.kinds != format.parts["linears"].kinds}
    listed = lambda values: "any" if values is None else ", ".join(str(value).lower() for value in values)
    multiple = lambda count: f"{count}n" if count > 1 else ""
    return [
        [
            f"{sort}, {kind.name}" if sort in own and kind.name else sort if sort in own else kind.name,
            *(listed(values) for values in (kind.bits, kind.group_sizes, kind.symmetric)),
            *(multiple(count) for count in (kind.columns_multiple_of, kind.rows_multiple_of)),
        ]
        for sort, part in {"linears": format.parts["linears"], **own}.items()
        for kind in part.kinds
    ]


def _loads(format: Support, sort: str) -> str:
    part = format.parts[sort]
    said = ["yes" if part.kinds else "no"]
    said += [f"in {', '.join(part.only)}"] * bool(part.only) + [f"not in {', '.join(part.not_in)}"] * bool(part.not_in)
    if sort == "experts" and part.kinds:
        said += ["not stacked ones"] * (not format.stacked) + ["all, if anything is"] * (not format.may_stay)
    doubt = "" if part.verified == format.parts["linears"].verified else " (not verified)"
    return ", ".join(said) + doubt
