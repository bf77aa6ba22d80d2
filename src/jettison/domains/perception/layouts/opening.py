"""Finds the layout of a dataset folder, and reads it."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from jettison.core.errors import UsageError, unknown
from jettison.domains.perception.layouts.reading import DataFolder
from jettison.domains.perception.scenes import Scene

WORLD = "world"  # rendered by `jettison perceive world`: fits most other layouts, too
LAYOUTS = ("culane", "tusimple", "openlanev2", "ddad", "nuscenes", WORLD)


def find_layout(folder: str | Path, layout: str | None = None) -> str:
    """Return the layout of a folder, one of ``LAYOUTS``. A folder of rendered worlds has the layout ``world``.

    layout: a layout to take for granted; None to look at the files.
    Raises UsageError if it has none or several, and for an unknown layout.
    """
    fitting = fitting_layouts(folder, layout)
    if WORLD in fitting:
        return WORLD
    if len(fitting) != 1:
        fits = f"fits the layouts {', '.join(fitting)}: name one" if fitting else "has the layout of no known dataset"
        raise UsageError(f"{folder} {fits}; valid: {', '.join(LAYOUTS)}")
    return fitting[0]


def fitting_layouts(folder: str | Path, layout: str | None = None) -> list[str]:
    """Return all layouts that a folder fits; only ``layout`` if one is given. Raises UsageError for an unknown one."""
    if layout is not None:
        if layout not in LAYOUTS:
            raise unknown("layout", layout, LAYOUTS)
        return [layout]
    path = DataFolder(Path(folder), "a driving dataset").path
    return [name for name in LAYOUTS if reader(name).recognizes(path)]


def reader(layout: str) -> ModuleType:
    """Return the module that reads a layout; it has ``read`` and ``recognizes``."""
    place = "world.loading" if layout == WORLD else f"layouts.{layout}"
    return import_module(f"jettison.domains.perception.{place}")


def open_scenes(folder: str | Path, layout: str | None = None, **options: Any) -> list[Scene]:
    """Read the scenes of a dataset folder. options: those of ``read`` of its layout. Raises UsageError.

    A folder of rendered worlds is read with everything that is known of it (see ``world.loading``), unless ``layout``
    names another one.
    """
    return reader(find_layout(folder, layout)).read(folder, **options)
