"""Sets of images that a DiT generates under a policy: their cost, and their distances from real images and full runs.

A set is a cell, and its images and features are a file beside it, so that scores can be computed again. Costs are FLOPs
that are counted while the images are made, guidance, embedders and stand-ins included.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from inspect import unwrap
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTPipeline

from benchmarks.fixtures.diffusion import read_pixels
from benchmarks.fixtures.features import open_features
from benchmarks.witness import RUNS, cell
from jettison.core.errors import JettisonError
from jettison.core.sealed import read_sealed, write_sealed
from jettison.domains.diffusion.differentiable import Sampling
from jettison.domains.diffusion.program import Program, attach_program
from jettison.domains.diffusion.running import Handle, attach
from jettison.domains.diffusion.sampling import sample_classes
from jettison.domains.diffusion.tracing import flop_counter
from jettison.metrics.frechet import RESAMPLES, Projection, fit_projection, frechet_difference, frechet_interval
from jettison.metrics.ssim import ssim
from jettison.policies.step_cache import StepCachePolicy

STEPS, GUIDANCE = 20, 2.0
# Seeds: of the comparison, 0 and up; of baselines' settings; of the choice between searches; of searches.
TUNING, VALIDATION, SEARCH = 1_000_000, 2_000_000, 3_000_000
FITTED = 5000  # training images, for the principal components of features
What = StepCachePolicy | Program | None  # None is a full run


class Sets:
    """A DiT, the features of a classifier, and the sets of images in runs/NAME.

    name: folder in runs.
    model, classifier: folders of a DiT pipeline without a VAE, and of an image classifier.
    data, test: images, of training for the components of features, of testing as the real ones.
    count: how many unseen seeds. guidance: as for ``sample_classes``.
    """

    resamples = RESAMPLES  # of bootstrap intervals

    def __init__(
        self, name: str, model: str | Path, classifier: str | Path, data: str, test: str, count: int,
        guidance: float = GUIDANCE,
    ):  # fmt: skip
        pipe = DiTPipeline.from_pretrained(model, vae=None)
        self.name, self.model, self.folder = name, Path(model), RUNS / name
        self.count, self.guidance = count, guidance
        self.denoiser, self.scheduler = pipe.transformer.eval().requires_grad_(False), pipe.scheduler
        self.classes = self.denoiser.config.num_embeds_ada_norm
        self._classifier, self._data, self._test = classifier, data, test
        self._features: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def unseen(self) -> range:
        """The seeds of the comparison."""
        return range(self.count)

    def labels(self, seeds: Sequence[int]) -> list[int]:
        """Return the class of every seed; all classes in turn."""
        return [seed % self.classes for seed in seeds]

    def images(self, seeds: Sequence[int], steps: int = STEPS) -> torch.Tensor:
        """Generate images with whatever is attached to the denoiser, (seeds, 3, height, width) from 0 to 1."""
        return sample_classes(
            self.denoiser, self.scheduler, self.labels(seeds), seeds, steps=steps, guidance=self.guidance
        )  # fmt: skip

    def sampling(self, steps: int = STEPS) -> Sampling:
        """Return the way to sample for a search: with gradients, from seeds that no comparison uses."""
        run = unwrap(sample_classes)  # without the decorator that turns gradients off

        def images(indices: Sequence[int]) -> torch.Tensor:
            seeds = [SEARCH + int(index) for index in indices]
            return run(self.denoiser, self.scheduler, self.labels(seeds), seeds, steps=steps, guidance=self.guidance)

        return Sampling(self.denoiser, self.scheduler, images, 1.0, (self.denoiser,))

    def attach(self, what: StepCachePolicy | Program) -> Handle:
        """Attach a policy or a program to the denoiser."""
        join = attach_program if isinstance(what, Program) else attach
        return join(self.denoiser, what, self.scheduler)

    def draw(self, what: What, seeds: Sequence[int], steps: int = STEPS) -> tuple[torch.Tensor, int]:
        """Generate images and count the FLOPs. Returns images, and the FLOPs of all of them."""
        with ExitStack() as stack:
            if what is not None:
                stack.enter_context(self.attach(what))
            counter = stack.enter_context(flop_counter())
            images = self.images(seeds, steps)
        return images, counter.get_total_flops()

    def cost(self, what: What, seeds: Sequence[int]) -> float:
        """Return the FLOPs of a policy as a share of those of full runs."""
        full = self.cell("full-flops", lambda: {"flops": self.draw(None, range(TUNING, TUNING + 1))[1]})
        return self.draw(what, seeds)[1] / (full["flops"] * len(seeds))

    def cell(self, key: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the result of ``work``, computed once; see ``benchmarks.witness.cell``."""
        return cell(self.name, key, work)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features of images (n, 3, height, width) uint8: (n, at most 64) float64."""
        if self._features is None:
            self._features = open_features(self._classifier)
        return self._projection()(self._features(images.float() / 255))

    def _projection(self) -> Projection:
        file = self.folder / "projection.safetensors"
        if (stored := read_sealed(file)) is None:
            made = fit_projection(self._features(read_pixels(self._data, FITTED)[0].float() / 255))
            write_sealed(file, asdict(made))
            stored = read_sealed(file)
        return Projection(stored[0]["mean"], stored[0]["axes"])

    def real(self) -> torch.Tensor:
        """Return the features of all test images."""
        file = self.folder / "real.safetensors"
        if (stored := read_sealed(file)) is None:
            write_sealed(file, {"features": self.features(read_pixels(self._test)[0])})
            stored = read_sealed(file)
        return stored[0]["features"]

    def stored(
        self, key: str, make: Callable[[], What], seeds: range, steps: int = STEPS
    ) -> tuple[dict[str, torch.Tensor], float]:
        """Return images (uint8) and features of a set, and its FLOPs per image. It is generated if it is not there."""
        file = self.folder / "sets" / f"{key}-{seeds.start}-{len(seeds)}.safetensors"
        if (stored := read_sealed(file)) is None:
            images, flops = self.draw(make(), seeds, steps)
            images = (images * 255).round().to(torch.uint8)
            write_sealed(
                file, {"images": images, "features": self.features(images)}, {"flops": repr(flops / len(seeds))}
            )
            stored = read_sealed(file)
        return stored[0], float(stored[1]["flops"])

    def kept(self, key: str) -> dict[str, torch.Tensor]:
        """Return images and features of a set of all unseen seeds. Raises JettisonError if it is not there."""

        def missing() -> What:
            raise JettisonError(f"{self.folder / 'sets'} has no set {key}: delete its cell, set-{key}-*.json")

        return self.stored(key, missing, self.unseen)[0]

    def full(self, seeds: range) -> tuple[dict[str, torch.Tensor], float]:
        """Return the set of the full runs of seeds."""
        return self.stored("full", lambda: None, seeds)

    def scored(
        self, key: str, make: Callable[[], What], seeds: range | None = None, steps: int = STEPS
    ) -> dict[str, Any]:
        """Return cost and scores of a set: Fréchet distances [value, low, high] from real images and full runs, SSIM.

        make: returns the policy or program; called if the set is not there.
        seeds: None means all unseen seeds.
        """
        seeds = self.unseen if seeds is None else seeds

        def work() -> dict[str, Any]:
            tensors, flops = self.stored(key, make, seeds, steps)
            full, whole = self.full(seeds)
            interval = partial(frechet_interval, resamples=self.resamples)
            alike = ssim(tensors["images"].float() / 255, full["images"].float() / 255)
            return {
                "key": key, "cost": flops / whole, "ssim": round(float(alike.mean()), 4),
                "real": ends(interval(tensors["features"], self.real())),
                "full": ends(interval(tensors["features"], full["features"], paired=True)),
            }  # fmt: skip

        return self.cell(f"set-{key}-{seeds.start}-{len(seeds)}", work)

    def difference(self, key: str, other: str) -> dict[str, Any]:
        """Return the distances of one set minus those of another, [value, low, high], for all unseen seeds.

        Both sets must be there.
        """

        def work() -> dict[str, Any]:
            one, two = (self.kept(name)["features"] for name in (key, other))
            full = self.full(self.unseen)[0]["features"]
            difference = partial(frechet_difference, resamples=self.resamples)
            return {
                "real": ends(difference(one, two, self.real())),
                "full": ends(difference(one, two, full, paired=True)),
            }

        return self.cell(f"difference-{key}-{other}", work)


def ends(interval: Any) -> list[float]:
    """Return [value, low, high] of an interval, rounded."""
    return [round(value, 4) for value in (interval.value, interval.low, interval.high)]
