"""Small parts of a run, really done, to know what all of it will take on this machine.

Compression is tried on one block of each kind. What works on the whole model (writing text, a training step, an
evaluation) is timed on copies of the model with one block and with two: the difference is what a block takes, and the
rest what embedding and head take.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import psutil
import torch
from torch import nn

from jettison.core.tensors import write_tensors
from jettison.domains.text.domain import WINDOW, check_tokens, lesson, text_windows
from jettison.domains.text.scores import BATCH, compare
from jettison.domains.text.synthesize import BATCH as WRITTEN_AT_ONCE
from jettison.domains.text.synthesize import write_batch
from jettison.domains.vision.data import open_images
from jettison.encodings.quantized import QuantizedWeight
from jettison.formats.writer import Writer
from jettison.graph.dense import compute_device, load_dense, stored_dtype, training_dtype
from jettison.graph.folder import ModelFolder
from jettison.graph.modules import PackedLinear
from jettison.graph.skeleton import run_model
from jettison.graph.whole import WholeWalk, random_inputs
from jettison.numerics.ranges import find_range
from jettison.pipeline.applying import apply_methods
from jettison.pipeline.jobs import Job, pick_format
from jettison.pipeline.units import AnyWalk, compress_unit
from jettison.recipe.recipe import Step
from jettison.recipe.registry import find
from jettison.runtime.load import Loaded
from jettison.statistics.stats import Stats
from jettison.training.pupil import Pupil

WRITTEN = 1 << 26  # bytes, to time the disk
WORK = 2e11  # arithmetic operations of a trial step at most: a second or a few
NEW_TOKENS = 32
WHOLE_BATCH = 8  # samples of a model that stays whole


@dataclass
class Trial:
    """seconds, and the largest resident memory of the process in bytes."""

    seconds: float = 0.0
    memory: float = 0.0


@contextmanager
def timed() -> Iterator[Trial]:
    """What the body takes."""
    trial, process, over = Trial(), psutil.Process(), Event()

    def look() -> None:
        while not over.wait(0.005):
            trial.memory = max(trial.memory, process.memory_info().rss)

    watcher = Thread(target=look, daemon=True)
    watcher.start()
    start = time.perf_counter()
    try:
        yield trial
    finally:
        trial.seconds = time.perf_counter() - start
        over.set()
        watcher.join()


def try_block(source: ModelFolder, jobs: list[Job], block: int | None, walk: AnyWalk | None) -> Trial:
    """Compress one block (with None, what lies outside) into a scratch folder."""
    with TemporaryDirectory() as scratch, timed() as trial:
        compress_unit(Writer(source, pick_format(source, jobs)), jobs, block, walk, Path(scratch))
    return trial


def try_rows(source: ModelFolder, job: Job, weights: int) -> float:
    """Seconds to compress one large linear, from some of its rows that hold about so many ``weights``."""
    linear = job.linear
    rows = max(1, min(linear.rows, weights // linear.columns))
    tokens = torch.randn(2 * linear.columns, linear.columns)
    stats = {linear.inputs: Stats.of(tokens, tokens)}
    part = replace(job, linear=replace(linear, rows=rows))
    with timed() as trial:
        apply_methods(source, [part], stats if job.needs else {})
    return trial.seconds * linear.rows / rows


def try_writing() -> float:
    """Seconds per byte of a shard: written, synced, read back."""
    data = torch.randint(2**31, (WRITTEN // 4,), dtype=torch.int32)
    with TemporaryDirectory() as scratch, timed() as trial:
        write_tensors(Path(scratch) / "trial.safetensors", {"data": data})
    return trial.seconds / WRITTEN


def per_model(source: ModelFolder, measure: Callable[[ModelFolder], float]) -> float:
    """What ``measure`` would give for the whole model, from copies with one block and with two."""
    one, two = (measure(source.shortened(blocks)) for blocks in (1, 2))
    return one + (source.anatomy.blocks - 1) * max(0.0, two - one)


def count_windows(source: ModelFolder, text: str | Path, tokens: int | None) -> int:
    """How many windows of a text an evaluation reads. Raises UsageError for fewer than 1 token."""
    check_tokens(tokens)
    return len(text_windows(source, text, source.window(WINDOW), tokens))


def count_images(images: str | Path, count: int | None) -> int:
    """How many an evaluation looks at."""
    return len(open_images(images).spread(count))


def sample_seconds(source: ModelFolder) -> float:
    """A forward pass of a model that stays whole, for one sample of its inputs."""
    model = load_dense(source, torch.float32)
    batch = random_inputs(source).repeat(WHOLE_BATCH, 1, 1, 1)
    with torch.no_grad():
        run_model(model, batch)
        with timed() as trial:
            run_model(model, batch)
    return trial.seconds / WHOLE_BATCH


def small_walk(source: ModelFolder, twice: bool) -> WholeWalk:
    """A walk on a few random samples."""
    return WholeWalk(source, random_inputs(source).repeat(WHOLE_BATCH, 1, 1, 1), twice)


def synthesis_seconds(source: ModelFolder, length: int) -> float:
    """To write one window."""
    tokens = min(length, max(NEW_TOKENS, int(WORK / (2 * WRITTEN_AT_ONCE * _weights(source)))))

    def measure(short: ModelFolder) -> float:
        teacher = load_dense(short).to(compute_device())
        write_batch(short, teacher, 0, 8, 0, (1.0,))
        with timed() as trial:
            write_batch(short, teacher, 0, tokens, 0, (1.0,))
        return trial.seconds / WRITTEN_AT_ONCE

    return per_model(source, measure) * length / tokens


def training_seconds(source: ModelFolder, jobs: list[Job], step: Step) -> tuple[float, float]:
    """Of one training step, and of what comes before the first."""
    options = dict(step.options)
    share = min(1.0, WORK / (8 * options["batch"] * options["length"] * _weights(source)))
    batch = max(1, int(share * options["batch"]))
    where = step.where.in_any_block()  # the copies have only the first blocks
    start: dict[int, float] = {}

    def measure(short: ModelFolder) -> float:
        packed = [
            job.linear
            for job in jobs
            if job.grid and job.linear.name in _names(short) and "embed" not in job.linear.roles
        ]
        adapted = [linear for linear in short.anatomy if where.matches(linear.roles, linear.block)]
        moments = [time.perf_counter()]
        with TemporaryDirectory() as scratch:
            pupil = Pupil(
                student=_pack(short, jobs, torch.float32),
                teacher=load_dense(short, training_dtype()),
                linears=[linear for linear in adapted if "embed" not in linear.roles],
                quantized=packed,
                dense=[linear for linear in adapted if linear not in packed and linear.block is not None],
                inputs=torch.randint(short.vocabulary, (3 * batch, options["length"])),
                lesson=lesson,
                state=Path(scratch) / "state.safetensors",
                save_every=1e9,
                record=lambda *_: moments.append(time.perf_counter()),
            )
            find("recover", step.method).function(
                pupil, **(options | {"samples": 3 * batch, "epochs": 1.0, "batch": batch})
            )
        start[short.anatomy.blocks] = moments[1] - moments[0]
        return min(later - earlier for earlier, later in itertools.pairwise(moments[1:]))

    each = per_model(source, measure) * options["batch"] / batch
    return each, start[1] + (source.anatomy.blocks - 1) * max(0.0, start[2] - start[1])


def evaluation_seconds(source: ModelFolder, jobs: list[Job], quantized: bool) -> float:
    """To read one window of WINDOW tokens (at most) with the original, or with both the original and its
    quantized form."""
    window = source.window(WINDOW)
    windows = max(1, min(BATCH, int(WORK / (4 * window * _weights(source)))))
    ids = torch.randint(source.vocabulary, (windows, window))

    def measure(short: ModelFolder) -> float:
        dtype = stored_dtype(short)
        reference = Loaded.ready(short, load_dense(short, dtype))
        student = Loaded.ready(short, _pack(short, jobs, dtype)) if quantized else reference
        compare(student.logits, reference.logits, ids, "trial")
        with timed() as trial:
            compare(student.logits, reference.logits, ids, "trial")
        return trial.seconds / windows

    return per_model(source, measure)


def speech_seconds(source: ModelFolder, jobs: list[Job], quantized: bool) -> float:
    """To write one token alone."""

    def measure(short: ModelFolder) -> float:
        dtype = stored_dtype(short)
        model = _pack(short, jobs, dtype) if quantized else load_dense(short, dtype)
        loaded = Loaded.ready(short, model)
        for _ in range(2):  # the first time warms up
            written = loaded.generate("The", tokens=NEW_TOKENS)
        return 1 / written.timings.decode

    return per_model(source, measure)


def _weights(source: ModelFolder) -> int:
    """Of a copy with two blocks, the largest that a trial loads."""
    anatomy = source.anatomy
    return sum(linear.weights for linear in anatomy if linear.block in (None, 0, 1))


def _names(source: ModelFolder) -> set[str]:
    return {linear.name for linear in source.anatomy}


def _pack(source: ModelFolder, jobs: list[Job], dtype: torch.dtype) -> nn.Module:
    """The model with plainly rounded weights on the grids of ``jobs``: as fast as the real result, and quickly made."""
    model = load_dense(source, dtype)
    for job in jobs:
        if job.grid and job.linear.name in _names(source) and job.linear.layout == "linear":
            inner = model.get_submodule(job.linear.name)
            weight = inner.weight.detach().float()
            ranges = find_range(job.grid.grouped(weight), job.grid, clip=False)
            packed = PackedLinear.of(QuantizedWeight.nearest(weight, *ranges, job.grid), inner.bias)
            model.set_submodule(job.linear.name, packed)
    return model
