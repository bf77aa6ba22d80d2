"""The interface of calibration data: windows of the model's inputs, and a digest that identifies them."""

from typing import Protocol

import torch

from jettison.graph.folder import ModelFolder


class Data(Protocol):
    """Calibration data."""

    @property
    def digest(self) -> str:
        """16 hex digits that identify the content."""
        ...

    def windows(self, model: ModelFolder, length: int, count: int | None = None) -> torch.Tensor:
        """Return token ids, (windows, length): at most ``count`` windows, spread evenly over the data."""
        ...
