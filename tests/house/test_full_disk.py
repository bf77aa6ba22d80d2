"""A disk that really fills up (a small tmpfs). Finished work stays, and with more space the same command continues."""

import os
import shutil
import subprocess
from collections import namedtuple

import pytest
from killing import files_of

from jettison.core.errors import JettisonError
from jettison.pipeline.compression import compress
from jettison.pipeline.recovery import recover

STEPS = [
    {"quantize": {"method": "gptq", "bits": 4, "group_size": 32}, "where": {"role": ["q", "k", "v", "o", "down"]}},
    {"quantize": {"method": "rtn", "bits": 2, "group_size": 32}, "where": {"role": ["gate", "up"]}},
    {
        "recover": {"train": ["lora", "scales"], "rank": 2, "data": "books", "samples": 8, "length": 32, "batch": 2},
        "where": {"role": ["gate", "up"]},
    },
]
RECIPE = {"calibration": {"text": "books", "samples": 4, "length": 32}, "steps": STEPS}
AMPLE = 64 << 20


def mount(path, size, again=False):
    """Mount a tmpfs of ``size`` bytes, or resize it; skip the test where that is not possible."""
    options = f"{'remount,' if again else ''}size={size}"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    """Return disk(bytes), which returns the folder of a disk of that size; ``again`` resizes the same disk."""
    if shutil.which("mount") is None or os.name == "nt":
        pytest.skip("no tmpfs can be mounted here")
    path, mounted = tmp_path / "disk", []

    def mounted_disk(size, again=False):
        path.mkdir(exist_ok=True)
        mount(path, size, again)
        mounted.append(path)
        return path

    yield mounted_disk
    if mounted:
        subprocess.run(["umount", path], check=True)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """Return the folder of a run that nothing disturbed, before and after its recovery."""
    folder = tmp_path_factory.mktemp("whole")
    compress(tiny("llama"), RECIPE, folder / "quantized")
    shutil.copytree(folder / "quantized", folder / "recovered")
    recover(folder / "recovered")
    return folder


def fill(path, left):
    """Fill the disk so that ``left`` bytes stay free."""
    free = shutil.disk_usage(path).free
    with open(path / "ballast", "wb") as handle:
        handle.write(bytes(free - left))


def leftovers(folder):
    """Return the names of temporary files that were left behind."""
    return [path.name for path in folder.rglob("*.tmp")]


@pytest.mark.parametrize("kilobytes", [4, 80, 640, 1100])
def test_compress_continues(tiny, whole, disk, monkeypatch, kilobytes):
    """The sizes fill the disk at different places: the first journal line, in or between shards, tokenizer, end."""
    usage = namedtuple("usage", "total used free")
    path = disk(kilobytes << 10)
    with monkeypatch.context() as patch:
        # Report ample space; otherwise compress refuses before any work.
        patch.setattr(shutil, "disk_usage", lambda _: usage(AMPLE, 0, AMPLE))
        with pytest.raises(JettisonError, match="No space left on device"):
            compress(tiny("llama"), RECIPE, path / "out")
    assert leftovers(path) == []
    disk(AMPLE, again=True)
    compress(tiny("llama"), RECIPE, path / "out")
    assert files_of(path / "out") == files_of(whole / "quantized")


@pytest.mark.parametrize("kilobytes", [0, 12, 48])
def test_recover_continues(whole, disk, kilobytes):
    path = disk(AMPLE)
    shutil.copytree(whole / "quantized", path / "out")
    fill(path, kilobytes << 10)
    with pytest.raises(JettisonError, match="No space left on device"):
        recover(path / "out", save_every=0)
    (path / "ballast").unlink()
    recover(path / "out", save_every=0)
    files, expected = files_of(path / "out"), files_of(whole / "recovered")
    state = "recover/state.safetensors"  # the runs saved their state last at different steps
    assert files.pop(state, None) is not None and expected.pop(state, None) is not None
    assert files == expected
    assert leftovers(path / "out") == []


WRITERS = {
    "report": ["report", "RUN", "-o", "DISK/page.html"],
    "plan": ["plan", "MODEL", "--device", "raspberry-pi-5", "--memory", "700KB", "--context", "0", "-o", "DISK/r.yaml"],
    "json": ["devices", "show", "raspberry-pi-5", "--json", "DISK/d.json"],
    "xr page": ["xr", "run", "vr-gaming", "--page", "DISK/page.html"],
    "xr trace": ["xr", "run", "vr-gaming", "--trace", "DISK/trace.json"],
    "xr csv": ["xr", "run", "vr-gaming", "--csv", "DISK/schedule.csv"],
    "compress": ["compress", "MODEL", "--recipe", "w8", "--set", "quantize.group_size=32", "-o", "DISK/out"],
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line(jettison, tiny, whole, disk, name):
    path = disk(1 << 20)
    fill(path, 0)
    places = {"RUN": whole / "recovered", "MODEL": tiny("llama")}
    arguments = [str(places.get(word, word)).replace("DISK", str(path)) for word in WRITERS[name]]
    code, _, err = jettison(*arguments)
    assert code == 1 and "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1, err
    assert leftovers(path) == []


def test_weights_are_loaded_without_their_cache(whole, disk, monkeypatch):
    """If the cache of packed weights cannot be written, the model works without it."""
    import jettison

    path = disk(AMPLE)
    shutil.copytree(whole / "quantized", path / "out", ignore=shutil.ignore_patterns(".tiles"))
    monkeypatch.setenv("JETTISON_CACHE", str(path / "cache"))
    fill(path, 0)
    assert len(jettison.load(path / "out").generate("It was", tokens=3, temperature=0).text) > 0
    assert leftovers(path) == []
