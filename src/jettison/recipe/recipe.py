"""Recipes: the methods for every part of a model. Users or the planner write recipes, ``compress`` runs them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from jettison.core.documents import parse_yaml, read_yaml
from jettison.core.errors import UsageError, shown, unknown
from jettison.core.numbers import check_number
from jettison.core.progress import say
from jettison.core.validation import Say, read_fields
from jettison.encodings.grid import Grid
from jettison.encodings.kinds import make_grid
from jettison.encodings.pattern import Allocation, Pattern
from jettison.recipe import registry
from jettison.recipe.fields import CALIBRATION, OWN_OPTIONS, CalibrationFields, GridFields, RecipeFields, RunFields
from jettison.recipe.where import Where, parse_where

PRESETS = files("jettison.recipe") / "presets"


@dataclass(frozen=True)
class Step:
    """One step of a recipe: a verb (``quantize``), a method, its complete options, and the linears it applies to.

    grid: only for a quantize step.
    pattern, allocation: only for a prune step.
    mtp: the grid of the same roles in blocks for multi-token prediction; only for a quantize step, None leaves them.
    run: only for a program step.
    """

    verb: str
    method: str
    options: dict[str, Any]
    where: Where = field(default_factory=Where)
    grid: Grid | None = None
    pattern: Pattern | None = None
    allocation: Allocation | None = None
    mtp: Grid | None = None
    run: RunFields | None = None

    def __str__(self) -> str:
        what = f"{self.method} to {self.grid or self.pattern}" if self.grid or self.pattern else self.method
        return f"{self.verb} {what}: {self.where}"

    def claims(self, roles: Iterable[str], block: int | None) -> bool:
        """Return whether the step applies to a linear with these roles in this block (None: outside the blocks).

        A prune step without a role applies only inside the blocks: a head is pruned only if the recipe names its role.
        """
        outside = self.verb == "prune" and not self.where.role and block is None
        return not outside and self.where.matches(roles, block)

    @property
    def own_options(self) -> dict[str, Any]:
        """The options that belong to the verb, as in a recipe file."""
        if self.pattern:
            return self.pattern.options() | (self.allocation.options() if self.allocation else {})
        if self.run:
            return self.run.model_dump()
        mtp = {"mtp": self.mtp.bits} if self.mtp else {}
        return self.grid.options() | mtp if self.grid else {}


@dataclass(frozen=True)
class Recipe:
    """A complete recipe.

    steps: in the order in which they are applied.
    calibration: the data for methods that need statistics.
    why: the planner's reasons.
    """

    name: str
    steps: tuple[Step, ...]
    use: str = ""
    calibration: dict[str, Any] = field(default_factory=lambda: dict(CALIBRATION))
    why: tuple[str, ...] = ()
    loss: float | None = None  # the measured increase of log-perplexity on scribe; orders the presets for the planner

    def of(self, verb: str) -> list[Step]:
        """Return the steps of one verb."""
        return [step for step in self.steps if step.verb == verb]

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as in a file. Empty fields are left out.

        Options are written even at their defaults, so that the file records what was run.
        """
        steps = []
        for step in self.steps:
            entry: dict[str, Any] = {step.verb: {"method": step.method} | step.own_options | step.options}
            if step.where != Where():
                entry["where"] = step.where.to_dict()
            steps.append(entry)
        fields = {"name": self.name, "use": self.use, "loss": self.loss, "why": list(self.why)}
        stated = {name: value for name, value in fields.items() if value not in (None, "", [])}
        return stated | {"calibration": self.calibration, "steps": steps}

    def to_yaml(self) -> str:
        """Return the text of a recipe file."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100, default_flow_style=None)


def preset_names() -> list[str]:
    """Return the names of the presets, sorted."""
    return sorted(entry.name.removesuffix(".yaml") for entry in PRESETS.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(source: "str | Path | Mapping | Recipe", changes: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply changes to it.

    source: a preset's name, the path of a YAML or JSON file, a mapping, or a Recipe.
    changes: texts of the form ``verb.option=value``. A change applies to every step of its verb that has the option;
        ``calibration.option=value`` works too.
    Raises UsageError that names the field and what is valid.
    """
    changes = [_parse_change(change) for change in changes]
    if isinstance(source, Recipe) and not changes:
        return source
    if isinstance(source, Recipe):
        data: Any = source.to_dict()
    elif not isinstance(source, str | Path):
        data = source
    elif str(source) in preset_names():
        data = parse_yaml((PRESETS / f"{source}.yaml").read_text(encoding="utf-8"), f"recipe {source}")
    elif Path(source).suffix in (".yaml", ".yml", ".json"):
        data = read_yaml(Path(source), "recipe")
    else:
        raise unknown("recipe", str(source), preset_names(), " (neither a preset nor a .yaml file)")
    return _parse(data, changes)


def _parse(data: Any, changes: list[tuple[str, str, Any]]) -> Recipe:
    """Make a recipe from the content of a file. changes: (verb, option, value)."""
    if not isinstance(data, Mapping):
        raise UsageError(f"a recipe is a mapping with the field 'steps'; this one is a {type(data).__name__}")
    fields = read_fields(RecipeFields, data, _message_of("recipe field"), "recipe field")
    if not isinstance(fields.steps, list) or not fields.steps:
        raise UsageError("recipe field 'steps' must be a list with at least one step")
    why = fields.why or []
    if not isinstance(why, list | tuple):
        raise UsageError(f"recipe field why = {shown(why)}: a list of texts is needed")
    if fields.loss is not None:
        check_number("recipe field loss", fields.loss, 0)
    used: set[tuple[str, str]] = set()
    steps = tuple(_parse_step(step, changes, used) for step in fields.steps)
    for verb, option, _ in changes:
        if verb != "calibration" and (verb, option) not in used:
            raise unknown("change", f"{verb}.{option}", _changeable(steps))
    return Recipe(
        name=fields.name,
        steps=steps,
        use=fields.use,
        calibration=_parse_calibration(fields.calibration, changes),
        why=tuple(_text("recipe field why", reason) for reason in why),
        loss=fields.loss,
    )


def _parse_calibration(data: Any, changes: list[tuple[str, str, Any]]) -> dict[str, Any]:
    options = _mapping(data, "calibration is a mapping such as {text: books}")
    options |= {option: value for verb, option, value in changes if verb == "calibration"}
    fields = read_fields(CalibrationFields, options, _message_of("calibration option"), "calibration option")
    return CALIBRATION | {name: getattr(fields, name) for name in options}


def _message_of(what: str) -> Say:
    """Return the function with which ``read_fields`` makes the message about a wrong value. what: the kind of field."""
    return lambda name, value, needed: f"{what} {name} = {value}: {needed}"


def _text(name: str, value: Any, empty: bool = False) -> str:
    """Return ``value``; raise UsageError if it is not a text, or empty unless ``empty`` allows it."""
    if not isinstance(value, str) or not (value or empty):
        raise UsageError(f"{name} = {shown(value)}: a text is needed")
    return value


def _mapping(data: Any, what: str) -> dict[Any, Any]:
    """Return a copy of a mapping as a dict, an empty one for None; raise UsageError for anything else."""
    if data is not None and not isinstance(data, Mapping):
        raise UsageError(f"{what}; this is {shown(data)}")
    return dict(data or {})


def _changeable(steps: Iterable[Step]) -> set[str]:
    """Return what a change may name in a recipe, as ``verb.option``."""
    valid = {f"calibration.{name}" for name in CalibrationFields.model_fields}
    for step in steps:
        names = [*step.options, *OWN_OPTIONS.get(step.verb, ())]
        valid |= {f"{step.verb}.{name}" for name in names}
    return valid


def _parse_step(data: Any, changes: list[tuple[str, str, Any]], used: set[tuple[str, str]]) -> Step:
    """Make a step from its mapping in a recipe, with the changes for its verb applied.

    used: the (verb, option) pairs of changes that a step has used so far; this step adds its own.
    """
    verbs = [name for name in data if name != "where"] if isinstance(data, Mapping) else []
    if len(verbs) != 1:
        valid = f"a step has one verb ({', '.join(registry.verbs())}) and optionally 'where'"
        raise UsageError(f"{valid}; this is {shown(data)}")
    verb = verbs[0]
    if verb not in registry.verbs():
        raise unknown("step", verb, registry.verbs())
    options = _mapping(data[verb], f"the options of {verb} are a mapping such as {{method: ...}}")
    changed = [(option, value) for target, option, value in changes if target == verb]
    name = dict(changed).get(
        "method", options.pop("method", registry.default_method(verb) if verb in ("recover", "program") else "")
    )
    method = registry.find(verb, name)
    known = {*method.defaults, *OWN_OPTIONS.get(verb, ())}
    if "method" in dict(changed):  # the new method may not have the options of the old one
        options = {option: value for option, value in options.items() if option in known}
    options |= {option: value for option, value in changed if option in known}
    used |= {(verb, option) for option, _ in changed if option in known | {"method"}}
    verb_options = {name: options.pop(name) for name in OWN_OPTIONS.get(verb, ()) if name in options}
    verb_fields: dict[str, Any] = {}
    if verb == "quantize":
        if "bits" not in verb_options and "values" not in verb_options:
            raise UsageError(f"a quantize step needs 'bits' (2 to 8); this is {shown(data)}")
        verb_fields["grid"], verb_fields["mtp"] = _parse_grids(verb_options)
    if verb == "prune":
        verb_fields["pattern"], verb_fields["allocation"] = _parse_pattern(verb_options, dict(changed), data)
    if verb == "program":
        verb_fields["run"] = _parse_run(verb_options, dict(changed), data)
    where = parse_where(data["where"]) if "where" in data else Where()
    return Step(verb, method.name, method.check(options), where, **verb_fields)


def _parse_run(options: dict[str, Any], changed: dict[str, Any], data: Any) -> RunFields:
    """Read the options of a program step that all methods have. The arguments are those of ``_parse_pattern``."""
    for name, other in (("ratio", "speedup"), ("speedup", "ratio")):
        if name in changed and other not in changed:  # a change of one replaces the other
            options.pop(other, None)
    options = {name: value for name, value in options.items() if value is not None}
    if ("ratio" in options) == ("speedup" in options):
        valid = "a program step needs one of 'ratio' (such as 0.6) and 'speedup' (such as 2.5)"
        raise UsageError(f"{valid}; this is {shown(data)}")
    return read_fields(RunFields, options, _message_of("program option"), "program option")


def _parse_pattern(options: dict[str, Any], changed: dict[str, Any], data: Any) -> tuple[Pattern, Allocation]:
    """Make the pattern and the allocation of a prune step.

    changed: the options that changes set.
    data: the step as in the recipe, for errors.
    """
    for name, other in (("sparsity", "pattern"), ("pattern", "sparsity")):
        if name in changed and other not in changed:  # a change of one replaces the other
            options.pop(other, None)
    if ("sparsity" in options) == ("pattern" in options):
        valid = "a prune step needs 'sparsity' (0 to 1) or 'pattern' (such as \"2:4\")"
        raise UsageError(f"{valid}; this is {shown(data)}")
    for name in ("sparsity", "spread"):
        if name in options:
            check_number(f"prune option {name}", options[name], 0, 1)
    for name in ("scope", "allocation"):
        if name in options:
            _text(f"prune option {name}", options[name], empty=True)
    named = {"allocation": "kind", "spread": "spread"}
    allocation = Allocation(**{field: options[name] for name, field in named.items() if name in options})
    scope = options.get("scope") or ""
    if "sparsity" in options:
        return Pattern(float(options["sparsity"]), scope=scope), allocation
    if allocation.kind != "uniform":
        raise UsageError(
            f"allocation = {allocation.kind!r}: {shown(options['pattern'])} is the same everywhere; give a sparsity"
        )
    return replace(Pattern.parse(options["pattern"]), scope=scope), allocation


def _parse_grids(options: dict[str, Any]) -> tuple[Grid, Grid | None]:
    """Make the grid of a quantize step, and the one with ``mtp`` bits, None without this option."""
    read_fields(GridFields, options, _message_of("quantize option"), "quantize option")
    bits = options.pop("mtp", None)
    grid = make_grid(options)
    if bits is None:
        return grid, None
    try:
        return grid, make_grid(options | {"bits": bits})
    except UsageError as error:
        raise UsageError(f"quantize option mtp: {error}") from None


def _parse_change(change: str) -> tuple[str, str, Any]:
    """Split a change into verb, option and value, which is read as YAML."""
    match = re.fullmatch(r"(\w+)\.(\w+)=(.*)", str(change), re.DOTALL)
    if not match:
        raise UsageError(f"a change has the form verb.option=value, such as recover.rank=16; this is {shown(change)}")
    return match[1], match[2], parse_yaml(match[3], f"the value of change {shown(change)}")


def with_images(recipe: Recipe, images: str | Path | None) -> Recipe:
    """Return the recipe with ``images`` as its calibration data, or unchanged if ``images`` is None."""
    if images is None:
        return recipe
    return replace(recipe, calibration=recipe.calibration | {"images": str(images)})


def with_windows(recipe: Recipe, positions: int | None) -> Recipe:
    """Return the recipe with all window lengths cut to the model's positions, and print a note for every cut.

    Like a group size, a length is adapted to the model; it is not an error.
    """
    note = lambda verb, length: say(
        f"note: {verb}.length {length} is cut to {positions}, the number of positions that the model has"
    )
    if positions is None:
        return recipe
    if (length := recipe.calibration["length"]) > positions:
        note("calibration", length)
        recipe = replace(recipe, calibration=recipe.calibration | {"length": positions})
    steps = list(recipe.steps)
    for index, step in enumerate(steps):
        if step.verb == "recover" and step.options["length"] > positions:
            note("recover", step.options["length"])
            steps[index] = replace(step, options=step.options | {"length": positions})
    return replace(recipe, steps=tuple(steps))
