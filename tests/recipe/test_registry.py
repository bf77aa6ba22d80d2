"""Methods are discovered from their files and checked when they register; a broken package breaks only itself."""

import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from jettison.core.errors import JettisonError, UsageError
from jettison.encodings.uniform import UniformGrid
from jettison.recipe import registry
from jettison.recipe.registry import method, pruner, quantizer, recoverer
from jettison.statistics.stats import Stats


@pytest.fixture(autouse=True)
def own_methods(monkeypatch):
    """Restore the table of methods after every test."""
    registry.methods("quantize")  # loads all methods
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def test_a_second_method_of_a_name_is_refused():
    with pytest.raises(UsageError, match=r"quantize method 'gptq' exists already, in jettison.methods.quantize.gptq"):

        @quantizer("gptq")
        def mine(weight, grid, stats, *, damp: float = 0.1):
            """Mine."""


@pytest.mark.parametrize(
    ("decorator", "function", "words"),
    [
        (
            quantizer("mine"),
            lambda w, grid, stats: None,
            r"takes \(w, grid, stats\); \(weight, grid, stats\) is needed",
        ),
        (
            quantizer("mine", scope="block"),
            lambda weight, grid, stats: None,
            r"\(block, grids, stats\) is needed at scope",
        ),
        (pruner("mine"), lambda weight, grid, stats: None, r"\(weight, pattern, stats\) is needed"),
        (recoverer("mine"), lambda weight: None, r"\(pupil\) is needed at scope 'run'"),
        (quantizer("mine", scope="row"), lambda weight, grid, stats: None, "unknown scope 'row'.*valid: block, linear"),
        (
            method("squash", "mine"),
            lambda weight: None,
            "unknown verb 'squash'.*valid: depth, program, prune, quantize, recover",
        ),
        (quantizer("mine"), lambda weight, grid, stats, *, damp: None, "option damp has no default"),
        (quantizer("mine"), lambda weight, grid, stats, *, damp=1: None, "option damp has no type: annotate it"),
        (
            quantizer("mine", needs=("hesian",)),
            lambda weight, grid, stats: None,
            "unknown statistic 'hesian'.*did you mean 'hessian'",
        ),
    ],
)
def test_signatures_are_checked(decorator, function, words):
    with pytest.raises(UsageError, match=words):
        decorator(function)
    assert "mine" not in registry.methods("quantize")


def test_more_arguments_with_defaults_may_follow():
    @quantizer("mine", needs=("hessian",), traits=("joint",))
    def mine(weight, grid, stats, mask=None, *, damp: float = 0.1):
        """Round as I do."""

    registered = registry.find("quantize", "mine")
    assert registered.defaults == {"damp": 0.1} and registered.scope == "linear" and registered.traits == {"joint"}


def test_a_broken_package_is_named_and_the_rest_works(monkeypatch):
    warnings = []

    def broken():
        raise ImportError("no module named tensorflow")

    def healthy():
        quantizer("theirs")(lambda weight, grid, stats: None)

    entries = [
        SimpleNamespace(name=name, value=f"{name}.methods", load=load)
        for name, load in (("broken", broken), ("healthy", healthy))
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    monkeypatch.setattr(registry, "say", warnings.append)
    registry._discover.cache_clear()
    assert "theirs" in registry.methods("quantize") and "gptq" in registry.methods("quantize")
    assert warnings == [
        "warning: the methods of broken (broken.methods) cannot be used: ImportError: no module named tensorflow"
    ]
    registry._discover.cache_clear()


FILES = {
    "broken.py": ("@quantizer('broken'", r"SyntaxError: '\(' was never closed \(theirs.broken, line 1\)"),
    "missing.py": (
        "@quantizer('missing')\ndef f(weight, grid, stats, *, a: Annotated[int, 3] = 1): ...",
        "NameError: name 'quantizer' is not defined",
    ),
    "untyped.py": (
        "from jettison.recipe.registry import quantizer\n"
        "@quantizer('untyped')\ndef f(weight, grid, stats, *, a=1): ...",
        "option a has no type",
    ),
}


def test_a_broken_file_is_named_and_the_others_work(tmp_path, monkeypatch):
    """Files that come before and after it in the alphabet register; their decorator is an attribute of a module."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name, (text, _) in FILES.items():
        (folder / name).write_text(text)
    for name in ("a_first", "z_last"):
        (folder / f"{name}.py").write_text(
            f"from jettison.recipe import registry\n@registry.quantizer('{name}')\ndef f(weight, grid, stats): ..."
        )
    warnings = []
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "say", warnings.append)
    registry.register_files([str(folder)], "theirs")
    assert {"a_first", "z_last"} < set(registry.methods("quantize"))
    assert len(warnings) == len(FILES)
    for warning, (name, (_, words)) in zip(warnings, FILES.items(), strict=True):
        assert warning.startswith(f"warning: no methods of {folder / name}: ") and re.search(words, warning)


def test_a_file_that_fails_when_it_is_used_is_named(tmp_path, monkeypatch):
    (tmp_path / "late.py").write_text(
        "import no_such_library\nfrom jettison.recipe.registry import quantizer\n"
        "@quantizer('late')\ndef f(weight, grid, stats): ..."
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.register_files([str(tmp_path)], "late_package")
    with pytest.raises(JettisonError, match="method file late_package.late cannot be imported: ModuleNotFoundError"):
        registry.find("quantize", "late").function(None, None, None)


def test_the_method_of_the_docs_works_as_it_stands(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    folder = tmp_path / "docs_package"
    folder.mkdir()
    (folder / "mine.py").write_text(re.search(r"```py\n(.*?)```", page, re.DOTALL)[1], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    warnings = []
    monkeypatch.setattr(registry, "say", warnings.append)
    registry.register_files([str(folder)], "docs_package")
    method = registry.find("quantize", "mine")
    assert not warnings and method.defaults == {"strength": 0.5}
    weight, grid = torch.randn(8, 32), UniformGrid(8, 16)
    assert torch.allclose(method.function(weight, grid, None).dequantize(), weight, atol=0.05)


def test_statistics_are_those_that_exist():
    assert set(registry.STATISTICS) == {field.name for field in fields(Stats)} - {"tokens"}


def test_every_purpose_has_a_method():
    purposes = {"quantize": "quantize", "quantize_8_bits": "quantize", "quantize_for_adapters": "quantize",
                "quantize_at_once": "quantize", "recover": "recover", "prune_score": "prune"}  # fmt: skip
    for purpose, verb in purposes.items():
        assert registry.find(verb, registry.default_method(purpose))
    assert not registry.find("quantize", registry.default_method("quantize_at_once")).needs
