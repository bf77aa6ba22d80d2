"""The cache folder: damaged files in it are made again, and without a usable folder work continues."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from jettison.bench import llama_cpp
from jettison.core import caches, kept
from jettison.core.caches import cache_folder
from jettison.core.errors import JettisonError
from jettison.core.files import content_digest, write_json, write_text
from jettison.devices import machine, measuring
from jettison.domains.text.synthesize import synthesize
from jettison.graph.folder import ModelFolder, open_shape
from jettison.graph.shape import ModelShape
from jettison.pipeline.compression import compress
from jettison.recipe.recipe import load_recipe

synthetic = sys.modules["jettison.domains.text.synthesize"]  # imported this way since its function has the same name


@pytest.fixture
def said(monkeypatch):
    """Return the list of printed lines, with no cache folder chosen yet."""
    lines = []
    monkeypatch.setattr(caches, "_used", {})
    for module in (caches, kept, synthetic, machine):
        monkeypatch.setattr(module, "say", lines.append)
    return lines


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JETTISON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def flip(path: Path, at: float, bit: int = 1) -> None:
    """Flip bits of one byte in place, and reset the modification time. at: relative position in the file."""
    data, status = bytearray(path.read_bytes()), path.stat()
    data[int(at * len(data))] ^= bit
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


class TestWhereItIs:
    @pytest.mark.parametrize("name", ["/dev/null", "/dev/null/x", "/proc/none", "file", "file/x", "x" * 300])
    def test_one_that_cannot_be(self, name, tmp_path, monkeypatch, said):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file").write_text("mine")
        monkeypatch.setenv("JETTISON_CACHE", name)
        folder = cache_folder()
        assert folder.is_dir() and not caches.cache_is_kept() and cache_folder() == folder
        assert len(said) == 1 and "$JETTISON_CACHE" in said[0] and str(Path(name).absolute()) in said[0]
        write_text(folder / "a" / "b", "kept while the process lives")
        assert (tmp_path / "file").read_text() == "mine"

    def test_a_full_disk(self, tmp_path, monkeypatch, said):
        full = lambda dir: open("/dev/full", "wb")  # noqa: SIM115
        monkeypatch.setattr(caches.tempfile, "TemporaryFile", full)
        monkeypatch.setenv("JETTISON_CACHE", str(tmp_path))
        assert cache_folder() != tmp_path and "No space left" in said[0]

    def test_relative_empty_and_default(self, tmp_path, monkeypatch, said):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        for named, expected in (("here", "here"), ("", "xdg/jettison"), ("~/there", "home/there")):
            monkeypatch.setenv("JETTISON_CACHE", named)
            assert cache_folder() == tmp_path / expected and caches.cache_is_kept()
        monkeypatch.delenv("JETTISON_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_folder() == tmp_path / "home" / ".cache" / "jettison" and not said

    def test_no_home(self, monkeypatch, said):
        import pwd

        def nobody(*_):
            raise KeyError("no such user")

        monkeypatch.setattr(pwd, "getpwuid", nobody)
        for name in ("HOME", "JETTISON_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        assert cache_folder().is_dir() and not caches.cache_is_kept() and "$JETTISON_CACHE" in said[0]

    def test_its_temporary_stand_in_goes_with_the_process(self):
        code = "from jettison.core.files import *; write_text(cache_folder() / 'a', ''); print(cache_folder())"
        environment = os.environ | {"JETTISON_CACHE": os.devnull}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert not Path(done.stdout.strip()).exists() and done.stderr.count("JETTISON_CACHE") == 1

    def test_an_error_in_it_names_the_variable(self, cache):
        with pytest.raises(JettisonError, match="name another cache folder with .JETTISON_CACHE"):
            write_json(cache_folder() / ("x" * 300) / "a.json", {})


def test_a_model_runs_without_any_place_to_write(tiny, tmp_path):
    """Files may not grow beyond 0 bytes, as on a full disk. The model runs without any cache."""
    recipe = load_recipe({"steps": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 32}}]})
    compress(tiny("llama"), recipe, tmp_path / "out")
    code = """
        import resource, sys, torch
        from jettison.runtime.load import load
        from jettison.runtime.speculative.draft import Draft, View
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        loaded = load(sys.argv[1])
        plain = loaded.generate("It was", tokens=6).text
        view = Draft(view=View(2, 32, ("up",)))
        assert loaded.decoder is None or loaded.generate("It was", tokens=6, draft=view).text == plain
        print("fine")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "out")]
    environment = os.environ | {"JETTISON_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "fine", done.stderr
    assert done.stderr.count("Name another one with") == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / ".tiles" / "model.safetensors").exists()


class TestDigests:
    @pytest.fixture
    def file(self, tmp_path, cache):
        file = tmp_path / "file"
        file.write_bytes(b"content" * 1000)
        old = time.time() - 100
        os.utime(file, (old, old))
        return file

    @pytest.fixture(autouse=True)
    def not_racy(self, monkeypatch):
        monkeypatch.setattr("jettison.core.files.RACY", 0.0)

    def test_what_is_remembered_is_not_trusted(self, file, cache):
        expected = content_digest(file)
        entry = next(cache.glob("digests/*"))
        good = entry.read_bytes()
        for at in range(len(good)):
            entry.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            assert content_digest(file) == expected
        for text in (b"", b"\xff", good[:40], good * 3, b"0" * 64, good.replace(good[:64], b"0" * 64)):
            entry.write_bytes(text)
            assert content_digest(file) == expected
        assert entry.read_bytes() == good

    def test_it_is_remembered_and_a_change_in_place_is_seen(self, file, monkeypatch):
        first = content_digest(file)
        monkeypatch.setattr("jettison.core.files._hash", lambda *_: "again")
        assert content_digest(file) == first
        flip(file, 0.5)
        assert content_digest(file) == "again"

    @pytest.mark.parametrize("what", ["/dev/zero", "pipe", "folder", "missing"])
    def test_what_has_no_content(self, tmp_path, what):
        if what == "pipe":
            os.mkfifo(tmp_path / what)
        if what == "folder":
            (tmp_path / what).mkdir()
        with pytest.raises(JettisonError, match="cannot read"):
            content_digest(tmp_path / what)


def test_figures_of_this_machine(cache, monkeypatch, said):
    """After any flipped bit or other content, the machine is measured again. Having no place to write is no error."""
    measured = []
    monkeypatch.setattr(
        measuring, "_figures", lambda device: measured.append(1) or {"memory": 7e9, "flops": {"fp32": 1e12}}
    )
    row = machine.measure()
    file = cache / "device.json"
    good = file.read_bytes()
    for at in range(0, len(good), 7):
        file.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        assert machine.measure() == row
    for text in ("", "[]", "{}", json.dumps({"memory": 1})):
        file.write_text(text)
        assert machine.measure() == row
    before = len(measured)
    assert machine.measure() == row and len(measured) == before
    file.unlink()
    file.mkdir()
    assert machine.measure() == row and "will be measured again" in said[-1]
    monkeypatch.setenv("JETTISON_CACHE", os.devnull)
    assert machine.measure() == row


class TestSynthetic:
    @pytest.fixture
    def source(self, tiny):
        return ModelFolder(tiny("llama"))

    def test_damaged_batches_are_written_again(self, source, cache, said, monkeypatch):
        text = synthesize(source, samples=20, length=8)
        file, other = next(cache.glob("synthetic/*/batch-*")), {"other": torch.zeros(3)}
        good, ids = file.read_bytes(), synthetic._read_batch(file)
        monkeypatch.setattr(synthetic, "write_batch", lambda *_: ids)
        damages = [lambda at=at: flip(file, at) for at in (0.0001, 0.1, 0.5, 0.999)]
        damages += [lambda data=data: file.write_bytes(data) for data in (good[:100], good[:-1], b"", b"\xff" * 99)]
        for damage in (*damages, lambda: synthetic.write_sealed(file, other), lambda: file.unlink() or file.mkdir()):
            said.clear()
            damage()
            assert torch.equal(synthesize(source, samples=20, length=8), text)
            assert "is damaged, so it is written again" in said[0]
            assert file.is_dir() or file.read_bytes() == good
        assert "the next one writes this text again" in said[1]

    def test_without_a_cache(self, source, cache, monkeypatch):
        text = synthesize(source, samples=20, length=8)
        monkeypatch.setenv("JETTISON_CACHE", os.devnull)
        assert torch.equal(synthesize(source, samples=20, length=8), text)

    def test_processes_that_do_not_share_it_are_told(self, source, cache):
        with pytest.raises(JettisonError, match="all processes need the same cache folder, which .JETTISON_CACHE"):
            synthesize(source, samples=20, length=8, process=(0, 2))


def test_files_for_llama_cpp(cache, monkeypatch, tmp_path, said):
    pytest.importorskip("gguf")
    monkeypatch.setenv("LLAMA_BENCH", sys.executable)
    shape = open_shape("scribe")
    first = llama_cpp.llama_cpp(shape, cache, 1)
    files = [item.file for item in first.values()]
    good, inodes = [file.read_bytes() for file in files], [file.stat().st_ino for file in files]
    assert [item.file for item in llama_cpp.llama_cpp(shape, cache, 1).values()] == files
    assert [file.stat().st_ino for file in files] == inodes
    flip(files[0], 0.5)
    files[1].write_bytes(good[1][:999])
    llama_cpp.llama_cpp(shape, cache, 1)
    assert [file.read_bytes() for file in files] == good and len(said) == 2
    inodes = [file.stat().st_ino for file in files]
    llama_cpp.llama_cpp(ModelShape(shape.name, shape.raw_config | {"initializer_range": 0.5}), cache, 1)
    assert all(file.stat().st_ino != inode for file, inode in zip(files, inodes, strict=True))
