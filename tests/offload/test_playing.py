"""The whole path: an avatar's half on a worker, noised latents over TCP, an account, and the local part as fallback."""

import json
import time
from pathlib import Path
from shutil import copytree

import pytest
import torch
from offloading import in_a_thread, serving
from safetensors import safe_open

from benchmarks.fixtures.offload import TOKEN, Proxy, messages_of
from jettison.core.errors import JettisonError, UsageError
from jettison.domains.perception.avatars.synthetic import SyntheticAvatars
from jettison.offload.accounting import Terms
from jettison.offload.avatar import load_half
from jettison.offload.experiment import Setup, open_synthetic, train_synthetic
from jettison.offload.service.blocking import BlockingRemoteHalf
from jettison.offload.split import plain_half, save_half
from jettison.offload.training import measure, new_avatar

SETUP = Setup(
    texture=16, grid=(5, 5), expressions=4, frames=40, block=2, offloaded=3, latents=6, offloaded_latents=4, width=3,
    encoder_width=6, steps=20, batch=8, rate=5e-3,
)  # fmt: skip
TERMS = Terms(2.0, 2, 4, every=3)  # of six frames: fresh, reused twice, fresh, reused twice
PATIENT = {"deadline_s": 60.0}


@pytest.fixture(scope="module")
def folder(made_once):
    return Path(made_once("played", lambda folder: train_synthetic(SETUP, folder)))


@pytest.fixture(scope="module")
def experiment(folder):
    return open_synthetic(folder)


def sequence(count=24, hold=8):
    return SyntheticAvatars(16, (5, 5), 4).sequence(count, 3, hold=hold, drift=0.5)


def test_the_half_is_the_offloaded_decoder_and_nothing_else(folder, experiment):
    model, half = experiment.model, plain_half(experiment.model)
    assert sorted(file.name for file in (folder / "half").iterdir()) == ["model.safetensors", "modules.json"]
    with safe_open(folder / "half" / "model.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    whole = model.state_dict()
    secret = [
        value for name, value in whole.items() if not name.startswith("offloaded.") and value.unique().numel() > 1
    ]
    assert len(secret) > 20 and not any(
        value.shape == other.shape and torch.equal(value, other) for value in stored.values() for other in secret
    )
    assert stored.keys() == half.module.state_dict().keys()
    latents = torch.randn(3, 4)
    torch.testing.assert_close(half.module(latents), model.offloaded(latents))
    assert model.offloaded(latents).requires_grad, "the model itself stays as it was"


@pytest.mark.parametrize("follow", [False, True])
def test_a_worker_gives_the_same_as_this_process(folder, experiment, follow):
    """And what crosses the wire are the noised latents of the account, in order, once each."""
    here = experiment.play(TERMS, sequence(), follow=follow)
    with (
        serving(folder / "half") as worker,
        in_a_thread(Proxy(worker.address)) as proxy,
        BlockingRemoteHalf(proxy.address, TOKEN, half=load_half(folder, experiment.model)) as link,
    ):
        assert link.connected(60)
        away = experiment.play(TERMS, sequence(), follow=follow, answers=link, **PATIENT)
    assert away.kinds == here.kinds and torch.equal(away.losses, here.losses)
    assert here.kinds[:8] == ("fresh", "reused", "reused", "fresh", "reused", "reused", "local", "local")
    assert here.spent == pytest.approx((2.0,) * len(here.spent)) and here.to_dict()["late"] == 0
    requests = [message for message in messages_of(bytes(proxy.up[0])) if message["kind"] == "request"]
    seen = torch.cat(here.seen).numpy()
    assert [message["latent"] for message in requests] == [row.tobytes() for row in seen]
    assert [message["frame"] for message in requests] == [n for n, kind in enumerate(here.kinds) if kind == "fresh"]
    frames = sequence()
    true = [experiment.model.encode(frames[n : n + 1])[1][0].detach() for n in range(len(frames))]
    raw = [latent.numpy().tobytes() for latent in true]
    assert not any(latent in bytes(proxy.up[0]) for latent in raw)


def test_the_noise_follows_a_drift(experiment):
    fixed, followed = (experiment.play(TERMS, sequence(), follow=follow) for follow in (False, True))
    assert not torch.equal(fixed.seen[-1], followed.seen[-1]) and fixed.kinds == followed.kinds
    torch.testing.assert_close(fixed.seen[0], followed.seen[0], atol=0.05, rtol=0.05)


def test_without_answers_frames_are_made_of_the_local_part_and_sent_again(experiment):
    class Deaf:
        def __init__(self):
            self.asked = []

        def submit(self, noised, deadline):
            self.asked.append(noised)

    deaf, frames = Deaf(), sequence()
    played = experiment.play(TERMS, frames, answers=deaf)
    assert set(played.kinds) == {"late", "local"}
    assert played.loss == pytest.approx(measure(experiment.model, frames, local=True)["loss"], rel=1e-5)
    numbers = [noised.frame for noised in deaf.asked]
    assert numbers == [n for n, kind in enumerate(played.kinds) if kind == "late"]
    unique = {noised.latent.tobytes() for noised in deaf.asked}
    assert len(unique) == sum(map(len, played.seen)), "no draw beyond the account, whatever comes back"


def test_the_clock_waits_for_a_slow_device(experiment):
    """A frame has its whole time to its deadline, however long the frames before it took."""

    class Slow:
        def __init__(self):
            self.left = []

        def submit(self, noised, deadline):
            self.left.append(deadline - time.monotonic())
            time.sleep(0.2)

    slow = Slow()
    played = experiment.play(TERMS, sequence(16), answers=slow, fps=50)
    assert len(slow.left) == played.kinds.count("late") >= 6 and played.behind >= len(slow.left) - 2
    assert slow.left[-1] > -0.09 * len(slow.left), "0.18 s too much a frame would add up"
    assert experiment.play(TERMS, sequence(3), answers=slow, fps=1e4).to_dict()["behind"] >= 1
    assert experiment.play(TERMS, sequence(3)).behind == 0


def test_the_command_with_a_process_of_its_own(jettison, folder, experiment, tmp_path):
    code, out, err = jettison(
        "offload", "play", folder, "--limit", 2, "--draws", 2, "--every", 3, "--count", 24, "--hold", 8, "--drift", 0.5,
        "--fps", 2000, "--deadline-ms", 60_000, "--json", tmp_path / "r.json", "-q",
    )  # fmt: skip
    assert code == 0, err
    report, here = json.loads((tmp_path / "r.json").read_text()), experiment.play(TERMS, sequence(), follow=True)
    assert report["loss"] == pytest.approx(here.loss) and report["fresh"] == here.kinds.count("fresh")
    assert f"24 frames: {report['fresh']} fresh, {report['reused']} reused, {report['local']} local, 0 late" in out
    assert "spent: at most 2 of 2 nats per expression" in out and "guesses the secret right at most" in out
    assert report["counts"]["remote"] == report["draws"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["nowhere"], "no trained synthetic avatar"),
        (["--limit", "0"], "limit = 0"),
        (["--limit", "nan"], "limit = nan"),
        (["--limit", "1e300"], "limit = 1e"),
        (["--draws", "0"], "draws = 0"),
        (["--count", "0"], "count = 0"),
        (["--count", "1000000000"], "count = 1000000000"),
        (["--hold", "0"], "hold = 0"),
        (["--drift", "inf"], "drift = inf"),
        (["--fps", "nan"], "fps = nan"),
        (["--fps", "0"], "fps = 0"),
        (["--deadline-ms", "-1"], "deadline_ms = -1"),
        (["--rule", "exakt"], "did you mean 'exact'"),
        (["--worker", "127.0.0.1:1"], "needs --token-file"),
        (["--worker", "nowhere", "-t", "token"], "HOST:PORT"),
        (["-t", "token"], "name it with --worker"),
    ],
)
def test_bad_usage(jettison, folder, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    Path("token").write_bytes(TOKEN)
    arguments = change if change[0] == "nowhere" else [folder, *change]
    code, _, err = jettison("offload", "play", *arguments, "--count" if "--count" not in change else "--seed", 1, "-q")
    assert code == 2 and message in err


def test_folders_with_missing_or_foreign_files_are_refused(folder, experiment, tmp_path, jettison):
    copy = copytree(folder, tmp_path / "copy")
    setup = json.loads((copy / "setup.json").read_text())
    (copy / "setup.json").write_text(json.dumps(setup | {"texture": 32}))
    with pytest.raises(JettisonError, match="is of another avatar"):
        open_synthetic(copy)
    (copy / "setup.json").write_text(json.dumps(setup | {"frames": "many"}))
    with pytest.raises(UsageError, match=r"setup.json: frames = 'many'"):
        open_synthetic(copy)
    (copy / "setup.json").write_text(json.dumps(setup))
    other = new_avatar(experiment.known, experiment.config, seed=1)
    save_half(other, copy / "half")
    code, _, err = jettison("offload", "play", copy, "--count", 2, "-q")
    assert code == 1 and "is the half of another avatar" in err
    (copy / "half" / "model.safetensors").unlink()
    code, _, err = jettison("offload", "play", copy, "--count", 2, "-q")
    assert code == 1 and "model.safetensors" in err and "Traceback" not in err
    for name, message in (("avatar.safetensors", "missing or damaged"), ("avatar.json", "does not exist")):
        (copy / name).unlink()
        with pytest.raises(JettisonError, match=message):
            open_synthetic(copy)
    code, _, err = jettison("offload", "serve", folder, "-t", tmp_path / "token")
    assert code == 2 and "must not have" in err and str(folder / "half") in err
