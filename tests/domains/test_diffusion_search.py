"""DiP-GO's supernet, search and programs: gates that run as the program does, gradients, resuming, refusals."""

import json
import random

import pytest
import torch

pytest.importorskip("diffusers")

import tiny_diffusion as tiny

from jettison.core.errors import JettisonError, UsageError
from jettison.domains.diffusion.denoisers import denoiser_of
from jettison.domains.diffusion.differentiable import Sampling, sampling_of
from jettison.domains.diffusion.gate_net import GateNet, straight_through
from jettison.domains.diffusion.identity import difference, identify
from jettison.domains.diffusion.program import attach_program, read_program, write_program
from jettison.domains.diffusion.running import attach
from jettison.domains.diffusion.search import LIKENESS, SearchLesson, SearchOptions, default_rate, describe, search
from jettison.domains.diffusion.supernet import Supernet
from jettison.domains.diffusion.tracing import trace
from jettison.policies.gates import Gates
from jettison.policies.random_skip import random_scores

STEPS = 4
OPTIONS = SearchOptions(steps=6, width=16, rate=1.0)


def sampling(name="dit", steps=STEPS, decode=True, **changes):
    pipe, request = tiny.make(name, **changes)
    return sampling_of(pipe, lambda indices: request(indices, steps), decode)


def random_rows(calls, units, seed, share=0.5):
    rng = random.Random(seed)
    return [[call == 0 or rng.random() < share for _ in range(units)] for call in range(calls)]


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
@pytest.mark.parametrize("reuse", ["output", "residual"])
def test_the_supernet_is_the_program(name, reuse):
    """With gates of 0 and 1 the supernet gives what the program gives, and open gates what the pipeline gives."""
    if reuse == "residual" and name not in tiny.CHAINS:
        return
    run = sampling(name)
    with torch.no_grad():
        plain = run.images([0, 1])
        graph = trace(run.target, lambda: run.images([0]))
        for share in (1.0, 0.5, 0.7):
            rows = random_rows(STEPS, graph.units, 3, share)
            with attach(run.target, Gates(rows, reuse)):
                program = run.images([0, 1])
            with Supernet(run.target, graph, reuse=reuse) as supernet:
                assert torch.equal(run.images([0, 1]), plain)  # without gates
                supernet.gates = torch.tensor(rows).float()
                gated = run.images([0, 1])
            assert torch.allclose(gated, program, atol=1e-5)
            assert torch.equal(program, plain) == (share == 1.0)


@pytest.mark.parametrize("name, likeness", [("dit", "ssim"), ("sd", "l1"), ("dit", "l2")])
def test_gradients_reach_closed_gates_and_checkpointing_does_not_change_them(name, likeness):
    """A gate's gradient is right: it agrees with finite differences of the supernet, whose gates may be any number."""
    run = sampling(name)
    run.denoiser.double()
    for module in run.modules:
        module.double().requires_grad_(False)
    graph = trace(run.target, lambda: run.images([0]))
    rows = torch.tensor(random_rows(STEPS, graph.units, 4, 0.6)).double()
    rows[1:, -1] = 1.0  # otherwise most of a chain is not read
    with torch.no_grad():
        full = run.images([0])
    gradients = []
    for checkpointing in (True, False):
        with Supernet(run.target, graph, checkpointing=checkpointing) as supernet:
            supernet.gates = gates = rows.clone().requires_grad_()
            LIKENESS[likeness](run.images([0]), full, run.span).backward()
            gradients.append(gates.grad)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-6)
    read = [graph.read(row) for row in rows.tolist()]  # where the outputs of a unit are needed, its gate matters
    assert (gradients[0] != 0).tolist() == [[False] * graph.units, *read[1:]]
    assert (torch.tensor(read) & (rows == 0)).any()
    run = sampling(name, decode=False)  # decoding ends in float32
    for module in run.modules:
        module.double().requires_grad_(False)
    with torch.no_grad():
        full = run.images([0])
    with Supernet(run.target, graph) as supernet, torch.no_grad():
        values = []
        for change in (1e-4, -1e-4):
            supernet.gates = rows.clone()
            supernet.gates[2, -1] += change
            values.append(float((run.images([0]) - full).square().sum()))
    with Supernet(run.target, graph) as supernet:
        supernet.gates = gates = rows.clone().requires_grad_()
        (run.images([0]) - full).square().sum().backward()
    assert gates.grad[2, -1].item() == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4)


@pytest.mark.parametrize("name, sampler", [("dit", "dpm"), ("dit", "plms"), ("dit", "pndm"), ("sd3", "flow")])
def test_gradients_pass_through_every_sampler(name, sampler):
    run = sampling(name, steps=5, sampler=sampler)
    for module in run.modules:
        module.requires_grad_(False)
    graph = trace(run.target, lambda: run.images([0]))
    calls = len(run.scheduler.timesteps)
    assert calls == {"plms": 6, "pndm": 14}.get(sampler, 5)
    with Supernet(run.target, graph) as supernet:
        supernet.gates = gates = torch.ones(calls, graph.units, requires_grad=True)
        run.images([0]).square().sum().backward()
    assert (gates.grad != 0).tolist() == [[call > 0] * graph.units for call in range(calls)]


def test_the_gate_net_begins_open_and_is_straight_through():
    for encoder in ("attention", "linear", "released"):
        net = GateNet(3, 2, 16, encoder)
        logits = net()
        gates = straight_through(logits)
        assert gates.tolist() == [[1.0, 1.0]] * 3
        assert net.scores().tolist() == [[1.0, 1.0]] * 3
        gates.sum().backward()
        assert not net.last_bias.grad[:2].any()  # the first call has no gates
        assert net.last_bias.grad[2:].all()
        assert net.last_weight.grad[2:].any()
    logits = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]], requires_grad=True)
    gates = straight_through(logits)
    assert gates.tolist() == [[1.0], [0.0]]
    gates.sum().backward()
    keep = torch.sigmoid(torch.tensor(-1.0))
    assert logits.grad[1, 0].tolist() == pytest.approx([-float(keep * (1 - keep)), float(keep * (1 - keep))])
    before = GateNet(3, 2, 16, "attention", seed=1)
    assert torch.equal(before.queries, GateNet(3, 2, 16, "attention", seed=1).queries)
    hidden = torch.randn(1, 6, 16)
    assert not torch.equal(before.encoder(hidden), hidden)  # unlike the released one
    assert torch.equal(GateNet(3, 2, 16, "released").encoder(hidden), hidden)
    with pytest.raises(UsageError, match="unknown encoder 'fc'"):
        GateNet(3, 2, 16, "fc")


def test_the_loss_starts_at_alpha_and_drops_sparsity_below_tau():
    run = sampling()
    for module in run.modules:
        module.requires_grad_(False)
    graph = trace(run.target, lambda: run.images([0]))
    with Supernet(run.target, graph) as supernet:
        net = GateNet(STEPS, graph.units, 16)
        lesson = SearchLesson(net, supernet, run, SearchOptions(alpha=0.5))
        assert lesson(torch.tensor([0])).item() == pytest.approx(0.5, abs=1e-5)
        assert lesson.last == {"unlike": pytest.approx(0, abs=1e-5), "sparsity": pytest.approx(1.0), "kept": 1.0}
        with torch.no_grad():
            net.last_bias[:, 0] = 5.0  # all gates closed, but for the first call
        for tau in (0.2, 0.9):
            lesson = SearchLesson(net, supernet, run, SearchOptions(tau=tau))
            loss = lesson(torch.tensor([0])).item()
            assert lesson.last["sparsity"] == 0.0
            assert 0.25 < lesson.last["kept"] < 0.5
            assert loss == pytest.approx(lesson.last["unlike"], abs=1e-5)
        with torch.no_grad():
            net.last_bias[:, 0] = 0.0
        assert SearchLesson(net, supernet, run, SearchOptions(tau=1.5))(torch.tensor([0])).item() < 1e-4
        weights = SearchLesson(net, supernet, run, SearchOptions()).weights
        assert weights.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=1e-3)
        assert SearchLesson(net, supernet, run, SearchOptions(weighted=False)).weights.tolist() == [0.25] * 4


def test_memory_between_calls_does_not_hold_activations():
    """With checkpoints, what autograd saves for a call does not depend on the width of the MLPs inside blocks."""
    run = sampling(steps=6)
    for module in run.modules:
        module.requires_grad_(False)
    graph = trace(run.target, lambda: run.images([0]))
    held = {}
    for checkpointing in (True, False):
        saved = {}

        def pack(tensor, saved=saved):
            saved[tensor.data_ptr(), tensor.shape] = tensor.numel()
            return tensor

        with Supernet(run.target, graph, checkpointing=checkpointing) as supernet:
            supernet.gates = torch.ones(6, 4, requires_grad=True)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                run.images([0])
        held[checkpointing] = sum(saved.values())
    assert held[True] * 4 < held[False]


class Killed(Exception):
    pass


def test_a_killed_search_gives_the_same_bytes(tmp_path, monkeypatch):
    whole = search(sampling(), OPTIONS, tmp_path / "whole", count=3, save_every=0.0)
    calls, plain = [], SearchLesson.forward

    def dying(self, indices):
        calls.append(1)
        if len(calls) == 4:
            raise Killed
        return plain(self, indices)

    monkeypatch.setattr(SearchLesson, "forward", dying)
    with pytest.raises(Killed):
        search(sampling(), OPTIONS, tmp_path / "killed", count=3, save_every=0.0)
    again = search(sampling(), OPTIONS, tmp_path / "killed", count=3, save_every=0.0)
    assert len(calls) == 4 + 3
    assert again == whole
    assert whole.scores != [[1.0] * 4] * STEPS
    first, second = (tmp_path / name / "search.safetensors" for name in ("whole", "killed"))
    assert first.read_bytes() == second.read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "whole" / "search.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines[1:]] == list(range(6))
    assert {"loss", "unlike", "sparsity", "kept"} <= lines[1].keys()
    with pytest.raises(UsageError, match="holds another run: its options alpha is 1.0, this one's is 2"):
        search(sampling(), SearchOptions(steps=6, width=16, rate=1.0, alpha=2.0), tmp_path / "whole", count=3)


def test_a_search_closes_gates_and_leaves_the_model_alone(tmp_path):
    run = sampling()
    before = identify(run.denoiser)
    found = search(run, SearchOptions(steps=15, width=16, rate=50.0), tmp_path / "dit", count=2)
    assert identify(run.denoiser) == before
    assert all(weight.requires_grad for weight in run.denoiser.parameters())
    assert "forward" not in vars(run.denoiser)
    assert min(map(min, found.scores)) < 0
    assert found.program(0.3, "published").costs.pruned <= 0.3
    with pytest.raises(UsageError, match="pruning ratio 0.99"):
        found.program(0.99)
    run = sampling("sd")
    found = search(run, SearchOptions(steps=2, width=16), tmp_path / "sd", count=2)
    with torch.no_grad(), attach_program(run.target, found.program(0.4)):
        run.images([0])
    with pytest.raises(UsageError, match="UNet2DConditionModel have no residual"):
        search(run, SearchOptions(reuse="residual"), tmp_path / "other", count=2)


def test_a_program_is_written_read_and_run(tmp_path):
    run = sampling()
    found = describe(run, random_scores(STEPS, 4, seed=2), source="random")
    program = found.program(0.3)
    write_program(tmp_path / "program.json", program)
    assert read_program(tmp_path / "program.json") == program
    with torch.no_grad(), attach(run.target, Gates(program.rows)):
        expected = run.images([0])
    with torch.no_grad(), attach_program(run.target, tmp_path / "program.json") as handle:
        assert torch.equal(run.images([0]), expected)
        assert handle.counts()["computed"] == sum(row.count("1") for row in program.gates)
    with pytest.raises(UsageError, match="4 calls of 4 units are needed"):
        describe(run, random_scores(STEPS, 3))


def test_programs_are_refused_in_one_line(tmp_path):
    run = sampling()
    program = describe(run, random_scores(STEPS, 4, seed=2)).program(0.3)
    other, request = tiny.make("dit", seed=5)
    with pytest.raises(UsageError, match="for another model, a DiT.*: this DiT.* has other weights"):
        attach_program(other, program)
    for target, what in ((tiny.make("dit", blocks=3)[0], "config"), (tiny.make("pixart")[0], "class")):
        with pytest.raises(UsageError, match=f"another model, a DiT.* has other {what}"):
            attach_program(target, program)
    attach_program(other, program, original=program.model).detach()  # as for a compressed model
    dpm, request = tiny.make("dit", "dpm")
    with pytest.raises(UsageError, match="for the sampler DDIMScheduler; this pipeline has DPMSolver"):
        attach_program(dpm, program)
    same, request = tiny.make("dit")
    with attach_program(same, program), pytest.raises(UsageError, match="is for 4 steps; this run has 9"):
        tiny.images(same, request, steps=9)
    data = program.model_dump()
    for change, message in (
        ({"gates": [*data["gates"][:-1], "012x"]}, "gates = .*texts of 0 and 1 is needed, the first without 0"),
        ({"gates": ["0111", *data["gates"][1:]]}, "gates = .*texts of 0 and 1 is needed, the first without 0"),
        ({"gates": [*data["gates"][:-1], "01"]}, "must have 4 entries"),
        ({"steps": 0}, "steps = 0: a positive whole number"),
        ({"costs": {"units": [1], "rest": 0, "run": 0, "full": 0}}, "costs.full = 0: Input should be greater than 0"),
        (
            {"costs": {"units": [1], "rest": -1, "run": 1, "full": 1}},
            "costs.rest = -1: Input should be greater than or eq",
        ),
        ({"step": 3}, "unknown field 'step' of program .*; valid: costs"),
        ({"kind": "recipe"}, "kind = 'recipe'"),
    ):
        path = tmp_path / "bad.json"
        path.write_text(json.dumps(data | change))
        with pytest.raises(UsageError, match=message) as error:
            read_program(path)
        assert "\n" not in str(error.value)
    with pytest.raises(JettisonError, match="does not exist"):
        read_program(tmp_path / "none.json")


def test_identity_is_class_config_and_weights_in_any_precision():
    pipe, _ = tiny.make("dit")
    identity = identify(denoiser_of(pipe))
    for dtype in (torch.float16, torch.bfloat16):
        half, _ = tiny.make("dit")
        half.to(dtype)
        assert difference(half.transformer, identity) == ""
        assert difference(pipe.transformer, identify(half.transformer)) == ""
        half.transformer.proj_out_1.bias.data[0] += 1
        assert difference(half.transformer, identity) == "weights"


def test_a_sampling_of_ones_own_loop_and_one_without_gradients(tmp_path):
    """The loop of another place takes a denoiser and a scheduler instead of a pipeline."""
    pipe, _ = tiny.make("dit")

    def images(indices):
        pipe.scheduler.set_timesteps(STEPS)
        x = torch.stack([tiny.noise(index, 4, 8, 8) for index in indices])
        for t in pipe.scheduler.timesteps:
            out = pipe.transformer(x, timestep=t.expand(len(x)), class_labels=torch.zeros(len(x), dtype=torch.long))
            x = pipe.scheduler.step(out.sample, t, x).prev_sample
        return x

    own = Sampling(pipe.transformer, pipe.scheduler, images)
    found = search(own, OPTIONS, tmp_path / "own", count=2)
    with attach_program(pipe.transformer, found.program(0.4), pipe.scheduler), torch.no_grad():
        images([0])
    blind = Sampling(pipe.transformer, pipe.scheduler, torch.no_grad()(images))
    with pytest.raises(UsageError, match="turns gradients off"):
        search(blind, OPTIONS, tmp_path / "blind", count=2)


def test_the_default_rate_is_the_papers_at_the_papers_size():
    assert default_rate(tiny.dit(1), (250, 28)) == pytest.approx(10.0)
    assert default_rate(tiny.unet(), (50, 9)) == pytest.approx(0.1)
    assert default_rate(tiny.dit(1), (20, 12)) == pytest.approx(10 * 240 / 7000)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(steps=0), "steps = 0"),
        (dict(alpha=-1.0), "alpha = -1.0"),
        (dict(likeness="psnr"), "unknown likeness 'psnr'"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        SearchOptions(**change)
