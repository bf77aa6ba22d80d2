"""Writes language models as GGUF files, one tensor in memory at a time.

- A packed matrix keeps its integers where a type of GGUF holds them: Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 hold uniform grids
  whose groups are multiples of 32. Others are fitted anew, which the report says with the error.
- Dense matrices keep their type. Vectors, routers and tables of positions are float32, as llama.cpp expects.
- The metadata follow from graph/gguf/architectures.yaml, which the reader uses too (``graph.gguf.outline``).
- A LoRA adapter becomes a file of its own beside the model's (``gguf_adapter``).
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jettison.core.errors import JettisonError, UsageError, unknown
from jettison.core.files import writable_file, write_atomic
from jettison.core.progress import bar, say
from jettison.encodings.gguf_k_blocks import BLOCK
from jettison.encodings.grid import Grid
from jettison.formats.format import ReadFormat, format_of
from jettison.formats.gguf_adapter import write_adapter_file
from jettison.formats.gguf_types import KINDS, file_type, fitting_kind, pack_rows, row_bytes, unpack_rows, wanted_kind
from jettison.formats.gguf_writer import add_info, begin, in_file_order, open_writer
from jettison.formats.packed import read_grids, read_reordered
from jettison.formats.peft import CONFIG
from jettison.formats.peft import FOLDER as ADAPTER
from jettison.graph.anatomy import Linear
from jettison.graph.dense import stored_dtype
from jettison.graph.folder import ModelFolder
from jettison.graph.gguf.architecture import FACTORS
from jettison.graph.gguf.container import SUFFIX, GgufFile, require_gguf
from jettison.graph.gguf.outline import FileTensor, Outline, outline
from jettison.graph.gguf.vocabulary import describe_tokenizer
from jettison.statistics.stats import Stats

AT_ONCE = 1 << 22  # weights that are packed at once
FULL_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
Statistics = Mapping[str, Stats | torch.Tensor]  # by a linear's name or its ``inputs``; a tensor is the mean squares


@dataclass
class Plan:
    """What is written of one source.

    kinds: tensor of the file -> its type. asked: the type before rows that do not divide were seen.
    linears: module -> linear, for the matrices that may be quantized. grids: of the packed ones.
    reordered: grids of those that are packed but read dense, see ``formats.packed.read_reordered``.
    """

    source: ModelFolder
    draft: Outline
    format: ReadFormat
    grids: Mapping[str, Grid]
    reordered: Mapping[str, Grid]
    linears: Mapping[str, Linear]
    statistics: Statistics
    kinds: dict[str, str] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)


def refuses(source: ModelFolder) -> list[str]:
    """List the reasons why a model cannot be written as GGUF, one line each; empty if it can. No weights are read."""
    try:
        require_gguf()
        describe_tokenizer(source, outline(source, Path(f"{source.folder.name}{SUFFIX}")))
    except UsageError as error:
        return [str(error)]
    return []


def write_gguf(
    source: ModelFolder | str | Path, path: Path, kind: str | None = None, statistics: Statistics | None = None
) -> dict[str, Any]:
    """Write a language model as one GGUF file.

    source: a model folder of any format that can be read, or a GGUF file.
    kind: the type of all matrices, embedding and head included, such as Q4_K; None: that which holds a matrix as it is
        stored, or comes nearest.
    statistics: calibration statistics, which weight the squared error where scales are fitted.

    Returns file, format, architecture, bytes, types (type -> number of tensors), matrices (those whose values changed:
    name, grid, type and relative_error, ‖W' − W‖ / ‖W‖), relative_error (of all matrices together), fallbacks (those
    that have another type because of their rows: name, asked, type), adapter (its file or None) and notes.
    Raises UsageError for a model that the format cannot hold and for an unknown type; JettisonError if the file cannot
    be written, or a value is not finite in its type.
    """
    require_gguf()
    path = writable_file(Path(path))
    if path.suffix.lower() != SUFFIX:
        raise UsageError(f"{path}: the name of a GGUF file must end with {SUFFIX}")
    if kind is not None and kind not in KINDS:
        raise unknown("type", kind, KINDS, " of GGUF")
    source = ModelFolder(source.folder if isinstance(source, ModelFolder) else source)
    plan = _plan(source, path, kind, statistics or {})
    notes = [note for note in (describe_tokenizer(source, plan.draft),) if note]
    plan.draft.metadata |= _general(plan)
    adapted = (source.folder / ADAPTER / CONFIG).exists()
    adapter = path.with_name(f"{path.stem}-adapter{SUFFIX}")
    errors: dict[str, tuple[float, float]] = {}
    write_atomic(path, lambda temporary: _write(plan, temporary, errors))
    if adapted:
        write_adapter_file(source, plan.draft, adapter)
    return _report(plan, path, adapter if adapted else None, errors, notes)


def _plan(source: ModelFolder, path: Path, kind: str | None, statistics: Statistics) -> Plan:
    """Choose the type of every tensor, and say once which rows do not divide."""
    linears = {linear.name: linear for linear in source.anatomy if "router" not in linear.roles}
    plan = Plan(
        source,
        outline(source, path),
        format_of(source),
        read_grids(source),
        read_reordered(source),
        linears,
        statistics,
    )
    for part in plan.draft.parts:
        if part.modules[0] not in linears or part.part == "bias" or part.bare:
            plan.kinds[part.name] = "F32"
            continue
        grids = {plan.grids.get(name, plan.reordered.get(name)) for name in part.modules}
        largest = lambda name: row_bytes(name, BLOCK)  # of the types that the experts of one tensor want
        asked = kind or max((wanted_kind(grid, _stored(source, part)) for grid in grids), key=largest)
        plan.asked[part.name], plan.kinds[part.name] = asked, fitting_kind(asked, part.shape[-1])
    changed = defaultdict(list)
    for name, asked in plan.asked.items():
        if plan.kinds[name] != asked:
            changed[asked, plan.kinds[name]].append(name)
    for (asked, other), names in changed.items():
        say(
            f"note: {len(names)} matrices, such as {names[0]}, have rows that {asked} does not divide: they are {other}"
        )
    return plan


def _stored(source: ModelFolder, part: FileTensor) -> str:
    """Return the type in full precision that a dense matrix is stored in."""
    place = source.find(f"{part.modules[0]}.weight")
    if place is None or getattr(source.checkpoint, "dequantized", lambda name: False)(place[0]):
        return FULL_NAMES.get(str(stored_dtype(source)).removeprefix("torch."), "F32")
    return source.checkpoint.dtype(place[0])


def _general(plan: Plan) -> dict[str, Any]:
    """Return the metadata about the file: its name, licence and main type."""
    values = {"general.type": "model", "general.name": Path(plan.source.name).stem, "general.quantization_version": 2}
    if plan.source.license:
        values["general.license"] = plan.source.license
    if (number := file_type([plan.kinds[name] for name in plan.asked])) is not None:
        values["general.file_type"] = number
    return values


def _write(plan: Plan, temporary: Path, errors: dict[str, tuple[float, float]]) -> None:
    """Write the file: the header, then every tensor. errors: receives the squared error and size of every matrix."""
    writer = open_writer(temporary, plan.draft.architecture.key, plan.draft.metadata)
    try:
        if plan.draft.factors is not None:
            add_info(writer, FACTORS, plan.draft.factors.shape, "F32")
        for part in plan.draft.parts:
            add_info(writer, part.name, part.shape, plan.kinds[part.name])
        begin(writer)
        if plan.draft.factors is not None:
            writer.write_tensor_data(plan.draft.factors.astype(np.float32))
        with bar("tensors", len(plan.draft.parts)) as progress:
            for part in plan.draft.parts:
                writer.write_tensor_data(_bytes(plan, part, errors).numpy().reshape(-1))
                progress.advance()
    finally:
        writer.close()
    if {name: stored.kind for name, stored in GgufFile(temporary).tensors.items() if name in plan.kinds} != plan.kinds:
        raise JettisonError(f"{plan.draft.path} reads back with other tensors than were written")


def _bytes(plan: Plan, part: FileTensor, errors: dict[str, tuple[float, float]]) -> torch.Tensor:
    """Return the bytes of a tensor, uint8 (rows of all modules, bytes of a row)."""
    if part.name not in plan.asked:
        values = torch.stack([plan.source.read(part.parameter(name)).float() for name in part.modules])
        values = values.transpose(-1, -2) if part.transposed else values
        values = in_file_order(values[0] + part.offset, part) if len(part.modules) == 1 else values
        return values.reshape(-1, part.shape[-1]).contiguous().view(torch.uint8)
    kind, height, columns = plan.kinds[part.name], part.shape[-2], part.shape[-1]
    result = torch.empty(len(part.modules), height, row_bytes(kind, columns), dtype=torch.uint8)
    error = size = 0.0
    step = max(1, AT_ONCE // columns)
    for number, name in enumerate(part.modules):
        importance = _importance(plan, plan.linears[name])
        for first in range(0, height, step):
            rows = slice(first, min(first + step, height))
            weight = _rows(plan, name, rows)
            packed = pack_rows(weight, kind, importance)
            result[number, rows] = packed
            exact = weight if isinstance(weight, torch.Tensor) else weight.dequantize()
            read = unpack_rows(packed, kind)
            if not read.isfinite().all():
                raise JettisonError(f"{name} of {plan.source.name} has weights that are not finite in {kind}")
            error += float((read - exact.float()).square().sum(dtype=torch.float64))
            size += float(exact.float().square().sum(dtype=torch.float64))
        result[number] = in_file_order(result[number], part)
    errors[part.name] = error, size
    return result.flatten(0, 1)


def _rows(plan: Plan, name: str, rows: slice) -> Any:
    """Read rows of a matrix, packed or dense (rows, columns)."""
    if name in plan.grids:
        return plan.format.read_weight(plan.source.read, name, plan.grids[name], rows)
    if name in plan.reordered:
        return plan.format.read_dense(plan.source.read, name, plan.reordered[name], rows)
    return plan.source.read_weight(name, plan.linears[name].layout, rows)


def _importance(plan: Plan, linear: Linear) -> torch.Tensor | None:
    """Return the mean squares of a linear's inputs (columns,), if they are known."""
    stats = plan.statistics.get(linear.name, plan.statistics.get(linear.inputs))
    if isinstance(stats, Stats):
        stats = stats.hessian.diagonal() if stats.tokens else None
    return stats


def _report(
    plan: Plan, path: Path, adapter: Path | None, errors: Mapping[str, tuple[float, float]], notes: list[str]
) -> dict[str, Any]:
    modules = {part.name: part.modules for part in plan.draft.parts}
    changed = [
        {"name": _joined(modules[name]), "grid": str(plan.grids.get(modules[name][0], "dense")),
         "type": plan.kinds[name], "relative_error": (error / size) ** 0.5 if size else 0.0}
        for name, (error, size) in errors.items() if error
    ]  # fmt: skip
    fallbacks = [
        {"name": _joined(modules[name]), "asked": asked, "type": plan.kinds[name]}
        for name, asked in plan.asked.items() if plan.kinds[name] != asked
    ]  # fmt: skip
    total = [sum(values) for values in zip(*errors.values(), strict=True)]
    return {
        "file": str(path),
        "format": "gguf",
        "architecture": plan.draft.architecture.key,
        "bytes": path.stat().st_size,
        "types": dict(Counter(plan.kinds.values())),
        "matrices": changed,
        "relative_error": (total[0] / total[1]) ** 0.5 if total and total[1] else 0.0,
        "fallbacks": fallbacks,
        "adapter": None if adapter is None else str(adapter),
        "notes": notes,
    }


def _joined(modules: tuple[str, ...]) -> str:
    """Return the name of a module, with * for the number of an expert where a tensor holds all of them."""
    if len(modules) == 1:
        return modules[0]
    return ".".join(
        one if one == other else "*" for one, other in zip(modules[0].split("."), modules[1].split("."), strict=True)
    )
