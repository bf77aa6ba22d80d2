"""The program step of a recipe: find which blocks a diffusion pipeline computes at which step, and write the program.

``compress`` runs this first, on the original, and then applies the other steps to the weights. A search is recorded in
OUT/program/journal.jsonl, and a killed run continues. One search serves all ratios, so a program that is slower than
was asked for is cut anew from the same scores.
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from jettison.core.errors import UsageError
from jettison.core.files import file_digest, read_bytes, write_atomic
from jettison.core.journal import Journal
from jettison.core.numbers import figures
from jettison.core.progress import say
from jettison.domains.diffusion.folder_sampling import FolderSampler, default_guidance
from jettison.domains.diffusion.program import LIMIT, NAME, Program, read_program, write_program
from jettison.domains.diffusion.task import Programs, ProgramTask, at_work
from jettison.domains.diffusion.trajectories import open_scheduler, set_steps
from jettison.formats.manifest import NAME as MANIFEST
from jettison.formats.manifest import read_manifest
from jettison.graph.dense import compute_device, load_dense, require_memory
from jettison.graph.folder import ModelFolder
from jettison.pipeline.first_step import JOURNAL, first_step, remove_states, undone_if_refused
from jettison.recipe.fields import RunFields
from jettison.recipe.recipe import Recipe, Step
from jettison.recipe.registry import find
from jettison.runtime.latency import in_turns, ratio

FOLDER, SEARCH = "program", "search"
SAMPLES = 1000  # noises, and conditions in turn, that a search draws from
SEED = 1 << 20  # of the first of them: an evaluation has seeds that no search has seen
AGAIN = 3  # cuts of a higher ratio, where a program is slower than was asked for
ROUNDS = 20  # of timing, at most


@dataclass(frozen=True)
class Found:
    """A program that was found. path: of its file. section: of jettison.json, see ``FoundProgram``."""

    path: Path
    section: dict[str, Any]

    def place(self, out: Path) -> dict[str, str]:
        """Copy the file into a folder, unless it is there. Returns its name and its hash."""
        file, data = out / NAME, read_bytes(self.path, LIMIT)
        if not (file.is_file() and read_bytes(file, LIMIT) == data):
            write_atomic(file, lambda temporary: temporary.write_bytes(data))
        return {NAME: file_digest(file)}


def check_program(source: ModelFolder, recipe: Recipe) -> None:
    """Check, before any work, that a program can be found for a model.

    Raises UsageError for a model that is no diffusion pipeline, and for steps that its scheduler cannot run.
    """
    step, family = first_step(recipe, "program"), source.anatomy.family
    if family.domain != "diffusion":
        kind, valid = ("a language model", "prune") if family.chain else ("an image classifier", "depth")
        raise UsageError(
            f"«{step}»: a program is for pipelines of diffusers; {source.name} is {kind}: steps such as {valid} and "
            "quantize are for it"
        )
    count_calls(source, step)


def count_calls(source: ModelFolder, step: Step) -> int:
    """Return how often a full run calls the denoiser. Raises UsageError for steps that the scheduler cannot run."""
    return set_steps(source, open_scheduler(source), step.run.steps)


def find_program(source: ModelFolder, recipe: Recipe, out: Path, seed: int, save_every: float = 60.0) -> Found:
    """Run or continue the program step of a recipe, in OUT/program.

    Raises UsageError as the method does, and for a ratio that no program reaches; it then leaves nothing behind.
    """
    step, folder = first_step(recipe, "program"), out / FOLDER
    with undone_if_refused(folder):
        journal = Journal(folder / JOURNAL, inputs_of(source, step, seed))
        done, path = journal.last(finished=True), folder / NAME
        if not (done and path.is_file() and file_digest(path) == done["sha256"]):
            task = open_task(source, step, folder, journal, seed, save_every)
            _check_reach(task, step.run)
            program = _cut(task, programs_of(task, step), step.run)
            write_program(path, program)
            journal.add(finished=True, sha256=file_digest(path), guidance=task.sampler.guidance)
            done = journal.last(finished=True)
    remove_states(folder / SEARCH)
    return Found(path, _section(step, read_program(path), done["guidance"]))


def carried(source: ModelFolder) -> Found | None:
    """Return the program that a folder of Jettison has already; None if it has none.

    Raises UsageError for a file that is damaged, or not the one that was written.
    """
    if not (source.folder / MANIFEST).exists():
        return None
    manifest, path = read_manifest(source.folder), source.folder / NAME
    section = manifest.get("program")
    if not section:
        return None
    read_program(path)
    if file_digest(path) != manifest["hashes"].get(NAME):
        raise UsageError(f"{path} is not the program that was written: compress the original again")
    return Found(path, {name: value for name, value in section.items() if name != "curve"})


def open_task(
    source: ModelFolder, step: Step, folder: Path, journal: Journal, seed: int, save_every: float = 60.0
) -> ProgramTask:
    """Load a pipeline's denoiser for a program step. folder: of the step, OUT/program."""
    require_memory(4 * source.anatomy.parameters, f"finding a program for {source.name}")
    guidance = default_guidance(source) if step.run.guidance is None else step.run.guidance
    sampler = FolderSampler(
        source, load_dense(source, torch.float32).to(compute_device()).eval(), count=SAMPLES, guidance=guidance,
        seed=SEED + seed,
    )  # fmt: skip
    return ProgramTask(sampler, SAMPLES, step.run.steps, folder / SEARCH, journal, seed, save_every)


def programs_of(task: ProgramTask, step: Step) -> Programs:
    """Run the method of a program step. Returns the function from a ratio to a program."""
    return find("program", step.method).function(task, **step.options)


def inputs_of(source: ModelFolder, step: Step, seed: int) -> dict[str, Any]:
    """Return everything that the result depends on, for the journal's first line."""
    return {
        "kind": "program",
        "model": source.identity(),
        "step": {"method": step.method} | step.own_options | step.options,
        "seed": seed,
        "versions": {name: version(name) for name in ("jettison", "torch", "diffusers")},
    }


def _check_reach(task: ProgramTask, run: RunFields) -> None:
    """Raise UsageError, before a search, for a ratio or a speedup that no program of this sampler reaches."""
    most = task.run.most
    asked = run.ratio if run.ratio is not None else 1 - 1 / run.speedup
    if asked <= most:
        return
    name, value = ("ratio", run.ratio) if run.ratio is not None else ("speedup", run.speedup)
    limit = f"{int(most * 1e4) / 1e4:g}" if name == "ratio" else f"{int(100 / (1 - most)) / 100:g}"
    raise UsageError(
        f"program.{name} = {value:g}: at most {limit} is possible with {task.run.calls} calls of the denoiser, whose "
        "first is always computed; give less, or more steps"
    )


def _cut(task: ProgramTask, programs: Programs, run: RunFields) -> Program:
    """Return the program of the ratio that is asked for, or of one that is as fast as is asked for."""
    if run.ratio is not None:
        program = programs(run.ratio)
        say(f"program: {_counted(program)}; its time was not measured")
        return program
    share, most = 1 - 1 / run.speedup, task.run.most
    for attempt in range(1 + AGAIN):
        program = programs(share)
        measured = _time(task, program, attempt, share)
        say(f"program: {_counted(program)}; measured: {measured:.2f} times, {run.speedup:g} asked for")
        if measured >= run.speedup or share >= most:
            break
        share = min(most, next_share(share, program.costs.pruned, measured, run.speedup))
    if measured < run.speedup:
        say(f"note: no program that was tried is {run.speedup:g} times as fast; going on with the last one")
    return program


def next_share(share: float, pruned: float, measured: float, speedup: float) -> float:
    """Return the share of the FLOPs to skip after a program was too slow.

    share, pruned: of the FLOPs, asked of that program and skipped by it.
    measured, speedup: how many times as fast it is, and must be.
    Returns the share that is needed if time falls in proportion to FLOPs. It is at least 0.01 more than before, and at
    most what halves the FLOPs that are left: a time that other work made too long must not cost all quality.
    """
    saved = 1 - 1 / measured  # of the time
    needed = (1 - 1 / speedup) * pruned / saved if saved > 0 else 1.0
    return max(share + 0.01, min(needed, (1 + max(share, pruned)) / 2))


def _counted(program: Program) -> str:
    pruned = program.costs.pruned
    return f"{pruned:.1%} of a run's FLOPs are skipped, which is {figures(1 / (1 - pruned))} times as fast as counted"


def _time(task: ProgramTask, program: Program, attempt: int, share: float) -> float:
    """Measure how many times as fast a program is as the full run, in turns, without text encoders and VAE."""
    if not (done := task.journal.last(timed=attempt, ratio=share)):
        full = task.sampler.sampling(task.steps, decode=False)

        def run_program() -> None:
            with at_work(task.sampler, program, decode=False) as (sampling, _):
                sampling.images([0])

        with torch.no_grad():
            times = in_turns({"full": lambda: full.images([0]), "program": run_program}, rounds=ROUNDS)
        compared = ratio(times["full"]["samples_ms"], times["program"]["samples_ms"])
        task.journal.add(
            timed=attempt, ratio=share, speedup=round(compared["ratio"], 4), low=round(compared["low"], 4),
            high=round(compared["high"], 4),
            milliseconds={name: round(entry["median_ms"], 4) for name, entry in times.items()},
        )  # fmt: skip
        done = task.journal.last(timed=attempt, ratio=share)
    return done["speedup"]


def _section(step: Step, program: Program, guidance: float) -> dict[str, Any]:
    """Return the section ``program`` of jettison.json."""
    asked = {name: getattr(step.run, name) for name in ("ratio", "speedup") if getattr(step.run, name) is not None}
    return {
        "method": step.method,
        "source": program.source,
        "sampler": program.sampler,
        "steps": step.run.steps,
        "guidance": guidance,
        "flops": round(program.costs.run / program.costs.full, 6),
        "speedup": round(program.costs.full / program.costs.run, 4),
        "computed": sum(row.count("1") for row in program.gates),
        "blocks": len(program.gates) * len(program.units),
        "asked": asked,
    }
