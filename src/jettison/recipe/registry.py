"""The registry of methods. A method is an annotated pure function, which a decorator names and registers.

- The keyword-only parameters of the function are the options of the method.
- Packages with methods, our own and others, are found through the entry point group ``jettison.methods``.
- Our own methods are read from the text of their files, without importing them (see ``outline``).
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib import import_module
from importlib.metadata import entry_points
from importlib.resources import files
from pkgutil import walk_packages
from typing import Any

import yaml
from pydantic import ConfigDict, ValidationError, create_model

from jettison.core.errors import UsageError, unknown
from jettison.core.numbers import LAST_SEED, check_number
from jettison.core.progress import say
from jettison.core.validation import explain
from jettison.recipe.outline import Unreadable, outlines


@dataclass(frozen=True)
class Method:
    """A named way to carry out a step of a recipe.

    verb: the kind of step (``prune``, ``quantize``, ``recover``, ``depth``, ``program``).
    paper: the source of the method.
    needs: the statistics that it needs, names of ``STATISTICS``.
    choose: a function from options to the statistics that are needed with them; None if they are always ``needs``.
    scope: what the function receives: one ``linear``, a ``block`` (it then returns edits), or the whole ``run``.
    traits: other properties that the pipeline must know. ``joint``: a pruner may quantize in its place. ``rival``: the
        report compares other methods of the verb with it.
    """

    verb: str
    name: str
    function: Callable[..., Any]
    paper: str
    needs: frozenset[str]
    choose: Callable[[Mapping[str, Any]], set[str]] | None = None
    scope: str = "linear"
    traits: frozenset[str] = frozenset()

    def needs_with(self, options: Mapping[str, Any]) -> frozenset[str]:
        """Return the statistics that the method needs with these options."""
        return self.needs if self.choose is None else frozenset(self.choose(options))

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The options and their defaults: the keyword-only parameters of the function."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def check(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Check options, and return them completed with the defaults.

        A text such as 1e-4 is read as a number, because YAML reads numbers without a dot as texts.
        Raises UsageError that names the option and what is valid. Types are strict: a text is not a number, a number is
        not true or false, and infinite numbers are invalid.
        """
        for name in options:
            if name not in self.defaults:
                raise unknown("option", name, self.defaults, f" of {self.verb} method {self.name!r}")
        values = {name: self._read_number(name, value) for name, value in options.items()}
        try:
            return self._schema(**values).model_dump()
        except ValidationError as error:
            say = lambda name, value, needed: f"{self.verb} method {self.name!r}: option {name} = {value}: {needed}"
            raise explain(error, say, "option", self.defaults, f" of {self.verb} method {self.name!r}") from None

    def _read_number(self, name: str, value: Any) -> Any:
        """Return the value of an option. A text such as 1e-4 becomes a number, unless the option is a text."""
        if type(value) is int:
            check_number(f"{self.verb} method {self.name!r}: option {name}", value, -LAST_SEED, LAST_SEED)
        number_as_text = isinstance(value, str) and not isinstance(self.defaults[name], str)
        return (
            float(value) if number_as_text and re.fullmatch(r"[-+]?[0-9]+e[-+]?[0-9]+", value, re.IGNORECASE) else value
        )

    @cached_property
    def _schema(self):
        """The pydantic model of the options."""
        parameters = inspect.signature(self.function).parameters
        fields = {name: (parameters[name].annotation, default) for name, default in self.defaults.items()}
        config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
        return create_model(self.name, __config__=config, **fields)


_METHODS: dict[tuple[str, str], Method] = {}


def method(
    verb: str,
    name: str,
    *,
    paper: str = "",
    needs: tuple[str, ...] = (),
    choose: Callable[[Mapping[str, Any]], set[str]] | None = None,
    scope: str = "linear",
    traits: tuple[str, ...] = (),
) -> Callable:
    """Register the decorated function as method ``name`` of ``verb``. The decorator returns the function unchanged.

    The arguments are those of ``Method``.
    Raises UsageError for a scope that the verb does not have, a statistic that does not exist, a function whose first
    parameters are not those of its scope, options without a type or a default, and a second method of the same name.
    """

    def register(function: Callable) -> Callable:
        _check_signature(verb, name, scope, function)
        for statistic in needs:
            if statistic not in STATISTICS:
                raise unknown("statistic", statistic, STATISTICS, f" that {verb} method {name!r} needs")
        known = _METHODS.get((verb, name))
        if known and (known.function.__module__, known.function.__name__) != (function.__module__, function.__name__):
            raise UsageError(
                f"{verb} method {name!r} exists already, in {known.function.__module__}: choose a new name"
            )
        _METHODS[verb, name] = Method(verb, name, function, paper, frozenset(needs), choose, scope, frozenset(traits))
        return function

    return register


# What ``needs`` may name: fields of ``statistics.stats.Stats``. x: the inputs of the linear in the compressed model.
STATISTICS = {
    "hessian": "(in, in), the mean of x xᵀ over the tokens",
    "cross": "(in, in), the mean of x₀ xᵀ, x₀ being the inputs in the original model",
    "dense": "(in, in), the mean of x₀ x₀ᵀ",
    "absmean": "(in,), the mean of |x|",
}
# The first parameters of a method's function, by verb and scope. More may follow, with defaults.
SIGNATURES = {
    ("quantize", "linear"): ("weight", "grid", "stats"),
    ("quantize", "block"): ("block", "grids", "stats"),
    ("prune", "linear"): ("weight", "pattern", "stats"),
    ("recover", "run"): ("pupil",),
    ("depth", "run"): ("task",),
    ("program", "run"): ("task",),
}


def _check_signature(verb: str, name: str, scope: str, function: Callable) -> None:
    """Raise UsageError if a method has an unknown verb or scope, wrong parameters, or an option without a default."""
    where = f"{verb} method {name!r} ({function.__module__})"
    if (verb, scope) not in SIGNATURES:
        scopes = sorted(valid for owner, valid in SIGNATURES if owner == verb)
        raise (
            unknown("scope", scope, scopes, f" of {where}")
            if scopes
            else unknown("verb", verb, {known for known, _ in SIGNATURES}, f" of {where}")
        )
    parameters = inspect.signature(function).parameters.values()
    first = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    needed = SIGNATURES[verb, scope]
    if first[: len(needed)] != needed:
        raise UsageError(f"{where} takes ({', '.join(first)}); ({', '.join(needed)}) is needed at scope {scope!r}")
    if bare := [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]:
        raise UsageError(f"{where}: option {bare[0]} has no default")
    if bare := [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.annotation is p.empty]:
        raise UsageError(f"{where}: option {bare[0]} has no type: annotate it, as in {bare[0]}: float = 0.5")


pruner = partial(method, "prune")
quantizer = partial(method, "quantize")
recoverer = partial(method, "recover", scope="run")
depth_pruner = partial(method, "depth", scope="run")
program_finder = partial(method, "program", scope="run")
DECORATORS = {
    "method": method, "pruner": pruner, "quantizer": quantizer, "recoverer": recoverer, "depth_pruner": depth_pruner,
    "program_finder": program_finder,
}  # fmt: skip


def register_files(path: Iterable[str], package: str) -> None:
    """Register all methods in the files of a package. path: of the package, as in its ``__path__``.

    A file is imported when one of its methods is first called, or at once if its text does not suffice. A file that
    fails is skipped, and a warning names it: the others work.
    """
    for finder, name, is_package in walk_packages(path, f"{package}."):
        if is_package:
            continue
        loader = finder.find_spec(name).loader
        try:
            _register_file(loader.get_source(name), name)
        except Exception as error:  # whatever is wrong in one file must not stop the others
            say(f"warning: no methods of {loader.path}: {type(error).__name__}: {error}")


def _register_file(text: str, name: str) -> None:
    try:
        for decorator, arguments, options, function in list(outlines(text, name, DECORATORS)):
            DECORATORS[decorator](*arguments, **options)(function)
    except Unreadable:
        import_module(name)


@cache
def _discover() -> None:
    """Load the packages of the entry point group, which register their methods. A package that fails is skipped."""
    for entry in entry_points(group="jettison.methods"):
        try:
            entry.load()
        except Exception as error:  # an error in one package must not stop the others
            say(f"warning: the methods of {entry.name} ({entry.value}) cannot be used: {type(error).__name__}: {error}")


def methods(verb: str) -> dict[str, Method]:
    """Return the methods of a verb by name, sorted."""
    _discover()
    return {name: entry for (owner, name), entry in sorted(_METHODS.items()) if owner == verb}


def verbs() -> list[str]:
    """Return the verbs that have a method, sorted."""
    _discover()
    return sorted({verb for verb, _ in _METHODS})


@cache
def default_method(purpose: str) -> str:
    """Return the name of the method that defaults.yaml has for a purpose."""
    return yaml.safe_load((files("jettison.recipe") / "defaults.yaml").read_text(encoding="utf-8"))[purpose]


def having(verb: str, test: Callable[[Method], bool]) -> str:
    """Return the names of a verb's methods for which ``test`` is true, joined for a message."""
    return " and ".join(name for name, entry in methods(verb).items() if test(entry))


def find(verb: str, name: str) -> Method:
    """Return a method. Raises UsageError, which lists the known methods, if there is none of this name."""
    known = methods(verb)
    if not isinstance(name, str) or name not in known:
        raise unknown(f"{verb} method", name, known)
    return known[name]
