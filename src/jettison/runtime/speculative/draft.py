"""Settings of a draft for speculative decoding, and the files that hold them beside a checkpoint.

Draft tokens come from a draft model (the checkpoint with units left out or in fewer bits), from earlier text, or both.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

from jettison.core.errors import JettisonError, UsageError
from jettison.core.kept import places, read_record, write_first, write_record
from jettison.core.sealed import read_sealed, write_sealed
from jettison.encodings.uniform import UniformGrid
from jettison.graph.folder import ModelFolder

NAME, CORPUS = "draft.json", "draft.safetensors"
LONGEST, LONGEST_MATCH = 64, 16  # most tokens of a draft, and of a match in earlier text
ROLES = ("q", "k", "v", "o", "gate", "up", "down", "head")


@dataclass(frozen=True)
class View:
    """A view: the linears of some roles rounded to fewer bits, which the draft model uses in place of the originals.

    Raises UsageError for a grid or a role that does not exist.
    """

    bits: int = 2
    group_size: int = 64
    roles: tuple[str, ...] = ("gate", "up")

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self):
        object.__setattr__(self, "roles", tuple(self.roles))
        UniformGrid(self.bits, self.group_size)
        unknown = [role for role in self.roles if role not in ROLES]
        if unknown or not self.roles:
            raise UsageError(f"a view of the roles {list(self.roles)}: at least one of {', '.join(ROLES)}")

    def __str__(self) -> str:
        where = "everything" if set(self.roles) >= set(ROLES) - {"head"} else ", ".join(self.roles)
        return f"{where} in {self.bits} bits"


@dataclass(frozen=True)
class Costs:
    """Costs of speculative decoding; the unit is the time of one step of plain decoding.

    draft: one step of the draft model.
    verify: every further token that is verified in the same pass.

    Raises UsageError for negative or infinite costs.
    """

    draft: float = 0.5
    verify: float = 0.05

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self):
        for name in ("draft", "verify"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} = {getattr(self, name)} of a draft's costs: it must be 0 or more")


@dataclass(frozen=True)
class Draft:
    """Settings of a draft.

    skip: names of the units that the draft model leaves out (see ``graph.halves``).
    view: linears that the draft model uses in fewer bits.
    lookup: most tokens of context that a match in earlier text may have; 0: no lookup.
    branches: how many different first tokens a looked-up draft may have.
    corpus: look up in ``draft.safetensors`` as well.
    length: most tokens of a draft.
    adaptive: propose fewer tokens, or none, where acceptance is not likely enough to pay.
    acceptance: how often the target accepts a token of the draft model, as measured.
    costs: of a step of the draft model and of verification.

    Raises UsageError for settings that draft nothing, and for values out of range.
    """

    skip: tuple[str, ...] = ()
    view: View | None = None
    lookup: int = 0
    branches: int = 1
    corpus: bool = False
    length: int = 4
    adaptive: bool = True
    acceptance: float = 0.7
    costs: Costs = Costs()

    def __post_init__(self):
        object.__setattr__(self, "skip", tuple(self.skip))
        for name, low, high in (
            ("length", 1, LONGEST),
            ("lookup", 0, LONGEST_MATCH),
            ("branches", 1, 8),
            ("acceptance", 0, 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"{name} = {getattr(self, name)} of a draft: it must be {low} to {high}")
        if not (self.model or self.lookup):
            raise UsageError("a draft of nothing: set units to leave out (skip), a view in fewer bits (view) or lookup")
        if self.corpus and not self.lookup:
            raise UsageError("a draft with a corpus needs lookup, the longest match, of 1 or more")

    @property
    def model(self) -> bool:
        """Whether a draft model runs; without one, draft tokens come from lookup alone."""
        return bool(self.skip or self.view)

    def __str__(self) -> str:
        parts = [f"without {', '.join(self.skip)}"] if self.skip else []
        parts += [str(self.view)] if self.view else []
        parts += ["lookup" + (" and corpus" if self.corpus else "")] if self.lookup else []
        many = "token" if self.length == 1 else "tokens"
        return "; ".join(parts) + f"; {self.length} {many}" + (" at most" if self.adaptive else "")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Draft":
        """Make a draft from a mapping (``asdict``, JSON). Raises UsageError for unknown names and wrong types."""
        for name in set(values) - {field.name for field in fields(cls)}:
            raise UsageError(f"a draft has no {name!r}; it has {', '.join(field.name for field in fields(cls))}")
        try:
            return TypeAdapter(cls).validate_python(dict(values))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise UsageError(f"{where} = {first['input']!r} of a draft: {first['msg']}") from error


def write_draft(source: ModelFolder, draft: Draft | None, reason: str, measured: Mapping[str, Any]) -> None:
    """Write ``draft.json`` beside a checkpoint.

    draft: the chosen draft, None if none makes generation faster.
    reason: for the choice, in words.
    measured: the measurements behind it.
    """
    chosen = None if draft is None else asdict(draft)
    record = {"checkpoint": source.fingerprint(), "draft": chosen, "reason": reason, "measured": dict(measured)}
    write_first(_places(source, NAME), lambda path: write_record(path, record))


def read_draft(source: ModelFolder) -> tuple[Draft | None, str]:
    """Read ``draft.json`` beside a checkpoint. Returns the draft, None if it says that none pays, and the reason.

    Raises UsageError if the file is missing or belongs to another checkpoint, JettisonError if it cannot be read.
    """
    path = _find(source, NAME, f"`jettison draft {source.folder}` chooses a draft and writes it")
    recorded = read_record(path)
    if recorded.get("checkpoint") != source.fingerprint():
        raise UsageError(
            f"{path} is of another checkpoint ({recorded.get('checkpoint')}; this one is {source.fingerprint()}): "
            f"run `jettison draft {source.folder}` again"
        )
    try:
        chosen = recorded["draft"]
        return None if chosen is None else Draft.of(chosen), str(recorded.get("reason", ""))
    except (KeyError, TypeError, UsageError) as error:
        raise JettisonError(f"{path} is not a draft that can be read: {error}") from error


def write_corpus(source: ModelFolder, tokens: torch.Tensor) -> None:
    """Write the corpus for lookup beside a checkpoint. tokens: (n) ids, texts one after the other."""
    write_first(_places(source, CORPUS), lambda path: write_sealed(path, {"tokens": tokens.to(torch.int32)}))


def read_corpus(source: ModelFolder) -> np.ndarray:
    """Read the corpus beside a checkpoint. Returns (n) token ids.

    Raises UsageError if it is missing or has tokens that the model does not have, JettisonError if it is damaged.
    """
    command = f"`jettison draft {source.folder} --corpus TEXT`"
    path = _find(source, CORPUS, f"{command} writes it")
    sealed = read_sealed(path) if path.is_file() else None
    if (
        sealed is None
        or (tokens := sealed[0].get("tokens")) is None
        or tokens.dim() != 1
        or tokens.dtype != torch.int32
    ):
        raise JettisonError(f"{path} is damaged: run {command} again")
    source.check_tokens(tokens, str(path))
    return tokens.numpy()


def _places(source: ModelFolder, name: str) -> list[Path]:
    return places(source.folder, Path(name), "drafts", source.fingerprint())


def _find(source: ModelFolder, name: str, otherwise: str) -> Path:
    """Return the newest file of this name that belongs to a checkpoint."""
    paths = [path for path in _places(source, name) if path.exists()]
    if not paths:
        raise UsageError(f"{source.folder} has no {name}: {otherwise}")
    # an old file beside a checkpoint stays if its folder is read-only; the newer one is then in the cache folder
    return max(paths, key=lambda path: path.stat().st_mtime_ns)
