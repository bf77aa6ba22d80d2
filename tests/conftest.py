"""Fixtures for all tests. The cache folder belongs to the test session, so that tests leave nothing behind."""

import os
import shutil

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before torch is imported: one core per worker

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

    # Small sizes: measuring this machine then takes almost no time.
    measuring.READ_BYTES, measuring.MATRIX, measuring.ENOUGH = 1 << 22, 256, 0.0


@pytest.fixture(autouse=True, scope="session")
def encoded_once():
    """Let a worker encode a long text only once per tokenizer, since hundreds of tests read the bundled ones.

    The ids depend on nothing but the text and the content of the tokenizer, which are the key.
    """
    from jettison.domains.text import data

    encode, known = data.encode, {}

    def encode_once(tokenizer, text, special=True):
        if len(text) < 4000 or not tokenizer.is_fast:
            return encode(tokenizer, text, special)
        key = (type(tokenizer), tokenizer.backend_tokenizer.to_str(), text, special)
        if key not in known:
            known[key] = tuple(encode(tokenizer, text, special))
        return list(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "encode", encode_once)
        yield


@pytest.fixture(autouse=True)
def one_thread():
    """Reset PyTorch to one thread after every test, even a failed one.

    Every test worker has one core, on which several threads would only wait for one another.
    """
    yield
    torch.set_num_threads(1)


@pytest.fixture
def two_threads():
    """Let PyTorch use two threads, for tests about threads. All other tests run on one."""
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Return tiny(family, **changes), which returns the folder of a small random model and builds it only once."""
    import tiny as maker

    folders = {}

    def get_folder(family: str, **changes):
        key = (family, *sorted((name, str(value)) for name, value in changes.items()))
        if key not in folders and family in maker.VISION:
            folders[key] = maker.make_vision(family, tmp_path_factory.mktemp("models") / family)
        if key not in folders:
            folders[key] = maker.make(family, tmp_path_factory.mktemp("models") / family, **changes)
        return folders[key]

    return get_folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Return a folder of three classes with twelve pictures each."""
    import tiny as maker

    return maker.make_images(tmp_path_factory.mktemp("images") / "pictures")


@pytest.fixture(scope="session")
def made_once(request, tmp_path_factory):
    """Return made_once(name, make), which returns a folder that make(folder) filled once per test run.

    The first worker that asks calls make, and the others wait. No test may change the folder: a test that has to
    works on a copy.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if hasattr(request.config, "workerinput") else base) / "made-once"
    root.mkdir(exist_ok=True)

    def get_folder(name, make):
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # remains of a failed attempt
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return get_folder


@pytest.fixture(scope="session")
def scribe_w4(made_once):
    """Return the folder of scribe with every quantizable weight at 4 bits."""
    from jettison.pipeline.compression import compress

    steps = [{"quantize": {"method": "rtn", "bits": 4, "group_size": 64}}]
    return made_once("scribe-w4", lambda folder: compress("scribe", {"steps": steps}, folder))


@pytest.fixture
def jettison(capfd):
    """Return jettison(arguments...), which runs the command line and returns (exit code, stdout, stderr)."""

    from jettison.cli.app import main

    def run(*arguments):
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return code, *capfd.readouterr()

    return run
