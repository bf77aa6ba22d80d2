"""Estimate roughly what a depth step takes, from a few images forward and backward."""

import torch

from jettison.domains.domain import find_domain
from jettison.domains.vision.training_data import CALIBRATION, HELD_OUT, MOST_HELD_OUT
from jettison.graph.folder import ModelFolder
from jettison.graph.skeleton import run_model
from jettison.pipeline.depth import COPIES, open_for_training
from jettison.pipeline.trial import Trial, count_images, timed
from jettison.recipe.recipe import Recipe, Step

TRIED = 16  # images at once, at most
TIMING = 60.0  # seconds that measuring latencies takes at most, each time


def try_depth(source: ModelFolder, recipe: Recipe, step: Step) -> Trial:
    """Estimate the seconds and the memory of a depth step.

    Only what the options of all methods say is counted. Each option ``epochs`` or ``..._epochs`` is a training. Where
    there are ``middle`` random subnets, a training before the last one runs these, the whole model and the smallest
    subnet; any other runs the original beside the model. A search looks at every subnet at most once.
    """
    options, batch = step.options, min(step.options["batch"], TRIED)
    model = open_for_training(source).train()
    pixels = find_domain(source).example(source)[0][:1]  # (1, channels, height, width)
    inputs = pixels.repeat(batch, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    taken: list[Trial] = []
    kept: dict[int, int] = {}  # address of a tensor that the backward pass reads -> its bytes

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    for backward in (False, True, False, True):  # the first two warm up
        with timed() as trial, torch.set_grad_enabled(backward):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = run_model(model, inputs).logits.square().mean()
            if backward:
                loss.backward()
        taken.append(trial)
        activations = sum(kept.values()) / batch
        kept.clear()
    forward, both = (trial.seconds / batch for trial in taken[2:])
    images, seconds = count_images(recipe.calibration["images"], None), 0.0
    for name, epochs in options.items():
        if name.endswith("epochs"):
            passes = (2 + options["middle"]) * both if "middle" in options and name != "epochs" else both + forward
            seconds += epochs * images * passes
    subnets = min(
        options.get("population", 0) * (options.get("generations", 0) + 1), 2 ** min(source.anatomy.blocks, 30)
    )
    seconds += subnets * forward * (min(images / HELD_OUT, MOST_HELD_OUT) + min(images, CALIBRATION))
    seconds += TIMING * (2 if options.get("latency") else 1)
    graphs = 2 + options.get("middle", 0)  # the passes whose activations are held at once
    held = (
        4.0 * (COPIES * source.anatomy.parameters + images * pixels.numel()) + activations * graphs * options["batch"]
    )
    return Trial(seconds, max(trial.memory for trial in taken) + held)
