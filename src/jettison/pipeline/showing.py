"""Samples of a stage of a run for the report, and speed.

Samples are texts that the model writes, images that it classifies, or what its domain shows.
"""

import base64
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from jettison.core.progress import waiting
from jettison.domains.domain import Sources, find_domain
from jettison.domains.vision.data import open_images
from jettison.graph.folder import ModelFolder
from jettison.pipeline.generation import measure_generation, sample_prompts
from jettison.runtime.load import load

PICTURES, LOOKED_AT, BATCH, REPEATS = 12, 512, 32, 20  # images shown, of how many compared; REPEATS: timed runs


def show(model: str | Path, *, original: str | Path, sources: Sources, adapter: bool = True) -> dict[str, Any]:
    """Return samples of what a model does, and its speed: see ``measure_generation`` and ``measure_images``.

    original: the folder of the original; the model is compared with it on images, and its tokenizer cuts prompts.
    sources: the texts or images that quality was measured on.
    """
    source = ModelFolder(original)
    domain = find_domain(source)
    if domain.DATA == "images":
        return measure_images(model, original, sources.images, adapter=adapter)
    if sources.texts:
        return measure_generation(model, sample_prompts(original, sources.texts[0]), adapter=adapter)
    shown = domain.exhibits(ModelFolder(model), load(model, adapter=adapter), load(original), sources)
    return {"exhibits": shown, "speed": {}}


@waiting("looking at images")
@torch.no_grad()
def measure_images(
    model: str | Path, original: str | Path, images: str | Path, *, adapter: bool = True
) -> dict[str, Any]:
    """Find the images on which a model differs most from its original, and time it on one image.

    512 images, spread over the set, are compared (all of a smaller set).

    Returns ``pictures``: the 12 images with another class than before first, then those with the largest KL; each as a
    PNG in base64, with its label, and the class that each model names with its probability. ``differ``: how many
    images get another class. ``looked_at``: how many were compared. ``speed``: milliseconds for one image, the median
    of 20 runs, and the samples.
    """
    source = ModelFolder(original)
    opened = open_images(images, source)
    loaded, reference = load(model, adapter=adapter), load(original)
    places = opened.spread(LOOKED_AT)
    rows = []
    for part in places.split(BATCH):
        pixels, labels = opened.load(part)
        part = part[torch.tensor([opened.names[place] not in opened.broken for place in part.tolist()])]
        rows.append(
            (part, labels, *(model.logits(pixels).float().cpu().log_softmax(-1) for model in (reference, loaded)))
        )
    # places, labels: (images,); log-probabilities of the original and of the model: (images, classes)
    places, labels, expected, actual = (torch.cat(column) for column in zip(*rows, strict=True))
    distance = (expected.exp() * (expected - actual)).sum(-1)  # KL(original ‖ model), (images,)
    differ = expected.argmax(-1) != actual.argmax(-1)
    order = sorted(range(len(places)), key=lambda at: (not bool(differ[at]), -float(distance[at])))
    name = lambda index: str((source.config.id2label or {}).get(int(index), int(index)))
    likeliest = lambda row: {"class": name(row.argmax()), "probability": round(float(row.max().exp()), 4)}
    pictures = [
        {
            "png": base64.b64encode(opened.png(int(places[at]))).decode(),
            "label": name(labels[at]),
            "original": likeliest(expected[at]),
            "now": likeliest(actual[at]),
        }
        for at in order[:PICTURES]
    ]
    one, times = opened.load(places[:1])[0], []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        loaded.logits(one)
        times.append(1000 * (time.perf_counter() - start))
    times = [round(milliseconds, 3) for milliseconds in times[2:]]  # the first two runs warm up
    compared = {"pictures": pictures, "differ": int(differ.sum()), "looked_at": len(places)}
    return compared | {"speed": {"latency_ms": round(statistics.median(times), 3), "latency_samples": times}}
