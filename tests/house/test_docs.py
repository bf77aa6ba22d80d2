"""The docs are true: generated pages are current, commands are valid, and pages run from top to bottom."""

import contextlib
import importlib
import io
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import typer
import yaml
from clock import replace_clock
from pages import DOCS, ROOT, WRITTEN, smaller, steps
from tiny import make_images

from jettison import compress, recover
from jettison.cli.app import build
from jettison.recipe import registry

# Commands in pages that are not ours. test_install.py tests pip, every CI run tests make.
OTHERS = ("pip install", "make ", ".venv/bin/", "accelerate launch", "lm_eval ")
QUICK = ("architecture", "continue", "device", "elsewhere", "large", "prune", "recipe", "runtimes", "tasks")
RUN = [page for page in WRITTEN if page.parent.name != "studies" and any(steps(page))]


@pytest.fixture(scope="module")
def generator():
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("generate")
    finally:
        sys.path.remove(str(DOCS))


def test_generated_pages_are_current(generator):
    old = [
        name for name, make in generator.PAGES.items()
        if name != "index.md" and (DOCS / name).read_text(encoding="utf-8") != make()
    ]  # fmt: skip
    assert not old, "run `make docs`"


def test_every_method_has_its_options_in_the_docs():
    page = (DOCS / "reference" / "methods.md").read_text(encoding="utf-8")
    assert all(f"## {verb}: {method}" in page for verb in registry.verbs() for method in registry.methods(verb))


def test_every_paper_has_a_title(generator):
    """And papers.yaml lists only papers that are cited."""
    import reference_pages

    titles = yaml.safe_load((DOCS / "papers.yaml").read_text(encoding="utf-8"))
    assert set(titles) == set(reference_pages.cited())


def test_the_readme_is_one_screen():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


@pytest.mark.parametrize("page", [ROOT / "README.md", *WRITTEN], ids=lambda page: page.name)
def test_commands_are_valid(page):
    """Options and arguments are parsed as the program parses them; nothing runs."""
    for kind, line in steps(page):
        line = line.removeprefix(".venv/bin/")
        if kind == "command" and line.startswith("jettison "):
            parse(typer.main.get_command(build()), shlex.split(line)[1:])
        elif kind == "command":
            assert line.startswith(OTHERS), f"{page.name}: {line}: a command that no test knows"


def parse(command: click.Command, arguments: list[str], parent: click.Context | None = None) -> None:
    """Parse the arguments. Raises click's errors for an unknown subcommand or option, or an invalid value."""
    context = command.make_context(command.name, arguments, parent)
    if isinstance(command, click.Group) and (rest := [*context._protected_args, *context.args]):
        _, child, rest = command.resolve_command(context, rest)
        parse(child, rest, context)


@pytest.fixture(scope="module")
def workshop(tiny, made_once):
    """Return a folder with what the pages assume: models, text, images, and runs of other pages."""
    return made_once("workshop", lambda folder: fill_workshop(folder, tiny))


def fill_workshop(folder: Path, tiny) -> None:
    """Put into ``folder`` what the pages assume. tiny: the fixture."""
    wide = {
        "num_hidden_layers": 6,
        "hidden_size": 128,
        "intermediate_size": 256,
        "head_dim": 32,
        "max_position_embeddings": 2048,
    }
    shutil.copytree(tiny("llama", **wide), folder / "my-model")
    if find_spec("gguf"):
        import gguf_models

        gguf_models.write(folder / "my-model", folder / "model.gguf", "Q8_0")
    shutil.copytree(tiny("resnet"), folder / "my-classifier")
    make_images(folder / "photos", 20)
    if find_spec("diffusers"):
        from denoisers import add_text_encoder, add_vae, save_pipeline

        save_pipeline("unet", folder / "my-pipeline")
        add_text_encoder(folder / "my-pipeline")
        add_vae(folder / "my-pipeline")
    text = (ROOT / "README.md").read_text(encoding="utf-8") * 4
    (folder / "my-text.txt").write_text(text, encoding="utf-8")
    short = ["calibration.samples=8", "calibration.length=64", "calibration.text=books"]
    with contextlib.chdir(folder):
        for name, recipe in (("mine", "w4"), ("small", "gateup-w4w2")):
            compress("my-model", recipe, f"runs/{name}", changes=short)
        recover("runs/small", changes=["recover.samples=8", "recover.length=32", "recover.batch=4"])


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=() if page.stem in QUICK else pytest.mark.slow) for page in RUN],
    ids=lambda page: f"{page.parent.name}-{page.stem}",
)
def test_a_page_runs(page, workshop, jettison, tmp_path, monkeypatch):
    """Follow a page block by block, in one folder: write its files, run its commands and Python code."""
    if page.stem == "diffusion":
        pytest.importorskip("diffusers")
        import programs

        programs.replace_clock(monkeypatch)
    if page.stem == "gguf":
        pytest.importorskip("gguf")
    shutil.copytree(workshop, tmp_path, dirs_exist_ok=True)
    if page.stem in ("start", "recover", "continue"):  # these pages make their runs themselves
        shutil.rmtree(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    replace_clock(monkeypatch)
    names: dict = {"__name__": "page"}
    for kind, text in steps(page):
        if kind.startswith("file "):
            Path(kind.removeprefix("file ")).write_text(text, encoding="utf-8")
        elif kind == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(text, str(page), "exec"), names)
        elif text.startswith("jettison export") and "--to onnx" in text and find_spec("onnx") is None:
            continue  # the extra onnx is not installed
        elif text.startswith("jettison "):
            code, out, err = jettison(*shlex.split(smaller(text))[1:])
            assert code == 0, f"{page.name}: {text}\n{out[-2000:]}\n{err[-2000:]}"
