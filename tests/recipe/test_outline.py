"""The outline of a method, read from its file without an import, equals the imported method."""

import importlib
import inspect

import pytest

from jettison.core.errors import JettisonError
from jettison.recipe import registry
from jettison.recipe.outline import Unreadable, outlines

METHODS = [(verb, name) for verb in registry.verbs() for name in registry.methods(verb)]
DECORATED = """
from typing import Annotated
from pydantic import Field
import torch
from nowhere import heavy

LIMIT = 3

@pruner("mine", needs=("hessian",), choose=_needs)
def mine(weight: torch.Tensor, pattern, *, share: Annotated[float, Field(gt=0)] = 0.5, many: list[int] = [1]):
    '''Prune as I do.

    At length.
    '''

def _needs(options):
    return {"hessian"}
"""


@pytest.mark.parametrize(("verb", "name"), METHODS, ids=lambda value: value)
def test_the_outline_says_what_the_method_says(verb, name):
    registered = registry.find(verb, name)
    module, attribute = registered.function.__module__, registered.function.__name__
    text = inspect.getsource(importlib.import_module(module))
    (decorator, arguments, options, function), *others = outlines(text, module, registry.DECORATORS)
    real = getattr(importlib.import_module(module), attribute)
    assert not others and registry.DECORATORS[decorator].args == (verb,) and arguments == [name]
    assert (options.get("paper", ""), frozenset(options.get("needs", ()))) == (registered.paper, registered.needs)
    assert inspect.getdoc(function) == inspect.getdoc(real)
    outlined, imported = (
        registry.Method(verb, name, implementation, registered.paper, registered.needs)
        for implementation in (function, real)
    )
    assert outlined.defaults == imported.defaults and outlined.summary == imported.summary
    assert outlined._schema.model_json_schema() == imported._schema.model_json_schema()


def test_a_file_is_not_imported():
    [(decorator, arguments, options, function)] = outlines(DECORATED, "nowhere.mine", ["pruner"])
    assert (decorator, arguments, options["needs"]) == ("pruner", ["mine"], ("hessian",))
    assert function.__doc__.startswith("Prune as I do.") and callable(options["choose"])
    parameters = inspect.signature(function).parameters.values()
    assert {option.name: option.default for option in parameters if option.kind is option.KEYWORD_ONLY} == {
        "share": 0.5, "many": [1],
    }  # fmt: skip
    assert next(iter(parameters)).name == "weight"
    with pytest.raises(JettisonError, match="nowhere.mine cannot be imported: ModuleNotFoundError"):
        function()


@pytest.mark.parametrize("change", [("0.5", "LIMIT"), ("many: list[int] = [1]", "many=[1]"), ("= [1]", "")])
def test_what_cannot_be_read_is_imported(change):
    with pytest.raises(Unreadable, match=r"nowhere\.mine"):
        list(outlines(DECORATED.replace(*change), "nowhere.mine", ["pruner"]))
