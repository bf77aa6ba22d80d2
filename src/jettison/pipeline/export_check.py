"""Check an exported checkpoint: load it in its engine, and compare what it computes with the source."""

import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from jettison.core.errors import JettisonError, UsageError, guarded
from jettison.core.numbers import check_number, figures
from jettison.core.progress import waiting
from jettison.domains.domain import Sources, find_domain
from jettison.domains.text.data import token_windows
from jettison.formats.manifest import read_manifest
from jettison.formats.peft import FOLDER as ADAPTER
from jettison.graph.dense import require_memory
from jettison.graph.folder import ModelFolder
from jettison.runtime.load import Loaded, load
from jettison.runtime.sampling import Sampling

TEXTS, TOKENS = ("books-evaluation",), 4096
PROMPTS, MOST_PROMPTS = 20, 1000
PROMPT_TOKENS, NEW_TOKENS = 24, 16  # read and written for each prompt
TOLERANCE = 0.05  # nats; larger distances of a result with the source's own weights mean that the file is wrong
# Format -> the packages that transformers loads it with. Formats that are not listed are loaded by Jettison alone.
PACKAGES = {
    "transformers": (),
    "compressed-tensors": ("compressed_tensors",),
    "gptq": ("optimum", "gptqmodel"),
    "gptq-v2": ("optimum", "gptqmodel"),
    "awq": ("gptqmodel",),
    "auto-round": ("auto_round",),
}


@dataclass(frozen=True)
class Reference:
    """What results are compared with.

    loaded: the source with its adapter, in float32.
    sources: the texts.
    scores: text -> perplexity of the source and more.
    prompts, written: token ids of prompts, and of the source's greedy continuations.
    """

    loaded: Loaded
    sources: Sources
    scores: dict[str, dict[str, Any]]
    prompts: list[list[int]]
    written: list[list[int]]


def prepare(source: ModelFolder, texts: Iterable[str], tokens: int | None, prompts: int) -> Reference:
    """Load and measure the source that results are compared with.

    texts, tokens: the texts, and how many tokens of each.
    prompts: how many prompts are continued; they are cut from the first text.
    Raises UsageError for texts or numbers that are not valid, JettisonError if two models in float32 do not fit in
    memory.
    """
    sources = Sources(tuple(texts), tokens)
    if not sources.texts:
        raise UsageError("no text to compare on: name one")
    check_number("prompts", prompts, 1, MOST_PROMPTS, whole=True)
    find_domain(source).check_sources(source, sources)
    require_memory(8.0 * source.anatomy.parameters, f"comparing exports of {source.name} with it, in float32,")
    loaded = load(source.folder, exact=True, dtype=torch.float32, cache=False)
    scores = find_domain(source).scores(source, loaded, None, sources)["texts"]
    length = source.window(4 * PROMPT_TOKENS)
    windows = token_windows(source, sources.texts[0], length, prompts)[:, : max(1, length // 4)]
    cut = windows.tolist()
    return Reference(loaded, sources, scores, cut, _continue(loaded, cut))


def check_export(reference: Reference, path: Path, name: str, exact: bool) -> dict[str, Any]:
    """Load a result and compare it with its source.

    It is loaded by transformers, if that loads the format and the packages for it are installed; else by Jettison.

    name: of the format.
    exact: whether the result should compute what the source does; a result that does not is removed.
    Returns ``engine`` (name and version), ``engine_note`` (why it was not another one, else ""), ``texts`` (for each
    ``perplexity_ours``, of the source; ``perplexity``, in the engine; ``kl``, from the source, in nats per token;
    ``agreement``, the share of positions with the same likeliest token), and ``continuations`` (how many greedy ones
    are the ``same``, of how many ``prompts``).
    Raises JettisonError if the engine cannot load the result, or it is not ``exact``.
    """
    engine, note, student = _open(path, name)
    measured = find_domain(student.source).scores(student.source, student, reference.loaded, reference.sources)["texts"]
    same = sum(a == b for a, b in zip(reference.written, _continue(student, reference.prompts), strict=True))
    if exact and not (distance := max(scores["kl"] for scores in measured.values())) <= TOLERANCE:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise JettisonError(
            f"{name}: {engine} computes another function from {path} than the source: KL {figures(distance)}, and "
            f"{TOLERANCE} is accepted. It was removed"
        )
    texts = {
        text: {"perplexity_ours": reference.scores[text]["perplexity"]}
        | {key: scores[key] for key in ("perplexity", "kl", "agreement")}
        for text, scores in measured.items()
    }
    return {
        "engine": engine,
        "engine_note": note,
        "texts": texts,
        "continuations": {"same": same, "prompts": len(reference.prompts)},
    }


def _continue(loaded: Loaded, prompts: list[list[int]]) -> list[list[int]]:
    """Return greedy continuations of prompts, all of the same length."""
    written: list[list[int]] = [[] for _ in prompts]
    for row, token in loaded.write(prompts, NEW_TOKENS, Sampling()):
        written[row].append(token)
    return written


def _open(path: Path, name: str) -> tuple[str, str, Loaded]:
    """Load a result. Returns the engine, why it was not another one, and the model with its adapter, in float32."""
    needed = PACKAGES.get(name)
    missing = [package for package in needed or () if find_spec(package) is None]
    if name == "gguf":
        note = "llama.cpp is not run"
    elif needed is None:
        note = "no other engine loads this format"
    elif missing:
        note = f"transformers needs {' and '.join(missing)}, not installed"
    elif problems := read_manifest(path)["not_in_transformers"]:
        note = problems[0]
    else:
        return f"transformers {version('transformers')}", "", _in_transformers(path)
    return "jettison.load", note, load(path, exact=True, dtype=torch.float32, cache=False)


@waiting("loading the result in transformers")
def _in_transformers(path: Path) -> Loaded:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    try:
        with _quiet(), guarded(f"transformers cannot load {path}"):
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=False)
            model(torch.zeros(1, 1, dtype=torch.int64))  # compressed-tensors unpacks at the first call; PEFT needs that
            if (path / ADAPTER).is_dir():
                model = PeftModel.from_pretrained(model, path / ADAPTER)
    except UsageError as error:  # what we wrote is wrong, not what the user asked for
        raise JettisonError(str(error)) from error
    return Loaded(ModelFolder(path), model.eval(), exact=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers and compressed-tensors from showing progress bars and warnings."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
