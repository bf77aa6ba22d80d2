"""The wheel installs into a fresh environment, alone and with every extra, and the start page runs there."""

import shlex
import subprocess
import sys
import tomllib

import pytest
import tiny as maker
from pages import DOCS, ROOT, smaller, steps

EXTRAS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"])
MODULES = {
    "diffusers": "diffusers",
    "docs": "mkdocs",
    "gguf": "gguf",
    "matching": "cv2",
    "offload": "msgpack",
    "onnx": "onnxruntime",
    "ray": "ray",
    "test": "pytest",
    "vision": "pyarrow",
}
TORCH = "torch==2.13.0"  # installed first, as README says: otherwise pip installs another build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def run(*command, cwd=None):
    """Run a command that must succeed, and return its stdout."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    return next(folder.glob("jettison-*.whl"))


@pytest.fixture
def environment(tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    return tmp_path / "venv" / "bin"


def test_the_start_page_runs_on_the_wheel(wheel, environment, tmp_path):
    """Follow every step as a reader would, except the first two, which install from the clone."""
    run(environment / "pip", "install", "--quiet", TORCH)
    run(environment / "pip", "install", "--quiet", wheel)
    maker.make("llama", tmp_path / "my-model", num_hidden_layers=6, hidden_size=128, intermediate_size=256, head_dim=32,
               max_position_embeddings=2048)  # fmt: skip
    for kind, text in steps(DOCS / "start.md"):
        if kind == "python":
            run(environment / "python", "-c", text, cwd=tmp_path)
        elif kind == "command" and not text.startswith("pip "):
            name, *arguments = shlex.split(smaller(text))
            run(environment / name, *arguments, cwd=tmp_path)
    assert (tmp_path / "runs" / "fitted" / "report.html").exists()


def test_every_extra_installs(wheel, environment):
    assert set(EXTRAS) == set(MODULES)
    run(environment / "pip", "install", "--quiet", TORCH)
    run(environment / "pip", "install", "--quiet", f"{wheel}[{','.join(EXTRAS)}]")
    for module in ("jettison", *MODULES.values()):
        run(environment / "python", "-c", f"import {module}")
    run(environment / "pip", "check")
