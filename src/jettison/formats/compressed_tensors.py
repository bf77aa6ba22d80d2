"""compressed-tensors, format pack-quantized: one grid per group of modules, weights packed in int32 words.

Written with the library's own schema; read back into modules that keep the weights packed.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import compressed_tensors
import torch
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStrategy,
)
from compressed_tensors.utils.match import match_targets
from pydantic import ValidationError
from torch import nn

from jettison.core.errors import JettisonError, guarded
from jettison.core.limits import cpu_limit
from jettison.core.progress import waiting
from jettison.encodings.grid import WHOLE_ROW, Grid
from jettison.encodings.uniform import QuantizedWeight, unpack
from jettison.graph.anatomy import Anatomy, Linear
from jettison.graph.dense import with_defaults
from jettison.graph.folder import ModelFolder
from jettison.graph.modules import PackedLinear, empty_parts, packed_parts

TARGET_SECONDS = 5.0  # of work to match the targets of a config with one name: it takes microseconds
FORMAT, MIXED = "pack-quantized", "mixed-precision"  # of a group; of a section whose groups differ
STORED_LAYOUTS = ("linear", "embedding")
SCALE_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def storable(linear: Linear) -> bool:
    """Whether the format can hold this matrix packed. The others (GPT-2's) are stored dense, on their grid."""
    return linear.layout in STORED_LAYOUTS


def tensors(name: str, weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    """What the shard holds for a quantized linear called ``name``."""
    parts = {f"{name}.{part}": value for part, value in packed_parts(weight).items()}
    return parts | {f"{name}.weight_shape": torch.tensor(weight.codes.shape)}


def config_section(anatomy: Anatomy, grids: Mapping[str, Grid]) -> dict[str, Any]:
    """``quantization_config`` for config.json. grids: linear name -> its grid, for the packed ones.

    A pattern stands for all blocks where they agree; otherwise modules are named one by one. Nothing is targeted by
    class, so what is not named is not quantized; it is listed under ``ignore``, as vLLM wants it.
    """
    by_grid: dict[Grid, list[str]] = defaultdict(list)
    for linear in anatomy:
        if linear.name in grids:
            by_grid[grids[linear.name]].append(linear.name)
    rest = [linear.name for linear in anatomy if linear.name not in grids and "embed" not in linear.roles]
    every = [linear.name for linear in anatomy]
    ignore = _targets(rest, every)
    if anatomy.family.router:
        ignore.append(rf"re:.*\.{re.escape(anatomy.family.router)}$")
    groups = {
        f"group_{number}": QuantizationScheme(targets=_targets(names, every), weights=_arguments(grid), format=FORMAT)
        for number, (grid, names) in enumerate(by_grid.items())
    }
    section = QuantizationConfig(
        config_groups=groups, format=FORMAT, quantization_status="compressed", ignore=ignore
    ).model_dump(mode="json")
    return {"version": compressed_tensors.__version__} | section


def _arguments(grid: Grid) -> QuantizationArgs:
    grouped = (
        {"strategy": "channel"}
        if grid.group_size == WHOLE_ROW
        else {"strategy": "group", "group_size": grid.group_size}
    )
    return QuantizationArgs(num_bits=grid.bits, type="int", symmetric=grid.symmetric, dynamic=False, **grouped)


def _targets(names: list[str], every: list[str]) -> list[str]:
    pattern = lambda name: re.sub(r"\\\.\d+\\\.", lambda _: r"\.\d+\.", re.escape(name))
    members, total = defaultdict(list), defaultdict(int)
    for name in every:
        total[pattern(name)] += 1
    for name in names:
        members[pattern(name)].append(name)
    targets = []
    for shape, found in members.items():
        targets += [f"re:{shape}$"] if len(found) == total[shape] > 1 else found
    return targets


def read_grids(source: ModelFolder) -> dict[str, Grid]:
    """Linear name -> grid, from config.json, for every module that the shards hold packed.

    Raises JettisonError for a quantization that is not weight-only pack-quantized integers, and for tensors whose
    shapes or types are not those of their grid.
    """
    if not source.quantization:
        return {}
    section = dict(source.quantization)
    if section.get("quant_method") != "compressed-tensors":
        raise JettisonError(
            f"{source.folder} is quantized with {section.get('quant_method')!r}; only compressed-tensors can be read"
        )
    invalid = f"{source.folder}: quantization_config is not valid"
    with guarded(invalid):  # the library's checks raise more than ValidationError
        try:
            config = QuantizationConfig.model_validate(section)
        except ValidationError as error:
            first = error.errors()[0]
            raise JettisonError(f"{invalid}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if section.get("format", FORMAT) not in (FORMAT, MIXED):
        raise JettisonError(f"{invalid}: format = {section['format']!r:.60}; only {FORMAT} can be read")
    schemes = {target: scheme for scheme in config.config_groups.values() for target in scheme.targets}
    grids = {}
    for linear in source.anatomy:
        stored = f"{linear.name}.weight_packed"
        if source.has(stored):
            module = source.skeleton.get_submodule(linear.name)
            with guarded(f"{invalid}: targets"), cpu_limit(TARGET_SECONDS, f"{invalid}: matching {linear.name}"):
                matched = match_targets(linear.name, module, list(schemes))
            if not matched:
                raise JettisonError(f"{source.folder}: {linear.name} is packed, but no group of config.json targets it")
            grids[linear.name] = _grid(source, linear, schemes[matched[0]])
    return grids


def _grid(source: ModelFolder, linear: Linear, scheme: QuantizationScheme) -> Grid:
    weights, where = scheme.weights, f"{source.folder}: {linear.name}"
    if weights is None or weights.type != "int" or scheme.input_activations or scheme.output_activations:
        raise JettisonError(f"{where} is not weight-only integers, which is all that is read")
    if scheme.format not in (None, FORMAT) or weights.strategy not in ("channel", "group"):
        kind = f"{scheme.format or FORMAT} by {QuantizationStrategy(weights.strategy).value}"
        raise JettisonError(f"{where} is {kind}; only {FORMAT} by channel or group can be read")
    if source.has(f"{linear.name}.weight_g_idx"):
        raise JettisonError(f"{where} has its groups by activation order (weight_g_idx), which cannot be read")
    stored = lambda part: source.locate(f"{linear.name}.{part}")[0]
    if (kind := source.checkpoint.dtype(stored("weight_scale"))) not in SCALE_TYPES:
        raise JettisonError(f"{where}.weight_scale is stored as {kind}; valid: {', '.join(SCALE_TYPES)}")
    size = WHOLE_ROW if weights.strategy == "channel" else weights.group_size
    grid = Grid(weights.num_bits, size, weights.symmetric, SCALE_TYPES[kind])
    for part, value in empty_parts(linear.rows, linear.columns, grid).items():
        shape, kind = source.checkpoint.shape(stored(part)), source.checkpoint.dtype(stored(part))
        if shape != tuple(value.shape) or (value.dtype == torch.int32 and kind != "I32"):
            wanted = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
            raise JettisonError(f"{where}.{part} is {kind} {shape}; a weight of {grid} has {wanted}")
    if (kind := source.checkpoint.dtype(stored("weight_shape"))) not in ("I64", "I32"):  # 64.0 would equal 64
        raise JettisonError(f"{where}.weight_shape is stored as {kind}; valid: I64, I32")
    if source.read(f"{linear.name}.weight_shape").tolist() != [linear.rows, linear.columns]:
        raise JettisonError(f"{where}.weight_shape is not that of the config, {linear.rows} x {linear.columns}")
    return grid


def read_weight(
    read: Callable[[str], torch.Tensor], name: str, grid: Grid, rows: slice = slice(None)
) -> QuantizedWeight:
    """A packed linear, or some of its rows, unpacked. read: from a tensor's name to its value."""
    height, columns = read(f"{name}.weight_shape").tolist()
    codes = unpack(read(f"{name}.weight_packed")[rows], grid.bits, columns)
    zero = None if grid.symmetric else unpack(read(f"{name}.weight_zero_point").T, grid.bits, height).T[rows]
    return QuantizedWeight(codes, read(f"{name}.weight_scale")[rows], zero, grid)


def packed_linear(source: ModelFolder, name: str, grid: Grid, bias: torch.Tensor | None = None) -> PackedLinear:
    """A quantized linear of a folder, as it is stored."""
    rows, columns = source.read(f"{name}.weight_shape").tolist()
    parts = {part: source.read(f"{name}.{part}") for part in empty_parts(rows, columns, grid)}
    return PackedLinear(grid, columns, **parts, bias=bias)


@waiting("loading the model")
def load_packed(source: ModelFolder, dtype: torch.dtype) -> nn.Module:
    """The causal language model of a folder, its quantized linears as ``PackedLinear``, the rest in ``dtype``."""
    model = source.new_skeleton()
    embedding = model.get_input_embeddings()
    for name, grid in read_grids(source).items():
        module = model.get_submodule(name)
        if module is embedding:  # looked up row by row, not multiplied: kept dense
            weight = read_weight(source.read, name, grid).dequantize(dtype)
            module.weight = nn.Parameter(weight, requires_grad=False)
            continue
        bias = None if module.bias is None else source.read(f"{name}.bias").to(dtype)
        model.set_submodule(name, packed_linear(source, name, grid, bias))
    source.fill(model, dtype=dtype)
    return with_defaults(model, source, dtype)


class UnpackedFolder(ModelFolder):
    """A folder whose packed linears read as dense float32 weights: for what walks a model block by block."""

    def __init__(self, name: str | Path):
        super().__init__(name)
        self._grids = read_grids(ModelFolder(name))

    def locate(self, parameter: str) -> tuple[str, int | None, str]:
        base = parameter.removesuffix(".weight")
        return super().locate(f"{base}.weight_packed" if base in self._grids and base != parameter else parameter)

    def read(self, parameter: str) -> torch.Tensor:
        base = parameter.removesuffix(".weight")
        if base in self._grids and base != parameter:
            return read_weight(super().read, base, self._grids[base]).dequantize()
        return super().read(parameter)


def problems(anatomy: Anatomy, grids: Mapping[str, Grid]) -> list[str]:
    """What keeps transformers from loading this checkpoint, in plain words. Empty for most models."""
    found = []
    if any(not grid.symmetric for grid in grids.values()):
        found.append(
            "with compressed-tensors 0.18 to 0.20, transformers cannot load packed zero points: "
            "use symmetric: true, compressed-tensors 0.17, or jettison.load"
        )
    if any("embed" in linear.roles and linear.name in grids for linear in anatomy):
        found.append("transformers cannot run a packed embedding; jettison.load unpacks it")
    every = [linear for linear in anatomy if "expert" in linear.roles]
    experts = [linear for linear in every if linear.name in grids]
    if experts and anatomy.family.experts["stored"] == "stacked":
        found.append(f"transformers has no loader for packed experts of {anatomy.family.name}; jettison.load has")
    elif len({grids[linear.name] for linear in experts}) > 1:
        found.append(
            "transformers reads one grid for all experts, and this recipe has several; jettison.load reads all"
        )
    elif grids and len(experts) < len(every) and anatomy.family.experts["stored"] == "separate":
        found.append(
            "transformers reads all experts packed or, where nothing is packed, none: with some in 16 bits it fails or "
            "reads them wrongly; jettison.load does not"
        )
    return found
