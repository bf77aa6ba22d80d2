"""What a run has finished, one JSON line each, so that a killed run continues where it stopped."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jettison.errors import JettisonError, UsageError


class Journal:
    """An append-only log. Its first line says which run it is; a line counts once it is whole.

    Raises UsageError if the folder already holds another run, naming the first thing that differs.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]):
        self.path = path
        self.entries: list[dict[str, Any]] = []
        run = json.loads(json.dumps(run, default=str))
        if path.exists():
            self._read(run)
        else:
            if path.parent.is_dir() and any(not name.startswith(".") for name in os.listdir(path.parent)):
                raise UsageError(f"folder {path.parent} is not empty and holds no run of Jettison: choose another one")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append({"run": run})

    def _read(self, run: dict[str, Any]) -> None:
        lines = self.path.read_bytes().split(b"\n")
        whole = lines[:-1]  # what follows the last newline was cut off by a kill
        records = [json.loads(line) for line in whole]
        if not records:
            self.path.unlink()
            self._append({"run": run})
            return
        before = records[0]["run"]
        for name in [*run, *(name for name in before if name not in run)]:
            if run.get(name) != before.get(name):
                raise UsageError(
                    f"folder {self.path.parent} holds another run: its {name} is {_short(before.get(name))}, "
                    f"this one's is {_short(run.get(name))}. Choose another folder, or delete that one."
                )
        self.entries = records[1:]
        if lines[-1]:
            with open(self.path, "rb+") as handle:
                handle.truncate(sum(len(line) + 1 for line in whole))

    def add(self, **entry: Any) -> None:
        """Record something finished. Durable when this returns."""
        self._append(entry)
        self.entries.append(entry)

    def last(self, **match: Any) -> dict[str, Any] | None:
        """The newest entry with these values."""
        for entry in reversed(self.entries):
            if all(entry.get(name) == value for name, value in match.items()):
                return entry
        return None

    def _append(self, record: dict[str, Any]) -> None:
        try:
            with open(self.path, "ab") as handle:
                handle.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise JettisonError(f"cannot write {self.path}: {error}. Free space, then run again.") from error


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 90 else text[:87] + "..."
