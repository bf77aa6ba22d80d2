"""The format compressed-tensors, pack-quantized: one grid per group of modules, weights packed in int32 words.

The section of config.json is written with the schema of the library compressed-tensors itself.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import compressed_tensors
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStrategy,
)
from compressed_tensors.utils.match import match_targets
from pydantic import ValidationError

from jettison.core.errors import JettisonError, guarded
from jettison.core.limits import cpu_limit
from jettison.encodings.grid import WHOLE_ROW, Grid
from jettison.encodings.uniform import UniformGrid
from jettison.formats.format import refusals
from jettison.formats.parts import SCALE, SCALE_TYPES, check_parts, read_weight, stored, tensors
from jettison.graph.anatomy import Anatomy, Linear
from jettison.graph.folder import ModelFolder

__all__ = ["SCALE", "detects", "packs", "problems", "read_grids", "read_weight", "refuses", "section"]
__all__ += ["stored", "tensors"]

LIBRARIES = ("compressed-tensors", "safetensors")
TARGET_SECONDS = 5.0  # limit for matching one name with the targets of a config, which takes microseconds
FORMAT, MIXED = "pack-quantized", "mixed-precision"  # format of a group; format of a section whose groups differ
STORED_LAYOUTS = ("linear", "embedding")


def detects(quantization: Mapping[str, Any]) -> bool:
    """Whether a section ``quantization_config`` says that a checkpoint is in compressed-tensors."""
    return quantization.get("quant_method") == "compressed-tensors"


def packs(linear: Linear) -> bool:
    """Whether a matrix is stored packed: linears and embeddings are. Others (Conv1D of GPT-2) are stored dense, with
    their values on the grid."""
    return linear.layout in STORED_LAYOUTS


def refuses(anatomy: Anatomy, grids: Mapping[str, Grid]) -> list[str]:
    """Refuse grids that are not uniform, and convolutions, which the format could only store dense. One line each."""
    other = lambda linear, grid: not isinstance(grid, UniformGrid)
    convolution = lambda linear, grid: linear.layout == "conv2d"
    kinds = {"grids but uniform ones": other, "quantized convolutions": convolution}
    return refusals("compressed-tensors", anatomy, grids, kinds)


def section(
    anatomy: Anatomy, grids: Mapping[str, Grid], dense: Sequence[str] = (), extra: Sequence[Linear] = ()
) -> dict[str, Any]:
    """Return ``quantization_config`` for config.json.

    A pattern stands for a module of all blocks if they agree; otherwise modules are named one by one. Nothing is
    targeted by class, so a module that is not named is not quantized. Such modules are also listed under ``ignore``,
    which vLLM needs.

    grids: linear name -> its grid, for the packed ones.
    dense, extra: matrices of blocks that the model does not have, such as those for multi-token prediction: dense
        ones, and packed ones.
    """
    by_grid: dict[Grid, list[str]] = defaultdict(list)
    for linear in anatomy:
        if linear.name in grids:
            by_grid[grids[linear.name]].append(linear.name)
    rest = [linear.name for linear in anatomy if linear.name not in grids and "embed" not in linear.roles]
    every = [linear.name for linear in anatomy]
    others, every_extra = bool(dense or extra), [linear.name for linear in extra]
    ignore = _targets(rest, every, others) + sorted(dense)
    if anatomy.family.router:
        ignore.append(rf"re:.*\.{re.escape(anatomy.family.router)}$")
    targets = {grid: _targets(names, every, others) for grid, names in by_grid.items()}
    for grid in dict.fromkeys(grids[name] for name in every_extra):
        names = [name for name in every_extra if grids[name] == grid]
        targets[grid] = targets.get(grid, []) + _targets(names, every_extra, others)
    groups = {
        f"group_{number}": QuantizationScheme(targets=names, weights=_arguments(grid), format=FORMAT)
        for number, (grid, names) in enumerate(targets.items())
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


def _targets(names: list[str], every: list[str], others: bool) -> list[str]:
    # A pattern is a name with its numbers (block, expert) left open. others: there are blocks that the model does not
    # have, so a pattern lists the numbers of its blocks, and stands for the modules of these blocks alone.
    pattern = lambda name: re.sub(r"\\\.\d+\\\.", lambda _: r"\.\d+\.", re.escape(name))
    members, total = defaultdict(list), defaultdict(int)
    for name in every:
        total[pattern(name)] += 1
    for name in names:
        members[pattern(name)].append(name)
    targets = []
    for shape, matching in members.items():
        numbers = dict.fromkeys(number[1] for name in matching if (number := re.search(r"\.(\d+)\.", name)))
        shown = shape.replace(r"\d+", f"(?:{'|'.join(numbers)})", 1) if others else shape
        targets += [f"re:{shown}$"] if len(matching) == total[shape] > 1 else matching
    return targets


def read_grids(source: ModelFolder) -> dict[str, Grid]:
    """Return linear name -> grid, from config.json, for every module that the shards hold packed.

    Raises JettisonError for a quantization that is not weight-only pack-quantized integers, and for tensors whose
    shapes or types are not those of their grid.
    """
    section = dict(source.quantization)
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
        raise JettisonError(f"{where} is not weight-only integers; nothing else can be read")
    if scheme.format not in (None, FORMAT) or weights.strategy not in ("channel", "group"):
        kind = f"{scheme.format or FORMAT} by {QuantizationStrategy(weights.strategy).value}"
        raise JettisonError(f"{where} is {kind}; only {FORMAT} by channel or group can be read")
    if source.has(f"{linear.name}.weight_g_idx"):
        raise JettisonError(f"{where} has its groups by activation order (weight_g_idx), which cannot be read")
    stored = lambda part: source.locate(f"{linear.name}.{part}")[0]
    if (kind := source.checkpoint.dtype(stored("weight_scale"))) not in SCALE_TYPES:
        raise JettisonError(f"{where}.weight_scale is stored as {kind}; valid: {', '.join(SCALE_TYPES)}")
    size = WHOLE_ROW if weights.strategy == "channel" else weights.group_size
    grid = UniformGrid(weights.num_bits, size, weights.symmetric, SCALE_TYPES[kind])
    check_parts(source, linear, grid)
    return grid


def problems(anatomy: Anatomy, grids: Mapping[str, Grid]) -> list[str]:
    """List the reasons why transformers cannot load this checkpoint, as sentences. Empty for most models."""
    reasons = []
    if any(not grid.symmetric for grid in grids.values()):
        reasons.append(
            "with compressed-tensors 0.18 to 0.20, transformers cannot load packed zero points: "
            "use symmetric: true, compressed-tensors 0.17, or jettison.load"
        )
    if any("embed" in linear.roles and linear.name in grids for linear in anatomy):
        reasons.append("transformers cannot run a packed embedding; jettison.load can")
    every = [linear for linear in anatomy if "expert" in linear.roles]
    experts = [linear for linear in every if linear.name in grids]
    if experts and anatomy.family.experts["stored"] == "stacked":
        reasons.append(f"transformers has no loader for packed experts of {anatomy.family.name}; jettison.load has")
    elif len({grids[linear.name] for linear in experts}) > 1:
        reasons.append(
            "transformers reads one grid for all experts, and this recipe has several; jettison.load reads all"
        )
    elif grids and len(experts) < len(every) and anatomy.family.experts["stored"] == "separate":
        reasons.append(
            "transformers reads all experts packed or, where nothing is packed, none: with some in 16 bits it fails or "
            "reads them wrongly; jettison.load does not"
        )
    return reasons
