"""SDS: prune, grow a dense model back whose weights like to be pruned, prune again."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from jettison import registry
from jettison.calibrate import Stats
from jettison.errors import UsageError
from jettison.pattern import Pattern
from jettison.prune.gram import Gram, adjust, redense
from jettison.registry import pruner


@pruner("sds", paper="arXiv:2408.10473, section 3", needs=("hessian", "cross", "dense"))
def sds(
    weight: torch.Tensor,
    pattern: Pattern,
    stats: Stats,
    *,
    base: str = "sparsegpt",
    data: Literal["sd", "dd"] = "sd",
    dense_steps: Annotated[int, Field(ge=0)] = 200,
    second_steps: Annotated[int, Field(ge=0)] = 200,
    lr: Annotated[float, Field(gt=0)] = 0.03,
    l1: Annotated[float, Field(ge=0)] = 1e-3,
    l2: Annotated[float, Field(ge=0)] = 1e-3,
    share: Annotated[float, Field(ge=0, le=1)] = 1.0,
    rechoose: bool = True,
    early_exit: bool = False,
) -> torch.Tensor:
    """Prune by ``base``; let all weights learn the original's outputs; prune by ``base`` again; let what stays learn.
    """
    raise NotImplementedError
