"""The journal and atomic files: a kill at any byte loses only unfinished work."""

import errno
import os

import pytest
import torch

from jettison.core.errors import JettisonError, UsageError
from jettison.core.files import inside, write_json
from jettison.core.journal import Journal
from jettison.core.tensors import write_tensors


def test_entries_survive(tmp_path):
    journal = Journal(tmp_path / "j", {"recipe": 1})
    journal.add(unit=0, file="a")
    journal.add(unit=1, file="b")
    again = Journal(tmp_path / "j", {"recipe": 1})
    assert again.last(unit=1)["file"] == "b"
    assert again.last(unit=2) is None


def test_cut_off_anywhere_it_still_reads(tmp_path):
    journal = Journal(tmp_path / "whole" / "j", {"recipe": 1})
    for unit in range(3):
        journal.add(unit=unit)
    data = journal.path.read_bytes()
    for length in range(len(data) + 1):
        path = tmp_path / str(length) / "j"
        path.parent.mkdir()
        path.write_bytes(data[:length])
        cut = Journal(path, {"recipe": 1})
        units = [entry["unit"] for entry in cut.entries]
        assert units == list(range(len(units)))
        assert len(units) >= data[:length].count(b"\n") - 1
        cut.add(unit=99)
        assert Journal(path, {"recipe": 1}).entries[-1] == {"unit": 99}


def test_another_run_is_refused(tmp_path):
    Journal(tmp_path / "j", {"recipe": "w4", "seed": 0})
    with pytest.raises(UsageError, match='its recipe is "w4", this one\'s is "w2"'):
        Journal(tmp_path / "j", {"recipe": "w2", "seed": 0})


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UsageError, match="not empty"):
        Journal(tmp_path / "j", {})
    assert not (tmp_path / "j").exists()


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"old": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JettisonError, match="No space left on device.*Nothing was lost"):
        write_json(tmp_path / "a.json", {"new": 2})
    with pytest.raises(JettisonError, match="No space left"):
        write_tensors(tmp_path / "b.safetensors", {"x": torch.zeros(3)})
    monkeypatch.undo()
    assert (tmp_path / "a.json").read_text() == '{\n  "old": 1\n}\n'
    assert sorted(os.listdir(tmp_path)) == ["a.json"]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x"])
def test_paths_stay_inside(tmp_path, name):
    with pytest.raises(JettisonError, match="outside the folder"):
        inside(tmp_path, name)
