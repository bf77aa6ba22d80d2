"""Methods are annotated pure functions. A decorator names them; their signatures are their option schemas.

A room that has methods (and any other package) is found through the entry point group ``jettison.methods``. Those of
our own are read without being imported, see ``outline``.
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

    verb: the step it serves (``prune``, ``quantize``, ``recover``). needs: the statistics it wants (``hessian``).
    choose: which of them with given options, where that depends on these. scope: what it sees, one ``linear``, a
    ``block`` (it returns edits), or the whole ``run``. traits: what else frames must know of it: ``joint``, that a
    pruner may quantize in its place.
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
        return self.needs if self.choose is None else frozenset(self.choose(options))

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Option name -> default: the keyword-only parameters of the function."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def check(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options, complete. Raises UsageError naming the option and what is valid: a text is no number, a number
        no yes or no, and no number is infinite. YAML takes 1e-4, without a dot, for a text: it is read as a number."""
        for name in options:
            if name not in self.defaults:
                raise unknown("option", name, self.defaults, f" of {self.verb} method {self.name!r}")
        given = {name: self._given(name, value) for name, value in options.items()}
        try:
            return self._schema(**given).model_dump()
        except ValidationError as error:
            say = lambda name, value, needed: f"{self.verb} method {self.name!r}: option {name} = {value}: {needed}"
            raise explain(error, say, "option", self.defaults, f" of {self.verb} method {self.name!r}") from None

    def _given(self, name: str, value: Any) -> Any:
        if type(value) is int:
            check_number(f"{self.verb} method {self.name!r}: option {name}", value, -LAST_SEED, LAST_SEED)
        text = isinstance(value, str) and not isinstance(self.defaults[name], str)
        return float(value) if text and re.fullmatch(r"[-+]?[0-9]+e[-+]?[0-9]+", value, re.IGNORECASE) else value

    @cached_property
    def _schema(self):
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
    """Register the decorated function as method ``name`` of ``verb``; the function itself is returned unchanged.

    Raises UsageError for a scope that the verb does not have, a function whose first parameters are not those of its
    scope, options without defaults, and a second method of the same name.
    """

    def register(function: Callable) -> Callable:
        _check_signature(verb, name, scope, function)
        known = _METHODS.get((verb, name))
        if known and (known.function.__module__, known.function.__name__) != (function.__module__, function.__name__):
            raise UsageError(f"{verb} method {name!r} is there already, in {known.function.__module__}: choose a name")
        _METHODS[verb, name] = Method(verb, name, function, paper, frozenset(needs), choose, scope, frozenset(traits))
        return function

    return register


# What a function of a verb and a scope is called with; more may follow, with defaults.
SIGNATURES = {
    ("quantize", "linear"): ("weight", "grid", "stats"),
    ("quantize", "block"): ("block", "grids", "stats"),
    ("prune", "linear"): ("weight", "pattern", "stats"),
    ("recover", "run"): ("pupil",),
}


def _check_signature(verb: str, name: str, scope: str, function: Callable) -> None:
    where = f"{verb} method {name!r} ({function.__module__})"
    if (verb, scope) not in SIGNATURES:
        scopes = sorted(each for of, each in SIGNATURES if of == verb)
        raise (
            unknown("scope", scope, scopes, f" of {where}")
            if scopes
            else unknown("verb", verb, {of for of, _ in SIGNATURES}, f" of {where}")
        )
    parameters = inspect.signature(function).parameters.values()
    first = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    wanted = SIGNATURES[verb, scope]
    if first[: len(wanted)] != wanted:
        raise UsageError(f"{where} takes ({', '.join(first)}); ({', '.join(wanted)}) is needed at scope {scope!r}")
    if bare := [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]:
        raise UsageError(f"{where}: option {bare[0]} has no default")


pruner = partial(method, "prune")
quantizer = partial(method, "quantize")
recoverer = partial(method, "recover", scope="run")
DECORATORS = {"method": method, "pruner": pruner, "quantizer": quantizer, "recoverer": recoverer}


def register_files(path: Iterable[str], package: str) -> None:
    """Register all methods of a package's files. Each file is imported when one of its methods is first called; at
    once where its text does not say all of a method."""
    for finder, name, is_package in walk_packages(path, f"{package}."):
        if is_package:
            continue
        text = finder.find_spec(name).loader.get_source(name)
        try:
            for decorator, arguments, options, function in list(outlines(text, name, DECORATORS)):
                DECORATORS[decorator](*arguments, **options)(function)
        except Unreadable:
            import_module(name)


@cache
def _discover() -> None:
    for entry in entry_points(group="jettison.methods"):
        try:
            entry.load()
        except Exception as error:  # whatever someone's package raises: the others work
            say(f"warning: the methods of {entry.name} ({entry.value}) cannot be used: {type(error).__name__}: {error}")


def methods(verb: str) -> dict[str, Method]:
    _discover()
    return {name: found for (of, name), found in sorted(_METHODS.items()) if of == verb}


def verbs() -> list[str]:
    _discover()
    return sorted({verb for verb, _ in _METHODS})


@cache
def default_method(purpose: str) -> str:
    """The method that defaults.yaml names for a purpose."""
    return yaml.safe_load((files("jettison.recipe") / "defaults.yaml").read_text(encoding="utf-8"))[purpose]


def having(verb: str, test: Callable[[Method], bool]) -> str:
    """The names of a verb's methods that pass, for a message."""
    return " and ".join(name for name, found in methods(verb).items() if test(found))


def find(verb: str, name: str) -> Method:
    """Raises UsageError that lists the known methods."""
    known = methods(verb)
    if not isinstance(name, str) or name not in known:
        raise unknown(f"{verb} method", name, known)
    return known[name]
