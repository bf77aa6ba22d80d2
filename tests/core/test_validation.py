"""Errors of pydantic, reworded in the style of the package."""

import pytest
from pydantic import Field, field_validator

from jettison.core.errors import UsageError
from jettison.core.validation import Fields, read_fields


class Inner(Fields):
    """Nested fields of Thing."""

    rate: float = 1.0


class Thing(Fields):
    """Fields with a range, a description, a nested model and a validator."""

    width: int = Field(4, ge=1, le=9, description="a whole number from 1 to 9 is needed")
    name: str = "a"
    inner: Inner = Inner()
    color: str = "red"

    @field_validator("color")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value != "red":
            raise UsageError(f"color {value}: red is all there is")
        return value


def read(**values):
    """Read the fields of a thing."""
    say = lambda name, value, needed: f"thing {name} = {value}: {needed}"
    return read_fields(Thing, values, say, "field", " of a thing")


def test_what_is_valid():
    assert read(width=9, name="b").width == 9 and read().inner.rate == 1.0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 10}, "thing width = 10: a whole number from 1 to 9 is needed"),
        ({"width": True}, "thing width = True: a whole number from 1 to 9 is needed"),
        ({"width": "4"}, "thing width = '4': a whole number from 1 to 9 is needed"),
        ({"name": 3}, "thing name = 3: Input should be a valid string"),
        ({"inner": {"rate": float("nan")}}, "thing inner.rate = nan: Input should be a finite number"),
        ({"widht": 3}, "unknown field 'widht' of a thing (did you mean 'width'?); valid: color, inner, name, width"),
        ({"width": 99, "x": 1}, "unknown field 'x' of a thing; valid: color, inner, name, width"),
        ({"color": "blue"}, "color blue: red is all there is"),
        ({"name": "x" * 500 + "y", "width": 0}, "thing width = 0: a whole number from 1 to 9 is needed"),
    ],
)
def test_the_thing_the_value_and_what_is_valid(values, words):
    with pytest.raises(UsageError) as caught:
        read(**values)
    assert str(caught.value) == words


def test_names_that_are_no_text():
    with pytest.raises(UsageError, match="unknown field 5 of a thing"):
        read_fields(Thing, {5: 1}, lambda *_: "", "field", " of a thing")
