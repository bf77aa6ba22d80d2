"""Times that a plan depends on: measured once for a run, so that a killed run continues with the same plan."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jettison.core.kept import read_record, write_record
from jettison.graph.folder import ModelFolder


def kept_milliseconds(source: ModelFolder, path: Path | None, measure: Callable[[], Any]) -> Any:
    """Return the milliseconds in a record if they are of this model; else measure and keep them.

    path: of the record, in the folder of a run; None to measure and keep nothing.
    measure: returns a number, or numbers by name.
    Raises JettisonError for a record that is damaged.
    """
    if path is None:
        return measure()
    if path.exists() and (record := read_record(path)).get("model") == source.identity():
        return record["milliseconds"]
    milliseconds = measure()
    write_record(path, {"model": source.identity(), "milliseconds": milliseconds})
    return milliseconds
