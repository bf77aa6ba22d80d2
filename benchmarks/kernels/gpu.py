"""Linear layers on packed weights on a GPU: time against bf16, and against torchao and gemlite if they are installed.

    python -m benchmarks.kernels.gpu         # some minutes; needs a GPU and Triton
    python -m benchmarks.kernels.gpu --ours  # neither torchao nor gemlite

The layers are those of Qwen3-4B and Llama-3.1-8B: 4 bits in groups of 128 and 2 bits in groups of 64, symmetric, and
bf16 weights of which two of four are zero, as PyTorch's semi-structured tensors. A time is that of one call among many
in a CUDA graph. Each call has its own copy of the weights, so that no cache holds them, as in a model that decodes.
Times are medians of 20 replays. Bandwidth is what the machine reads when it sums 2 GB. First everything is compiled,
one process per layer. Then each layer is a cell in runs/gpu_kernels, so that a stopped run continues.

For torchao and gemlite: pip install -r benchmarks/kernels/gpu_requirements.txt
"""

import argparse
import math
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version

import torch

from benchmarks.witness import RUNS, cell, claim, origin, write_result
from jettison.encodings.grid import Grid
from jettison.encodings.uniform import UniformGrid
from jettison.kernels import gpu, ops
from jettison.runtime.semi_structured import use_semi_structured

NAME = "gpu_kernels"
LAYERS = {
    "qwen3-4b": {"qkv": (6144, 2560), "o": (2560, 4096), "gate_up": (19456, 2560), "down": (2560, 9728)},
    "llama-3.1-8b": {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)},
}
GRIDS = {"w4": UniformGrid(4, 128), "w2": UniformGrid(2, 64)}
TARGETS = {"w4": 3.0, "w2": 4.0}
# What was tried to reach these targets, on an H200.
ATTEMPTS = (
    "First on plain arithmetic units: 1.51 and 1.78 at the least, 0.4 to 0.9 at batch 4 and 16. Then on matrix units, "
    "the codes unpacked in the registers where these want them; then sums scaled in place of weights (fewer "
    "instructions, no faster); words asked for two turns ahead. What is left, as Nsight Compute saw 28672 x 4096 in 4 "
    "bits before the last step: logic instructions fill 57 % of their units, reads 51 % of what the memory gives"
)
BATCHES = (1, 4, 16, 512)
REPLAYS = 20
Call = Callable[[torch.Tensor], torch.Tensor]


def seconds_per_call(calls: list[Callable[[], torch.Tensor]]) -> float:
    """Return the seconds of one call: the median over replays of a CUDA graph of all the calls."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # a first call compiles and sets up, which must not be captured
        calls[0](), calls[-1]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times) / len(calls)


def bandwidth() -> float:
    """Return the bytes per second that a sum over 2 GB reads."""
    large = torch.rand(1 << 29, device="cuda")
    return large.nbytes / seconds_per_call([large.sum] * 5)


def ours(rows: int, columns: int, grid: Grid, copies: int) -> list[Call]:
    """Return copies of one layer on our kernels, with random codes and scales.

    Raises ArithmeticError if a result is off by 1 % or more from the PyTorch reference.
    """
    words = columns * grid.bits // 32  # 32-bit words per row
    parts = [
        (
            torch.randint(-(2**31), 2**31, (rows, words), dtype=torch.int32, device="cuda"),  # packed codes
            torch.randn(rows, grid.groups(columns), device="cuda").to(grid.scale_dtype),
        )
        for _ in range(copies)
    ]
    for batch in BATCHES:
        x = torch.randn(batch, columns, dtype=torch.bfloat16, device="cuda")
        y = gpu.quant_linear(x, *parts[0], None, grid.bits, grid.group_size).float()  # (batch, rows)
        expected = ops.quant_linear(x.float(), *parts[0], None, grid)
        error = float((y - expected).norm() / expected.norm())
        if not error < 0.01:
            raise ArithmeticError(f"{grid}, {rows} x {columns}, {batch} rows of x: off by {error:.2%}")
    return [lambda x, part=part: gpu.quant_linear(x, *part, None, grid.bits, grid.group_size) for part in parts]


def bf16(rows: int, columns: int, copies: int) -> list[Call]:
    """Return copies of one layer with random bf16 weights."""
    weights = [torch.randn(rows, columns, dtype=torch.bfloat16, device="cuda") for _ in range(copies)]
    return [lambda x, weight=weight: torch.nn.functional.linear(x, weight) for weight in weights]


def semi_structured(rows: int, columns: int, copies: int) -> list[Call]:
    """Return copies of one layer with 2:4 weights in PyTorch's semi-structured tensors."""
    linears = []
    for _ in range(copies):
        linear = torch.nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16, device="cuda")
        linear.weight.data.unflatten(1, (-1, 2, 2))[..., 1] = 0  # every second column: two of each four
        use_semi_structured(linear, fallback=False)
        linears.append(linear)
    return linears


def torchao(rows: int, columns: int, grid: Grid, copies: int) -> list[Call]:
    """Return copies of one layer quantized by torchao."""
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    config = Int4WeightOnlyConfig(
        group_size=grid.group_size, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
    )
    linears = []
    for _ in range(copies):
        linear = torch.nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16, device="cuda").requires_grad_(False)
        quantize_(linear, config)
        linears.append(linear)
    return linears


def gemlite(rows: int, columns: int, grid: Grid, copies: int) -> list[Call]:
    """Return copies of one layer packed by gemlite."""
    from gemlite.core import TORCH_TO_DTYPE, GemLiteLinear

    kind = TORCH_TO_DTYPE[torch.bfloat16]
    linears = []
    for _ in range(copies):
        linear = GemLiteLinear(grid.bits, grid.group_size, columns, rows, input_dtype=kind, output_dtype=kind)
        codes = torch.randint(0, 2**grid.bits, (rows, columns), device="cuda").to(torch.uint8)
        scale = torch.rand(rows * grid.groups(columns), 1, device="cuda").bfloat16()
        linear.pack(codes, scale, torch.full_like(scale, grid.zero_code), None)
        linears.append(linear)
    return linears


# Name -> the function that makes its linears, and the grids it is compared on; None: the weights are not on a grid.
OTHERS = {"2:4": (semi_structured, (None,))}
RIVALS = {"torchao": (torchao, ("w4",)), "gemlite": (gemlite, ("w4", "w2"))}


def measured(make: Callable[[int], list[Call]], columns: int, nbytes: float) -> dict[int, float]:
    """Return the seconds per call, by batch.

    make: makes so many copies of a layer. All copies together fill four L2 caches, or 200 MB if that is more.
    nbytes: bytes of one copy's weights.
    """
    streamed = max(200e6, 4 * torch.cuda.get_device_properties(0).L2_cache_size)
    calls = make(max(2, -(-int(streamed) // int(nbytes))))
    by_batch = {}
    with torch.no_grad():
        for batch in BATCHES:
            x = torch.randn(batch, columns, dtype=torch.bfloat16, device="cuda")
            by_batch[batch] = seconds_per_call([lambda call=call, x=x: call(x) for call in calls])
    return by_batch


def layer(rows: int, columns: int, others: dict) -> tuple[dict[str, dict], dict[str, str]]:
    """Measure one layer.

    Returns grid and engine -> bytes of the weights, seconds by batch; and engine -> reason, for those left out.
    """
    times, left_out = {"bf16": {"bytes": 2 * rows * columns}}, {}
    times["bf16"]["seconds"] = measured(lambda copies: bf16(rows, columns, copies), columns, 2 * rows * columns)
    for name, grid in (GRIDS | {None: None}).items():
        nbytes = rows * columns * (grid.bits_per_weight(columns) if grid else 9) / 8
        if grid:
            make = lambda copies, grid=grid: ours(rows, columns, grid, copies)
            times[name] = {"bytes": nbytes, "seconds": measured(make, columns, nbytes)}
        for other, (linears, grids) in others.items():
            if name not in grids or other in left_out:
                continue
            arguments = (rows, columns, grid) if grid else (rows, columns)
            make = lambda copies, linears=linears, arguments=arguments: linears(*arguments, copies)
            try:
                seconds = measured(make, columns, nbytes)
                times[f"{name} {other}" if name else other] = {"bytes": nbytes, "seconds": seconds}
            except Exception as error:  # not installed, or any error of another project's version
                left_out[other] = f"{type(error).__name__}: {error}"
        torch.cuda.empty_cache()
    return times, left_out


def compiled(job: tuple[int, int, list[str]]) -> None:
    """Measure a layer once, so that Triton's cache holds its compiled kernels. job: rows, columns, names of others."""
    rows, columns, names = job
    layer(rows, columns, {name: (OTHERS | RIVALS)[name] for name in names})


def rows_of(model: str, role: str, others: dict) -> dict:
    """Measure a layer of a model for its cell, and print the rows."""
    read, rows = bandwidth(), []
    times, left_out = layer(*LAYERS[model][role], others)
    for name, entry in times.items():
        for batch, seconds in entry["seconds"].items():
            row = {"batch": batch, "weights": name, "seconds": seconds, "bytes_per_second": entry["bytes"] / seconds}
            rows.append(row)
            print(
                f"{model + ' ' + role:<22} {batch:>5}  {name:<12} {1e6 * seconds:>9.2f} us "
                f"{row['bytes_per_second'] / 1e9:>6.0f} GB/s {row['bytes_per_second'] / read:>4.0%} of read",
                flush=True,
            )
    for name, reason in left_out.items():
        print(f"{name}: left out, {reason}")
    versions = {name: version(name) for name in ("torch", "triton")}
    gpu = torch.cuda.get_device_name()
    return {"gpu": gpu, "versions": versions, "read": read, "left_out": left_out, "rows": rows}


def claims_of(cells: dict[str, dict]) -> list[dict]:
    """Return the claims. cells: "model role" -> result of ``rows_of``."""
    times = {
        key: {(row["weights"], row["batch"]): row["seconds"] for row in result["rows"]} for key, result in cells.items()
    }

    def least(than: str, weights: str, batches: tuple[int, ...]) -> tuple[float, str]:
        """Return the least speed-up over ``than``, and a note: among how many products, and where it is."""
        ratios = [
            (cell_times[than, batch] / cell_times[weights, batch], f"{key}, batch {batch}")
            for key, cell_times in times.items()
            for batch in batches
            if (than, batch) in cell_times
        ]
        if not ratios:
            return math.nan, ""
        value, where = min(ratios)
        return value, f"the least of {len(ratios)} products: {where}"

    older = next(filter(None, map(origin, cells.values())), "")
    claims = []
    for name, target in TARGETS.items():
        value, where = least("bf16", name, (1,))
        best = max(cell_times["bf16", 1] / cell_times[name, 1] for cell_times in times.values())
        note = "; ".join(filter(None, [f"{where}; the most {best:.2f}. {ATTEMPTS}", older]))
        claims.append(claim(f"gpu_{name}_vs_bf16", value, "x", "higher", target, note))
    for rival, (_, grids) in RIVALS.items():
        for name in grids:
            value, where = least(f"{name} {rival}", name, BATCHES)
            if where:
                note = "; ".join(filter(None, [where, older]))
                claims.append(claim(f"gpu_{name}_vs_{rival}", value, "x", "higher", 1.0, note))
    return claims


def main() -> None:
    """Measure the layers that have no cell yet, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", action="store_true", help="neither torchao nor gemlite")
    others = dict(OTHERS) if parser.parse_args().ours else OTHERS | RIVALS
    torch.manual_seed(0)
    layers = [(model, role) for model, roles in LAYERS.items() for role in roles]
    missing = [(model, role) for model, role in layers if not (RUNS / NAME / f"{model}-{role}.json").exists()]
    if missing:
        if not torch.cuda.is_available():
            sys.exit(f"no CUDA device: {len(missing)} of {len(layers)} layers are still to be measured")
        jobs = [(*LAYERS[model][role], list(others)) for model, role in missing]
        with multiprocessing.get_context("spawn").Pool(len(jobs)) as pool:
            pool.map(compiled, jobs)
    cells = {}
    for model, role in layers:
        cells[f"{model} {role}"] = cell(NAME, f"{model}-{role}", lambda key=(model, role): rows_of(*key, others))
    seconds = sum(result["seconds"] for result in cells.values())
    write_result(NAME, claims_of(cells), seconds, {"layers": LAYERS, "cells": cells}, script=__file__)


if __name__ == "__main__":
    main()
