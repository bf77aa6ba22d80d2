"""Methods are annotated pure functions. A decorator names them; their signatures are their option schemas.

A room that has methods (and any other package) is found through the entry point group ``jettison.methods``.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from jettison.errors import UsageError, unknown


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

    @property
    def defaults(self) -> dict[str, Any]:
        """Option name -> default: the keyword-only parameters of the function."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def check(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options, complete and with their types. Raises UsageError naming the option and what is valid."""
        for name in options:
            if name not in self.defaults:
                raise unknown("option", name, self.defaults, f" of {self.verb} method {self.name!r}")
        try:
            return self._schema(**options).model_dump()
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            value = first.get("input")
            raise UsageError(f"{self.verb} method {self.name!r}: option {name} = {value!r}: {first['msg']}") from None

    @property
    def _schema(self):
        parameters = inspect.signature(self.function).parameters
        fields = {name: (parameters[name].annotation, default) for name, default in self.defaults.items()}
        return create_model(self.name, __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)


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
    if name not in known:
        raise unknown(f"{verb} method", name, known)
    return known[name]
