"""Noised latents: what may leave a device, and who makes it."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import jettison.offload
from jettison.core.errors import UsageError
from jettison.core.tensors import write_tensors
from jettison.offload.noised import Noised, noise_alone, read_noised, write_noised

SOURCE = Path(jettison.offload.__file__).parents[1]
MAKERS = {"offload/noised.py", "offload/noise.py"}  # the noise step, and the files that it wrote


def test_only_the_noise_step_makes_one():
    """Every other file of the package that calls Noised(...) could send what has no noise."""
    calls = lambda path: any(
        isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Noised"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )
    makers = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if calls(path)}
    assert makers == MAKERS


class TestNoised:
    def test_it_is_a_copy_that_cannot_change(self):
        latent = np.ones(3, np.float32)
        noised = Noised(latent, 5)
        latent[0] = 7
        assert noised.latent.tolist() == [1, 1, 1] and noised.latent.dtype == "<f4"
        with pytest.raises(ValueError, match="read-only"):
            noised.latent[0] = 2
        with pytest.raises(AttributeError):
            noised.frame = 6

    @pytest.mark.parametrize(
        ("latent", "frame", "message"),
        [
            (np.ones(3), 0, "float64"),
            (np.ones((1, 3), np.float32), 0, r"shape \(1, 3\)"),
            (torch.ones(3), 0, "Tensor"),
            (np.ones(0, np.float32), 0, "length"),
            (np.array([1, np.nan], np.float32), 0, "not finite"),
            (np.ones(3, np.float32), -1, "frame = -1"),
            (np.ones(3, np.float32), True, "frame = True"),
            (np.ones(3, np.float32), 2**63, "frame = "),
        ],
    )
    def test_anything_else_is_refused(self, latent, frame, message):
        with pytest.raises(UsageError, match=message):
            Noised(latent, frame)


class TestFiles:
    def test_round_trip(self, tmp_path):
        stream, local = [noise_alone(4, n, seed=3) for n in (0, 2, 9)], torch.randn(3, 5)
        write_noised(tmp_path / "f.safetensors", stream, local)
        again, inputs = read_noised(tmp_path / "f.safetensors")
        assert [one.frame for one in again] == [0, 2, 9] and torch.equal(inputs, local)
        assert all(np.array_equal(a.latent, b.latent) for a, b in zip(stream, again, strict=True))
        assert not np.array_equal(stream[0].latent, stream[1].latent)

    def test_a_file_without_the_mark_is_refused(self, tmp_path):
        write_tensors(tmp_path / "f.safetensors", {"noised": torch.zeros(3, 4)})
        with pytest.raises(UsageError, match="no latents that are marked as noised"):
            read_noised(tmp_path / "f.safetensors")
        (tmp_path / "f.safetensors").write_bytes(b"\xff" * 64)
        with pytest.raises(UsageError, match="no file of frames"):
            read_noised(tmp_path / "f.safetensors")

    def test_frames_that_do_not_rise_are_refused(self, tmp_path):
        with pytest.raises(UsageError, match="must rise"):
            write_noised(tmp_path / "f.safetensors", [noise_alone(4, 1), noise_alone(4, 1)])
        write_tensors(
            tmp_path / "f.safetensors", {"noised": torch.zeros(2, 4)}, {"jettison_offload": "noised", "frames": "[3,3]"}
        )
        with pytest.raises(UsageError, match="must rise"):
            read_noised(tmp_path / "f.safetensors")
        with pytest.raises(UsageError, match="one length"):
            write_noised(tmp_path / "f.safetensors", [noise_alone(4, 1), noise_alone(5, 2)])
