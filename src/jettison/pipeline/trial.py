"""Time small parts of a run on this machine, to estimate the whole run.

- Compression is tried on one block of each kind.
- Work on the whole model (writing text, a training step, an evaluation) is timed on copies of the model with one block
  and with two. The difference is the time of one block; the rest is the time of embedding and head.
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
from jettison.domains.domain import Sources, find_domain
from jettison.domains.text.domain import WINDOW, check_tokens, lesson, text_windows
from jettison.domains.text.scores import BATCH, compare
from jettison.domains.text.synthesize import BATCH as WRITTEN_AT_ONCE
from jettison.domains.text.synthesize import write_batch
from jettison.domains.vision.data import open_images
from jettison.encodings.quantized import QuantizedWeight
from jettison.graph.dense import compute_device, load_dense, stored_dtype, training_dtype
from jettison.graph.folder import ModelFolder
from jettison.graph.modules import PackedLinear
from jettison.graph.skeleton import run_model
from jettison.graph.whole import WholeWalk
from jettison.numerics.ranges import find_range
from jettison.pipeline.applying import apply_methods
from jettison.pipeline.jobs import Job, open_writer
from jettison.pipeline.units import AnyWalk, compress_unit
from jettison.recipe.recipe import Step
from jettison.recipe.registry import find
from jettison.runtime.load import Loaded
from jettison.statistics.stats import Stats
from jettison.training.pupil import Pupil

WRITTEN = 1 << 26  # bytes to write, to time the disk
WORK = 2e11  # most arithmetic operations of a trial step: one second or a few
NEW_TOKENS = 32
WHOLE_BATCH = 8  # samples per batch of a model that is no chain of blocks


@dataclass
class Trial:
    """What a trial took. memory: the largest resident memory of the process, in bytes."""

    seconds: float = 0.0
    memory: float = 0.0


@contextmanager
def timed() -> Iterator[Trial]:
    """Measure the time and memory that the body of the ``with`` statement takes."""
    trial, process, over = Trial(), psutil.Process(), Event()

    def watch_memory() -> None:
        while not over.wait(0.005):
            trial.memory = max(trial.memory, process.memory_info().rss)

    watcher = Thread(target=watch_memory, daemon=True)
    watcher.start()
    start = time.perf_counter()
    try:
        yield trial
    finally:
        trial.seconds = time.perf_counter() - start
        over.set()
        watcher.join()


def try_block(source: ModelFolder, jobs: list[Job], block: int | None, walk: AnyWalk | None) -> Trial:
    """Compress one block into a scratch folder; with None, the linears outside the blocks."""
    with TemporaryDirectory() as scratch, timed() as trial:
        compress_unit(open_writer(source, jobs), jobs, block, walk, Path(scratch))
    return trial


def try_rows(source: ModelFolder, job: Job, weights: int) -> float:
    """Estimate the seconds to compress one large linear, from a trial on rows with about ``weights`` weights."""
    linear = job.linear
    rows = max(1, min(linear.rows, weights // linear.columns))
    tokens = torch.randn(2 * linear.columns, linear.columns)
    stats = {linear.inputs: Stats.of(tokens, tokens)}
    part = replace(job, linear=replace(linear, rows=rows))
    with timed() as trial:
        apply_methods(source, [part], stats if job.needs else {})
    return trial.seconds * linear.rows / rows


def try_writing() -> float:
    """Measure the seconds per byte of a shard: to write it, sync it and read it back."""
    data = torch.randint(2**31, (WRITTEN // 4,), dtype=torch.int32)
    with TemporaryDirectory() as scratch, timed() as trial:
        write_tensors(Path(scratch) / "trial.safetensors", {"data": data})
    return trial.seconds / WRITTEN


def per_model(source: ModelFolder, measure: Callable[[ModelFolder], float]) -> float:
    """Estimate ``measure`` of the whole model, from copies with one block and with two."""
    one, two = (measure(source.shortened(blocks)) for blocks in (1, 2))
    return one + (source.anatomy.blocks - 1) * max(0.0, two - one)


def count_windows(source: ModelFolder, text: str | Path, tokens: int | None) -> int:
    """Count the windows of a text that an evaluation reads. Raises UsageError for fewer than 1 token."""
    check_tokens(tokens)
    return len(text_windows(source, text, source.window(WINDOW), tokens))


def count_images(images: str | Path, count: int | None) -> int:
    """Count the images that an evaluation uses."""
    return len(open_images(images).spread(count))


def amount(source: ModelFolder, images: str | Path, count: int | None) -> int:
    """Count the inputs that an evaluation of a model reads, which is no chain of blocks."""
    return find_domain(source).amount(source, Sources(images=images, count=count))


def sample_seconds(source: ModelFolder) -> float:
    """Measure the seconds per sample of a forward pass, for a model that is no chain of blocks."""
    model = load_dense(source, torch.float32)
    batch = _example(source)
    with torch.no_grad():
        run_model(model, batch)
        with timed() as trial:
            run_model(model, batch)
    return trial.seconds / WHOLE_BATCH


def _example(source: ModelFolder) -> torch.Tensor:
    """Return inputs (8, ...) that the model can read, all equal."""
    inputs, _ = find_domain(source).example(source)
    return inputs[:1].repeat(WHOLE_BATCH, *[1] * (inputs.dim() - 1))


def small_walk(source: ModelFolder, twice: bool) -> WholeWalk:
    """Return a walk on a few random samples, through a model that is no chain of blocks.

    twice: keep the original beside the compressed model.
    """
    return WholeWalk(source, _example(source), twice)


def synthesis_seconds(source: ModelFolder, length: int) -> float:
    """Estimate the seconds to write one window of ``length`` tokens of synthetic text."""
    # 2 operations per weight and token of every text that is written at once
    tokens = min(length, max(NEW_TOKENS, int(WORK / (2 * WRITTEN_AT_ONCE * _weights(source)))))

    def measure(short: ModelFolder) -> float:
        teacher = load_dense(short).to(compute_device())
        write_batch(short, teacher, 0, 8, 0, (1.0,))
        with timed() as trial:
            write_batch(short, teacher, 0, tokens, 0, (1.0,))
        return trial.seconds / WRITTEN_AT_ONCE

    return per_model(source, measure) * length / tokens


def training_seconds(source: ModelFolder, jobs: list[Job], step: Step) -> tuple[float, float]:
    """Estimate the seconds of one training step, and of the preparation before the first one."""
    options = dict(step.options)
    # 8 operations per weight and token: 2 for the teacher, 2 forward and 4 backward for the student
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

    seconds = per_model(source, measure) * options["batch"] / batch
    return seconds, start[1] + (source.anatomy.blocks - 1) * max(0.0, start[2] - start[1])


def evaluation_seconds(source: ModelFolder, jobs: list[Job], quantized: bool) -> float:
    """Estimate the seconds to evaluate one window of at most WINDOW tokens: a model is compared with the original.

    quantized: the model is the original's quantized form; if False, the original is compared with itself.
    """
    window = source.window(WINDOW)
    # 4 operations per weight and token: 2 for each of the two models
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
    """Estimate the seconds to generate one token at batch 1, with the original or its quantized form."""

    def measure(short: ModelFolder) -> float:
        dtype = stored_dtype(short)
        model = _pack(short, jobs, dtype) if quantized else load_dense(short, dtype)
        loaded = Loaded.ready(short, model)
        for _ in range(2):  # the first run warms up
            written = loaded.generate("The", tokens=NEW_TOKENS)
        return 1 / written.timings.decode if written.timings.decode else 0.0  # 0: the first token ended the text

    return per_model(source, measure)


def _weights(source: ModelFolder) -> int:
    """Count the weights of a copy with two blocks, the largest copy that a trial loads."""
    anatomy = source.anatomy
    return sum(linear.weights for linear in anatomy if linear.block in (None, 0, 1))


def _names(source: ModelFolder) -> set[str]:
    return {linear.name for linear in source.anatomy}


def _pack(source: ModelFolder, jobs: list[Job], dtype: torch.dtype) -> nn.Module:
    """Load a model and round its weights to the grids of ``jobs``: as fast as the real result, and quick to make."""
    model = load_dense(source, dtype)
    for job in jobs:
        if job.grid and job.linear.name in _names(source) and job.linear.layout == "linear":
            inner = model.get_submodule(job.linear.name)
            weight = inner.weight.detach().float()
            ranges = find_range(job.grid.grouped(weight), job.grid, clip=False)
            packed = PackedLinear.of(QuantizedWeight.nearest(weight, *ranges, job.grid), inner.bias)
            model.set_submodule(job.linear.name, packed)
    return model
