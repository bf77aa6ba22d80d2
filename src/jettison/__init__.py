"""Jettison: make neural networks fit small devices.

The main functions are imported from here, for example ``jettison.fit("scribe", memory="8MB", out="DIR")``. A function's
module is loaded when the function is first used, so that ``import jettison`` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jettison.core.errors import JettisonError, UsageError
    from jettison.fitting import fit
    from jettison.pipeline.compression import compress
    from jettison.pipeline.evaluation import evaluate
    from jettison.pipeline.exporting import export
    from jettison.pipeline.inspection import inspect
    from jettison.pipeline.module_depth import prune_depth
    from jettison.pipeline.recovery import recover
    from jettison.pipeline.verification import verify
    from jettison.planning.planner import plan
    from jettison.recipe.recipe import Recipe, load_recipe
    from jettison.runtime.load import load
    from jettison.runtime.speculative.choose import draft

_MODULES = {  # public name -> the module that defines it
    "JettisonError": "core.errors",
    "Recipe": "recipe.recipe",
    "UsageError": "core.errors",
    "compress": "pipeline.compression",
    "draft": "runtime.speculative.choose",
    "evaluate": "pipeline.evaluation",
    "export": "pipeline.exporting",
    "fit": "fitting",
    "inspect": "pipeline.inspection",
    "load": "runtime.load",
    "load_recipe": "recipe.recipe",
    "plan": "planning.planner",
    "prune_depth": "pipeline.module_depth",
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
    "export",
    "fit",
    "inspect",
    "load",
    "load_recipe",
    "plan",
    "prune_depth",
    "recover",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'jettison' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"jettison.{_MODULES[name]}"), name)
    globals()[name] = value  # later uses find the name without calling __getattr__
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
