"""A run that is resumed.

- What changed since its start is named.
- Damaged files are made again.
- Only one process at a time works on a folder.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from killing import files_of
from tiny import change

from jettison.core.errors import JettisonError, UsageError
from jettison.core.journal import Journal, read_records
from jettison.core.locks import locked
from jettison.core.sealed import read_sealed, write_sealed
from jettison.core.tensors import write_tensors
from jettison.pipeline.compression import JOURNAL, compress
from jettison.pipeline.recovery import recover

CALIBRATION = {"text": "books", "samples": 4, "length": 32}
GPTQ = {
    "calibration": CALIBRATION,
    "steps": [{"quantize": {"method": "gptq", "bits": 4, "group_size": 32}, "where": {"role": ["up", "gate"]}}],
}
QUICK = {"samples": 8, "length": 32, "batch": 4, "train": ["lora", "scales"], "scale_lr": 0.1}
RECOVERED = GPTQ | {"steps": [*GPTQ["steps"], {"recover": QUICK, "where": {"role": ["up"]}}]}


@pytest.fixture
def model(tiny, tmp_path):
    """A copy of a tiny model that a test may change."""
    return shutil.copytree(tiny("llama"), tmp_path / "model")


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Return a function: recipe -> folder of a model and a finished run, made once with and once without recovery."""
    folders = {}

    def of(recipe, recovers=False):
        if recovers not in folders:
            folder = tmp_path_factory.mktemp("runs")
            compress(shutil.copytree(tiny("llama"), folder / "model"), recipe, folder / "out")
            if recovers:
                recover(folder / "out")
            folders[recovers] = folder
        return folders[recovers]

    return of


@pytest.fixture
def finished(runs, tmp_path):
    """Return (model, out, files) of a finished run; ``out`` is a copy."""
    folder = runs(GPTQ)
    out = shutil.copytree(folder / "out", tmp_path / "out")
    return folder / "model", out, files_of(out)


@pytest.fixture
def recovered(runs, tmp_path):
    """Return the same as ``finished``, for a run that is recovered too."""
    folder = runs(RECOVERED, recovers=True)
    out = shutil.copytree(folder / "out", tmp_path / "out")
    return folder / "model", out, files_of(out)


CHANGES = {
    "weights model.safetensors": lambda folder: change(folder, model__norm__weight=lambda value: value * 2),
    "tokenizer tokenizer.json": lambda folder: (folder / "tokenizer.json").write_text(
        (folder / "tokenizer.json").read_text() + "\n"
    ),
    "tokenizer chat_template.jinja": lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
    "config": lambda folder: (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"rms_norm_eps": 1e-3})
    ),
    "calibration text": lambda folder: (folder.parent / "text.txt").write_text("It was the worst of times. " * 99),
}


class TestResume:
    @pytest.mark.parametrize("what", CHANGES)
    def test_what_changed_is_named(self, model, tmp_path, what):
        (tmp_path / "text.txt").write_text("It was the best of times. " * 99)
        recipe = GPTQ | {"calibration": CALIBRATION | {"text": str(tmp_path / "text.txt")}}
        compress(model, recipe, tmp_path / "out")
        before = files_of(tmp_path / "out")
        CHANGES[what](model)
        with pytest.raises(UsageError, match=rf"holds another run: its (model )?{what} is"):
            compress(model, recipe, tmp_path / "out")
        assert files_of(tmp_path / "out") == before

    @pytest.mark.parametrize(("unit", "damage"), [(0, "one bit"), (1, "missing"), (2, "cut")])
    def test_a_damaged_shard_is_made_again(self, finished, unit, damage):
        model, out, before = finished
        spoil(sorted(out.glob("model-*.safetensors"))[unit], damage)
        compress(model, GPTQ, out)
        assert files_of(out) == before

    def test_also_after_recovery_which_is_stored_again(self, recovered):
        model, out, before = recovered
        spoil(sorted(out.glob("model-*.safetensors"))[0], "one bit")
        with pytest.raises(JettisonError, match="model-00001-of-00003.safetensors is missing or damaged"):
            recover(out)
        compress(model, RECOVERED, out)
        recover(out)
        assert files_of(out) == before

    @pytest.mark.parametrize("file", ["adapter/adapter_model.safetensors", "recover/state.safetensors"])
    def test_a_damaged_adapter_is_stored_again_and_training_does_not_go_on_from_garbage(self, recovered, file):
        _, out, before = recovered
        spoil(out / file, "one bit")
        spoil(out / "recover" / "journal.jsonl", "last line")
        recover(out)
        assert files_of(out) == before

    @pytest.mark.parametrize("damage", ["one bit", "cut", "missing"])
    def test_that_a_finished_recovery_cannot_be_undone_is_said(self, recovered, damage):
        _, out, _ = recovered
        spoil(out / "recover" / "originals.safetensors", damage)
        recover(out)
        assert "originals.safetensors is missing or damaged" in (out / "progress.log").read_text()
        with pytest.raises(JettisonError, match="damaged"):
            recover(out, restart=True)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
    def test_pipes_in_place_of_files_are_not_waited_for(self, recovered):
        """The run is a process of its own: a wait inside C code cannot be interrupted from Python."""
        _, out, before = recovered
        pipes = ("recover/state.safetensors", "progress.log")
        for name in pipes:
            (out / name).unlink()
            os.mkfifo(out / name)
        spoil(out / "recover" / "journal.jsonl", "last line")
        done = subprocess.run([sys.executable, "-m", "jettison", "recover", out, "-q"], timeout=100)
        (out / "progress.log").unlink()
        assert done.returncode == 0
        assert files_of(out) == {name: data for name, data in before.items() if name != "progress.log"}


def spoil(file, damage):
    """Damage a file. damage: one bit, cut, last line, missing, or a folder in its place."""
    data = bytearray(file.read_bytes())
    if damage == "one bit":
        data[-100] ^= 1
    if damage == "cut":
        data = data[: len(data) // 2]
    if damage == "last line":
        data = data[:-20] + b"\n"
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif damage != "missing":
        file.write_bytes(data)


LINES = {
    "zeroed": lambda line: bytes(len(line)),
    "garbage": lambda line: b"\xff\xfe{[",
    "a number": lambda line: b"17",
    "a list": lambda line: b"[1]",
    "null": lambda line: b"null",
    "empty": lambda line: b"",
    "another value": lambda line: line.replace(b'"unit": 1', b'"unit": 7').replace(b'"seed": 0', b'"seed": 8'),
    "deep": lambda line: b"[" * 100_000,
    "no sum": lambda line: b'{"unit": 1}',
}


class TestJournal:
    @pytest.mark.parametrize("how", LINES)
    def test_damaged_lines(self, tmp_path, how):
        """The first line identifies the run, so a journal without it is refused; other damaged lines are dropped."""
        journal = Journal(tmp_path / "j", {"seed": 0})
        for unit in range(3):
            journal.add(unit=unit)
        lines = journal.path.read_bytes().splitlines()
        for number in range(4):
            damaged = [LINES[how](line) if at == number else line for at, line in enumerate(lines)]
            journal.path.write_bytes(b"\n".join(damaged) + b"\n")
            if number == 0:
                with pytest.raises(JettisonError, match="line 1 is damaged"):
                    Journal(journal.path, {"seed": 0})
            elif how != "another value" or number == 2:
                units = [entry["unit"] for entry in Journal(journal.path, {"seed": 0}).entries]
                assert units == [unit for unit in range(3) if unit != number - 1]
                assert len(journal.path.read_bytes().splitlines()) == 3

    @pytest.mark.parametrize("number", [2, -1])
    def test_what_they_recorded_is_done_again(self, finished, number):
        model, out, before = finished
        lines = (out / JOURNAL).read_bytes().splitlines()
        lines[number] = lines[number][:-7]
        (out / JOURNAL).write_bytes(b"\n".join(lines) + b"\n")
        compress(model, GPTQ, out)
        assert files_of(out) == before
        records, damaged = read_records(out / JOURNAL)
        assert sorted(record["unit"] for record in records if "unit" in record) == [0, 1, 2] and not damaged

    @pytest.mark.parametrize("content", [b"", b"\x00" * 50, b'{"run": {"kind', b"\n\n"])
    def test_a_first_line_that_was_never_whole(self, tmp_path, content):
        (tmp_path / "j").write_bytes(content)
        Journal(tmp_path / "j", {"recipe": 1}).add(unit=0)
        assert Journal(tmp_path / "j", {"recipe": 1}).entries == [{"unit": 0}]

    def test_a_missing_first_line(self, tmp_path):
        Journal(tmp_path / "j", {"recipe": 1}).add(unit=0)
        (tmp_path / "j").write_bytes((tmp_path / "j").read_bytes().split(b"\n", 1)[1])
        with pytest.raises(JettisonError, match="line 1 is damaged"):
            Journal(tmp_path / "j", {"recipe": 1})
        assert Journal(tmp_path / "j", {"recipe": 1}, cache=True).entries == []

    def test_half_a_line_of_a_full_disk_is_taken_back(self, tmp_path, monkeypatch):
        journal = Journal(tmp_path / "j", {"recipe": 1})

        def full(_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(JettisonError, match="No space left"):
                journal.add(unit=0)
        journal.add(unit=1)
        assert Journal(tmp_path / "j", {"recipe": 1}).entries == [{"unit": 1}]


class TestLock:
    SECOND = "from pathlib import Path; from jettison.core.locks import locked\nwith locked(Path({!r})): print('taken')"

    def second(self, folder):
        return subprocess.run([sys.executable, "-c", self.SECOND.format(str(folder))], capture_output=True, text=True)

    def test_a_second_process_is_told_who_holds_it(self, tmp_path):
        with locked(tmp_path), locked(tmp_path):  # the same process may lock it twice
            refused = self.second(tmp_path)
            assert f"another process works on {tmp_path}: process {os.getpid()} on " in refused.stderr
        assert self.second(tmp_path).stdout == "taken\n"

    def test_what_killed_runs_left_is_removed(self, tmp_path):
        (tmp_path / ".0123456789abcdef.tmp").write_text("half")
        with locked(tmp_path):
            assert not list(tmp_path.glob("*.tmp"))
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_sealed_tensors_are_used_whole_or_not_at_all(tmp_path):
    file = tmp_path / "a.safetensors"
    write_sealed(file, {"x": torch.arange(100.0), "y": torch.tensor(3)}, {"step": "4"})
    tensors, metadata = read_sealed(file)
    assert torch.equal(tensors["x"], torch.arange(100.0)) and tensors["y"] == 3 and metadata == {"step": "4"}
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        result = read_sealed(file)
        assert result is None or whole[place : place + 1] == b" ", place
    file.write_bytes(whole[:-9])
    assert read_sealed(file) is None
    write_tensors(file, {"x": torch.zeros(1)})
    assert read_sealed(file) is None
    assert read_sealed(tmp_path / "none") is None


def test_windows_are_no_longer_than_the_model_has_positions_for(tiny, tmp_path):
    """A recipe's length is an upper limit, as its group size is: it is cut and recorded as used."""
    # The default length is 256 tokens, the model has 128 positions.
    recipe = RECOVERED | {"calibration": {"text": "books", "samples": 4}}
    manifest = compress(tiny("opt"), recipe, tmp_path / "out", changes=["recover.length=512"])
    assert manifest["recipe"]["calibration"]["length"] == 128
    assert manifest["recipe"]["steps"][1]["recover"]["length"] == 128
    with pytest.raises(UsageError, match=r"recover.length = 129 tokens: .* has positions for at most 128"):
        recover(tmp_path / "out", changes=["recover.length=129"])
