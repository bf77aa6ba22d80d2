"""``jettison.json``: what was done to a checkpoint, from what, and what was measured.

It holds no times and no dates: the same run gives the same bytes.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jettison.core.documents import read_json
from jettison.core.errors import UsageError
from jettison.core.files import write_json, write_text
from jettison.formats.card import write_card
from jettison.formats.schema import Manifest, checked

NAME, CARD = "jettison.json", "README.md"


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Raises UsageError if the folder is not one that Jettison wrote and finished, JettisonError if its jettison.json
    is damaged or holds something of another type than ``schema.Manifest``."""
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise UsageError(f"no folder {str(folder)!r}: give one that `jettison compress` wrote")
    if not os.path.lexists(folder / NAME):
        raise UsageError(f"{folder} has no {NAME}: it is not a finished output of `jettison compress`")
    return checked(read_json(folder / NAME), Manifest, str(folder / NAME))


def command_line(verb: str, model: str | Path, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """The words of ``jettison VERB MODEL`` with the options that are not what they are by default, for jettison.json:
    how to do it again. Lists are repeated options, and a recipe that is no file is called recipe.yaml."""
    words = ["jettison", verb, str(model)]
    for name, value in options.items():
        if isinstance(value, bool):
            words += [f"--{'' if value else 'no-'}{name}"] if value != defaults.get(name) else []
        elif isinstance(value, list | tuple):
            each = [str(one) for one in value]
            words += [word for one in each for word in _option(name, one)] if each != [*defaults.get(name, ())] else []
        elif value is not None and value != defaults.get(name):
            words += _option(name, str(value) if isinstance(value, str | Path | int | float) else "recipe.yaml")
    return words


def _option(name: str, value: str) -> list[str]:
    return [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]


def update_manifest(folder: Path, **sections: Any) -> dict[str, Any]:
    """Replace these sections and keep the others. The model card, which is made of them, is written first: a run that
    is killed between the two does this again."""
    manifest = (read_manifest(folder) if (folder / NAME).exists() else {}) | sections
    write_text(folder / CARD, write_card(manifest))
    write_json(folder / NAME, manifest)
    return manifest
