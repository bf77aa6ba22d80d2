"""A recipe says what to do to which part of a model. People write it, the planner writes it, ``compress`` runs it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from jettison import registry
from jettison.errors import UsageError, unknown
from jettison.grid import Grid
from jettison.pattern import Allocation, Pattern

ROLES = ("q", "k", "v", "o", "gate", "up", "down", "expert", "router", "head", "embed", "linear")
GRID_OPTIONS = ("bits", "group_size", "symmetric")
PATTERN_OPTIONS = ("sparsity", "pattern", "scope", "allocation", "spread")
OWN_OPTIONS = {"quantize": GRID_OPTIONS, "prune": PATTERN_OPTIONS}  # of a verb, whatever the method
DEFAULT_METHOD = {"recover": "distill"}
CALIBRATION = {"text": "books", "samples": 128, "length": 256}
PRESETS = files("jettison") / "recipes"


@dataclass(frozen=True)
class Where:
    """Which linears a step is for: any of these roles, in these blocks; or what one of ``others`` says. Empty means
    all."""

    role: tuple[str, ...] = ()
    block: tuple[int, ...] = ()
    others: tuple["Where", ...] = ()

    def matches(self, roles: Iterable[str], block: int | None) -> bool:
        if any(other.matches(roles, block) for other in self.others):
            return True
        if self.block and block not in self.block:
            return False
        return bool(set(self.role) & set(roles)) if self.role else not {"embed", "router"} & set(roles)

    def in_any_block(self) -> "Where":
        return Where(self.role, (), tuple(other.in_any_block() for other in self.others))

    def to_dict(self) -> dict[str, Any] | list[dict[str, Any]]:
        """As in a recipe: a mapping, or a list of them."""
        own = {"role": list(self.role), "block": _spans(self.block)}
        own = {name: value for name, value in own.items() if value}
        return [own, *(other.to_dict() for other in self.others)] if self.others else own

    def __str__(self) -> str:
        where = ", ".join(self.role) or "all linears"
        blocks = f" of blocks {', '.join(map(str, _spans(self.block)))}" if self.block else ""
        return "; ".join([where + blocks, *map(str, self.others)])


@dataclass(frozen=True)
class Step:
    """One action: a verb (``quantize``), a method, its complete options, and where it applies.

    grid: of a quantize step. pattern, allocation: of a prune step.
    """

    verb: str
    method: str
    options: dict[str, Any]
    where: Where = Where()
    grid: Grid | None = None
    pattern: Pattern | None = None
    allocation: Allocation | None = None

    def __str__(self) -> str:
        what = f"{self.method} to {self.grid or self.pattern}" if self.grid or self.pattern else self.method
        return f"{self.verb} {what}: {self.where}"

    @property
    def own_options(self) -> dict[str, Any]:
        """Those of the verb, as in a recipe."""
        if self.pattern:
            return self.pattern.options() | (self.allocation.options() if self.allocation else {})
        return {name: getattr(self.grid, name) for name in GRID_OPTIONS} if self.grid else {}


@dataclass(frozen=True)
class Recipe:
    """steps, in order. calibration: the text that methods with statistics see. why: the planner's reasons."""

    name: str
    steps: tuple[Step, ...]
    use: str = ""
    calibration: dict[str, Any] = field(default_factory=lambda: dict(CALIBRATION))
    why: tuple[str, ...] = ()
    loss: float | None = None  # log-perplexity lost on scribe, measured; orders the presets for the planner

    def of(self, verb: str) -> list[Step]:
        return [step for step in self.steps if step.verb == verb]

    def to_dict(self) -> dict[str, Any]:
        """As in the file: only what differs from a default is left out, so that a file records what was run."""
        steps = []
        for step in self.steps:
            entry: dict[str, Any] = {step.verb: {"method": step.method} | step.own_options | step.options}
            if step.where != Where():
                entry["where"] = step.where.to_dict()
            steps.append(entry)
        found = {"name": self.name, "use": self.use, "loss": self.loss, "why": list(self.why)}
        given = {name: value for name, value in found.items() if value not in (None, "", [])}
        return given | {"calibration": self.calibration, "steps": steps}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100, default_flow_style=None)


def preset_names() -> list[str]:
    return sorted(entry.name.removesuffix(".yaml") for entry in PRESETS.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(source: "str | Path | Mapping | Recipe", changes: Iterable[str] = ()) -> Recipe:
    """A preset's name, the path of a YAML file, a mapping, or a Recipe; with ``verb.option=value`` changes applied.

    A change applies to every step of its verb that knows the option; ``calibration.option=value`` works too.
    Raises UsageError naming the field and what is valid.
    """
    changes = [_parse_change(change) for change in changes]
    if isinstance(source, Recipe) and not changes:
        return source
    if isinstance(source, Recipe):
        data: Any = source.to_dict()
    elif not isinstance(source, str | Path):
        data = source
    elif str(source) in preset_names():
        data = yaml.safe_load((PRESETS / f"{source}.yaml").read_text(encoding="utf-8"))
    elif Path(source).suffix in (".yaml", ".yml", ".json"):
        data = _read_yaml(Path(source))
    else:
        raise unknown("recipe", str(source), preset_names(), " (neither a preset nor a .yaml file)")
    return _parse(data, changes)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from error


def _parse(data: Any, changes: list[tuple[str, str, Any]]) -> Recipe:
    if not isinstance(data, Mapping):
        raise UsageError(f"a recipe is a mapping with the field 'steps'; this one is a {type(data).__name__}")
    known = ("name", "use", "calibration", "steps", "why", "loss")
    for name in data:
        if name not in known:
            raise unknown("recipe field", name, known)
    if not isinstance(data.get("steps"), list) or not data["steps"]:
        raise UsageError("recipe field 'steps' must be a list with at least one step")
    if not isinstance(data.get("calibration") or {}, Mapping):
        raise UsageError(f"calibration is a mapping such as {{text: books}}; this is {data['calibration']!r}")
    given = dict(data.get("calibration") or {})
    given |= {option: value for verb, option, value in changes if verb == "calibration"}
    for name in given:
        if name not in CALIBRATION:
            raise unknown("calibration option", name, CALIBRATION)
    for name in ("samples", "length"):
        if name in given and (not isinstance(given[name], int) or given[name] < 1):
            raise UsageError(f"calibration option {name} = {given[name]!r}: a positive whole number is needed")
    used: set[tuple[str, str]] = set()
    steps = tuple(_parse_step(step, changes, used) for step in data["steps"])
    for verb, option, _ in changes:
        if verb != "calibration" and (verb, option) not in used:
            raise unknown("change", f"{verb}.{option}", _changeable(steps))
    return Recipe(
        name=str(data.get("name", "custom")),
        steps=steps,
        use=str(data.get("use", "")),
        calibration=CALIBRATION | given,
        why=tuple(data.get("why") or ()),
        loss=data.get("loss"),
    )


def _changeable(steps: Iterable[Step]) -> set[str]:
    found = {f"calibration.{name}" for name in CALIBRATION}
    for step in steps:
        names = [*step.options, *OWN_OPTIONS.get(step.verb, ())]
        found |= {f"{step.verb}.{name}" for name in names}
    return found


def _parse_step(data: Any, changes: list[tuple[str, str, Any]], used: set[tuple[str, str]]) -> Step:
    verbs = [name for name in data if name != "where"] if isinstance(data, Mapping) else []
    if len(verbs) != 1:
        raise UsageError(f"a step has one verb ({', '.join(registry.verbs())}) and perhaps 'where'; this is {data!r}")
    verb = verbs[0]
    if verb not in registry.verbs():
        raise unknown("step", verb, registry.verbs())
    if not isinstance(data[verb] or {}, Mapping):
        raise UsageError(f"the options of {verb} are a mapping such as {{method: ...}}; this is {data[verb]!r}")
    options = dict(data[verb] or {})
    mine = [(option, value) for of, option, value in changes if of == verb]
    name = dict(mine).get("method", options.pop("method", DEFAULT_METHOD.get(verb, "")))
    method = registry.find(verb, name)
    known = {*method.defaults, *OWN_OPTIONS.get(verb, ())}
    if "method" in dict(mine):  # another method need not know the options of the first
        options = {option: value for option, value in options.items() if option in known}
    options |= {option: value for option, value in mine if option in known}
    used |= {(verb, option) for option, _ in mine if option in known | {"method"}}
    own = {name: options.pop(name) for name in OWN_OPTIONS.get(verb, ()) if name in options}
    what: dict[str, Any] = {}
    if verb == "quantize":
        if "bits" not in own:
            raise UsageError(f"a quantize step needs 'bits' (2 to 8); this is {data!r}")
        what["grid"] = _parse_grid(own)
    if verb == "prune":
        what["pattern"], what["allocation"] = _parse_pattern(own, dict(mine), data)
    return Step(verb, method.name, method.check(options), _parse_where(data.get("where")), **what)


def _parse_pattern(options: dict[str, Any], changed: dict[str, Any], data: Any) -> tuple[Pattern, Allocation]:
    for name, other in (("sparsity", "pattern"), ("pattern", "sparsity")):
        if name in changed and other not in changed:  # a change to one does away with the other
            options.pop(other, None)
    if ("sparsity" in options) == ("pattern" in options):
        raise UsageError(f"a prune step needs 'sparsity' (0 to 1) or 'pattern' (such as \"2:4\"); this is {data!r}")
    for name in ("sparsity", "spread"):
        if name in options and (isinstance(options[name], bool) or not isinstance(options[name], int | float)):
            raise UsageError(f"prune option {name} = {options[name]!r}: a number is needed")
    named = {"allocation": "kind", "spread": "spread"}
    allocation = Allocation(**{field: options[name] for name, field in named.items() if name in options})
    scope = options.get("scope") or ""
    if "sparsity" in options:
        return Pattern(float(options["sparsity"]), scope=scope), allocation
    if allocation.kind != "uniform":
        raise UsageError(
            f"allocation = {allocation.kind!r}: {options['pattern']!r} is the same everywhere; give a sparsity"
        )
    return replace(Pattern.parse(options["pattern"]), scope=scope), allocation


def _parse_grid(options: dict[str, Any]) -> Grid:
    for name, value in options.items():
        kind = bool if name == "symmetric" else int
        if type(value) is not kind:
            raise UsageError(f"quantize option {name} = {value!r}: {kind.__name__} is needed")
    return Grid(**options)


def _parse_where(data: Any) -> Where:
    if data is None:
        return Where()
    if isinstance(data, list) and data:
        first, *others = map(_parse_where, data)
        return replace(first, others=tuple(others))
    if not isinstance(data, Mapping):
        raise UsageError(f"'where' is a mapping with role and block, or a list of such; this is {data!r}")
    for name in data:
        if name not in ("role", "block"):
            raise unknown("field of where", name, ("role", "block"))
    roles = data.get("role", [])
    roles = list(roles) if isinstance(roles, list | tuple) else [roles]
    for role in roles:
        if role not in ROLES:
            raise unknown("role", role, ROLES)
    blocks = data.get("block", [])
    numbers: list[int] = []
    for entry in [blocks] if isinstance(blocks, int | str) else blocks:
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", str(entry))
        if not span:
            raise UsageError(f"block {entry!r} of where: a number or a span such as 0-3 is needed")
        numbers += range(int(span[1]), int(span[2] or span[1]) + 1)
    return Where(tuple(roles), tuple(numbers))


def _spans(blocks: Iterable[int]) -> list[int | str]:
    """Numbers as a recipe writes them: runs of three and more as a span such as 0-3."""
    runs: list[list[int]] = []
    for block in sorted(blocks):
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return [entry for run in runs for entry in ([f"{run[0]}-{run[-1]}"] if len(run) > 2 else run)]


def _parse_change(change: str) -> tuple[str, str, Any]:
    found = re.fullmatch(r"(\w+)\.(\w+)=(.*)", change, re.DOTALL)
    if not found:
        raise UsageError(f"a change has the form verb.option=value, such as recover.rank=16; this is {change!r}")
    try:
        return found[1], found[2], yaml.safe_load(found[3])
    except yaml.YAMLError as error:
        raise UsageError(f"the value of change {change!r} is not valid YAML: {' '.join(str(error).split())}") from error


def with_why(recipe: Recipe, why: Iterable[str]) -> Recipe:
    return replace(recipe, why=tuple(why))
