"""Measure the operators: packed linears against those of other engines and the read limit, in one interleaved run."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from jettison.bench.peers import PEERS, Operator
from jettison.core.errors import UsageError, unknown
from jettison.core.numbers import check_number
from jettison.core.progress import bar
from jettison.core.timing import sample
from jettison.encodings.uniform import UniformGrid
from jettison.graph.shape import ModelShape
from jettison.kernels import native, ops
from jettison.kernels.tiles import Tiling

STREAMED = 256 << 20  # bytes of distinct weights that a run reads, so that they fit into no cache
READ_BYTES = 1 << 30
READS = [(streams, ahead) for streams in (1, 2, 4) for ahead in (0, 2048, 4096)]
MOST_ROUNDS, MOST_SIDE = 10_000, 1 << 20


@dataclass
class Row:
    """Measurements of one operator at one shape.

    count: rows of x.
    nbytes: bytes that a product reads.
    seconds, shares, foreign: lists with one entry per round: seconds of a product, its speed of reading divided by the
        read limit, and cores that other processes used meanwhile.
    """

    shape: str
    name: str
    bits: int
    count: int
    nbytes: int
    seconds: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the row of the result, with medians."""
        seconds = statistics.median(self.seconds)
        return {
            "shape": self.shape,
            "operator": self.name,
            "bits": self.bits,
            "rows": self.count,
            "microseconds": 1e6 * seconds,
            "bandwidth": self.nbytes / seconds,
            "share": statistics.median(self.shares),
            "samples": [round(1e6 * value, 2) for value in self.seconds],
            "foreign": round(max(self.foreign), 2),
        }


def linear_shapes(model: ModelShape) -> dict[str, tuple[int, int]]:
    """Return the shapes of the linears of a block: role -> (rows, columns).

    q, k and v count as one matrix; gate and up have the same shape and are listed once; so are experts.
    """
    shapes: dict[str, tuple[int, int]] = {}
    for linear in model.anatomy:
        if linear.block == 0:
            role = linear.roles[0]
            kind = "qkv" if role in ("q", "k", "v") else "gate/up" if role in ("gate", "up") else role
            before = shapes.get(kind, (0, 0))[0]
            if kind == "qkv" or not before:
                shapes[kind] = (before + linear.rows, linear.columns)
    return shapes


def measure_operators(
    shapes: Mapping[str, tuple[int, int]],
    *,
    bits: Sequence[int] = (4, 2),
    group_size: int = 128,
    counts: Sequence[int] = (1,),
    peers: Sequence[str] = tuple(PEERS),
    rounds: int = 7,
) -> dict[str, Any]:
    """Time x Wᵀ with packed weights: our C++ function ``kernel``, our PyTorch operator ``jettison``, and other engines.

    shapes: name -> (rows, columns) of W.
    bits, group_size: of the weights.
    counts: numbers of rows of x.
    peers: names of PEERS.
    rounds: samples of every operator.

    Every operator multiplies with copies of its weight that together fit into no cache. In every round every operator
    runs once, so that slow drift affects all of them equally. The read limit is measured before and after every sample:
    the best of nine ways to read 1 GiB (1, 2 or 4 streams per thread; no prefetching or two distances of it). A sample
    is repeated while other processes use more than a fifth of a core.

    Returns ``limit`` (bytes per second, the median), ``rows`` (with medians of microseconds, bandwidth and share of the
    read limit), ``missing`` (peer -> why it did not run), ``instruction_set`` and ``threads``.
    Raises UsageError for unknown peers, numbers that are not valid, and groups that the kernels do not support.
    """
    for peer in peers:
        if peer not in PEERS:
            raise unknown("peer", peer, PEERS)
    check_number("rounds", rounds, 1, MOST_ROUNDS, whole=True)
    for name, values, least, most in (("rows", counts, 1, 1 << 16), ("bits", bits, 2, 8)):
        if not values:
            raise UsageError(f"{name}: at least one value is needed")
        for value in values:
            check_number(name, value, least, most, whole=True)
    for code_bits in bits:
        if code_bits not in (2, 3, 4, 8):
            raise UsageError(f"bits = {code_bits}: the kernels support 2, 3, 4 and 8")
    for height, width in shapes.values():
        check_number("a side of a matrix", max(height, width), 1, MOST_SIDE, whole=True)
        for code_bits in bits:
            _tiling(width, height, code_bits, group_size)
    missing: dict[str, str] = {}
    data = torch.ones(READ_BYTES // 4)
    limits: list[float] = []
    rows: list[Row] = []
    with bar("operators", len(shapes) * rounds) as progress:
        for shape, (height, width) in shapes.items():
            operators: list[Operator] = []
            for count in counts:
                operators += [own for code_bits in bits for own in _own(width, height, code_bits, group_size, count)]
                for peer in peers:
                    try:
                        operators += PEERS[peer](width, height, bits, group_size, count, STREAMED)
                    except (ImportError, RuntimeError, ValueError) as error:  # not installed, or not for such a shape
                        missing[peer] = str(error).partition("\n")[0]
            rows_of_shape = [
                Row(shape, operator.name, operator.bits, operator.count, operator.nbytes) for operator in operators
            ]
            for _ in range(rounds):
                limits.append(read_limit(data))
                for row, operator in zip(rows_of_shape, operators, strict=True):
                    seconds, foreign = sample(operator.run)
                    limits.append(read_limit(data))
                    row.seconds.append(seconds / operator.copies)
                    row.shares.append(row.nbytes / row.seconds[-1] / statistics.mean(limits[-2:]))
                    row.foreign.append(foreign)
                progress.advance()
            rows += rows_of_shape
    return {
        "limit": statistics.median(limits),
        "instruction_set": native.instruction_set(),
        "threads": native.threads(),
        "rows": [row.to_dict() for row in rows],
        "missing": missing,
    }


def read_limit(data: torch.Tensor) -> float:
    """Return the bytes per second of the fastest way to read ``data`` once."""
    best = 0.0
    for streams, ahead in READS:
        start = time.perf_counter()
        native.read(data, streams, ahead)
        best = max(best, data.nbytes / (time.perf_counter() - start))
    return best


def random_tiles(tiling: Tiling, copies: int, seed: int = 0) -> list[torch.Tensor]:
    """Return several tensors of tiles with random codes and scales of 0.01."""
    torch.manual_seed(seed)
    scale = torch.full((tiling.groups, 32), 0.01, dtype=tiling.scale_dtype).view(torch.uint8)
    copies_of_tiles = []
    for _ in range(copies):
        tiles = torch.randint(0, 256, tiling.tiles_shape, dtype=torch.uint8)
        tiles[:, :, tiling.code_bytes :][:, :, : tiling.scale_bytes] = scale
        copies_of_tiles.append(tiles)
    return copies_of_tiles


def _tiling(columns: int, rows: int, bits: int, group_size: int) -> Tiling:
    grid = UniformGrid(bits, group_size)
    tiling = Tiling.of(grid, rows, columns) if grid.groups(columns) else None
    if tiling is None:
        raise UsageError(f"groups of {group_size} in {columns} columns: the kernels do not support them")
    return tiling


def _own(columns: int, rows: int, bits: int, group_size: int, count: int) -> list[Operator]:
    """Make our two operators for one shape."""
    tiling = _tiling(columns, rows, bits, group_size)
    nbytes = math.prod(tiling.tiles_shape)
    tiles = random_tiles(tiling, max(2, -(-STREAMED // nbytes)))
    x, y = torch.randn(count, columns), torch.empty(count, rows)
    multiply = native.prepared(x, tiling, y)

    def kernel() -> None:
        for copy_of_tiles in tiles:
            multiply(copy_of_tiles.data_ptr(), nbytes)

    def operator() -> None:
        with torch.inference_mode():
            for copy_of_tiles in tiles:
                ops.tiled_linear(x, copy_of_tiles, None, None, tiling)

    return [
        Operator(name, bits, count, nbytes, len(tiles), run)
        for name, run in (("kernel", kernel), ("jettison", operator))
    ]
