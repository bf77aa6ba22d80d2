"""What a stage of a run does, to be looked at: texts that it writes, or images that it names; and how fast."""

import base64
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from jettison.core.progress import waiting
from jettison.domains.domain import Sources
from jettison.domains.vision.data import open_images
from jettison.graph.folder import ModelFolder
from jettison.pipeline.generation import measure_generation, sample_prompts
from jettison.runtime.load import load

PICTURES, LOOKED_AT, BATCH, REPEATS = 12, 512, 32, 20


def show(model: str | Path, *, original: str | Path, sources: Sources, adapter: bool = True) -> dict[str, Any]:
    """``samples`` of texts, or ``pictures``; and ``speed``. sources: what quality was measured on."""
    if sources.images is None:
        return measure_generation(model, sample_prompts(original, sources.texts[0]), adapter=adapter)
    return measure_images(model, original, sources.images, adapter=adapter)


@waiting("looking at images")
@torch.no_grad()
def measure_images(
    model: str | Path, original: str | Path, images: str | Path, *, adapter: bool = True
) -> dict[str, Any]:
    """``pictures``: of the first 512 images (spread over the set) those on which the two models differ most, by KL;
    each as a PNG in base64, with its label, and the class and its probability that each model names. ``speed``:
    milliseconds for one image, the median of 20, and the samples."""
    source = ModelFolder(original)
    opened = open_images(images, source)
    loaded, reference = load(model, adapter=adapter), load(original)
    places = opened.spread(LOOKED_AT)
    rows = []
    for part in places.split(BATCH):
        pixels, labels = opened.load(part)
        rows.append(
            (part, labels, *(each.logits(pixels).float().cpu().log_softmax(-1) for each in (reference, loaded)))
        )
    places, labels, meant, found = (torch.cat(each) for each in zip(*rows, strict=True))  # (images,), (images, classes)
    distance = (meant.exp() * (meant - found)).sum(-1)
    differ = meant.argmax(-1) != found.argmax(-1)
    order = sorted(range(len(places)), key=lambda at: (not bool(differ[at]), -float(distance[at])))
    name = lambda index: str((source.config.id2label or {}).get(int(index), int(index)))
    named = lambda row: {"class": name(row.argmax()), "probability": round(float(row.max().exp()), 4)}
    pictures = [
        {
            "png": base64.b64encode(opened.png(int(places[at]))).decode(),
            "label": name(labels[at]),
            "original": named(meant[at]),
            "now": named(found[at]),
        }
        for at in order[:PICTURES]
    ]
    one, times = opened.load(places[:1])[0], []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        loaded.logits(one)
        times.append(1000 * (time.perf_counter() - start))
    times = [round(each, 3) for each in times[2:]]  # the first ones warm up
    changed = {"pictures": pictures, "differ": int(differ.sum()), "looked_at": len(places)}
    return changed | {"speed": {"latency_ms": round(statistics.median(times), 3), "latency_samples": times}}
