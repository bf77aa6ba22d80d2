"""Write the pages of the docs that are generated from other sources: README, docstrings, help texts, tables, results.

Example: ``python docs/generate.py``
"""

import re
from pathlib import Path

import reference_pages
import study_pages

DOCS = Path(__file__).parent


def start() -> str:
    """Return the README as the first page. Links to files outside the docs become plain text."""
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\[([^\]]+)\]\((?!docs/|https?:)[^)]+\)", r"\1", text)
    return text.replace("](docs/", "](")


PAGES = {
    "index.md": start,
    "reference/commands.md": reference_pages.commands,
    "reference/api.md": reference_pages.api,
    "reference/recipes.md": reference_pages.recipes,
    "reference/methods.md": reference_pages.methods,
    "reference/families.md": reference_pages.model_families,
    "reference/devices.md": reference_pages.devices,
    "reference/runtimes.md": reference_pages.runtimes,
    "reference/papers.md": reference_pages.papers,
    "studies/results.md": study_pages.results,
    "studies/pruning.md": study_pages.pruning,
    "studies/drafting.md": study_pages.drafting,
    "studies/depth.md": study_pages.depth,
    "studies/diffusion.md": study_pages.diffusion,
    "studies/offload.md": study_pages.offload,
    "studies/xrbench.md": study_pages.xr,
    "studies/xr-tuned.svg": study_pages.xr_timelines,
}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (DOCS / name).write_text(make(), encoding="utf-8")
