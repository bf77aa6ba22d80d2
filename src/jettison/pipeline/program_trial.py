"""Estimate roughly what a program step takes, from one call of the denoiser on noise."""

import torch
from torch import nn

from jettison.domains.diffusion.denoisers import tensors_in
from jettison.domains.diffusion.folder_sampling import default_guidance
from jettison.domains.domain import find_domain
from jettison.graph.denoisers import unpack
from jettison.graph.dense import compute_device, load_dense
from jettison.graph.folder import ModelFolder
from jettison.pipeline.program import AGAIN, ROUNDS, count_calls
from jettison.pipeline.trial import Trial, timed
from jettison.recipe.recipe import Step

SEARCH = 5  # forward passes that a step of a search costs: the full run, the gated one, that once more, and backward
TIMING = 60.0  # seconds that timing a program takes at most, each time
QUERY = 7  # times the width: float32 numbers of a gate in the search's network, with gradients and optimizer


def try_program(source: ModelFolder, step: Step) -> Trial:
    """Estimate the seconds and the memory of a program step.

    Only what options of all methods say is counted: ``search_steps`` of ``batch`` samples, and ``runs``. VAE and text
    encoders are not counted. Raises UsageError for steps that the scheduler cannot run.
    """
    calls, guidance = count_calls(source, step), step.run.guidance
    rows, _ = find_domain(source).example(source)
    doubled = (default_guidance(source) if guidance is None else guidance) > 1
    model = load_dense(source, torch.float32).to(compute_device()).eval()
    inputs = unpack(model, rows[:1].repeat(1 + doubled, 1).to(compute_device()))
    kept = _outputs(model, source)
    with torch.no_grad():
        model(**inputs)  # warms up
        with timed() as trial:
            model(**inputs)
    options, run = step.options, calls * trial.seconds
    searched = options.get("search_steps", 0) * options.get("batch", 1)
    seconds = (SEARCH * searched + options.get("runs", 0)) * run
    if step.run.speedup:
        seconds += (1 + AGAIN) * min(TIMING, ROUNDS * 4 * run)
    held = 4.0 * source.anatomy.parameters
    if searched:
        gates = calls * source.anatomy.blocks
        held += 4.0 * (calls * sum(kept) * options["batch"] + QUERY * gates * options["width"])
    return Trial(seconds, trial.memory + held)


def _outputs(model: nn.Module, source: ModelFolder) -> list[int]:
    """Return a list that gets the numbers in the outputs of every block, in the first call of a model."""
    sizes: list[int] = []
    handles = []

    def note(module: nn.Module, inputs: tuple, outputs: object) -> None:
        sizes.append(sum(tensor.numel() for tensor in tensors_in(outputs)))
        if len(sizes) == source.anatomy.blocks:
            for handle in handles:
                handle.remove()

    handles += [model.get_submodule(path).register_forward_hook(note) for path in source.anatomy.paths]
    return sizes
