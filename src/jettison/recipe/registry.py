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
from pkgutil import walk_packages
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from jettison.core.errors import UsageError, shown, unknown
from jettison.core.numbers import LAST_SEED, check_number
from jettison.recipe.outline import Unreadable, outlines


@dataclass(frozen=True)
class Method:
    """A named way to carry out a step of a recipe.

    verb: the step it serves (``prune``, ``quantize``, ``recover``). needs: the statistics it wants (``hessian``).
    choose: which of them with given options, where that depends on these.
    """

    verb: str
    name: str
    function: Callable[..., Any]
    paper: str
    needs: frozenset[str]
    choose: Callable[[Mapping[str, Any]], set[str]] | None = None

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
            first = error.errors()[0]
            name, value = ".".join(str(part) for part in first["loc"]), shown(first.get("input"))
            raise UsageError(f"{self.verb} method {self.name!r}: option {name} = {value}: {first['msg']}") from None

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
) -> Callable:
    """Register the decorated function as method ``name`` of ``verb``; the function itself is returned unchanged."""

    def register(function: Callable) -> Callable:
        _METHODS[verb, name] = Method(verb, name, function, paper, frozenset(needs), choose)
        return function

    return register


pruner = partial(method, "prune")
quantizer = partial(method, "quantize")
recoverer = partial(method, "recover")
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
        entry.load()


def methods(verb: str) -> dict[str, Method]:
    _discover()
    return {name: found for (of, name), found in sorted(_METHODS.items()) if of == verb}


def verbs() -> list[str]:
    _discover()
    return sorted({verb for verb, _ in _METHODS})


def find(verb: str, name: str) -> Method:
    """Raises UsageError that lists the known methods."""
    known = methods(verb)
    if not isinstance(name, str) or name not in known:
        raise unknown(f"{verb} method", name, known)
    return known[name]
