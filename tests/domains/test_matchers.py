"""Matchers of neighbouring images: SIFT, transformers with random weights, folders that hold no matcher."""

import sys

import numpy as np
import pytest
import torch

from jettison.core.errors import JettisonError, UsageError
from jettison.domains.perception.surround.matchers import open_matcher
from jettison.domains.perception.world.cameras import make_rig
from jettison.domains.perception.world.store import render_frame
from jettison.domains.perception.world.world import make_world


def test_sift_without_opencv_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UsageError, match=r"pip install 'jettison\[matching\]'"):
        open_matcher("sift")


def test_sift_matches_what_was_shifted():
    pytest.importorskip("cv2")
    world = make_world(3, "road", "day")
    image = render_frame(world, 1.0, {"CAM_FRONT": make_rig((96, 240), 3)["CAM_FRONT"]})[1]["CAM_FRONT"].image
    made = open_matcher("sift").match(image[:, :-9], image[:, 9:])
    assert len(made.pixels) > 20
    assert np.median(np.abs(made.pixels - made.others - (9, 0)).max(1)) < 0.1
    empty = open_matcher("sift").match(np.zeros((20, 20, 3), np.uint8), image)
    assert empty.pixels.shape == (0, 2)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "is neither 'sift' nor a folder"),
        ('{"model_type": "bert"}', "model_type = 'bert'; valid: superglue, lightglue$"),
        ('{"model_type": "efficientloftr"}', "model_type = 'efficientloftr'; valid: superglue, lightglue$"),
        ('{"model_type": "lightglue", "trust_remote_code": true}', "the code of a folder is never run"),
        ('{"model_type": "lightglue"}', "cannot be opened"),
    ],
)
def test_a_folder_without_a_matcher_is_refused(config, words, tmp_path):
    if config:
        (tmp_path / "config.json").write_text(config)
        (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(JettisonError, match=words):
        open_matcher(str(tmp_path))


def tiny_matcher(kind):
    """Return a matcher of transformers with random weights."""
    from transformers import (
        LightGlueConfig,
        LightGlueForKeypointMatching,
        SuperGlueConfig,
        SuperGlueForKeypointMatching,
        SuperPointConfig,
    )

    torch.manual_seed(0)
    points = SuperPointConfig(
        encoder_hidden_sizes=[8, 8, 8, 8], decoder_hidden_size=8, keypoint_decoder_dim=65, descriptor_decoder_dim=32,
        keypoint_threshold=0.0, max_keypoints=40,
    )  # fmt: skip
    if kind == "lightglue":
        settings = LightGlueConfig(
            keypoint_detector_config=points, descriptor_dim=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, depth_confidence=-1.0, width_confidence=-1.0, filter_threshold=0.0,
        )  # fmt: skip
        return LightGlueForKeypointMatching(settings)
    settings = SuperGlueConfig(
        keypoint_detector_config=points, hidden_size=32, keypoint_encoder_sizes=[8], gnn_layers_types=["self", "cross"],
        num_attention_heads=2, sinkhorn_iterations=5, matching_threshold=0.0,
    )  # fmt: skip
    return SuperGlueForKeypointMatching(settings)


@pytest.mark.parametrize("kind", ["lightglue", "superglue"])
def test_a_transformer_matches_in_pixels_of_the_images(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("jettison.domains.perception.surround.matchers.LEAST", 0.0)
    tiny_matcher(kind).save_pretrained(tmp_path)
    matcher = open_matcher(str(tmp_path))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)
    made = matcher.match(image, image)
    assert matcher.name.startswith(kind) and len(made.pixels) > 0
    assert np.allclose(made.pixels, made.others, atol=1e-3), "an image matches itself"
    small = matcher.match(image[:40, :50], image)
    assert (small.pixels >= -1).all() and (small.pixels[:, 0] <= 50).all() and (small.others[:, 0] <= 96).all()
