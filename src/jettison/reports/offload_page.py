"""The page of an offloaded network: rows of pictures side by side, and tables. One self-contained file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jettison.core.files import write_text
from jettison.reports.render import render


def write_offload_page(
    path: str | Path,
    title: str,
    *,
    lead: str = "",
    rows: Sequence[Mapping[str, Any]] = (),
    tables: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the page ``path`` and return it. The same data give the same bytes.

    rows: each with a name, and pictures: pairs of a caption and a PNG in base64.
    tables: each with title, columns, rows of texts.
    """
    write_text(Path(path), render("offload.html.jinja", title=title, lead=lead, rows=rows, tables=tables))
    return Path(path)
