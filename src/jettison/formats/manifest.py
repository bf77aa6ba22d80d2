"""Reads and writes ``jettison.json``: the original, the recipe and the measurements of a compressed checkpoint.

The file holds no times and no dates, so the same run writes the same bytes.
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
    """Return the content of a folder's jettison.json.

    Raises UsageError if the folder is not a finished output of Jettison, and JettisonError if its jettison.json is
    damaged or does not match ``schema.Manifest``.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise UsageError(f"no folder {str(folder)!r}: give one that `jettison compress` wrote")
    if not os.path.lexists(folder / NAME):
        raise UsageError(f"{folder} has no {NAME}: it is not a finished output of `jettison compress`")
    return checked(read_json(folder / NAME), Manifest, str(folder / NAME))


def command_line(verb: str, model: str | Path, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line that does the same again, for jettison.json.

    It is ``jettison VERB MODEL`` with every option that differs from its default. A list becomes a repeated option. A
    recipe that is not a file is written as recipe.yaml.

    options: name without dashes -> value.
    defaults: name -> default value.
    """
    words = ["jettison", verb, str(model)]
    for name, value in options.items():
        if isinstance(value, bool):
            words += [f"--{'' if value else 'no-'}{name}"] if value != defaults.get(name) else []
        elif isinstance(value, list | tuple):
            texts = [str(item) for item in value]
            words += (
                [word for text in texts for word in _option(name, text)] if texts != [*defaults.get(name, ())] else []
            )
        elif value is not None and value != defaults.get(name):
            words += _option(name, str(value) if isinstance(value, str | Path | int | float) else "recipe.yaml")
    return words


def _option(name: str, value: str) -> list[str]:
    return [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]


def update_manifest(folder: Path, **sections: Any) -> dict[str, Any]:
    """Replace these sections of jettison.json, keep the others, and write the model card again.

    The card is made of the sections and is written first: a run that is killed between the two writes repeats both.
    Returns the new content of jettison.json.
    """
    manifest = (read_manifest(folder) if (folder / NAME).exists() else {}) | sections
    write_text(folder / CARD, write_card(manifest))
    write_json(folder / NAME, manifest)
    return manifest
