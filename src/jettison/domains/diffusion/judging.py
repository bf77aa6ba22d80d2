"""Judge the program of a folder: its images beside those of full runs of the original, from the same seeds."""

from collections import Counter
from dataclasses import dataclass

import torch

from jettison.core.errors import JettisonError, UsageError
from jettison.domains.diffusion.denoisers import places
from jettison.domains.diffusion.folder_sampling import FolderSampler
from jettison.domains.diffusion.identity import config_digest
from jettison.domains.diffusion.pipelines import own_program
from jettison.domains.diffusion.program import Program, read_program
from jettison.domains.diffusion.task import at_work, draw
from jettison.domains.diffusion.trajectories import open_scheduler, set_steps
from jettison.domains.domain import Ready
from jettison.formats.manifest import read_manifest
from jettison.graph.folder import ModelFolder


@dataclass(frozen=True)
class Pair:
    """Runs of a program, and full runs, from the same seeds.

    now, full: (seeds, channels, height, width), images from 0 to 1, or latents; full is None without an original.
    pictured: whether they are images.
    counts: how often units were computed and reused in one run of the program.
    """

    program: Program
    full_steps: int
    guidance: float
    now: torch.Tensor
    full: torch.Tensor | None
    pictured: bool
    counts: Counter[str]

    @property
    def note(self) -> str:
        """The settings in words."""
        return f"{self.program.steps} steps" + (f", guidance {self.guidance:g}" if self.guidance > 1 else "")


def draw_pair(source: ModelFolder, student: Ready, original: Ready | None, count: int) -> Pair:
    """Run the program of a folder from ``count`` seeds, and the original in full.

    Raises UsageError for a program that does not fit, JettisonError for outputs that are not finite.
    """
    program, section = checked_program(source), read_manifest(source.folder)["program"]
    sampler = lambda model: FolderSampler(source, model, count=count, guidance=section["guidance"])
    with at_work(sampler(student.model), program) as (sampling, handle):
        now, pictured, counts = draw(sampling, count), sampling.span is not None, handle.counts()
    if not now.isfinite().all():
        raise JettisonError("the model's outputs are not finite")
    full = None if original is None else draw(sampler(original.model).sampling(section["steps"]), count)
    return Pair(program, section["steps"], section["guidance"], now, full, pictured, counts)


def checked_program(source: ModelFolder) -> Program:
    """Read the program that a folder runs by default, and check that it is for its model and its scheduler.

    Weights are not compared: jettison.json has the hashes of both. Raises UsageError if it does not fit.
    """
    path = own_program(source)
    program, scheduler, skeleton = read_program(path), open_scheduler(source), source.skeleton
    reasons = [
        ("class", type(skeleton).__name__ != program.model.class_name),
        ("config", config_digest(skeleton) != program.model.config),
        ("blocks", [place.unit.name for place in places(skeleton)] != program.units),
        ("scheduler", type(scheduler).__name__ != program.sampler),
    ]
    if wrong := [what for what, differs in reasons if differs]:
        raise UsageError(f"program {path}: it is for another model: this one has another {wrong[0]}")
    if (calls := set_steps(source, scheduler, program.steps)) != len(program.gates):
        raise UsageError(f"program {path}: it has {len(program.gates)} calls; its {program.steps} steps need {calls}")
    return program


def weights_changed(source: ModelFolder) -> bool:
    """Whether any weights of a folder of Jettison are packed or pruned."""
    return any(block["linears"] for block in read_manifest(source.folder)["blocks"])
