"""Stores files that can be made again. They are used only if their bytes are unchanged.

- Beside a large file, ``NAME.safetensors``, is ``NAME.json``. It has a key, which identifies what the file was made of,
  and the digest of the file's content.
- A file is replaced by a new one and never written to, because processes may have it mapped.
- A record is JSON with a digest of itself.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jettison.core.caches import cache_folder, cache_is_kept
from jettison.core.documents import read_json
from jettison.core.errors import JettisonError
from jettison.core.files import content_digest, digest, write_atomic, write_json
from jettison.core.progress import say

SUM = "sum"


def places(folder: Path, name: Path, kind: str, fingerprint: str) -> list[Path]:
    """List the paths where a file that belongs to the model in ``folder`` may be: beside it, then in the cache folder.

    Nothing is written to a snapshot of the Hugging Face hub, or beside a model that is
    one file. A cache folder that is not kept is not listed.

    name: of the file, relative to ``folder``.
    kind: name of the subfolder of the cache.
    fingerprint: of the model.
    """
    beside = [] if is_hub_snapshot(folder) or folder.is_file() else [folder / name]
    return [*beside, cache_folder() / kind / fingerprint / name.name] if cache_is_kept() else beside


def is_hub_snapshot(folder: Path) -> bool:
    """Whether a folder is, or is in, ``models--OWNER--NAME/snapshots/REVISION`` of the hub's cache."""
    return any(path.name == "snapshots" and path.parent.name.startswith("models--") for path in folder.parents)


def write_first(candidates: Sequence[Path], write: Callable[[Path], object]) -> Path:
    """Call ``write`` with one path after the other until it succeeds, and return that path.

    Raises the JettisonError of the last path; without candidates, one that names $JETTISON_CACHE.
    """
    error = JettisonError("neither the hub's folder nor the cache folder can hold it; name one with $JETTISON_CACHE")
    for path in candidates:
        try:
            write(path)
            return path
        except JettisonError as reason:
            error = reason
    raise error


def keep(path: Path, key: str, write: Callable[[Path], object]) -> None:
    """Write a file as ``write_atomic`` does, and its seal. Raises JettisonError if they cannot be written."""
    try:
        _seal(path).unlink(missing_ok=True)  # if the process is killed now, the file counts as missing
    except OSError as error:
        raise JettisonError(f"cannot write {_seal(path)}: {error}") from error
    write_atomic(path, write)
    write_json(_seal(path), {"key": key, "digest": content_digest(path)})


def is_kept(path: Path, key: str) -> bool:
    """Whether ``path`` is the file that ``keep`` wrote under this key. A note reports damage."""
    # os.path.exists returns False where the folder may not be read; Path.exists raises.
    if not (os.path.exists(path) and os.path.exists(_seal(path))):
        return False
    try:
        seal = read_json(_seal(path))
        if seal.get("key") != key:
            return False
        if seal.get("digest") == content_digest(path):
            return True
        reason = "its content is not what was written"
    except JettisonError as error:
        reason = str(error)
    say(f"note: {path} is damaged, so it is made again ({reason})")
    return False


def _seal(path: Path) -> Path:
    return path.with_suffix(".json")


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON object with a digest of itself. Raises JettisonError if the file cannot be written."""
    write_json(path, {**record, SUM: digest(dict(record))})


def read_record(path: Path) -> dict[str, Any]:
    """Read what ``write_record`` wrote. Raises JettisonError if the file is missing, damaged or was changed."""
    record = read_json(path)
    if record.pop(SUM, None) != digest(record):
        raise JettisonError(f"{path} is damaged, or was changed by hand")
    return record
