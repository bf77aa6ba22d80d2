"""Windows longer than the positions of a model, and tokens beyond its embedding: a one-line error before any work."""

import pytest
import torch

from jettison.core.errors import UsageError
from jettison.domains.text.data import Text, token_windows
from jettison.domains.text.domain import training_windows
from jettison.domains.text.synthesize import synthesize, write_batch
from jettison.fitting import fit
from jettison.graph.dense import load_dense
from jettison.graph.folder import ModelFolder
from jettison.pipeline.compression import compress
from jettison.pipeline.evaluation import evaluate
from jettison.pipeline.jobs import assign
from jettison.pipeline.recovery import recover
from jettison.planning.forecast import forecast
from jettison.recipe.recipe import load_recipe
from jettison.runtime.load import load
from jettison.runtime.speculative.choose import draft
from jettison.statistics.importance import measure_units
from jettison.statistics.sensitivity import sensitivity, unseen_windows

GPTQ = {"quantize": {"method": "gptq", "bits": 4, "group_size": 32}}
RTN = {"quantize": {"method": "rtn", "bits": 4, "group_size": 32}}
OWL = {"prune": {"method": "magnitude", "sparsity": 0.5, "allocation": "owl"}}
MORE = {"length": 129, "samples": 2, "text": "books"}
# Learned positions, learned positions with an offset of 2, rotary positions.
FAMILIES = pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])


def recipe(*steps, **calibration):
    """Return a recipe of these steps."""
    return load_recipe({"calibration": calibration, "steps": list(steps)})


@FAMILIES
def test_as_many_positions_as_there_are_can_be_used(tiny, family):
    """And without a length, evaluation uses exactly that many."""
    measured = evaluate(tiny(family), texts=["wikitext2"], tokens=256)["texts"]
    assert measured == evaluate(tiny(family), texts=["wikitext2"], tokens=256, window=128)["texts"]
    assert unseen_windows(ModelFolder(tiny(family)), Text(), 2).shape == (2, 128)


REFUSED = {
    "statistics": ("calibration.length", lambda folder, out: assign(ModelFolder(folder), recipe(GPTQ, **MORE))),
    "allocation": ("calibration.length", lambda folder, out: assign(ModelFolder(folder), recipe(OWL, **MORE))),
    "recovery": (
        "recover.length",
        lambda folder, out: assign(ModelFolder(folder), recipe(RTN, {"recover": {"length": 129}})),
    ),
    "evaluate": ("window", lambda folder, out: evaluate(folder, window=129, texts=["wikitext2"])),
    "importance": ("length", lambda folder, out: measure_units(folder, Text(), length=129)),
    "sensitivity": ("length", lambda folder, out: sensitivity(folder, {}, {}, Text(), length=129)),
    "synthesis": (
        "length of synthetic text",
        lambda folder, out: synthesize(ModelFolder(folder), samples=1, length=129),
    ),
    "draft": ("48 tokens of prompt and 81 more", lambda folder, out: draft(folder, tokens=81)),
    "generate": ("28 tokens of prompt and 101 more", lambda folder, out: load(folder).write([[1] * 28], 101, None)),
}


@FAMILIES
@pytest.mark.parametrize("what", REFUSED)
def test_more_positions_than_there_are(tiny, tmp_path, what, family):
    name, call = REFUSED[what]
    with pytest.raises(UsageError, match=rf"^{name} = 129 tokens: .*{family}.* has positions for at most 128$"):
        call(tiny(family), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_positions_than_there_are_while_recovering(tiny, tmp_path):
    compress(tiny("llama"), recipe(RTN), tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="recover.length = 129 tokens: .* has positions for at most 128"):
        recover(tmp_path / "out", changes=["recover.length=129"])
    assert sorted(tmp_path.rglob("*")) == before


def test_text_that_no_method_reads_may_be_of_any_length(tiny, tmp_path):
    compress(tiny("gpt2"), recipe(RTN, **MORE), tmp_path / "out")


@pytest.fixture
def small(tiny):
    """Return a model of 256 tokens with a tokenizer of 4096."""
    return tiny("llama", vocab_size=256)


UNKNOWN = {
    "compress": lambda folder, out: compress(folder, recipe(GPTQ, length=32, samples=2), out),
    "allocation": lambda folder, out: compress(folder, recipe(OWL, length=32, samples=2), out),
    "evaluate": lambda folder, out: evaluate(folder, texts=["books"], window=32, tokens=64),
    "dry run": lambda folder, out: forecast(folder, recipe(RTN), texts=["books"]),
    "importance": lambda folder, out: measure_units(folder, Text(), samples=2, length=32),
    "recover": lambda folder, out: training_windows(
        ModelFolder(folder), {"data": "books", "samples": 2, "length": 32}, (0, 1), lambda: None
    ),
    "draft": lambda folder, out: draft(folder, tokens=8, ratios=(), views=(), lookup=2),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_tokens_that_the_model_does_not_know(small, tmp_path, what):
    with pytest.raises(UsageError, match=r"^text 'books' has token \d+: .* has tokens 0 to 255$"):
        UNKNOWN[what](small, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.parametrize("exact", [False, True], ids=["engine", "pytorch"])
def test_prompts_with_tokens_that_the_model_does_not_know(small, exact):
    with pytest.raises(UsageError, match=r"^the prompt has token \d+: .* has tokens 0 to 255$"):
        load(small, exact=exact).generate("It was a dark and stormy night", tokens=2)


def test_a_corpus_with_tokens_that_the_model_does_not_know(small):
    with pytest.raises(UsageError, match=r"^text 'wikitext2' has token \d+: "):
        draft(small, tokens=8, ratios=(), views=(), lookup=2, corpus="wikitext2")
    assert not (small / "draft.safetensors").exists()


def test_synthetic_text_begins_with_tokens_that_the_model_knows(small):
    source = ModelFolder(small)
    ids = write_batch(source, load_dense(source), 0, 8, 0, (1.0,))
    assert int(ids.min()) >= -1 and int(ids.max()) < 256


def test_text_without_such_tokens_is_read(small, tmp_path):
    source, text = ModelFolder(small), tmp_path / "text.txt"
    text.write_text("~" * 80)  # the tokenizer has no longer token made of this character
    assert int(token_windows(source, text, 8).max()) < 256
    with pytest.raises(UsageError, match="has token -1"):
        source.check_tokens(torch.tensor([3, -1]), "it")


@pytest.mark.parametrize("tokens", [0, -4])
def test_fewer_than_one_token(tiny, tmp_path, tokens):
    calls = (
        lambda: evaluate(tiny("llama"), tokens=tokens),
        lambda: fit(tiny("llama"), out=tmp_path / "out", recipe=recipe(RTN), tokens=tokens),
        lambda: forecast(tiny("llama"), recipe(RTN), texts=["books"], tokens=tokens),
    )
    for call in calls:
        with pytest.raises(UsageError, match=f"tokens = {tokens}: 1 or more"):
            call()


@pytest.mark.parametrize("what", [{"items": -3}, {"items": 1, "tasks": ["jettison_suite"]}, {"tasks": ["jettison_x"]}])
def test_tasks_are_checked_before_anything_is_compressed(tiny, tmp_path, what):
    with pytest.raises(UsageError, match="items = |unknown task 'jettison_x'"):
        fit(tiny("llama"), out=tmp_path / "out", recipe=recipe(RTN), **what)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bench", "decode", "scribe", "--rounds", 0), "rounds = 0"),
        (("bench", "decode", "scribe", "--context", -3), "context = -3"),
        (("bench", "decode", "scribe", "--context", 1020), "1020 tokens of context and 16 more = 1036 tokens"),
        (("evaluate", "scribe", "--tokens", -4), "tokens = -4"),
        (("evaluate", "scribe", "--window", -4), "window = -4"),
        (("evaluate", "scribe", "--window", 1025), "window = 1025 tokens: scribe has positions for at most 1024"),
        (("generate", "scribe", "--tokens", -4), "--tokens"),
        (("generate", "scribe", "--temperature", "nan"), "--temperature"),
        (("generate", "scribe", "--temperature", "inf"), "temperature = inf: it must be 0 to 1000"),
        (("generate", "scribe", "--seed", 10**30), "seed = 1000"),
    ],
)
def test_the_command_says_it_in_one_line(jettison, arguments, said):
    code, _, error = jettison(*arguments)
    assert code == 2 and said in error and "Traceback" not in error
