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


def explain(error: ValidationError, say: Say, kind: str, names: Mapping[str, Any], context: str = "") -> UsageError:
    """The first thing that is wrong, as a UsageError. An unknown name comes before a wrong value.

    kind, context: what an unknown name is called, and where. names: of the fields, with pydantic's FieldInfo of each or
    None.
    """
    errors = sorted(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    first = errors[0]
    if first["type"] == "extra_forbidden":
        return unknown(kind, first["loc"][-1], names, context)
    info = names.get(first["loc"][0]) if first["loc"] else None
    needed = getattr(info, "description", None) or first["msg"]
    return UsageError(say(".".join(map(str, first["loc"])), shown(first.get("input")), needed))


def read_fields(model: type[Read], data: Mapping[str, Any], say: Say, kind: str, context: str = "") -> Read:
    """``data`` as ``model``. Raises UsageError, see ``explain``."""
    for name in data:
        if not isinstance(name, str):  # pydantic only looks at texts
            raise unknown(kind, name, model.model_fields, context)
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise explain(error, say, kind, model.model_fields, context) from None
