"""Methods as the text of their files describes them.

A recipe needs the names, options and defaults of the methods that it names; running it needs the methods. A method
imports torch, which takes seconds. So a file of methods is parsed, and imported when one of them is first called.
"""

import ast
import builtins
import inspect
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any


class Unreadable(Exception):
    """The text does not say everything: the file must be imported."""


def outlines(text: str, module: str, decorators: Iterable[str]) -> Iterator[tuple[str, list, dict[str, Any], Callable]]:
    """What is decorated in a file: decorator, its positional and keyword arguments, and a function that has the
    docstring and the keyword-only parameters of the decorated one, and calls it.

    module: the name under which the file is imported. Raises Unreadable.
    """
    tree = ast.parse(text)
    names = {
        alias.asname or alias.name: (statement.module, alias.name)
        for statement in tree.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}

    def value(node: ast.expr) -> Any:
        """Of an expression, in which names stand for what the file imports from elsewhere, or for its functions."""
        found = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
        if unknown := found - {*names, *own, *dir(builtins)}:
            raise Unreadable(f"{module}: {', '.join(sorted(unknown))}")
        known = {name: getattr(import_module(names[name][0]), names[name][1]) for name in found & set(names)}
        known |= {name: forward(module, name) for name in found & own}
        return eval(compile(ast.Expression(node), module, "eval"), known)

    for node in tree.body:
        for call in getattr(node, "decorator_list", ()):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in decorators:
                options = list(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
                if not all(option.annotation and default for option, default in options):
                    raise Unreadable(f"{module}: {node.name} has an option without a type or a default")
                function = forward(module, node.name)
                function.__doc__ = ast.get_docstring(node)
                function.__signature__ = inspect.Signature(
                    [inspect.Parameter(each.arg, inspect.Parameter.POSITIONAL_OR_KEYWORD) for each in node.args.args]
                    + [
                        inspect.Parameter(
                            option.arg,
                            inspect.Parameter.KEYWORD_ONLY,
                            default=value(default),
                            annotation=value(option.annotation),
                        )
                        for option, default in options
                    ]
                )
                given = {keyword.arg: value(keyword.value) for keyword in call.keywords}
                yield call.func.id, [value(each) for each in call.args], given, function


def forward(module: str, name: str) -> Callable:
    """A function that imports another one when it is called, and calls it."""

    def function(*arguments: Any, **options: Any) -> Any:
        return getattr(import_module(module), name)(*arguments, **options)

    function.__name__, function.__module__ = name, module
    return function
