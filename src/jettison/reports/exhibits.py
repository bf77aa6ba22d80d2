"""The page's parts about kinds of models that have no section of their own: tables of scores, and pictures.

A domain gives them as data: ``Domain.scores`` and ``Domain.exhibits``. Nothing here knows what they mean.
"""

from numbers import Real
from typing import Any

from jettison.core.numbers import figures
from jettison.formats.schema import Stage
from jettison.reports.run import Run


def score_tables(run: Run) -> list[dict[str, Any]]:
    """Return a table for every kind of score that has no section: title, columns, and rows (stage, name, figures).

    A row of the original that no other stage has is left out: there is nothing to compare with it.
    """
    tables = []
    known = set(Stage.model_fields)
    kinds = dict.fromkeys(kind for result in run.results.values() for kind in result if kind not in known)
    for kind in kinds:
        rows = [
            (stage, str(name), scores)
            for stage, result in run.results.items()
            if isinstance(result.get(kind), dict)
            for name, scores in result[kind].items()
            if isinstance(scores, dict)
        ]
        others = {name for stage, name, _ in rows if stage != "original"}
        rows = [row for row in rows if not others or row[0] != "original" or row[1] in others]
        columns = list(dict.fromkeys(str(score) for _, _, scores in rows for score in scores))
        if columns:
            cells = lambda scores, columns=columns: [_cell(scores.get(column)) for column in columns]
            titles = [column.replace("_", " ") for column in columns]
            shown = [(stage, name, cells(scores)) for stage, name, scores in rows]
            tables.append({"title": kind.replace("_", " ").capitalize(), "columns": titles, "rows": shown})
    return tables


def _cell(value: Any) -> str:
    return figures(float(value)) if isinstance(value, Real) and not isinstance(value, bool) else ""


def exhibits(run: Run) -> list[dict[str, Any]]:
    """Return what the last stage shows: each with title, note and pictures (caption, png in base64)."""
    return (run.results[run.last].get("exhibits") or []) if run.last else []
