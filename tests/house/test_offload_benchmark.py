"""Parts of benchmarks/offload/privatar.py: smaller networks, rows of tables, the study's page. Nothing is measured."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.offload import privatar_claims
from benchmarks.offload.privatar import eight_bits, narrowed
from jettison.domains.perception.avatars.synthetic import SyntheticAvatars
from jettison.offload.avatar import AvatarConfig
from jettison.offload.split import plain, run
from jettison.offload.training import new_avatar

ROOT = Path(__file__).parents[2]
FRAMES = SyntheticAvatars(16, (5, 5), 4).sample(torch.arange(8) % 4, 1)
CONFIG = AvatarConfig(
    texture=16, vertices=25, block=2, offloaded=[1, 2, 3], latents=6, offloaded_latents=4, width=5, offloaded_width=2,
    encoder_width=4, cameras=9,
)  # fmt: skip


def test_channels_without_weights_can_be_left_out():
    """A network whose weakest channels are zero computes the same without them."""
    model = plain(new_avatar(FRAMES, CONFIG))
    with torch.no_grad():
        for decoder in (model.decoder, model.offloaded):
            kernels = [step for step in decoder if isinstance(step, nn.ConvTranspose2d)]
            for kernel in kernels[:-1]:
                kernel.weight[:, :2] = 0
            decoder[0].weight[: 4 * 16], decoder[0].bias[: 4 * 16] = 0, 0
    small = narrowed(model, 0.1)
    count = lambda network: sum(value.numel() for value in network.parameters())
    assert count(small) < count(model)
    for one, two in zip(run(model, FRAMES), run(small, FRAMES), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_weights_are_rounded_to_8_bits():
    model = new_avatar(FRAMES, CONFIG)
    weight, rounded = plain(model).decoder[0].weight, eight_bits(model).decoder[0].weight
    assert 0 < (weight - rounded).abs().max() < 0.02 * weight.abs().max()
    assert all(row.unique().numel() <= 256 for row in rounded)


def test_a_point_that_another_beats_has_no_star():
    point = lambda name, loss, users, bound: {
        "name": name, "loss": loss, "users": users, "ratio": users, "energy_mj": 1.0, "bound": bound
    }  # fmt: skip
    rows = privatar_claims.pareto_table([
        point("good", 0.1, 2.0, 0.5), point("safe", 0.1, 2.0, None), point("worse", 0.2, 2.0, None),
        point("many", 0.3, 9.0, 0.9),
    ])["rows"]  # fmt: skip
    assert [row[0] for row in rows] == ["good", "* safe", "worse", "* many"]
    assert privatar_claims.recovered(0.3, {"local": 0.4, "no noise": 0.2}) == pytest.approx(0.5)
    assert privatar_claims.recovered(0.3, {"local": 0.2, "no noise": 0.2}) == 0


def test_the_reference_needs_no_training():
    vectors = privatar_claims.reference()
    assert vectors["error"] < 1e-6 and vectors["exact_vs_linear"] == pytest.approx(3.0 / 5.9, abs=0.01)


def test_the_page_of_a_result(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    pages = importlib.import_module("study_pages")
    try:
        assert "No result is recorded yet" in pages.offload("nothing")
        points = [
            {"name": f"k = {k}, V = 1", "kind": kind, "ratio": k / 4, "loss": 1 / k}
            for k, kind in ((4, "offloaded"), (8, "offloaded"), (2, "on the device"))
        ]
        details = {"secrets": 20, "pareto": points, "tables": {"attacks": {"columns": ["a"], "rows": [["<b>"]]}}}
        (tmp_path / "benchmarks" / "results").mkdir(parents=True)
        file = tmp_path / "benchmarks" / "results" / "privatar.json"
        file.write_text(json.dumps({"command": "python -m x", "details": details}))
        monkeypatch.setattr(pages, "ROOT", tmp_path)
        page = pages.offload()
        assert "### Attacks" in page and page.count("<circle") == 3 + 2 and "offload-row.png" in page
        assert "5.0 % are guessed" in page and "No result" not in page
    finally:
        sys.modules.pop("study_pages", None)
