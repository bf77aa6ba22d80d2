"""Methods that find programs: what each leaves out, at the cost that is asked for."""

import pytest
import torch

pytest.importorskip("diffusers")

import tiny_diffusion as tiny

from jettison.core.errors import UsageError
from jettison.core.journal import Journal
from jettison.domains.diffusion import task as tasks
from jettison.domains.diffusion.folder_sampling import FolderSampler, default_guidance
from jettison.domains.diffusion.running import attach
from jettison.domains.diffusion.search import SearchLesson
from jettison.domains.diffusion.task import ProgramTask, at_work, draw
from jettison.graph.dense import load_dense
from jettison.graph.folder import ModelFolder
from jettison.policies.interval import Interval
from jettison.policies.step_cache import StepCachePolicy, relative_change
from jettison.recipe.registry import find, methods

NAMES = ("dit", "sd", "sd3")
STEPS = 6
SHORT = {"dip_go": {"search_steps": 3, "width": 16, "rate": 1.0}, "greedy": {"runs": 1}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a function from an architecture to the folder of its pipeline, with a VAE."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("pipelines") / name
            tiny.make(name)[0].save_pretrained(made[name])
        return made[name]

    return folder


@pytest.fixture
def task(folders, tmp_path):
    """Return task(name, ...), which makes the input of a method."""

    def make(name="dit", steps=STEPS, guidance=3.0, at="task", seed=0):
        source = ModelFolder(folders(name))
        sampler = FolderSampler(source, load_dense(source, torch.float32).eval(), count=4, guidance=guidance, seed=9)
        journal = Journal(tmp_path / at / "journal.jsonl", {"kind": "test"})
        return ProgramTask(sampler, 4, steps, tmp_path / at / "search", journal, seed, save_every=0.0)

    return make


def programs(task, method, **options):
    return find("program", method).function(task, **(SHORT.get(method, {}) | options))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", methods("program"))
def test_a_program_costs_what_it_says_and_skips_that(task, name, method):
    """The counts of a real run are those of the gates, and a higher ratio costs less."""
    task = task(name)
    find_one = programs(task, method)
    chosen = [find_one(ratio) for ratio in (0.2, 0.5)]
    shares = [program.costs.pruned for program in chosen]
    assert 0 < shares[0] < shares[1] and all(
        abs(share - ratio) < 0.13 for share, ratio in zip(shares, (0.2, 0.5), strict=True)
    )
    for program in chosen:
        with at_work(task.sampler, program) as (sampling, handle):
            images = draw(sampling, 1)
        assert images.isfinite().all() and len(handle.history) == len(program.gates)
        assert handle.counts()["computed"] == sum(row.count("1") for row in program.gates)
        full = task.run.calls * task.run.graph.call
        assert program.costs.full == full and program.costs.run < full
    assert (chosen[0].steps == STEPS) == (method != "fewer_steps")


def test_open_gates_are_the_full_run(task):
    task = task()
    full = task.sampler.sampling(STEPS)
    with at_work(task.sampler, task.every(task.run.calls)) as (sampling, _):
        assert torch.equal(draw(sampling, 2), draw(full, 2))
    assert torch.equal(draw(full, 2)[1:], draw(task.sampler.sampling(STEPS), 2)[1:])


def test_the_interval_is_that_of_the_policy(task):
    """Where the number of computed calls divides that of all, the program does what ``Interval`` does."""
    task = task()
    program = programs(task, "interval")(0.5)
    assert [row[0] == "1" for row in program.gates] == [call % 2 == 0 for call in range(STEPS)]
    sampling = task.sampler.sampling(STEPS)
    with torch.no_grad(), attach(sampling.target, Interval(2), sampling.scheduler):
        expected = sampling.images([0])
    with torch.no_grad(), at_work(task.sampler, program) as (running, _):
        assert torch.equal(running.images([0]), expected)
    with pytest.raises(UsageError, match="only the blocks of a UNet"):
        programs(task, "interval", shallow=1)


def test_shallow_blocks_of_a_unet_stay(task):
    task = task("sd")
    program = programs(task, "interval", shallow=1)(0.4)
    shallow = [number for number, name in enumerate(program.units) if name in ("down_blocks.0", "up_blocks.3")]
    assert len(shallow) == 2 and any("0" in row for row in program.gates)
    assert all(row[unit] == "1" for row in program.gates for unit in shallow)


def test_fewer_steps_are_a_shorter_run(task):
    task = task("dit")
    program = programs(task, "fewer_steps")(0.5)
    assert program.steps == 3 and program.gates == ["1111"] * 3 and program.costs.pruned == 0.5
    with at_work(task.sampler, program) as (sampling, _):
        assert torch.equal(draw(sampling, 1), draw(task.sampler.sampling(3), 1))


class Outputs(StepCachePolicy):
    """Keeps the first output of every unit at every step."""

    def __init__(self):
        self.seen = {}

    def observe(self, step, unit, inputs, outputs):
        self.seen[step, unit] = outputs[0]


def test_greedy_drops_what_changed_least(task):
    task, policy = task(), Outputs()
    sampling = task.sampler.sampling(STEPS)
    with torch.no_grad(), attach(sampling.target, policy, sampling.scheduler):
        sampling.images([0])
    scores = task.output_changes(1).scores
    for step in range(1, STEPS):
        for unit in range(4):
            expected = relative_change(policy.seen[step, unit], policy.seen[step - 1, unit])
            assert scores[step][unit] == pytest.approx(expected, rel=1e-4)


def test_random_depends_on_the_seed(task):
    gates = [programs(task(at=f"{number}", seed=seed), "random")(0.4).gates for number, seed in enumerate((0, 0, 1))]
    assert gates[0] == gates[1] != gates[2]


def test_a_search_is_not_done_twice(task, monkeypatch):
    first = programs(task(), "dip_go")
    monkeypatch.setattr(SearchLesson, "forward", None)
    again = programs(task(), "dip_go")
    assert again(0.5) == first(0.5) and "DiP-GO, 3 steps" in first(0.5).source
    published = programs(task(), "dip_go", how="published")(0.5)
    assert published.costs.pruned <= 0.5 and "published" in published.source


@pytest.mark.parametrize("name", NAMES)
def test_guidance_pulls_away_from_the_empty_condition(task, name):
    """One call by hand: without + g (with - without), and 1 turns it off."""
    guided, plain, twice = (task(name, steps=2, guidance=scale, at=str(scale)).sampler for scale in (3.0, 1.0, 5.0))
    assert guided.doubled and not plain.doubled
    one, no, five = (draw(sampler.sampling(2, decode=False), 1) for sampler in (guided, plain, twice))
    assert not torch.allclose(one, no, atol=1e-4) and not torch.allclose(one, five, atol=1e-4)
    only = {"dit": "class_labels", "sd": "encoder_hidden_states", "sd3": "encoder_hidden_states"}[name]
    for key, value in guided.empty.items():
        guided.conditions[key] = value.expand_as(guided.conditions[key])
    assert only in guided.empty
    blank = draw(guided.sampling(2, decode=False), 1)  # with = without: guidance changes nothing
    guided.doubled = False
    assert torch.allclose(blank, draw(guided.sampling(2, decode=False), 1), atol=1e-4)


def test_guidance_starts_from_the_empty_condition(task):
    """A denoiser that predicts 1 without a class and 2 with one predicts 1 + 3 (2 - 1) with guidance 3."""
    sampler = task("dit", steps=2, guidance=3.0).sampler

    def predicting(without, guided):
        def forward(hidden_states, timestep, class_labels, **_):
            value = torch.where(class_labels == sampler.empty["class_labels"], without, guided)
            return (torch.ones_like(hidden_states) * value.view(-1, 1, 1, 1),)

        sampler.denoiser.forward = forward
        return draw(sampler.sampling(2, decode=False), 1)

    assert torch.equal(predicting(1.0, 2.0), predicting(4.0, 4.0))


def test_the_default_guidance_is_that_of_the_class(folders):
    assert [default_guidance(ModelFolder(folders(name))) for name in NAMES] == [4.0, 7.5, 7.0]


def test_nearest_prefers_what_saves_more(task):
    find_one = programs(task(), "fewer_steps")
    assert find_one(1 / 12).steps == 5  # 6 steps save 0, 5 save 1/6: as near
    assert tasks.nearest([None, find_one(0.5)], 0.1).steps == 3
