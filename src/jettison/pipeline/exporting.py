"""``export``: write a model in the formats of other engines, and check each result in its engine.

Every format is a row of ``TARGETS``. A format of one file, such as onnx, differs from a folder in its row alone.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jettison.core.errors import UsageError, unknown
from jettison.core.files import check_folder
from jettison.core.locks import locked
from jettison.formats import gguf_file
from jettison.formats.format import find_format
from jettison.formats.support import written_formats
from jettison.graph.folder import ModelFolder
from jettison.pipeline.export_check import PROMPTS, TEXTS, TOKENS, check_export, prepare
from jettison.pipeline.folder_export import (
    ADAPTERS,
    PLAIN,
    check_place,
    has_adapter,
    not_text,
    open_export,
    refuses_folder,
    write_folder,
)
from jettison.pipeline.jobs import assign
from jettison.pipeline.onnx_export import export_onnx, refuses_onnx
from jettison.recipe.recipe import Recipe


@dataclass(frozen=True)
class Target:
    """How a format is written.

    refuses: (source, adapter) -> the reasons why it cannot be written, one line each.
    write: (source, path, adapter) -> a row of the result: path, bytes, stored_dense, notes and adapter as
        ``write_folder`` returns them, and relative_error if grids changed.
    file: the name of the file under the folder of the export; "" for a format that is a folder, with the format's name.
    load: whether the result is a checkpoint, which ``check_export`` loads and measures. Others check themselves.
    """

    refuses: Callable[[ModelFolder, str], list[str]]
    write: Callable[[ModelFolder, Path, str], dict[str, Any]]
    file: str = ""
    load: bool = True


def _onnx(source: ModelFolder, path: Path, adapter: str) -> dict[str, Any]:
    result = export_onnx(source.folder, path)
    return {"path": result.pop("file"), "adapter": None, "stored_dense": [], "notes": [], **result}


def _refuses_gguf(source: ModelFolder, adapter: str) -> list[str]:
    if reason := not_text(source, "gguf"):
        return [reason]
    if has_adapter(source) and adapter != "keep":
        return [
            f"gguf: adapter = {adapter!r}: only keep, which writes the adapter of {source.name} as a file of its own"
        ]
    return [f"gguf: {reason}" for reason in gguf_file.refuses(source)]


def _gguf(source: ModelFolder, path: Path, adapter: str) -> dict[str, Any]:
    result = gguf_file.write_gguf(source, path)
    kept = {key: result[key] for key in ("bytes", "relative_error", "types", "matrices", "fallbacks", "notes")}
    if result["adapter"]:
        kept["notes"] = [*kept["notes"], f"the LoRA adapter is {result['adapter']} (--lora); checks are without it"]
    return {"path": result["file"], "stored_dense": [], "adapter": result["adapter"] and adapter, **kept}


def _folder(name: str) -> Target:
    return Target(
        refuses=lambda source, adapter: refuses_folder(source, name, adapter),
        write=lambda source, path, adapter: write_folder(source, name, path, adapter),
    )


TARGETS = {name: _folder(name) for name in (*written_formats(), PLAIN)}
TARGETS["gguf"] = Target(_refuses_gguf, _gguf, file="model.gguf")
TARGETS["onnx"] = Target(lambda source, adapter: refuses_onnx(source), _onnx, file="model.onnx", load=False)


def export(
    model: str | Path,
    out: str | Path,
    *,
    to: str | Iterable[str] = "onnx",
    size: str | None = None,
    adapter: str = "keep",
    verify: bool = False,
    texts: Iterable[str | Path] = TEXTS,
    tokens: int | None = TOKENS,
    prompts: int = PROMPTS,
) -> dict[str, Any]:
    """Write a model in one or more formats that other engines load.

    A killed export continues when ``export`` is called again; formats that are finished are not written again.

    model: a folder that Jettison wrote, a quantized checkpoint, a GGUF file or a hub id. For ``onnx``, an image
        classifier or a perception model.
    out: the folder that gets a folder or file for each format; for ``onnx`` alone, the file.
    to: formats: ``gptq``, ``gptq-v2``, ``awq``, ``auto-round``, ``compressed-tensors``, ``safetensors``,
        ``gguf``, ``onnx`` and ``transformers`` (everything dequantized, in the type of the model's other weights). A
        text is one name or several, with commas.
    size: of the images, only for ``onnx`` alone; see ``onnx_export``.
    adapter: what becomes of a recovered LoRA adapter: ``keep`` it apart, in PEFT's form; ``merge`` it into the weights,
        which are rounded to their grids again; or ``fold`` it into the scales of the groups.
    verify: load each result, in its engine where that is installed, and compare it with ``model``; see
        ``check_export``.
    texts, tokens, prompts: what is compared: texts, how many tokens of each, and how many prompts are continued.

    Returns for ``onnx`` alone the result of ``export_onnx``. Else ``model``, ``adapter`` (None without one) and
    ``formats``: for each its ``format`` and either ``refused``, the reasons, or ``path``, ``bytes``, ``stored_dense``
    (quantized matrices that the format stores in full precision), ``notes`` (what transformers cannot load), and with
    ``verify`` the results of ``check_export``.
    Raises UsageError for an unknown format, if all formats are refused, and for a folder that holds something else;
    JettisonError, and removes the result, if it computes another function than it should.
    """
    names = format_names(to)
    if adapter not in ADAPTERS:
        raise unknown("adapter", adapter, ADAPTERS)
    if names == ["onnx"]:
        return export_onnx(model, out, size)
    if size is not None:
        raise UsageError(f"size = {size!r}: it is for onnx alone")
    return export_formats(model, out, names, adapter, verify, texts, tokens, prompts)


def export_formats(
    model: str | Path,
    out: str | Path,
    names: list[str],
    adapter: str = "keep",
    verify: bool = False,
    texts: Iterable[str | Path] = TEXTS,
    tokens: int | None = TOKENS,
    prompts: int = PROMPTS,
) -> dict[str, Any]:
    """Write a model in one or more formats into the folder ``out``; see ``export``. names: see ``format_names``."""
    source, folder, texts = open_export(model), check_folder(out), [str(text) for text in texts]
    reasons = {name: TARGETS[name].refuses(source, adapter) for name in names}
    refused = {name: lines for name, lines in reasons.items() if lines}
    if len(refused) == len(names):
        raise UsageError("; ".join(line for lines in refused.values() for line in lines))
    places = {name: folder / (TARGETS[name].file or name) for name in names if name not in refused}
    for name, place in places.items():
        if not TARGETS[name].file:
            check_place(place)
    reference = prepare(source, texts, tokens, prompts) if verify and any(TARGETS[n].load for n in places) else None
    rows = []
    with locked(folder):
        for name in names:
            if name in refused:
                rows.append({"format": name, "refused": refused[name]})
                continue
            row = {"format": name} | TARGETS[name].write(source, places[name], adapter)
            if reference is not None and TARGETS[name].load:
                whole = row["adapter"] is None or (row["adapter"] == "keep" and not TARGETS[name].file)
                exact = whole and not row.get("relative_error")
                row |= check_export(reference, places[name], name, exact)
            rows.append(row)
    return {"model": str(source.folder), "adapter": adapter if has_adapter(source) else None, "formats": rows}


def check_formats(source: ModelFolder, recipe: Recipe, runtime: str | None, names: Iterable[str]) -> None:
    """Raise UsageError, before any work, if a format cannot hold what a recipe makes of a model.

    runtime: the target runtime, which may change group sizes.
    """
    reasons = []
    for name in names:
        if TARGETS[name].file:
            reasons += TARGETS[name].refuses(source, "keep")
        elif reason := not_text(source, name):
            reasons.append(reason)
        elif name != PLAIN:
            grids = {job.linear.name: job.grid for job in assign(source, recipe, runtime) if job.grid}
            reasons += find_format(name).refuses(source.anatomy, grids)
    if reasons:
        raise UsageError("; ".join(reasons))


def format_names(to: str | Iterable[str]) -> list[str]:
    """Return the names of formats, each once. Raises UsageError for an unknown one, and if there are none."""
    names = [name.strip() for name in (to.split(",") if isinstance(to, str) else to)]
    if not any(names):
        raise UsageError(f"to = {to!r}: name one or more formats: {', '.join(sorted(TARGETS))}")
    for name in names:
        if name not in TARGETS:
            raise unknown("format", name, TARGETS)
    return list(dict.fromkeys(names))
