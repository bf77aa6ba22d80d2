"""The commands of jettison offload."""

import json

import pytest
import torch
from offloading import serving

from benchmarks.fixtures.offload import LATENT, TOKEN, small_module
from jettison.graph.described_files import save_described
from jettison.offload.noised import noise_alone, write_noised


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with a described model, a stream of frames, and a token."""
    monkeypatch.chdir(tmp_path)
    save_described(small_module(), tmp_path / "decoder")
    save_described(small_module(1), tmp_path / "stays")
    write_noised(tmp_path / "frames", [noise_alone(LATENT, n) for n in range(10)], torch.zeros(10, LATENT))
    (tmp_path / "token").write_bytes(TOKEN)
    return tmp_path


@pytest.fixture
def worker(folder):
    """Run a worker until the test ends, and return a file that holds its address."""
    with serving(folder / "decoder") as running:
        (folder / "where").write_text(f"{running.address}\n")
        yield folder / "where"


def test_join(jettison, folder, worker):
    join = ("offload", "join", worker, "frames", "--fallback", "decoder", "-t", "token", "--wait", 60)
    code, out, err = jettison(*join, "--local", "stays", "--fps", 50, "--deadline-ms", 60_000, "--json", "r.json", "-q")
    assert code == 0 and "10 frames: 10 remote, 0 local, 0 late" in out, (out, err)
    report = json.loads((folder / "r.json").read_text())
    assert report["remote"] == 10 and report["measured"]["transfer_s"] > 0
    code, out, _ = jettison("offload", "capacity", "--report", "r.json", "--radio", "lte", "--json", "c.json")
    assert code == 0 and "users at 30 Hz" in out
    result = json.loads((folder / "c.json").read_text())
    assert result["total"] == pytest.approx(result["offloaded"] + result["extra"])
    assert result["energy"]["radio_mj"] > 0


def test_join_without_a_worker(jettison, folder):
    code, out, _ = jettison(
        "offload", "join", "127.0.0.1:1", "frames", "--fallback", "decoder", "-t", "token", "--wait", 0.1,
        "--fps", 1000, "--deadline-ms", 60_000,
    )  # fmt: skip
    assert code == 0 and "0 remote, 10 local (10 unconnected), 0 late" in out
    code, out, _ = jettison(
        "offload", "join", "127.0.0.1:1", "frames", "--fallback", "decoder", "-t", "token", "--wait", 0.1
    )
    assert code == 0 and "10 local" in out


def test_serve(jettison, folder):
    code, out, _ = jettison(
        "offload", "serve", "decoder", "-t", "new-token", "--announce", "at", "--seconds", 0.2, "--json", "s.json", "-q"
    )
    assert code == 0 and "listening on 127.0.0.1:" in out and not (folder / "at").exists()
    assert (folder / "new-token").stat().st_mode & 0o077 == 0 and (folder / "s.json").exists()


def test_the_papers_table(jettison, folder):
    code, out, _ = jettison("offload", "capacity", "--json", "c.json")
    assert code == 0 and "2.37x" in out and "both at once: no row" in out
    assert json.loads((folder / "c.json").read_text())["headlines"]["both"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("serve", "nowhere", "-t", "token"), "no model of described modules"),
        (("serve", "decoder", "-t", "token", "--host", "0.0.0.0"), "--expose"),
        (("serve", "decoder", "-t", "token", "--port", "70000"), "port = 70000"),
        (("serve", "decoder", "-t", "token", "--window", "0"), "window = 0"),
        (("serve", "decoder", "-t", "token", "--tls-cert", "c.pem"), "both"),
        (("serve", "decoder", "-t", "token", "--latent", "5"), "does not run on latents"),
        (("serve", "decoder", "-t", "short"), "can be guessed"),
        (("join", "nowhere", "frames", "--fallback", "decoder", "-t", "token"), "HOST:PORT"),
        (("join", "127.0.0.1:1", "token", "--fallback", "decoder", "-t", "token"), "no file of frames"),
        (("join", "127.0.0.1:1", "decoder/model.safetensors", "--fallback", "decoder", "-t", "token"), "no others are"),
        (("join", "127.0.0.1:1", "frames", "--fallback", "decoder", "-t", "missing"), "cannot read the token"),
        (("join", "127.0.0.1:1", "frames", "--fallback", "decoder", "-t", "token", "--fps", "0", "--wait", "0"), "fps"),
        (("capacity", "--report", "nowhere.json"), "cannot read a report"),
        (("capacity", "--fps", "nan"), "fps = nan"),
        (("capacity", "--radio", "5g"), "unknown radio '5g'"),
    ],
)
def test_bad_usage(jettison, folder, arguments, message):
    (folder / "short").write_text("tiny")
    code, _, err = jettison("offload", *arguments)
    assert code == 2 and message in err
