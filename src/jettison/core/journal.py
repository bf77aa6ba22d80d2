"""The journal of a run: one JSON line per finished piece of work, so that a killed run continues where it stopped.

Every line ends with a digest of itself. A line that was cut off, zeroed or changed is dropped, and its work is done
again.
"""

import contextlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jettison.core.documents import JSON_LIMIT, parse_json
from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import check_folder, digest, read_bytes, write_atomic
from jettison.core.progress import say

SUM = "sum"


class Journal:
    """The append-only journal of a run. The first line identifies the run. The process must hold the run's lock.

    run: JSON values that identify the run.
    also: names of what may lie beside the journal before it exists, see ``check_folder``.
    cache: whether the journal is in the cache folder. Another run, or a damaged first line, is then dropped.
    Raises UsageError if the folder already holds another run, naming the first difference, and JettisonError if the
    first line is damaged and others are not.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], cache: bool = False, also: Collection[str] = ()):
        self.path = path
        self.entries: list[dict[str, Any]] = []
        run = json.loads(json.dumps(run, default=str))
        try:
            check_folder(path.parent, path.name, also)
            known = path.exists() and self._read(run)
        except JettisonError:
            if not cache or path.is_dir():
                raise
            known = False
        if not known:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            self._append({"run": run})

    def _read(self, run: dict[str, Any]) -> bool:
        """Read the finished work of the file into ``entries``. Returns False if the file records nothing."""
        records, damaged = read_records(self.path)
        if not any(records):
            return False
        before = records[0].get("run") if records[0] else None
        if not isinstance(before, dict):
            raise JettisonError(
                f"{self.path}: line 1 is damaged or of another version, so it is not known which run the folder holds. "
                "Choose another folder, or delete that one."
            )
        if difference := _difference(before, run):
            name, then, now = difference
            raise UsageError(
                f"folder {self.path.parent} holds another run: its {name} is {_short(then)}, this one's is "
                f"{_short(now)}. Choose another folder, or delete that one."
            )
        self.entries = [record for record in records[1:] if record]
        if damaged:
            say(f"note: {self.path}: {damaged} damaged lines are dropped; the work they recorded is done again")
            lines = b"".join(_line(record) for record in [{"run": before}, *self.entries])
            write_atomic(self.path, lambda temporary: temporary.write_bytes(lines))
        return True

    def add(self, **entry: Any) -> None:
        """Record a finished piece of work. The record is durable when this returns."""
        self._append(entry)
        self.entries.append(entry)

    def last(self, **match: Any) -> dict[str, Any] | None:
        """Return the newest entry with these values; None if there is none."""
        for entry in reversed(self.entries):
            if all(entry.get(name) == value for name, value in match.items()):
                return entry
        return None

    def _append(self, record: dict[str, Any]) -> None:
        size = None
        try:
            with open(self.path, "ab") as handle:
                size = handle.seek(0, os.SEEK_END)
                handle.write(_line(record))
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            if size is not None:  # half a line would spoil the next one
                with contextlib.suppress(OSError):
                    os.truncate(self.path, size)
            raise JettisonError(f"cannot write {self.path}: {error}. Free space, then run again.") from error


def read_records(path: Path) -> tuple[list[dict[str, Any] | None], int]:
    """Return the records of a journal, None for damaged lines, and the number of damaged lines.

    An incomplete last line is counted as damaged, but has no record.
    """
    *lines, rest = read_bytes(path, JSON_LIMIT).split(b"\n")
    records = [_parse(line) for line in lines]
    return records, sum(record is None for record in records) + bool(rest)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(line, "a line")
    except JettisonError:
        return None
    if not isinstance(record, dict) or record.pop(SUM, None) != _sum(record):
        return None
    return record


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps({**record, SUM: _sum(record)}, ensure_ascii=False).encode() + b"\n"


def _sum(record: Mapping[str, Any]) -> str:
    return digest(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def _difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first difference of two runs: its name, and both values."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return None if before == now else (name, before, now)
    for key in [*now, *(key for key in before if key not in now)]:
        if difference := _difference(before.get(key), now.get(key), f"{name} {key}".strip()):
            return difference
    return None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 90 else text[:87] + "..."
