"""Quality against cost: how much runs of programs at several costs resemble full runs, for the report of ``fit``.

The programs are cut from the scores that the program step found. Methods with the trait ``rival`` stand beside them.
"""

from pathlib import Path

import torch

from jettison.core.files import digest
from jettison.core.journal import Journal
from jettison.core.progress import bar
from jettison.domains.diffusion.folder_sampling import FolderSampler
from jettison.domains.diffusion.program import Program
from jettison.domains.diffusion.search import per_sample_ssim
from jettison.domains.diffusion.task import ProgramTask, at_work, draw
from jettison.formats.manifest import read_manifest, update_manifest
from jettison.graph.folder import ModelFolder
from jettison.pipeline.first_step import JOURNAL, first_step
from jettison.pipeline.program import FOLDER, inputs_of, open_task, programs_of
from jettison.recipe.recipe import Recipe, Step
from jettison.recipe.registry import methods

RATIOS = (0.25, 0.4, 0.5, 0.6, 0.75)  # of the FLOPs that are skipped; that of the folder's program comes to them
SEEDS = 4


def measure_curve(source: ModelFolder, recipe: Recipe, out: Path, seed: int) -> None:
    """Measure how similar runs of programs are to full runs of the original, and store it in jettison.json.

    source: the original; its weights are used for all runs.
    out: the finished folder, whose program step is ``recipe``'s. What is measured already is not measured again.
    """
    section = read_manifest(out)["program"]
    if section.get("curve"):
        return
    step = first_step(recipe, "program")
    journal = Journal(out / FOLDER / JOURNAL, inputs_of(source, step, seed))
    task = open_task(source, step, out / FOLDER, journal, seed)
    sampler = FolderSampler(source, task.sampler.denoiser, count=SEEDS, guidance=section["guidance"])
    full = sampler.sampling(section["steps"])
    reference, span = draw(full, SEEDS), full.span
    chosen = _programs(task, step, 1 - section["flops"])
    curve = []
    with bar("programs", len(chosen)) as progress:
        for method, program in chosen:
            samples = _similarity(journal, sampler, program, reference, span)
            flops = round(program.costs.run / program.costs.full, 6)
            mean = round(sum(samples) / len(samples), 6)
            curve.append({"method": method, "flops": flops, "ssim": mean, "samples": samples})
            progress.advance(note=f"{method} at {flops:.0%}: SSIM {mean:.3f}")
    update_manifest(out, program=section | {"curve": curve})


def _programs(task: ProgramTask, step: Step, own: float) -> list[tuple[str, Program]]:
    """Return (method, program), of the step's method and of its rivals, each program once."""
    chosen: dict[tuple[str, int, str], Program] = {}
    cutters = {step.method: programs_of(task, step)}
    for name, method in methods("program").items():
        if "rival" in method.traits and name not in cutters:
            cutters[name] = method.function(task, **method.defaults)
    ratios = sorted({ratio for ratio in (*RATIOS, own) if ratio <= task.run.most})
    for name, programs in cutters.items():
        for ratio in ratios:
            program = programs(ratio)
            chosen.setdefault((name, program.steps, digest(program.gates)), program)
    return [(name, program) for (name, _, _), program in chosen.items()]


def _similarity(
    journal: Journal, sampler: FolderSampler, program: Program, reference: torch.Tensor, span: float | None
) -> list[float]:
    """Return the structural similarity of every seed's run of a program to its full run."""
    key = digest(program.gates, program.steps, program.reuse)
    if not (done := journal.last(drawn=key)):
        with at_work(sampler, program) as (sampling, _):
            images = draw(sampling, SEEDS)
        journal.add(drawn=key, ssim=[round(value, 6) for value in per_sample_ssim(images, reference, span).tolist()])
        done = journal.last(drawn=key)
    return done["ssim"]
