"""What people write, checked by pydantic, and its errors in the house's words: the thing, the value, what is valid.

A field's ``description`` is what is needed there. A validator that knows better raises UsageError itself, which passes
through pydantic as it is.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from jettison.core.errors import UsageError, shown, unknown

Say = Callable[[str, str, str], str]  # field, value, what is needed -> the error's text
Read = TypeVar("Read", bound="Fields")


class Fields(BaseModel):
    """Fields of a file: of the very type that is declared (true is no number), and no others."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def explain(
    error: ValidationError, say: Say, kind: str, names: Mapping[str, Any], context: str = "", data: Any = None
) -> UsageError:
    """The first thing that is wrong, as a UsageError. An unknown name comes before a wrong value.

    kind, context: what an unknown name is called, and where. names: of the fields, with pydantic's FieldInfo of each or
    None. data: what was read, where a validator may have turned a value into another before it was refused.
    """
    errors = sorted(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    first = errors[0]
    if first["type"] == "extra_forbidden":
        return unknown(kind, first["loc"][-1], names, context)
    info = names.get(first["loc"][0]) if first["loc"] else None
    needed = getattr(info, "description", None) or first["msg"]
    value = _written(data, first["loc"], first.get("input"))
    return UsageError(say(".".join(map(str, first["loc"])), shown(value), needed))


def _written(data: Any, place: tuple[str | int, ...], otherwise: Any) -> Any:
    """What stands at a place of the data."""
    for step in place:
        if not isinstance(data, Mapping) or step not in data:
            return otherwise
        data = data[step]
    return data


def read_fields(model: type[Read], data: Mapping[str, Any], say: Say, kind: str, context: str = "") -> Read:
    """``data`` as ``model``. Raises UsageError, see ``explain``."""
    for name in data:
        if not isinstance(name, str):  # pydantic only looks at texts
            raise unknown(kind, name, model.model_fields, context)
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise explain(error, say, kind, model.model_fields, context, data) from None
