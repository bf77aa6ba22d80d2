"""Files that can be made again. They are used only while they are, byte for byte, what was written.

Beside a large file, ``NAME.safetensors``, stands ``NAME.json`` with a key, which says what the file was made of, and
the digest of its content. A file is replaced by a new one, never written to: processes have it mapped. A record is JSON
with a digest of itself.
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
    """Where a file that belongs to the model in ``folder`` may be: first beside it, then in the cache folder.

    name: of the file, within ``folder``. kind: of the folder within the cache. Nothing is put into a snapshot of the
    Hugging Face hub, whose content is the hub's alone.
    """
    beside = [] if is_hub_snapshot(folder) else [folder / name]
    return [*beside, cache_folder() / kind / fingerprint / name.name] if cache_is_kept() else beside


def is_hub_snapshot(folder: Path) -> bool:
    """Whether a folder is, or is in, ``models--OWNER--NAME/snapshots/REVISION`` of the hub's cache."""
    return any(each.name == "snapshots" and each.parent.name.startswith("models--") for each in folder.parents)


def write_first(candidates: Sequence[Path], write: Callable[[Path], object]) -> Path:
    """Let ``write`` write to the first path that it can write to, which is returned.

    Raises the JettisonError of the last one, or one that names $JETTISON_CACHE where there is no candidate.
    """
    error = JettisonError("neither the hub's folder nor the cache folder is for it; name one with $JETTISON_CACHE")
    for path in candidates:
        try:
            write(path)
            return path
        except JettisonError as reason:
            error = reason
    raise error


def keep(path: Path, key: str, write: Callable[[Path], object]) -> None:
    """Write a file as ``write_atomic`` does, and its seal. Raises JettisonError if that is not possible."""
    try:
        _seal(path).unlink(missing_ok=True)  # killed from here on, the file counts as missing
    except OSError as error:
        raise JettisonError(f"cannot write {_seal(path)}: {error}") from error
    write_atomic(path, write)
    write_json(_seal(path), {"key": key, "digest": content_digest(path)})


def is_kept(path: Path, key: str) -> bool:
    """Whether ``path`` is what ``keep`` wrote under this key. If it is damaged, that is said."""
    if not (os.path.exists(path) and os.path.exists(_seal(path))):  # unlike Path.exists, also where nothing may be read
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
    """Raises JettisonError if the file cannot be written."""
    write_json(path, {**record, SUM: digest(dict(record))})


def read_record(path: Path) -> dict[str, Any]:
    """What ``write_record`` wrote. Raises JettisonError if it is missing or not that any more."""
    record = read_json(path)
    if record.pop(SUM, None) != digest(record):
        raise JettisonError(f"{path} is damaged, or was changed by hand")
    return record
