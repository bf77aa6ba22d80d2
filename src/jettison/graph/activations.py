"""The hidden states between two blocks of a model, batch by batch, in memory or on disk."""

from pathlib import Path

import numpy as np
import torch


class Activations:
    """A list of (batch, length, width) float32 tensors.

    folder: keep every tensor in a file of this folder, not in memory. The files are temporary: they are not synced to
        disk, and the caller deletes the folder.
    """

    def __init__(self, folder: Path | None = None):
        self._folder = folder
        self._parts: list[torch.Tensor | torch.Size] = []  # with a folder, only the shapes of the tensors
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: int) -> torch.Tensor:
        part = self._parts[number]
        if self._folder is None:
            return part
        return torch.from_numpy(np.fromfile(self._file(number), dtype=np.float32)).view(part)

    def __setitem__(self, number: int, value: torch.Tensor) -> None:
        if self._folder is None:
            self._parts[number] = value
        else:
            self._parts[number] = value.shape
            value.contiguous().numpy().tofile(self._file(number))

    def append(self, value: torch.Tensor) -> None:
        """Add the states of one more batch."""
        self._parts.append(value.shape)  # a placeholder, which __setitem__ replaces
        self[len(self) - 1] = value

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:05d}.bin"
