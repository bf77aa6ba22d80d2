"""Read the names, options and defaults of methods from the source text of their files, without importing them.

To read a recipe, only these are needed. A file of methods imports torch, which takes seconds, so the file is parsed
first and imported when one of its methods is first called.
"""

import ast
import builtins
import inspect
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

from jettison.core.errors import JettisonError


class Unreadable(Exception):
    """Raised when the text of a file does not suffice, so that the file must be imported."""


def outlines(text: str, module: str, decorators: Iterable[str]) -> Iterator[tuple[str, list, dict[str, Any], Callable]]:
    """Yield the decorated functions of a file.

    text: the source of the file.
    module: the name under which the file is imported.
    decorators: the names of the decorators to look for.
    Yields the name of the decorator, its positional and its keyword arguments, and a function that stands for the
    decorated one: it has the same docstring and signature, and calls it.
    Raises Unreadable if an argument, option or type cannot be read from the text alone.
    """
    tree = ast.parse(text, module)
    names = {
        alias.asname or alias.name: (statement.module, alias.name)
        for statement in tree.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}

    def value(node: ast.expr) -> Any:
        """Evaluate an expression whose names are imported from other modules, or are functions of the file."""
        used = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        if unknown := used - {*names, *own, *dir(builtins)}:
            raise Unreadable(f"{module}: {', '.join(sorted(unknown))}")
        known = {name: getattr(import_module(names[name][0]), names[name][1]) for name in used & set(names)}
        known |= {name: forward(module, name) for name in used & own}
        return eval(compile(ast.Expression(node), module, "eval"), known)

    for node in tree.body:
        for call in getattr(node, "decorator_list", ()):
            decorator = _name(call.func) if isinstance(call, ast.Call) else ""
            if decorator in decorators:
                options = list(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
                if not all(option.annotation and default for option, default in options):
                    raise Unreadable(f"{module}: {node.name} has an option without a type or a default")
                function = forward(module, node.name)
                function.__doc__ = ast.get_docstring(node)
                function.__signature__ = inspect.Signature(
                    [inspect.Parameter(arg.arg, inspect.Parameter.POSITIONAL_OR_KEYWORD) for arg in node.args.args]
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
                keywords = {keyword.arg: value(keyword.value) for keyword in call.keywords}
                yield decorator, [value(argument) for argument in call.args], keywords, function


def _name(node: ast.expr) -> str:
    """Return the name of a decorator, also where it is an attribute (``registry.quantizer``)."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def forward(module: str, name: str) -> Callable:
    """Make a function that imports function ``name`` of ``module`` when it is called, and calls it.

    The function raises JettisonError if the module cannot be imported.
    """

    def function(*arguments: Any, **options: Any) -> Any:
        try:
            loaded = import_module(module)
        except Exception as error:
            raise JettisonError(f"method file {module} cannot be imported: {type(error).__name__}: {error}") from error
        return getattr(loaded, name)(*arguments, **options)

    function.__name__, function.__module__ = name, module
    return function
