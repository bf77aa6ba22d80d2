"""Hidden states on their way through a model, a batch at a time, in memory or on disk."""

from pathlib import Path

import numpy as np
import torch


class Activations:
    """A list of (batch, length, width) float32 tensors. With ``folder`` each lies in a file of it, not in memory.

    The files are scratch: they are not synced, and whoever gave the folder deletes it.
    """

    def __init__(self, folder: Path | None = None):
        self._folder = folder
        self._parts: list[torch.Tensor | torch.Size] = []  # with a folder, only the shapes
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
        self._parts.append(value.shape)
        self[len(self) - 1] = value

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:05d}.bin"
