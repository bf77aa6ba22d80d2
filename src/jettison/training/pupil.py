"""The input of a recovery method: a student, its teacher, and the parts of the student that may be trained."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from jettison.graph.anatomy import Linear


@dataclass
class Pupil:
    """The input of a recovery method.

    linears: those that the recipe's step selects.
    quantized: all linears whose scales can be trained.
    inputs: (samples, ...), the model's inputs.
    lesson: a function that makes the module to train, see ``Domain``.
    state: the file that stores the state of the training.
    save_every: seconds between two saves.
    record: called with every step and its loss.
    dense: the linears whose weights can be trained.
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
