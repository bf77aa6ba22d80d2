"""Jettison: make neural networks fit small devices.

The verbs are here, each loaded when first used: ``jettison.fit("scribe", memory="8MB", out="DIR")``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jettison.core.errors import JettisonError, UsageError
    from jettison.fitting import fit
    from jettison.pipeline.compression import compress
    from jettison.pipeline.evaluation import evaluate
    from jettison.pipeline.recovery import recover
    from jettison.pipeline.verification import verify
    from jettison.planning.planner import plan
    from jettison.recipe.recipe import Recipe, load_recipe
    from jettison.runtime.load import load
    from jettison.runtime.speculative.choose import draft

_HOMES = {
    "JettisonError": "core.errors",
    "Recipe": "recipe.recipe",
    "UsageError": "core.errors",
    "compress": "pipeline.compression",
    "draft": "runtime.speculative.choose",
    "evaluate": "pipeline.evaluation",
    "fit": "fitting",
    "load": "runtime.load",
    "load_recipe": "recipe.recipe",
    "plan": "planning.planner",
    "recover": "pipeline.recovery",
    "verify": "pipeline.verification",
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jettison' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"jettison.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
