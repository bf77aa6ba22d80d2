"""Validates user input with pydantic, and words its errors as Jettison does: the thing, the value, what is valid.

A field's ``description`` says what is needed. A validator that has a better message raises UsageError itself, which
pydantic passes on.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from jettison.core.errors import UsageError, shown, unknown

Say = Callable[[str, str, str], str]  # field, value, what is needed -> the error's text
Read = TypeVar("Read", bound="Fields")


class Fields(BaseModel):
    """Base of the fields of a file. Values must have the declared type (true is not a number); others are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def explain(
    error: ValidationError, say: Say, kind: str, names: Mapping[str, Any], context: str = "", data: Any = None
) -> UsageError:
    """Return the first error as a UsageError. Unknown names come before wrong values.

    say: words the message from the field, its value, and what is needed.
    kind, context: what to call an unknown name, and where it is.
    names: name of every field -> pydantic's FieldInfo, or None.
    data: the data that was read. A validator may change a value before it is refused; the message shows the original.
    """
    errors = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
    first = errors[0]
    if first["type"] == "extra_forbidden":
        return unknown(kind, first["loc"][-1], names, context)
    info = names.get(first["loc"][0]) if first["loc"] else None
    needed = getattr(info, "description", None) or first["msg"]
    value = _written(data, first["loc"], first.get("input"))
    return UsageError(say(".".join(map(str, first["loc"])), shown(value), needed))


def _written(data: Any, place: tuple[str | int, ...], default: Any) -> Any:
    """The value at a place of the data; ``default`` if the place is not there."""
    for step in place:
        if not isinstance(data, Mapping) or step not in data:
            return default
        data = data[step]
    return data


def read_fields(model: type[Read], data: Mapping[str, Any], say: Say, kind: str, context: str = "") -> Read:
    """Validate ``data`` as ``model``. Raises UsageError, see ``explain``."""
    for name in data:
        if not isinstance(name, str):  # pydantic accepts only strings as names
            raise unknown(kind, name, model.model_fields, context)
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise explain(error, say, kind, model.model_fields, context, data) from None
