"""A program: which blocks of a denoiser are computed at which step, as a small JSON file.

Example:
    program = read_program("program.json")
    handle = attach_program(pipe, program)
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from jettison.core.documents import read_json
from jettison.core.errors import UsageError
from jettison.core.files import write_json
from jettison.core.validation import Fields, read_fields
from jettison.domains.diffusion.denoisers import denoiser_of, places
from jettison.domains.diffusion.identity import Identity, difference
from jettison.domains.diffusion.running import Handle, attach
from jettison.policies.gates import Gates

NAME = "program.json"  # of the program of a pipeline's folder
LIMIT = 1 << 26  # bytes of such a file
Flops = Annotated[int, Field(ge=0)]


class Costs(Fields):
    """FLOPs of one call of the denoiser for one image, guidance included.

    units: of every unit. rest: of all else. run: of a whole run of the program. full: of a run without it.
    """

    units: list[Flops]
    rest: Flops
    run: Flops
    full: int = Field(gt=0)

    @property
    def pruned(self) -> float:
        """The share of a run's FLOPs that the program saves."""
        return 1 - self.run / self.full


class Program(Fields):
    """A program.

    model: the denoiser that it is for.
    sampler: class of the scheduler. steps: ``num_inference_steps``.
    units: paths of the units, in order of execution.
    gates: a text for every call of the denoiser, with 1 for every unit that is computed and 0 for every other one.
    reuse: what a unit with a 0 reuses.
    source: how the gates were found.
    """

    kind: Literal["jettison-step-program"] = "jettison-step-program"
    version: Literal[1] = 1
    model: Identity
    sampler: str
    steps: int = Field(ge=1, description="a positive whole number is needed")
    units: list[str] = Field(min_length=1, description="a list of paths is needed")
    gates: list[str] = Field(min_length=1, description="a list of texts of 0 and 1 is needed, the first without 0")
    reuse: Literal["output", "residual"] = Field("output", description="output or residual is needed")
    costs: Costs
    source: str = ""

    @field_validator("gates")
    @classmethod
    def _check_digits(cls, gates: list[str]) -> list[str]:
        if any(set(row) - set("01") for row in gates) or "0" in gates[0]:
            raise ValueError("not texts of 0 and 1, or a 0 in the first")
        return gates

    @model_validator(mode="after")
    def _check_lengths(self) -> "Program":
        if {len(row) for row in self.gates} != {len(self.units)} or len(self.costs.units) != len(self.units):
            raise UsageError(f"program: every text of gates, and costs.units, must have {len(self.units)} entries")
        return self

    @property
    def rows(self) -> list[list[bool]]:
        """The gates, (calls, units)."""
        return [[digit == "1" for digit in row] for row in self.gates]


def gate_texts(rows: list[list[bool]]) -> list[str]:
    """Return gates as a program holds them."""
    return ["".join("01"[bool(gate)] for gate in row) for row in rows]


def write_program(path: str | Path, program: Program) -> None:
    """Write a program, whole or not at all."""
    write_json(Path(path), program.model_dump())


def read_program(path: str | Path) -> Program:
    """Read a program. Raises JettisonError if the file cannot be read, UsageError for what is not valid in it."""
    say = lambda field, value, needed: f"program {path}: {field} = {value}: {needed}"
    return read_fields(Program, read_json(Path(path)), say, "field", f" of program {path}")


def attach_program(
    target: Any, program: Program | str | Path, scheduler: Any = None, original: Identity | None = None
) -> Handle:
    """Run a program in a pipeline, until ``detach`` of the returned handle is called.

    target, scheduler: see ``attach``.
    program: or the path of its file.
    original: the identity of the model that this one was compressed from, for a program that was found on that one; a
        model with other weights is refused otherwise. Half precision does not change a model's identity.
    Raises UsageError if the program is for another model or sampler; and, when a run begins, for other steps.
    """
    program = program if isinstance(program, Program) else read_program(program)
    denoiser = denoiser_of(target)
    known = [place.unit.name for place in places(denoiser)]
    differs = difference(denoiser, program.model)
    if differs == "weights" and original is not None and original.same_weights(program.model):
        differs = ""
    if differs or known != program.units:
        raise UsageError(
            f"the program is for another model, a {program.model.class_name}: this {type(denoiser).__name__} has other "
            f"{differs or 'blocks'}"
        )
    sampler = type(scheduler if scheduler is not None else getattr(target, "scheduler", None))
    if sampler is not type(None) and sampler.__name__ != program.sampler:
        raise UsageError(f"the program is for the sampler {program.sampler}; this pipeline has {sampler.__name__}")
    return attach(target, Gates(program.rows, program.reuse, program.sampler, program.steps), scheduler)
