"""The study of an avatar: training, attacks, sequences under an account, the page, and the two commands."""

import json
import re

import pytest
import torch
import typer
from recordings import write_multiface
from typer.testing import CliRunner

from jettison.core.errors import UsageError
from jettison.domains.perception.avatars.synthetic import SyntheticAvatars
from jettison.offload.accounting import Terms
from jettison.offload.experiment import (
    Experiment,
    Setup,
    choose,
    open_synthetic,
    shared_expressions,
    synthetic_frames,
)
from jettison.offload.gallery import pictures, write_page

SETUP = Setup(
    texture=16, grid=(6, 6), expressions=6, frames=120, block=2, offloaded=3, latents=8, offloaded_latents=6, width=4,
    encoder_width=8, steps=150, batch=12, rate=5e-3,
)  # fmt: skip
QUICK = {"tries": 200, "steps": 100}


@pytest.fixture(scope="module")
def experiment(made_once):
    frames = synthetic_frames(SETUP)
    made_once("experiment", lambda folder: Experiment(SETUP, folder, *frames).model)
    return Experiment(SETUP, made_once("experiment", None), *frames)


def test_components_are_chosen_by_name():
    known, _ = synthetic_frames(SETUP)
    for name in ("energy", "loss", "search"):
        partition, widths = choose(known, Setup(**vars(SETUP) | {"choose": name}))
        assert partition.local == (0,) and sum(widths) == 4, name
    four = Setup(**vars(SETUP) | {"choose": "released", "block": 4, "offloaded": 14})
    assert choose(known, four)[0].local == (0, 1)
    for wrong, message in (({"choose": "energi"}, "did you mean 'energy'"), ({"choose": "released"}, "blocks of 4")):
        with pytest.raises(UsageError, match=message):
            choose(known, Setup(**vars(SETUP) | wrong))
    with pytest.raises(UsageError, match="frames = 4"):
        synthetic_frames(Setup(frames=4))


def test_recorded_frames_keep_the_expressions_that_both_parts_have():
    known, other = synthetic_frames(SETUP)
    one, two = shared_expressions(known[known.expression != 2], other[other.expression != 4])
    assert one.expression.unique().tolist() == two.expression.unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(one.mesh[one.expression == 2], known.mesh[known.expression == 3]), "3 is now 2"
    with pytest.raises(UsageError, match="1 expressions have frames"):
        shared_expressions(known[known.expression < 2], other[other.expression < 1])


def test_noise_costs_and_protects(experiment):
    assert experiment.losses()["loss"] < experiment.losses(experiment.noise(0.5))["loss"]
    clear = max(result.success.rate for result in experiment.attack(None, **QUICK))
    assert clear > 0.6
    assert experiment.shortfall() < 1.5
    noise = experiment.noise(0.1 / max(1.0, experiment.shortfall()))
    results = experiment.attack(noise, repeats=(1, 5), **QUICK)
    assert len(results) == 8 and all(result.over <= 0 for result in results)
    assert experiment.noise(1.0, "dp-replace").trace > experiment.noise(1.0).trace
    assert experiment.noise(1.0, "dp-released").trace > experiment.noise(1.0, "dp-replace").trace
    assert experiment.to_dict()["offloaded"] == [1, 2, 3]


def test_a_sequence_under_an_account(experiment):
    avatars = SyntheticAvatars(16, (6, 6), 6)
    sequence = avatars.sequence(60, 4, hold=20)
    played = experiment.play(Terms(2.0, 5, 6), sequence)
    assert played.kinds == (("fresh",) * 5 + ("local",) * 15) * 3 and len(played.seen) == 3
    assert all(seen.shape == (5, 6) for seen in played.seen) and played.losses.shape == (60,)
    assert played.secrets.tolist() == sequence.expression[::20].tolist() and played.share("local") == 0.75
    clock = experiment.play(Terms(2.0, 5, 6, every=4), sequence)
    assert clock.share("local") == 0 and clock.share("fresh") == 0.25 and clock.share("reused") == 0.75
    still = experiment.play(Terms(2.0, 5, 6, delta=100.0), sequence)
    assert still.kinds[:2] == ("fresh", "reused") and still.share("fresh") == 3 / 60
    generous = experiment.play(Terms(400.0, 20, 6), sequence)
    assert generous.loss < played.loss, "twenty nats a draw are almost no noise"


def test_the_page(experiment, tmp_path):
    noises = {"1 nat": experiment.noise(1.0)}
    rows = pictures(experiment, noises, [0, 1], SETUP.grid)
    captions = [caption for caption, _ in rows[0]["pictures"]]
    assert captions[:4] == ["original", "local part alone", "offloaded, no noise", "offloaded, 1 nat"]
    assert re.fullmatch(r"guesser's view, 1 nat: expression \d, (right|wrong)", captions[5])
    assert rows[1]["name"] == "Expression 1" and len({png for _, png in rows[0]["pictures"]}) == 6
    table = {"title": "Attacks", "columns": ["a"], "rows": [["<b>"]]}
    one, two = (write_page(tmp_path / name, experiment, noises, "Lead.", [table], 2).read_text() for name in "ab")
    assert (
        one == two
        and one.count('<img src="data:image/png;base64,iVBOR') == 12
        and "&lt;b&gt;" in one
        and "Lead." in one
    )


def command(*arguments):
    """Run a command as the group will, and return its output. Errors of usage are raised."""
    from jettison.cli.offload_privacy_command import COMMANDS

    group = typer.Typer()
    for function, *_ in COMMANDS:
        group.command(function.__name__)(function)
    result = CliRunner().invoke(group, list(map(str, arguments)), catch_exceptions=True)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_budget(tmp_path, capsys):
    command("budget", "--limit", 1, "--draws", 1, "--draws", 30, "--json", tmp_path / "budget.json")
    rows = json.loads((tmp_path / "budget.json").read_text())
    assert [row["draws"] for row in rows] == [1, 30] and rows[1]["budget"] == pytest.approx(1 / 30)
    assert rows[0]["success"] == rows[1]["success"] == rows[0]["success_after_one"] > rows[1]["success_after_one"]
    with pytest.raises(UsageError, match="delta = 0"):
        command("budget", "--delta", 0.1, "--count-timing")


def test_the_command_attack(tmp_path):
    small = ("--texture", 32, "--expressions", 4, "--frames", 24, "--steps", 4, "--tries", 40, "--quiet")
    out, rules = tmp_path / "avatar", ("--rule", "exact", "--rule", "dp-replace")
    command("attack", "--out", out, "--limit", 0.5, "--draws", 2, *rules, *small, "--json", tmp_path / "a.json")
    result = json.loads((tmp_path / "a.json").read_text())
    assert [row["rule"] for row in result["results"]] == ["none"] * 3 + ["exact"] * 4 + ["dp-replace"] * 4
    assert (out / "avatar.safetensors").exists() and {row["repeats"] for row in result["results"][3:]} == {2}
    with pytest.raises(UsageError, match="holds another run"):
        command("attack", "--out", out, "--limit", 0.5, *small, "--seed", 1)


def test_the_command_attack_on_a_recording(tmp_path):
    """Frames of two expressions, two cameras each, in the layout of multiface."""
    frames = [(f"E00{number % 2}", f"{number:06}") for number in range(12)]
    data = write_multiface(tmp_path, frames)
    small = ("--texture", 32, "--frames", 20, "--steps", 3, "--tries", 20, "--quiet", "--page", tmp_path / "page.html")
    said = command("attack", "--out", tmp_path / "run", "--data", data, *small)
    assert "local part alone" in said and (tmp_path / "run" / "half" / "modules.json").exists()
    assert (tmp_path / "page.html").read_text().count("<img") >= 4
    with pytest.raises(UsageError, match="has no setup.json"):
        open_synthetic(tmp_path / "run")
    with pytest.raises(UsageError, match="at least 3"):
        command("attack", "--out", tmp_path / "few", "--data", data, "--frames", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--limit", 0), "limit = 0"),
        (("--limit", "nan"), "limit = nan"),
        (("--limit", 1e300), "limit = 1e"),
        (("--draws", 0), "draws = 0"),
        (("--rule", "exakt"), "did you mean 'exact'"),
        (("--tries", 0), "tries = 0"),
        (("--texture", 20), "texture = 20"),
        (("--texture", 0), "texture = 0"),
        (("--expressions", 1), "expressions = 1"),
        (("--frames", 5), "frames = 5"),
        (("--offloaded", 16), "offloaded = 16"),
        (("--offloaded", 0), "offloaded = 0"),
        (("--steps", 0), "steps = 0"),
        (("--choose", "los"), "did you mean 'loss'"),
        (("--encoder", "none"), "unknown encoder"),
        (("--seed", -1), "seed = -1"),
        (("--data", "nowhere"), "has no KRT"),
    ],
)
def test_wrong_options_are_refused_before_any_work(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        command("attack", "--out", tmp_path / "avatar", *change, "--quiet")
    assert not (tmp_path / "avatar" / "avatar.safetensors").exists()
