"""The training loop: the same bytes after a kill, the best state is kept, and errors that stop it."""

import pytest
import torch
from torch import nn

from jettison.core.errors import JettisonError
from jettison.training.loop import Group, Judge, Plan, sample_indices, schedule, train

DATA = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
PLAN = Plan(steps=12, batch=8, count=len(DATA), warmup=0.25, seed=3)


class SumModel(nn.Module):
    """A small net with batch statistics and dropout that learns the sum of its inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))

    def forward(self, x):
        return (self.net(x).squeeze(-1) - x.sum(-1)).square().mean()


class Killed(Exception):
    pass


def run(state, record=lambda step, loss: None, plan=PLAN, judge=None):
    """Train a new model. Returns its state at the end, or the best state if there is a judge."""
    model = SumModel()
    groups = [Group(dict(model.named_parameters()), 0.02)]
    fetch = lambda places, step: (DATA[places],)
    buffers = dict(model.named_buffers())
    return train(model, groups, fetch, plan, state, buffers=buffers, judge=judge, save_every=0.0, record=record)


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("at", [0, 1, 7, 11])
def test_killed_at_any_step_it_ends_with_the_same_bytes(tmp_path, at):
    whole, losses = run(tmp_path / "whole"), []

    def record(step, loss):
        if step == at and step not in losses:
            losses.append(step)
            raise Killed
        losses.append(step)

    with pytest.raises(Killed):
        run(tmp_path / "killed", record)
    again = run(tmp_path / "killed", record)
    assert equal(whole, again)
    assert {"net.1.running_mean", "net.1.num_batches_tracked", "net.0.weight"} <= whole.keys()
    assert losses[-1] == 11


def test_the_best_is_kept_not_the_last(tmp_path):
    scores = iter([0.2, 0.9, 0.5, 0.1])
    calls = []

    def score():
        calls.append(len(calls))
        return next(scores)

    best = run(tmp_path / "judged", judge=Judge(score, every=3))
    assert len(calls) == 4, "every three steps, the last one among them"
    first_half = Plan(steps=12, batch=8, count=len(DATA), warmup=0.25, seed=3)
    kept = {}

    def record(step, loss):
        if step == 6:  # the state after 6 steps is saved already
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "half", record, first_half)
    from jettison.core.sealed import read_sealed

    kept = read_sealed(tmp_path / "half")[0]
    assert equal(best, {name: kept[name] for name in best})
    assert not equal(best, run(tmp_path / "unjudged"))


def test_the_best_so_far_outlives_a_kill(tmp_path):
    whole = run(tmp_path / "whole", judge=Judge(iter([0.9, 0.2, 0.3, 0.4]).__next__, every=3))

    def record(step, loss):
        if step == 7:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "killed", record, judge=Judge(iter([0.9, 0.2]).__next__, every=3))
    again = run(tmp_path / "killed", judge=Judge(iter([0.3, 0.4]).__next__, every=3))
    assert equal(whole, again)


def test_a_damaged_state_starts_again(tmp_path):
    whole = run(tmp_path / "state")
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:-7])
    assert equal(whole, run(tmp_path / "state"))


def test_a_loss_that_is_not_finite_says_what_to_do(tmp_path):
    class Broken(SumModel):
        def forward(self, x):
            return super().forward(x) * float("nan")

    model = Broken()
    with pytest.raises(JettisonError, match="the loss is nan at step 0: lower the learning rate"):
        train(model, [Group(dict(model.named_parameters()), 0.1)], lambda p, s: (DATA[p],), PLAN, tmp_path / "s")


def test_it_learns(tmp_path):
    losses = []
    run(tmp_path / "s", lambda step, loss: losses.append(loss), Plan(steps=200, batch=8, count=len(DATA), warmup=0.05))
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


def test_the_schedule():
    assert [round(schedule(step, 12, 0.25), 3) for step in (0, 1, 2, 3, 11)] == [0.25, 0.5, 0.75, 1.0, 0.03]


def test_every_epoch_has_each_sample_once():
    order = torch.cat([sample_indices(step, 8, 40, seed=5) for step in range(10)])
    assert sorted(order[:40].tolist()) == sorted(order[40:].tolist()) == list(range(40))
    assert order[:40].tolist() != order[40:].tolist()
