"""Calibration data, as statistics see them: windows of whatever the model reads, and a digest that names them."""

from typing import Protocol

import torch

from jettison.graph.folder import ModelFolder


class Data(Protocol):
    @property
    def digest(self) -> str:
        """16 hex digits of the content."""
        ...

    def windows(self, model: ModelFolder, length: int, count: int | None = None) -> torch.Tensor:
        """(windows, length) token ids; at most ``count`` of them, spread evenly."""
        ...
