"""The checks after every write, the model card, and what makes large models fit into memory."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from killing import files_of
from safetensors.torch import load_file, save_file

from jettison import compress as compress_model
from jettison.core.errors import JettisonError
from jettison.core.tensors import write_tensors
from jettison.encodings.quantized import QuantizedWeight
from jettison.encodings.uniform import UniformGrid
from jettison.formats.card import write_card
from jettison.formats.check import check_block, check_shard, inspect
from jettison.formats.manifest import read_manifest, update_manifest
from jettison.formats.writer import Writer
from jettison.graph.folder import ModelFolder
from jettison.methods.quantize.rtn import rtn
from jettison.numerics.ranges import find_range
from jettison.pipeline.compression import compress

GRID = UniformGrid(2, 4)
RTN = {"steps": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 32, "clip": False}}]}
GPTQ = {
    "calibration": {"text": "books", "samples": 8, "length": 32},
    "steps": [{"quantize": {"method": "gptaq", "bits": 3, "group_size": 32}}],
}


def weight_of(*groups, scale=1.0):
    """Return a 2-bit weight of one row with these groups of codes."""
    codes = torch.tensor([[code for group in groups for code in group]], dtype=torch.uint8)
    return QuantizedWeight(codes, torch.full((1, len(groups)), scale, dtype=torch.bfloat16), None, GRID)


class TestInspect:
    def test_odd_groups_are_counted(self):
        assert inspect("w", weight_of([0, 1, 2, 3], [1, 2, 2, 3])) == {}
        assert inspect("w", weight_of([1, 1, 1, 1], [0, 3, 3, 0], [0, 0, 0, 0], [0, 3, 3, 2])) == {
            "constant": 2, "saturated": 1,
        }  # fmt: skip

    @pytest.mark.parametrize("scale", [float("nan"), float("inf")])
    def test_scales_must_be_finite(self, scale):
        with pytest.raises(JettisonError, match="layer: 2 of 2 scales"):
            inspect("layer", weight_of([0, 1, 2, 3], [0, 1, 2, 3], scale=scale))

    def test_a_method_with_bad_scales_stops_the_run(self, tiny, tmp_path, monkeypatch):
        from jettison.recipe import registry

        method = registry.find("quantize", "rtn")

        def broken(weight, grid, stats=None, *, clip: bool = True):
            quantized = rtn(weight, grid)
            return replace(quantized, scale=quantized.scale * float("nan"))

        monkeypatch.setattr(registry, "find", lambda *_: replace(method, function=broken))
        with pytest.raises(JettisonError, match="scales that are not finite"):
            compress(tiny("llama"), RTN, tmp_path / "out")

    def test_constant_groups_are_told(self, tiny, tmp_path):
        """The model has a row of zeros, as of a dead neuron."""
        folder = tmp_path / "model"
        folder.mkdir()
        for path in tiny("llama").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][3] = 0.0
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        notes = compress(folder, RTN, tmp_path / "out")["check"]["notes"]
        assert notes == ["constant groups (one code throughout): 2 in 1 linears, most in model.layers.1.mlp.up_proj"]
        assert notes[0] in (tmp_path / "out" / "README.md").read_text()


class TestReadBack:
    def test_a_file_that_reads_back_differently_is_not_kept(self, tmp_path, monkeypatch):
        def faulty(tensors, path, metadata):
            save_file({name: tensor + 1 for name, tensor in tensors.items()}, path, metadata)

        write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(3)})
        monkeypatch.setattr("jettison.core.tensors.save_file", faulty)
        with pytest.raises(JettisonError, match="x reads back differently"):
            write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(3)})
        assert load_file(tmp_path / "a.safetensors")["x"].tolist() == [0, 0, 0]
        assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]

    @pytest.mark.parametrize("part", ["weight_packed", "weight_scale"])
    def test_every_code_and_scale_is_compared(self, tiny, tmp_path, part):
        source = ModelFolder(tiny("llama"))
        compress(source.folder, RTN, tmp_path / "out")
        linear = next(linear for linear in source.anatomy if linear.block == 0 and "up" in linear.roles)
        expected = rtn(source.read_weight(linear.name, "linear"), UniformGrid(4, 32), clip=False)
        file = tmp_path / "out" / "model-00001-of-00003.safetensors"
        check_shard(Writer(source, "compressed-tensors"), file, {linear: expected})
        tensors = load_file(file)
        tensors[f"{linear.name}.{part}"][5, 1] += 1
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(JettisonError, match=r"layers.0.mlp.up_proj reads back differently"):
            check_shard(Writer(source, "compressed-tensors"), file, {linear: expected})

    @pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "gpt2", "opt", "gemma3_text"])
    def test_a_block_is_run_as_the_folder_says(self, tiny, tmp_path, family):
        check = compress(tiny(family), RTN, tmp_path / "out")["check"]
        assert check["block"]["index"] == 0
        assert check["block"]["difference"] <= 1e-5

    def test_a_folder_that_says_something_else_is_found(self, tiny, tmp_path):
        source = ModelFolder(tiny("qwen3"))
        compress(source.folder, RTN, tmp_path / "out")
        file = tmp_path / "out" / "model-00001-of-00003.safetensors"
        tensors = load_file(file)
        ids = torch.arange(8).unsqueeze(0)
        good = check_block(source, tmp_path / "out", list(source.anatomy), ids)
        tensors["model.layers.0.mlp.down_proj.weight_shape"] = torch.tensor([64, 95])
        save_file(tensors, file, {"format": "pt"})
        assert good["difference"] <= 1e-5
        with pytest.raises(Exception, match=r"95|shape|size"):
            check_block(source, tmp_path / "out", list(source.anatomy), ids)


class TestCard:
    def test_the_licence_of_the_original_is_passed_on(self, tiny, tmp_path):
        folder = tmp_path / "model"
        folder.mkdir()
        for path in tiny("llama").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Secret recipe\n")
        compress(folder, RTN, tmp_path / "out")
        card = (tmp_path / "out" / "README.md").read_text()
        assert "license: cc-by-nc-4.0" in card.split("---")[1]
        assert "Secret recipe" not in card and "bits: 4" in card

    @pytest.mark.parametrize(
        ("license", "said"),
        [("LICENSE.txt", "license_link: LICENSE.txt"), ("", "states no licence"), ("mit", "license: mit")],
    )
    def test_what_the_card_says(self, tiny, tmp_path, license, said):
        manifest = compress(tiny("llama"), RTN, tmp_path / "out") | {"license": license}
        assert said in write_card(manifest)
        assert "base_model" not in write_card(manifest)
        hub = {"name": "Qwen/Qwen3-4B", "folder": "cache/models--Qwen--Qwen3-4B/snapshots/1"}
        assert "base_model: Qwen/Qwen3-4B" in write_card(manifest | {"teacher": hub})

    def test_results_appear_once_measured(self, tiny, tmp_path):
        compress(tiny("llama"), RTN, tmp_path / "out")
        assert "## Measured" not in (tmp_path / "out" / "README.md").read_text()
        result = {
            "size": {"bytes": 1234567, "bits_per_weight": 4.5},
            "texts": {"mine": {"perplexity": 12.25, "log_perplexity": 2.5, "kl": 0.5, "agreement": 0.75}},
        }
        update_manifest(tmp_path / "out", results={"original": result})
        assert "| original | 1,234,567 | 4.50 | 12.25 | 0.5 |" in (tmp_path / "out" / "README.md").read_text()


class TestLargeModels:
    @pytest.mark.parametrize("family", ["qwen3", "gpt_oss", "gpt2"])
    def test_parts_of_rows_give_the_same_bytes(self, tiny, tmp_path, monkeypatch, family):
        compress(tiny(family), RTN, tmp_path / "whole")
        monkeypatch.setattr(sys.modules["jettison.pipeline.applying"], "AT_ONCE", 640)
        ranged = []
        monkeypatch.setattr(
            sys.modules["jettison.methods.quantize.rtn"],
            "find_range",
            lambda *args: ranged.append(args[0]) or find_range(*args),
        )
        compress(tiny(family), RTN, tmp_path / "parts")
        assert ranged and max(part.numel() for part in ranged) <= 640
        assert files_of(tmp_path / "whole") == files_of(tmp_path / "parts")

    def test_spilled_activations_give_the_same_bytes(self, tiny, tmp_path, monkeypatch):
        from jettison.graph.activations import Activations

        folders = []
        real = Activations.__init__
        monkeypatch.setattr(
            Activations, "__init__", lambda self, folder=None: folders.append(folder) or real(self, folder)
        )
        compress(tiny("qwen3"), GPTQ, tmp_path / "memory")
        assert set(folders) == {None}
        compress(tiny("qwen3"), GPTQ, tmp_path / "disk", spill=True)
        assert {folder.parent for folder in folders if folder} == {tmp_path / "disk" / "activations"}
        assert files_of(tmp_path / "memory") == files_of(tmp_path / "disk")  # and no spilled file is left

    def test_files_are_let_go_after_each_block(self, tiny, tmp_path, monkeypatch):
        from jettison.graph.checkpoint import Checkpoint

        released = []
        monkeypatch.setattr(Checkpoint, "release", lambda self: released.append(self.folder) or self._open.clear())
        compress(tiny("llama"), RTN, tmp_path / "out")
        assert released == [tiny("llama")] * 4  # after the check of the source, and after each of three units


def test_the_manifest_keeps_what_the_checks_found(tiny, tmp_path):
    compress_model(tiny("llama"), RTN, tmp_path / "out")
    check = read_manifest(tmp_path / "out")["check"]
    assert check["linears"] == 15 and check["notes"] == []
    assert json.loads((tmp_path / "out" / "jettison.json").read_text())["check"] == check
