"""The pages of the reference that are generated from code and data.

They are: commands, the Python API, recipes, methods, families, devices, runtimes, papers. Nothing on them is written
twice: a docstring, a help text or a row of a table is the only source.
"""

import inspect
import json
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
from jettison.formats.runtimes import find_runtime, runtime_names
from jettison.formats.support import Support
from jettison.graph.families import families
from jettison.graph.shape import shapes
from jettison.recipe import registry
from jettison.recipe.fields import RunFields
from jettison.recipe.recipe import load_recipe, preset_names

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "jettison"
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")


def commands() -> str:
    """Return the page of all commands with their options, from their help texts."""
    group = typer.main.get_command(build())
    text = get_docs_for_click(obj=group, ctx=click.Context(group), name="jettison", title="Commands")
    return re.sub(r"\n{3,}", "\n\n", text)


def api() -> str:
    """Return the page of the package's public names and of the classes that they return, from their docstrings."""
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


def _entry(item: object, name: str, level: str) -> list[str]:
    """Return a heading, the signature and the docstring; for a class, its public methods too."""
    lines = [f"{level} {name}", ""]
    if not (inspect.isclass(item) and issubclass(item, Exception)):
        lines += ["```python", f"{name.rpartition('.')[2]}{_signature(item)}", "```", ""]
    lines += [*_markdown(inspect.getdoc(item) or ""), ""]
    if inspect.isclass(item) and not issubclass(item, Exception):
        for key, member in vars(item).items():
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if not key.startswith("_") and inspect.isfunction(function):
                lines += _entry(function, f"{name.rpartition('.')[2]}.{key}", level + "#")
    return lines


def _signature(item: object) -> str:
    """Return the parameters of a function with their defaults, without annotations and ``self``."""
    parameters = inspect.signature(item).parameters.values()
    shown = [
        str(parameter.replace(annotation=parameter.empty)) for parameter in parameters if parameter.name not in SELVES
    ]
    return f"({', '.join(shown)})".replace("<factory>", "...")


SELVES = ("self", "cls")


def _markdown(doc: str) -> list[str]:
    """Return a docstring as Markdown. A line ``name: text`` becomes a list item, and the lines below continue it."""
    lines: list[str] = []
    for line in doc.replace("``", "`").split("\n"):
        item = re.match(r"([a-z_]+(?:, [a-z_]+)*): (.*)", line)
        in_list = bool(lines) and lines[-1].startswith(("- ", "  "))
        if item:
            lines += [""] * (not in_list) + [f"- `{item[1]}`: {item[2]}"]
        elif in_list and line and not line.startswith(("Returns", "Raises", "Source")):
            lines.append(f"  {line.strip()}")
        else:
            lines += [""] * in_list + [line]
    return lines


def recipes() -> str:
    """Return the page of the presets, with their files."""
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
    """Return the page of all methods with their sources and options."""
    lines = ["# Methods", "", "What a step of a recipe can name. Options are set in the step, or by `--set`.", ""]
    for verb in registry.verbs():
        for method in registry.methods(verb).values():
            lines += [f"## {verb}: {method.name}", "", *_markdown(inspect.getdoc(method.function)), ""]
            lines += [f"Source: {method.paper}.", ""] if method.paper else []
            if method.defaults:
                lines += ["| option | default |", "|---|---|"]
                lines += [f"| `{option}` | `{default}` |" for option, default in method.defaults.items()]
                lines += [""]
        if verb == "program":  # options that all of its methods have
            lines += [
                "## Every program step",
                "",
                *_markdown(inspect.getdoc(RunFields)),
                "",
                "| option | default |",
                "|---|---|",
            ]
            lines += [f"| `{name}` | `{field.default}` |" for name, field in RunFields.model_fields.items()]
            lines += [""]
    return "\n".join(lines)


def model_families() -> str:
    """Return the page of families.yaml and shapes.yaml."""
    rows = families()
    names_of = lambda domain: ", ".join(f"`{name}`" for name, row in sorted(rows.items()) if row.domain == domain)
    lines = [
        "# Model families and shapes",
        "",
        "A model is a folder with `config.json`, `*.safetensors` and a tokenizer, or a hub id. Nothing in it is "
        "executed. Families with a row in `families.yaml` are known by role:",
        "",
        f"- **Language models**: {names_of('text')}.",
        f"- **Image classifiers**: {names_of('vision')}.",
        "",
        "Any other causal language model or image classifier of transformers is read by itself: the roles of its "
        "linears are guessed from names (`linear` where there is no guess), experts are taken apart, and names in "
        "files follow the conversion mapping of transformers. A model that is no chain of blocks stays whole in "
        "memory.",
        "",
        *_tried_types(),
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


def _tried_types() -> list[str]:
    """Return the table of every causal type, from the results of benchmarks/models/any_model.py."""
    file = ROOT / "benchmarks" / "results" / "any_model.json"
    if not file.exists():
        return []
    types = json.loads(file.read_text(encoding="utf-8"))["details"]["types"]
    rows = [["type", "state", "remarks"]]
    for name, row in types.items():
        if row["state"] != "not built":
            steps: dict[str, list[str]] = {}  # how steps ended -> which ones ended so
            for step, end in row.items():
                if step != "state":
                    steps.setdefault(end, []).append(step)
            remarks = "; ".join(f"{', '.join(same)}: {end}" for end, same in steps.items())
            rows.append([f"`{name}`", row["state"], remarks.replace("|", "\\|")])
    count = lambda state: sum(row[1] == state for row in rows)
    return [
        "## Every causal type, tried",
        "",
        "`python -m benchmarks.models.any_model` makes a small random model of every causal type, where that works "
        f"({len(rows) - 1} of {len(types)}), and tries it: read exactly, `w8`, `w4`, loaded exactly, loaded by "
        "transformers, generated from, resumed. *works* means all of it, but for transformers where a remark says so: "
        f"{count('works')} work, {count('refused')} are refused with the reason, {count('broken')} are broken.",
        "",
        *_table(rows),
        "",
    ]


def devices() -> str:
    """Return the page of devices.yaml, with the figures that a plan uses."""
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
    """Return the page of every paper that the source names: its methods, its files, and whether a file departs from it.

    A file says *reconstruction* where its paper is silent; such files are marked.
    """
    titles = yaml.safe_load((ROOT / "docs" / "papers.yaml").read_text(encoding="utf-8"))
    method_of = {
        (paper, verb): f"`{method.name}`"
        for verb in registry.verbs()
        for method in registry.methods(verb).values()
        for paper in ARXIV.findall(method.paper)
    }
    rows = [["paper", "arXiv", "method", "files"]]
    for paper, files in sorted(cited().items()):
        uses = [f"{name} ({verb})" for (number, verb), name in method_of.items() if number == paper]
        marked = [f"`{file}`" + (" *" if "reconstruction" in text.lower() else "") for file, text in files]
        rows.append([titles[paper], f"[{paper}](https://arxiv.org/abs/{paper})", ", ".join(uses), ", ".join(marked)])
    lines = [
        "# Papers",
        "",
        "Every paper that the source names, and the files that name it. Where a paper is silent, a file has our "
        "reconstruction; such files are marked with * and say which part it is.",
        "",
        *_table(rows),
        "",
    ]
    return "\n".join(lines)


def cited() -> dict[str, list[tuple[str, str]]]:
    """Return arXiv id -> the files of the package that name it, with their text."""
    files_of: dict[str, list[tuple[str, str]]] = {}
    for file in sorted(path for path in SOURCE.rglob("*") if path.suffix in (".py", ".yaml", ".h", ".cpp")):
        text = file.read_text(encoding="utf-8")
        for paper in sorted(set(ARXIV.findall(text))):
            files_of.setdefault(paper, []).append((file.relative_to(SOURCE).as_posix(), text))
    return files_of


def _table(rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]


def runtimes() -> str:
    """Return reference/runtimes.md with its tables and the notes under them generated anew."""
    grids = [["runtime", "format", "what", "bits", "group sizes", "symmetric", "columns", "rows"]]
    parts = [["runtime", "format", "head", "embedding", "experts", "share one grid"]]
    notes = []
    for runtime in map(find_runtime, runtime_names()):
        for format in runtime.formats:
            names = [runtime.name, format.name]
            grids += [[*names, *row] for row in _grids(format)]
            shared = [SHARED[format.share] if group == "experts" else group for group in format.fused]
            shared = ["the whole model"] if format.one_grid else shared
            parts.append(
                [*names, *(_loads(format, sort) for sort in ("head", "embedding", "experts")), ", ".join(shared)]
            )
            remarks = [f"on {format.where}"] + (
                [f"LoRA adapters up to rank {runtime.max_rank}"] if runtime.max_rank else []
            )
            remarks += [format.note] * bool(format.note) + ["not written yet"] * (not format.written)
            checked = "Read in" if format.parts["linears"].verified else "**Not verified**:"
            notes.append(f"- {runtime.title}, {format.name}: {'; '.join(remarks)}. {checked} {format.source}.")
    lines = ["<!-- made by generate.py -->", *_table(grids), "", *_table(parts), "", *notes, "<!-- end -->"]
    text = (ROOT / "docs" / "reference" / "runtimes.md").read_text(encoding="utf-8")
    return re.sub(f"{lines[0]}.*{lines[-1]}", lambda _: "\n".join(lines), text, flags=re.DOTALL)


SHARED = {"fused": "a projection of a block's experts", "block": "a block's experts", "model": "all experts"}


def _grids(format: Support) -> list[list[str]]:
    """Return a row per kind of grid: first those for all matrices, then those of head, embedding or experts alone."""
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
    """Return whether a format holds a sort of part quantized, with its conditions."""
    part = format.parts[sort]
    terms = ["yes" if part.kinds else "no"]
    terms += [f"in {', '.join(part.only)}"] * bool(part.only) + [f"not in {', '.join(part.not_in)}"] * bool(part.not_in)
    if sort == "experts" and part.kinds:
        terms += ["not stacked ones"] * (not format.stacked) + ["all, if anything is"] * (not format.may_stay)
    doubt = "" if part.verified == format.parts["linears"].verified else " (not verified)"
    return ", ".join(terms) + doubt
