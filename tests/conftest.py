"""Every test gets a cache folder of its own session and leaves nothing behind."""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before torch is imported: a core for each worker

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    os.environ["JETTISON_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    from jettison.core.progress import set_quiet

    set_quiet(True)
    torch.set_num_threads(1)


@pytest.fixture
def two_threads():
    """For what is about threads: all else runs on one."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """tiny(family) -> the folder of a small random model, made once."""
    import tiny as maker

    made = {}

    def of(family: str, **changes):
        key = (family, *sorted((name, str(value)) for name, value in changes.items()))
        if key not in made:
            made[key] = maker.make(family, tmp_path_factory.mktemp("models") / family, **changes)
        return made[key]

    return of


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
