"""The language of the house, as far as a machine can see it: docstrings, and names and phrases that say nothing."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "jettison"
FILES = sorted(SOURCE.rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
MADE = ("results.md",)  # they repeat titles that results recorded
# Variables that do not say what they hold.
NAMES = {"found", "here", "given", "gone", "fine", "chance", "meant", "said", "told"}
# Phrases in senses that have a term of the field (DESIGN: LoRA adapter, activations, re-dense stage, return, ...).
PHRASES = re.compile(
    r"side path|likes being pruned|grown dense again|flows in\b|gives again|what comes out|is said\b|[Ww]hoever"
    r"|lets it go|so plainly|by chance\b|what it was\b(?! m)|of which each"
)
# Methods that modules of torch define, and whose meaning is known.
KNOWN = {"forward", "extra_repr"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(node: ast.AST, public: bool = True):
    """Yield the public functions, classes and methods inside a node."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and public and not inner.name.startswith("_"):
            yield inner
            if isinstance(inner, ast.ClassDef):
                yield from functions(inner)


def described() -> set[str]:
    """The methods that a class with subclasses of its own describes: a subclass need not repeat it."""
    classes = [node for path in FILES for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
    names = {ast.unparse(base).rpartition(".")[2] for node in classes for base in node.bases}
    bases = [node for node in classes if node.name in names or "Protocol" in map(ast.unparse, node.bases)]
    methods = [method for node in bases for method in node.body if isinstance(method, ast.FunctionDef)]
    return {method.name for method in methods if ast.get_docstring(method)}


def test_every_public_thing_has_a_docstring_in_the_form():
    """A first paragraph that is a sentence or more: it begins with a capital or a name, and ends with a full stop."""
    inherited, wrong = described() | KNOWN, []
    for path in FILES:
        for node in functions(tree(path)):
            doc = ast.get_docstring(node)
            if doc is None and node.name in inherited:
                continue
            first = (doc or "").partition("\n\n")[0].rstrip()
            if not re.match(r"[A-Z`«(~0-9]|y = ", first) or not first.endswith((".", ":", "?")):
                wrong.append(f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}: {first[:60]!r}")
    assert not wrong, "\n".join(wrong)


def test_every_file_says_what_it_holds():
    assert not [path for path in FILES if path.name != "__init__.py" and not ast.get_docstring(tree(path))]


def test_names_say_what_they_hold():
    wrong = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            name = node.arg if isinstance(node, ast.arg) else node.id if isinstance(node, ast.Name) else ""
            if name in NAMES:
                wrong.append(f"{path.relative_to(SOURCE)}:{node.lineno} {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("suffix", ["py", "yaml", "jinja", "h", "cpp"])
def test_dropped_phrases_do_not_come_back(suffix):
    files = [path for path in SOURCE.rglob(f"*.{suffix}") if "/text/data/" not in path.as_posix()]
    assert files
    check_phrases(files)


def test_dropped_phrases_do_not_come_back_to_the_docs():
    check_phrases([page for page in PAGES if page.name not in MADE])


def check_phrases(files):
    wrong = [
        f"{path.name}:{number} {match[0]!r}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (match := PHRASES.search(line))
    ]
    assert not wrong, "\n".join(wrong)
