"""The avatar's network: its two branches and what leaves, training that continues, its files; a user's own split."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from jettison.core.errors import JettisonError, UsageError
from jettison.domains.perception.avatars.synthetic import SyntheticAvatars
from jettison.offload.avatar import AvatarConfig, BranchEncoder, Local, branch_decoder, load_avatar, read_config
from jettison.offload.noise import make_noise
from jettison.offload.split import collect_latents, run, run_local
from jettison.offload.training import AvatarLesson, measure, new_avatar, train_avatar, train_for_noise

AVATARS = SyntheticAvatars(texture=16, grid=(5, 5), expressions=6)
FRAMES, OTHERS = AVATARS.sample(torch.arange(48) % 6, 1), AVATARS.sample(torch.arange(24) % 6, 2)
TINY = {
    "texture": 16, "vertices": 25, "block": 2, "offloaded": [1, 2, 3], "latents": 8, "offloaded_latents": 4, "width": 2,
    "offloaded_width": 1, "encoder_width": 6, "cameras": 9,
}  # fmt: skip
CONFIG = read_config(TINY)
TRAINED = {"steps": 150, "batch": 12, "rate": 5e-3}


@pytest.fixture(scope="module")
def trained(made_once):
    return load_avatar(made_once("avatar", lambda folder: train_avatar(FRAMES, CONFIG, folder, **TRAINED)))


def test_training_learns(trained):
    fresh = new_avatar(FRAMES, CONFIG)
    before, after = measure(fresh, OTHERS), measure(trained, OTHERS)
    assert after["mesh"] < 0.5 * before["mesh"] and after["texture"] < 0.8 * before["texture"]
    assert after["loss"] == pytest.approx(after["texture"] + after["mesh"])


def test_the_offloaded_part_matters_and_noise_harms(trained):
    latents = collect_latents(trained, [FRAMES])
    covariance, mean = torch.cov(latents.T), latents.mean(0)
    clean, local = measure(trained, FRAMES)["texture"], measure(trained, FRAMES, local=True)["texture"]
    noisy = [measure(trained, FRAMES, make_noise(covariance, v, mean=mean))["texture"] for v in (30.0, 1.0, 0.01)]
    assert clean < noisy[0] < noisy[1] < local * 1.05 and clean < local
    assert measure(trained, FRAMES, local=True)["mesh"] == measure(trained, FRAMES)["mesh"], "the mesh is local"
    assert noisy[2] < 1.1 * local, "with shrunk latents, much noise is like no offloaded part"


def test_what_leaves_depends_on_the_offloaded_components_alone(trained):
    """A change of the local components, the mesh, the view or the camera does not change the latents."""
    kept, latents = trained.encode(OTHERS)
    components = trained.components(OTHERS.average)
    components[:, list(trained.partition.local)] += 1.0
    average = trained.combine(local_part(trained, components), offloaded_part(trained, components)).texture
    other = replace(OTHERS, average=average, mesh=OTHERS.mesh.flip(0), view=-OTHERS.view, camera=OTHERS.camera.flip(0))
    again, same = trained.encode(other)
    torch.testing.assert_close(same, latents, atol=1e-5, rtol=0)
    assert (again.latents - kept.latents).abs().max() > 1e-3
    both = new_avatar(FRAMES, read_config(TINY | {"mesh_to": "both"}))
    moved = replace(OTHERS, mesh=OTHERS.mesh + 1)
    assert (both.encode(moved)[1] - both.encode(OTHERS)[1]).abs().max() > 1e-6, "as released, it does"


def local_part(model, components):
    count = len(components)
    return Local(components[:, list(model.partition.local)], torch.zeros(count, 25, 3), torch.zeros(count, dtype=int))


def offloaded_part(model, components):
    return components[:, list(model.partition.offloaded)]


def test_components_and_textures_are_inverse(trained):
    components = trained.components(OTHERS.average)
    texture = trained.combine(local_part(trained, components), offloaded_part(trained, components)).texture
    torch.testing.assert_close(texture, OTHERS.average, atol=1e-5, rtol=0)


def test_the_first_camera_has_no_correction(trained):
    outputs = lambda: run(trained, OTHERS).texture
    before = outputs()
    with torch.no_grad():
        trained.gain.add_(1.0)
    after = outputs()
    with torch.no_grad():
        trained.gain.sub_(1.0)
    first = OTHERS.camera == 0
    assert first.any() and torch.equal(before[first], after[first]) and not torch.equal(before[~first], after[~first])


def test_the_worker_decodes(trained):
    seen = []

    def worker(latents):
        seen.append(latents)
        return trained.offloaded(latents)

    noise = make_noise(torch.eye(4), 1.0)
    rng = lambda: torch.Generator().manual_seed(1)
    outputs = run(trained, OTHERS, noise, worker, rng())
    assert seen[0].shape == (24, 4) and torch.equal(seen[0], noise.protect(trained.encode(OTHERS)[1], rng()).float())
    assert outputs.texture.shape == (24, 3, 16, 16) and outputs.mesh.shape == (24, 25, 3)
    assert torch.equal(run_local(trained, OTHERS).mesh, outputs.mesh)


class Killed(Exception):
    pass


def test_a_killed_training_continues(tmp_path):
    options = {"steps": 8, "batch": 8, "save_every": 0.0}
    whole = train_avatar(FRAMES, CONFIG, tmp_path / "whole", **options)

    def kill(step, loss):
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        train_avatar(FRAMES, CONFIG, tmp_path / "killed", **options, note=kill)
    steps = []
    again = train_avatar(FRAMES, CONFIG, tmp_path / "killed", **options, note=lambda step, loss: steps.append(step))
    assert steps[0] == 5 and all(map(torch.equal, whole.state_dict().values(), again.state_dict().values()))
    done = train_avatar(FRAMES, CONFIG, tmp_path / "killed", **options, note=lambda *_: pytest.fail("it was done"))
    assert all(map(torch.equal, done.state_dict().values(), again.state_dict().values()))
    with pytest.raises(UsageError, match="holds another run: its steps is 8"):
        train_avatar(FRAMES, CONFIG, tmp_path / "killed", **options | {"steps": 9})


def test_the_released_encoder_is_not_trained(tmp_path):
    start = new_avatar(FRAMES, CONFIG).state_dict()
    options = {"steps": 3, "batch": 8}
    for name, still in (("released", True), ("trained", False)):
        end = train_avatar(FRAMES, CONFIG, tmp_path / name, encoder=name, **options).state_dict()
        moved = {key for key in start if not torch.equal(start[key], end[key])}
        assert any(key.startswith("encoder.") for key in moved)
        assert any(key.startswith("encoder_offloaded.") for key in moved) is not still
    with pytest.raises(UsageError, match="did you mean 'trained'"):
        train_avatar(FRAMES, CONFIG, tmp_path / "other", encoder="traind")


def test_decoders_learn_the_noise(tmp_path, trained):
    latents = collect_latents(trained, [FRAMES])
    noise = make_noise(torch.cov(latents.T), 0.3, mean=latents.mean(0))
    before, encoded = measure(trained, FRAMES, noise), trained.encode(OTHERS)[1]
    model = train_for_noise(deepcopy(trained), FRAMES, noise, tmp_path / "noise", steps=100, batch=12, rate=2e-3)
    assert torch.equal(model.encode(OTHERS)[1], encoded), "the encoders stay, and so does the covariance"
    assert measure(model, FRAMES, noise)["texture"] < before["texture"]


def test_the_lesson_counts_both_branches(trained):
    lesson = AvatarLesson(trained)
    batch = [value[:8] for value in list(vars(FRAMES).values())[:6]]
    torch.manual_seed(0)
    lesson(*batch).backward()
    names = [
        name for name, value in trained.named_parameters() if value.grad is not None and value.grad.abs().max() > 0
    ]
    assert {name.partition(".")[0] for name in names} == {
        "encoder", "encoder_offloaded", "decoder", "offloaded", "view", "mesh", "gain", "offset",
    }  # fmt: skip
    trained.zero_grad()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texture": 20}, "texture = 20: with blocks of 2, one of 16, 32"),
        ({"offloaded": [0, 1, 2, 3]}, "some have to leave"),
        ({"offloaded": [4]}, "different numbers from 0 to 3"),
        ({"latents": 0}, "latents = 0"),
        ({"width": True}, "width = True"),
        ({"mesh_to": "all"}, "mesh_to = 'all'"),
        ({"latent": 3}, "did you mean 'latents'"),
    ],
)
def test_a_wrong_configuration_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        read_config(TINY | change)


def test_the_sizes_of_the_paper():
    config = AvatarConfig()
    assert config.levels == 6 and config.partition.local == (0, 1)
    with torch.device("meta"):
        encoder, decoder = BranchEncoder(42, 6, 256, 48, 0), branch_decoder(256, 14, 6, 9)
        assert encoder.convs(torch.zeros(1, 42, 256, 256)).flatten(1).shape == (1, 2048)
        assert decoder(torch.zeros(1, 256)).shape == (1, 14, 3, 256, 256)


def test_damaged_files_are_refused(tmp_path):
    with pytest.raises(JettisonError, match="does not exist"):
        load_avatar(tmp_path)
    train_avatar(FRAMES, CONFIG, tmp_path, steps=1, batch=4)
    config = (tmp_path / "avatar.json").read_text()
    (tmp_path / "avatar.json").write_text(config.replace('"latents": 8', '"latents": 9'))
    with pytest.raises(JettisonError, match="does not fit"):
        load_avatar(tmp_path)
    (tmp_path / "avatar.safetensors").write_bytes(b"broken")
    with pytest.raises(JettisonError, match="missing or damaged"):
        load_avatar(tmp_path)


class Pictures(nn.Module):
    """A user's own model: an autoencoder of vectors, whose second half of the code is decoded elsewhere."""

    latents = 3

    def __init__(self):
        super().__init__()
        self.matrix = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
        self.offloaded = nn.Linear(3, 6, bias=False)
        self.offloaded.weight.data = self.matrix[:, 3:]

    def encode(self, inputs):
        code = inputs @ self.matrix
        return code[:, :3], code[:, 3:]

    def decode_local(self, kept):
        return kept @ self.matrix.T[:3]

    def combine(self, local, offloaded):
        return local if offloaded is None else local + offloaded


def test_any_encoder_and_decoder_can_be_split():
    model, inputs = Pictures(), torch.randn(500, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(run(model, inputs), inputs, atol=1e-5, rtol=1e-5)
    error = lambda outputs: float((outputs - inputs).square().mean())
    latents = collect_latents(model, inputs.split(100))
    noise = make_noise(torch.cov(latents.T), 2.0)
    assert latents.shape == (500, 3) and 0.01 < error(run(model, inputs, noise)) < error(run_local(model, inputs))
