"""The protocol of a domain, a kind of model: what it reads, and how its outputs are scored.

- A domain is a subfolder with a file ``domain.py`` that defines the functions of ``Domain``.
- The domain of a model is given by its row in families.yaml (``domain``), or by the class that transformers has for its
  config.
- Inputs are always one tensor (samples, ...): token ids, or pixels.
- All other code treats domains alike, but for what ``docs/architecture.md`` lists under "A domain".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from jettison.graph.folder import ModelFolder
from jettison.recipe.recipe import Recipe, Step
from jettison.training.depth import Labelled

Logits = Callable[[torch.Tensor], torch.Tensor]  # from a batch of inputs to logits


class Ready(Protocol):
    """A model that is ready to run, such as ``runtime.load.Loaded``."""

    model: nn.Module

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Run the model on a batch of inputs."""


@dataclass(frozen=True)
class Sources:
    """The data that quality is measured on.

    texts, tokens, window, windows: for language models, see ``evaluate``.
    images: a folder or parquet file with labels; for perception models, the folder of a driving dataset.
    count: how many images to use; None for all.
    """

    texts: tuple[str | Path, ...] = ()
    tokens: int | None = None
    window: int | None = None
    windows: bool = False
    images: str | Path | None = None
    count: int | None = None


class Domain(Protocol):
    """A module that describes a kind of model. DATA: the kind of its data in one word."""

    DATA: str

    def check_reader(self, source: ModelFolder) -> str:
        """Return a description of the reader (tokenizer, image processor). Raises JettisonError if it does not fit."""

    def example(self, source: ModelFolder) -> tuple[torch.Tensor, str]:
        """Return inputs (samples, ...) that the model can read, and a description of them."""

    def check_recipe(self, source: ModelFolder, recipe: Recipe, calibrated: bool) -> None:
        """Check the data that a recipe names, before any work.

        calibrated: whether the calibration data is needed.
        Raises UsageError for data that the model cannot read.
        """

    def calibration(self, source: ModelFolder, settings: Mapping[str, Any], seed: int) -> torch.Tensor:
        """Return inputs (samples, ...) for calibration. settings: the section ``calibration`` of a recipe."""

    def calibration_digest(self, settings: Mapping[str, Any]) -> str | None:
        """Return 16 hex digits of the content of the calibration data; None if the model writes it itself."""

    def check_sources(self, source: ModelFolder, sources: Sources) -> None:
        """Check sources before any work. Raises UsageError for data that quality cannot be measured on."""

    def contents(self, sources: Sources) -> dict[str, str]:
        """Return name -> 16 hex digits of the content, for everything that quality is measured on."""

    def amount(self, source: ModelFolder, sources: Sources) -> int:
        """Return how many inputs an evaluation reads, for a forecast. Asked only of models that are no chain."""

    def same_outputs(self, source: ModelFolder, original: ModelFolder) -> None:
        """Raise UsageError if the outputs of the two models cannot be compared."""

    def scores(self, source: ModelFolder, student: Ready, original: Ready | None, sources: Sources) -> dict[str, Any]:
        """Measure quality, and distance from the original.

        Returns {kind of data: {name: {score: number}}}. ``texts`` and ``images`` have sections of their own in the
        report; ``evaluate``, the model card and the report show any other kind as a table.
        """

    def exhibits(self, source: ModelFolder, student: Ready, original: Ready, sources: Sources) -> list[dict[str, Any]]:
        """Return what the report shows of a stage: each {"title", "note", "pictures": [{"caption", "png"}]}.

        png: in base64. Pictures are shown in pairs; with the entry ``wide``, large. Asked only of domains whose data is
        neither ``text`` nor ``images``.
        """

    def training(self, source: ModelFolder, recipe: Recipe, step: Step, process: tuple[int, int], wait) -> torch.Tensor:
        """Return inputs (samples, ...) that a recovery trains on.

        process: rank of this process, and the number of processes.
        wait: returns when all processes have called it.
        """

    def training_digests(self, recipe: Recipe, step: Step) -> dict[str, str]:
        """Return name -> 16 hex digits of the content, for the data that a recovery trains on."""

    def labelled(self, source: ModelFolder, recipe: Recipe) -> Labelled:
        """Return inputs with labels that depth pruning trains on. Raises UsageError if this domain has none."""

    def lesson(
        self, student: nn.Module, teacher: nn.Module, trained: Mapping[str, nn.Parameter], temperature: float,
        features: float,
    ) -> nn.Module:  # fmt: skip
        """Return a module that maps a batch of inputs to the distance of the student from its teacher.

        Only the student is a submodule. features: weight of the added distance of inner states.
        """


def find_domain(source: ModelFolder) -> Domain:
    """Return the domain of a model."""
    return import_module(f"jettison.domains.{source.anatomy.family.domain}.domain")
