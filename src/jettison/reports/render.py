"""Rendering of a template, with plotly.js, into one HTML file. Texts from models and users are escaped."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from jettison.core.numbers import figures, format_rate
from jettison.reports.charts import COLOURS, run_colour
from jettison.reports.sections import percent, size


def render(template: str, **values: Any) -> str:
    """Render a template into a whole page.

    The page contains plotly.js (5 MB) once, so that it works without a network and does not depend on a server.
    """
    pages = Environment(
        loader=PackageLoader("jettison.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["bytes"] = size
    pages.filters["percent"] = percent
    pages.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    pages.filters["figures"], pages.filters["rate"] = figures, format_rate
    pages.globals |= {"plotly_js": Markup(get_plotlyjs()), "colours": COLOURS, "run_colour": run_colour}
    return pages.get_template(template).render(**values)
