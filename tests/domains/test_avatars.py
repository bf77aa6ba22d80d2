"""Synthetic avatars: repeatable, distinct, with view effects and drift; and the reader of multiface's layout."""

import numpy as np
import pytest
import torch
from recordings import write_multiface

from jettison.core.errors import JettisonError, UsageError
from jettison.domains.perception.avatars.face import MUSCLES
from jettison.domains.perception.avatars.frames import join, normalization
from jettison.domains.perception.avatars.multiface import Multiface
from jettison.domains.perception.avatars.rendering import render
from jettison.domains.perception.avatars.synthetic import SyntheticAvatars
from jettison.numerics.block_dct import block_dct


@pytest.fixture(scope="module")
def avatars():
    return SyntheticAvatars(texture=32, grid=(12, 10), expressions=10, identities=2, seed=3)


def test_frames_have_the_shapes(avatars):
    frames = avatars.sample([0, 3, 7], 1)
    assert frames.average.shape == frames.texture.shape == (3, 3, 32, 32) and frames.mask.shape == (3, 1, 32, 32)
    assert frames.mesh.shape == (3, 120, 3) and avatars.vertices == 120 and frames.expression.tolist() == [0, 3, 7]
    for values in (frames.average, frames.texture, frames.mask):
        assert float(values.min()) >= 0 and float(values.max()) <= 1 and float(values.std()) > 0.01
    torch.testing.assert_close(frames.view.norm(dim=1), torch.ones(3))
    assert len(frames[:2]) == 2 and len(join([frames, frames])) == 6
    assert frames.average.dtype == frames.mesh.dtype == torch.float32


def test_the_same_seed_gives_the_same_frames(avatars):
    again = SyntheticAvatars(texture=32, grid=(12, 10), expressions=10, identities=2, seed=3)
    one, two, other = avatars.sample([1, 2], 5), again.sample([1, 2], 5), avatars.sample([1, 2], 6)
    assert torch.equal(one.texture, two.texture) and torch.equal(one.mesh, two.mesh)
    assert not torch.equal(one.texture, other.texture)
    assert not torch.equal(one.average, avatars.sample([1, 2], 5, identity=1).average)


def test_expressions_differ_more_than_their_frames(avatars):
    """In the mesh, and in the fine components of the texture, which are what is offloaded."""
    expression = torch.arange(60) % 10
    frames = avatars.sample(expression, 2)
    fine = block_dct(frames.average, 4)[:, 4:].flatten(1)
    for values in (frames.mesh.flatten(1), fine):
        distance = torch.cdist(values, values).fill_diagonal_(torch.inf)
        assert (expression[distance.argmin(1)] == expression).float().mean() > 0.8


def test_the_view_changes_the_texture(avatars):
    frames = avatars.sample([1] * 30, 4)
    front, aside = (frames.camera == 0).nonzero()[0], (frames.camera == frames.camera.max()).nonzero()[0]
    assert frames.mask[front].mean() > frames.mask[aside].mean() + 0.02
    shadow = lambda place: (frames.texture[place] - frames.average[place]).abs().mean()
    assert shadow(aside) > 0.005
    torch.testing.assert_close(frames.view[front], torch.tensor([[0.0, 0.0, 1.0]]))


def test_a_sequence_holds_expressions_and_changes_smoothly(avatars):
    frames = avatars.sequence(60, 1, hold=20)
    assert frames.expression.view(3, 20).unique(dim=1).shape == (3, 1)
    steps = (frames.mesh[1:] - frames.mesh[:-1]).norm(dim=-1).mean(1)
    assert float(steps.max()) < 10 * float(steps.median())


def test_statistics_drift_on_demand(avatars):
    spread = lambda frames: float(frames.mesh.std(0).mean())
    halves = lambda frames: (frames[:200], frames[200:])
    still, moving = (halves(avatars.sequence(400, 3, hold=5, drift=drift)) for drift in (0.0, 1.0))
    assert spread(moving[1]) / spread(moving[0]) > 1.15 * spread(still[1]) / spread(still[0])
    red = lambda frames: float(frames.average[:, 0].mean() / frames.average[:, 2].mean())
    assert red(moving[1]) > red(moving[0]) * 1.05 and red(still[1]) == pytest.approx(red(still[0]), rel=0.03)


def test_every_muscle_changes_the_face(avatars):
    for number, name in enumerate(MUSCLES):
        muscles = torch.zeros(2, len(MUSCLES))
        muscles[1, number] = 1
        frames = avatars._frames(muscles, torch.zeros(2, dtype=int), torch.zeros(2, dtype=int), 0, torch.ones(2, 3))
        assert (frames.average[0] - frames.average[1]).abs().max() > 0.02, name
        assert name.startswith("gaze") or (frames.mesh[0] - frames.mesh[1]).abs().max() > 0.01, name


def test_the_normalization():
    frames = SyntheticAvatars(texture=16, grid=(4, 4), expressions=4).sample([0, 1, 2, 3], 1)
    known = normalization(frames)
    torch.testing.assert_close(known.texture_mean, frames.average.mean(0))
    seen = ((frames.texture - known.texture_mean) / known.texture_std).square() * frames.mask
    assert float(seen.sum() / frames.mask.sum() / 3) == pytest.approx(1, rel=1e-4)
    assert float(((frames.mesh - known.mesh_mean) / known.mesh_std).square().mean()) == pytest.approx(1, rel=1e-4)


def test_a_picture_shows_the_texture(avatars):
    frames = avatars.sample([0], 1)
    red = torch.zeros(3, 32, 32)
    red[0] = 1
    picture = render(frames.mesh[0], red, avatars.grid, size=40)
    face = picture[1] < 0.5
    assert picture.shape == (3, 40, 40) and 0.2 < face.float().mean() < 0.8 and face[20, 20] and not face[0, 0]
    aside = render(frames.mesh[0], red, avatars.grid, 40, torch.tensor([0.8, 0.0, 0.6]))
    assert not torch.equal(picture, aside)


@pytest.mark.parametrize(
    "wrong", [{"texture": 4}, {"grid": (2, 2)}, {"expressions": 1}, {"identities": 0}, {"seed": -1}]
)
def test_wrong_sizes_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        SyntheticAvatars(**wrong)


def test_the_layout_of_multiface(tmp_path):
    data = Multiface(write_multiface(tmp_path), texture=8)
    assert len(data) == 5 and data.expressions == ["E001_Neutral", "E002_Swallow"]
    frames = data.load(torch.arange(5))
    assert frames.expression.tolist() == [0, 0, 0, 1, 1] and frames.camera.tolist() == [0, 1, 0, 0, 1]
    assert frames.mesh.shape == (5, 5, 3) and frames.texture.shape == (5, 3, 8, 8)
    assert float(frames.average[0, 0, 0, 0]) == pytest.approx(0.2)
    assert float(frames.texture[3, 1, 3, 3]) == pytest.approx((51 * 3 + 1) / 255)
    assert frames.mask[:, 0, -2:].max() == 0 and frames.mask[:, 0, :6].min() == 1, "turned; black was not seen"
    # The head is turned by a quarter: camera 400002 stands at (0, 0, -2), and the transposed rotation is applied.
    torch.testing.assert_close(frames.view[:2], torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    known = data.normalization()
    assert known.texture_std == pytest.approx(0.1) and known.mesh_std == 2 and known.mesh_mean.shape == (5, 3)


def test_parts_of_multiface(tmp_path):
    write_multiface(tmp_path)
    assert len(Multiface(tmp_path, 8, expressions=["E002"], cameras=["400004"])) == 1
    with pytest.raises(UsageError, match="no frames"):
        Multiface(tmp_path, 8, expressions=["E9"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("KRT", "400002\n1 2 3\n", "8 for each camera"),
        ("KRT", "../x\n" + "0 0 0 0\n" * 7, "not the name of a camera"),
        ("KRT", "400002\n" + "a b c d\n" * 7, "text in place of numbers"),
        ("frame_list.txt", "E001_Neutral\n", "entry 1"),
        ("frame_list.txt", ".. 000102\n", "entry 1"),
        ("tracked_mesh/E001_Neutral/000102.bin", "short", "5 bytes"),
        ("tracked_mesh/E001_Neutral/000102_transform.txt", "1 2", "12 finite ones"),
        ("unwrapped_uv_1024/E001_Neutral/400002/000102.png", "no image", "cannot read"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, name, content, message):
    write_multiface(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        Multiface(tmp_path, 8).load(torch.tensor([0]))


def test_meshes_of_several_sizes_are_refused(tmp_path):
    write_multiface(tmp_path)
    np.zeros((4, 3), "<f4").tofile(tmp_path / "tracked_mesh" / "E002_Swallow" / "000201.bin")
    with pytest.raises(UsageError, match="E002_Swallow 000201 has 4 vertices, and that of E001_Neutral 000102 5"):
        Multiface(tmp_path, 8).load(torch.arange(5))


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UsageError, match="has no KRT"):
        Multiface(tmp_path)
    write_multiface(tmp_path)
    (tmp_path / "tracked_mesh" / "E001_Neutral" / "000102.bin").unlink()
    with pytest.raises(JettisonError, match="does not exist"):
        Multiface(tmp_path, 8).load(torch.tensor([0]))
