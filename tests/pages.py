"""The pages of the docs, as the steps that a reader follows: files, commands and Python code, in order."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Pages that are generated as a whole; they are not in the repository.
MADE = ("api", "commands", "devices", "families", "methods", "papers", "recipes")
WRITTEN = sorted(
    {*DOCS.rglob("*.md")}
    - {DOCS / "index.md", DOCS / "studies/results.md"}
    - {DOCS / "reference" / f"{name}.md" for name in MADE}
)
# What the docs say, and what the tests run: a size for small models, little data, and a short search.
SMALLER = {
    "my-model --recipe w4 ": "my-model --recipe w4 --set calibration.samples=8 --set calibration.length=64 ",
    "evaluate runs/sparse": "evaluate runs/sparse --tokens 2048",
    "200MB": "3.2MB",
    "fit my-pipeline --speedup 2.5": "fit my-pipeline --speedup 2.5 --set program.search_steps=2",
}


def smaller(command: str) -> str:
    """Return a command of a page as the tests run it."""
    for words, replacement in SMALLER.items():
        command = command.replace(words, replacement)
    return command


def steps(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the steps of a page: ``file NAME`` with its text, ``command`` with a line, or ``python`` with code."""
    for kind, body in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "yaml" and (file := re.match(r"# (\S+\.yaml)\n", body)):
            yield f"file {file[1]}", body
        elif kind == "python" and "..." not in body:  # code with ... is an outline and is not run
            yield "python", body
        elif kind == "console":
            for line in body.replace("\\\n", " ").splitlines():
                if line.startswith("$ "):
                    yield "command", line[2:].partition("  #")[0].strip()
