"""``jettison.json``: what was done to a checkpoint, from what, and what was measured.

It holds no times and no dates: the same run gives the same bytes.
"""

from pathlib import Path
from typing import Any

from jettison.documents import read_json
from jettison.errors import UsageError
from jettison.files import write_json, write_text
from jettison.formats.card import write_card

NAME, CARD = "jettison.json", "README.md"


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Raises UsageError if the folder is not one that Jettison wrote and finished."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"no folder {str(folder)!r}: give one that `jettison compress` wrote")
    if not (folder / NAME).exists():
        raise UsageError(f"{folder} has no {NAME}: it is not a finished output of `jettison compress`")
    return read_json(folder / NAME)


def update_manifest(folder: Path, **sections: Any) -> dict[str, Any]:
    """Replace these sections and keep the others. The model card, which is made of them, is written first: a run that
    is killed between the two does this again."""
    manifest = (read_json(folder / NAME) if (folder / NAME).exists() else {}) | sections
    write_text(folder / CARD, write_card(manifest))
    write_json(folder / NAME, manifest)
    return manifest
