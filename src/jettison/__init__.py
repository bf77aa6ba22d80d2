"""Jettison: make neural networks fit small devices.

The verbs are here, each loaded when first used: ``jettison.fit("scribe", memory="8MB", out="DIR")``.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jettison.compress import compress
    from jettison.decode import load
    from jettison.draft import draft
    from jettison.errors import JettisonError, UsageError
    from jettison.evaluate import evaluate
    from jettison.fit import fit
    from jettison.plan import plan
    from jettison.recipe import Recipe, load_recipe
    from jettison.recover import recover
    from jettison.verify import verify

_HOMES = {
    "JettisonError": "errors",
    "Recipe": "recipe",
    "UsageError": "errors",
    "compress": "compress",
    "draft": "draft",
    "evaluate": "evaluate",
    "fit": "fit",
    "load": "decode",
    "load_recipe": "recipe",
    "plan": "plan",
    "recover": "recover",
    "verify": "verify",
}

__all__ = [
    "JettisonError",
    "Recipe",
    "UsageError",
    "compress",
    "draft",
    "evaluate",
    "fit",
    "load",
    "load_recipe",
    "plan",
    "recover",
    "verify",
]


class _Package(ModuleType):
    """Verbs win over rooms of the same name: ``jettison.plan`` is the function, also once the room of that name has
    been opened; ``from jettison.plan import ...`` still opens the room."""

    def __getattr__(self, name: str):
        if name not in _HOMES:
            raise AttributeError(f"module 'jettison' has no attribute {name!r}; it has {', '.join(__all__)}")
        value = getattr(import_module(f"jettison.{_HOMES[name]}"), name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
