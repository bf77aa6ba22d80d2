"""A student, its teacher, and what of the student may be trained."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from jettison.graph.anatomy import Linear


@dataclass
class Pupil:
    """What a recovery works on. ``linears``: where it may act; ``quantized``: all linears whose scales can be trained;
    ``dense``: those whose weights can. inputs: (samples, ...), what the model reads.

    lesson: makes the module that is trained, see ``Domain``. state: the file that holds the training so far.
    save_every: seconds between saves.
    """

    student: nn.Module
    teacher: nn.Module
    linears: list[Linear]
    quantized: list[Linear]
    inputs: torch.Tensor
    lesson: Callable[..., nn.Module]
    state: Path
    save_every: float
    record: Callable[[int, float], None]
    dense: list[Linear] = field(default_factory=list)
