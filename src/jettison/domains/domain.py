"""What a kind of model is: what it reads, and how its outputs are judged. Everything else treats all kinds alike.

A domain is a folder of this room with a file ``domain.py``, whose functions are those of ``Domain``; which one a model
is of, its row in families.yaml says (``domain``), or the class that transformers has for its config. Inputs are always
one tensor (samples, ...): token ids, or pixels.
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

Logits = Callable[[torch.Tensor], torch.Tensor]  # from a batch of inputs


@dataclass(frozen=True)
class Sources:
    """What quality is measured on. texts, tokens, window, windows: of language models, see ``evaluate``. images: a
    folder or parquet file with labels; count: how many of them, None for all."""

    texts: tuple[str | Path, ...] = ()
    tokens: int | None = None
    window: int | None = None
    windows: bool = False
    images: str | Path | None = None
    count: int | None = None


class Domain(Protocol):
    """DATA: what is read, in a word."""

    DATA: str

    def check_reader(self, source: ModelFolder) -> str:
        """What turns data into inputs, in words. Raises JettisonError if it does not fit the model."""

    def example(self, source: ModelFolder) -> tuple[torch.Tensor, str]:
        """Some inputs that every model reads, and what they are, in words."""

    def check_recipe(self, source: ModelFolder, recipe: Recipe, calibrated: bool) -> None:
        """Raise UsageError, before any work, for data that the recipe names and the model cannot read. calibrated:
        whether the calibration data is needed."""

    def calibration(self, source: ModelFolder, settings: Mapping[str, Any], seed: int) -> torch.Tensor:
        """(samples, ...) inputs, as ``calibration`` of a recipe asks."""

    def calibration_digest(self, settings: Mapping[str, Any]) -> str | None:
        """16 hex digits of the content of the calibration data; None where the model makes it itself."""

    def check_sources(self, source: ModelFolder, sources: Sources) -> None:
        """Raise UsageError for what quality cannot be measured on."""

    def contents(self, sources: Sources) -> dict[str, str]:
        """What quality is measured on, by name -> 16 hex digits of its content."""

    def same_outputs(self, source: ModelFolder, original: ModelFolder) -> None:
        """Raise UsageError if the outputs of the two cannot be compared."""

    def scores(self, source: ModelFolder, student: Logits, original: Logits | None, sources: Sources) -> dict[str, Any]:
        """Quality, and distance from the original, by source: {"texts": ...} or {"images": ...}."""

    def training(self, source: ModelFolder, recipe: Recipe, step: Step, process: tuple[int, int], wait) -> torch.Tensor:
        """(samples, ...) inputs that a recovery learns from. process: number of this one and of all; wait: until all
        are here."""

    def training_digests(self, recipe: Recipe, step: Step) -> dict[str, str]:
        """The data of a recovery -> 16 hex digits of its content."""

    def lesson(
        self, student: nn.Module, teacher: nn.Module, trained: Mapping[str, nn.Parameter], temperature: float,
        features: float,
    ) -> nn.Module:  # fmt: skip
        """A module from a batch of inputs to the distance of the student from its teacher. Only the student is a
        submodule. features: how much of the distance of inner states is added."""


def find_domain(source: ModelFolder) -> Domain:
    return import_module(f"jettison.domains.{source.anatomy.family.domain}.domain")
