"""Methods of single objects are replaced, and put back. Classes, and so diffusers' source, stay as they are."""

from collections.abc import Callable
from functools import wraps
from typing import Any

ABSENT = object()


class Patches:
    """Replaced attributes of objects."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, make: Callable[[Callable], Callable]) -> None:
        """Replace the method ``name`` of one object by what ``make`` returns for the original.

        The signature stays: pipelines look at that of a scheduler.
        """
        original = getattr(owner, name)
        self._before.append((owner, name, vars(owner).get(name, ABSENT)))
        setattr(owner, name, wraps(original)(make(original)))

    def undo(self) -> None:
        """Put all methods back, the last one first."""
        while self._before:
            owner, name, before = self._before.pop()
            if before is ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
