"""Methods are found by being there, checked when they register, and a broken package breaks only itself."""

from types import SimpleNamespace

import pytest

from jettison.core.errors import UsageError
from jettison.recipe import registry
from jettison.recipe.registry import method, pruner, quantizer, recoverer


@pytest.fixture(autouse=True)
def own_methods(monkeypatch):
    registry.methods("quantize")  # all are there
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
        (method("squash", "mine"), lambda weight: None, "unknown verb 'squash'.*valid: prune, quantize, recover"),
        (quantizer("mine"), lambda weight, grid, stats, *, damp: None, "option damp has no default"),
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

    found = registry.find("quantize", "mine")
    assert found.defaults == {"damp": 0.1} and found.scope == "linear" and found.traits == {"joint"}


def test_a_broken_package_is_named_and_the_rest_works(monkeypatch):
    said = []

    def broken():
        raise ImportError("no module named tensorflow")

    def healthy():
        quantizer("theirs")(lambda weight, grid, stats: None)

    entries = [
        SimpleNamespace(name=name, value=f"{name}.methods", load=load)
        for name, load in (("broken", broken), ("healthy", healthy))
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    monkeypatch.setattr(registry, "say", said.append)
    registry._discover.cache_clear()
    assert "theirs" in registry.methods("quantize") and "gptq" in registry.methods("quantize")
    assert said == [
        "warning: the methods of broken (broken.methods) cannot be used: ImportError: no module named tensorflow"
    ]
    registry._discover.cache_clear()


def test_every_purpose_has_a_method():
    purposes = {"quantize": "quantize", "quantize_8_bits": "quantize", "quantize_for_adapters": "quantize",
                "quantize_at_once": "quantize", "recover": "recover", "prune_score": "prune"}  # fmt: skip
    for purpose, verb in purposes.items():
        assert registry.find(verb, registry.default_method(purpose))
    assert not registry.find("quantize", registry.default_method("quantize_at_once")).needs
