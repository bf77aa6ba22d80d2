"""Every test gets a cache folder of its own session and leaves nothing behind."""

import os
import shutil

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before torch is imported: a core for each worker

import pytest
import torch
from filelock import FileLock


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    os.environ["JETTISON_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    from jettison.core.progress import set_quiet

    set_quiet(True)
    torch.set_num_threads(1)
    from jettison.devices import measuring

    measuring.READ_BYTES, measuring.MATRIX, measuring.ENOUGH = 1 << 22, 256, 0.0  # to know this machine takes no time


@pytest.fixture(autouse=True)
def one_thread():
    """Also after a test that failed with more: on a core for each worker, threads would wait for one another."""
    yield
    torch.set_num_threads(1)


@pytest.fixture
def two_threads():
    """For what is about threads: all else runs on one."""
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """tiny(family) -> the folder of a small random model, made once."""
    import tiny as maker

    made = {}

    def of(family: str, **changes):
        key = (family, *sorted((name, str(value)) for name, value in changes.items()))
        if key not in made and family in maker.VISION:
            made[key] = maker.make_vision(family, tmp_path_factory.mktemp("models") / family)
        if key not in made:
            made[key] = maker.make(family, tmp_path_factory.mktemp("models") / family, **changes)
        return made[key]

    return of


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of three classes, twelve pictures each."""
    import tiny as maker

    return maker.make_images(tmp_path_factory.mktemp("images") / "pictures")


@pytest.fixture(scope="session")
def made_once(request, tmp_path_factory):
    """made_once(name, make) -> a folder that make(folder) fills, once per run: the first worker that asks makes it, the
    others wait. Nobody changes it; a test that has to, copies it."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if hasattr(request.config, "workerinput") else base) / "made-once"
    place.mkdir(exist_ok=True)

    def of(name, make):
        folder, done = place / name, place / f"{name}.done"
        with FileLock(place / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a failure left
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return of


@pytest.fixture(scope="session")
def scribe_w4(made_once):
    """The folder of scribe with 4 bits everywhere."""
    from jettison.pipeline.compression import compress

    steps = [{"quantize": {"method": "rtn", "bits": 4, "group_size": 64}}]
    return made_once("scribe-w4", lambda folder: compress("scribe", {"steps": steps}, folder))


@pytest.fixture
def jettison(capfd):
    """jettison(arguments...) -> (exit code, stdout, stderr)."""

    from jettison.cli.app import main

    def run(*arguments):
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return code, *capfd.readouterr()

    return run
