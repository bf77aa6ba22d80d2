"""The frames of a dataset folder as a perception model reads them: tensors of inputs and targets."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import torch

from jettison.core.errors import UsageError
from jettison.core.files import content_digest, digest
from jettison.core.progress import bar
from jettison.domains.perception.layouts.opening import fitting_layouts, reader
from jettison.domains.perception.layouts.reading import within
from jettison.domains.perception.modelling import TASKS, PerceptionModel, Sample
from jettison.graph.own_models import OwnConfig

SHARE = 0.25  # of the free memory that tensors may fill
PAGES = (".html", ".htm")  # what `jettison perceive show` writes beside the data


def layout_for(task: str, folder: str | Path, layout: str | None = None) -> str:
    """Return the layout in which models of a task read a folder.

    layout: the one to take; None for the first layout of the task that the folder fits.
    Raises UsageError if the folder fits none, or the task does not read the layout.
    """
    valid, fitting = TASKS[task], fitting_layouts(folder, layout)
    readable = [name for name in fitting if name in valid]
    if not readable:
        known = ", ".join(fitting) or "of no known dataset"
        raise UsageError(f"{folder} has the layout {known}: a model of {task} needs {' or '.join(valid)}")
    return readable[0]


class Samples:
    """The frames of a split of a dataset folder, for one model. They are read when they are used.

    Tensors are kept in memory if all of them fit in ``SHARE`` of the free memory; else they are read every time.
    Raises UsageError for a folder that the model cannot read, or a split without frames.
    """

    def __init__(
        self, model: PerceptionModel, config: OwnConfig, folder: str | Path, split: str, layout: str | None = None
    ):
        self.model, self.config, self.folder, self.split = model, config, Path(folder), split
        self.layout = layout_for(model.TASK, folder, layout)
        scenes = reader(self.layout).read(folder, split=split)
        self._places = [(scene, place) for scene in scenes for place in range(len(scene.frames))]
        if not self._places:
            raise UsageError(f"{folder} has no frames of the split {split!r}")
        self._readers = {"inputs": model.read, "targets": model.targets}
        self._kept: dict[tuple[str, int], dict[str, torch.Tensor]] = {}
        self._room = SHARE * psutil.virtual_memory().available

    def __len__(self) -> int:
        return len(self._places)

    def sample(self, number: int) -> Sample:
        """Return a frame with its drive. Raises UsageError that names the frame if a label of it is broken."""
        scene, place = self._places[number]
        return Sample(scene, place, scene.frames[place])

    def name(self, number: int) -> str:
        """Return the name of a frame, without reading it."""
        scene, place = self._places[number]
        return scene.frames.names[place]

    def inputs(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the inputs of some samples, (n, ...) by name. Raises UsageError that names a frame that is broken."""
        return self._stacked("inputs", numbers)

    def targets(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the targets of some samples, (n, ...) by name. Raises as ``inputs``."""
        return self._stacked("targets", numbers)

    def learn(self, targets: Callable[[OwnConfig, Sample], dict[str, torch.Tensor]]) -> None:
        """Take the targets from another function from now on."""
        self._readers["targets"] = targets
        self._kept = {key: value for key, value in self._kept.items() if key[0] != "targets"}

    def _stacked(self, kind: str, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        parts = [self._one(kind, int(number)) for number in numbers]
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

    def _one(self, kind: str, number: int) -> dict[str, torch.Tensor]:
        if (kind, number) in self._kept:
            return self._kept[kind, number]
        sample = self.sample(number)
        with within(f"frame {sample.frame.name}"):
            tensors = self._readers[kind](self.config, sample)
        if len(self) * sum(tensor.nbytes for tensor in tensors.values()) < self._room:
            self._kept[kind, number] = tensors
        return tensors

    def spread(self, count: int | None = None) -> list[int]:
        """Return ``count`` numbers of samples, spread evenly; all for None, or if there are fewer."""
        total = len(self)
        return list(range(total)) if count is None or count >= total else [i * total // count for i in range(count)]


def folder_digest(folder: str | Path) -> str:
    """Return 16 hex digits of the content of a dataset folder: names and bytes of all files, but pages.

    Raises UsageError for a folder without files.
    """
    root = Path(folder)
    files = sorted(_files(root))
    if not files:
        raise UsageError(f"{folder} holds no files: the folder of a driving dataset is needed")
    parts = []
    with bar("reading the data", len(files)) as progress:
        for file in files:
            parts += [file.relative_to(root).as_posix(), content_digest(file)]
            progress.advance()
    return digest(*parts)


def _files(root: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if not name.startswith(".") and path.suffix not in PAGES and path.is_file():
                yield path
