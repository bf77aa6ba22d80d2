"""Policies in the pipelines of every architecture: exact where nothing is skipped, and skipped for real elsewhere."""

import random

import pytest
import torch

pytest.importorskip("diffusers")

import tiny_diffusion as tiny

from jettison.core.errors import UsageError
from jettison.domains.diffusion.denoisers import denoiser_of, places
from jettison.domains.diffusion.running import attach
from jettison.domains.diffusion.tracing import flop_counter, trace
from jettison.policies.gates import Gates
from jettison.policies.interval import Interval
from jettison.policies.linear_stand_in import LinearStandIn
from jettison.policies.output_change import OutputChange
from jettison.policies.random_skip import RandomSkip
from jettison.policies.step_cache import StepCachePolicy
from jettison.policies.threshold import Threshold

STEPS = 4


@pytest.fixture(scope="module")
def pipelines():
    """Return get(architecture), which returns a pipeline, its request and its plain images, made once."""
    made = {}

    def get(name):
        if name not in made:
            pipe, request = tiny.make(name)
            made[name] = pipe, request, tiny.images(pipe, request, (0, 1), STEPS)
        return made[name]

    return get


def random_rows(calls, units, seed, share=0.5):
    rng = random.Random(seed)
    return [[call == 0 or rng.random() < share for _ in range(units)] for call in range(calls)]


class Emulated:
    """A program run the slow way: every unit is computed, and what closed gates reuse is put in its place.

    A unit's memory is updated only where the program computes it.
    """

    def __init__(self, pipe, rows, graph, reuse):
        self.hooks, self.call, self.memory = [], -1, {}
        self.rows, self.live, self.reuse = rows, [graph.computed(row, reuse) for row in rows], reuse
        denoiser = denoiser_of(pipe)
        self.hooks.append(denoiser.register_forward_pre_hook(self.begin))
        for number, place in enumerate(places(denoiser)):
            hook = lambda module, args, kwargs, result, number=number, place=place: self.end(
                number, place, args, kwargs, result
            )
            self.hooks.append(place.module.register_forward_hook(hook, with_kwargs=True))

    def begin(self, *_):
        self.call += 1

    def end(self, number, place, args, kwargs, result):
        if self.live[self.call][number]:
            kept = result
            if self.reuse == "residual":
                kept = (place.arguments(args, kwargs), place.outputs_of(result))
            self.memory[number] = kept
            return result
        if self.rows[self.call][number]:
            return result  # open, but nobody reads it
        if self.reuse == "output":
            return self.memory[number]
        old, outputs = self.memory[number]
        new = tuple(x + (y - o) for x, y, o in zip(place.arguments(args, kwargs), outputs, old, strict=False))
        return place.returned(new, result)

    def remove(self):
        for hook in self.hooks:
            hook.remove()


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
@pytest.mark.parametrize(
    "policy",
    [
        StepCachePolicy(), Interval(1), RandomSkip(0.0), Threshold(0.0), LinearStandIn(0.0), OutputChange(),
        Interval(1, level="part"), Threshold(0.0, "each", "output"),
    ],
    ids=["base", "interval", "random", "threshold", "stand-in", "greedy", "parts", "each"],
)  # fmt: skip
def test_what_skips_nothing_is_exact(pipelines, name, policy):
    pipe, request, plain = pipelines(name)
    unets = name in ("sd", "sdxl")
    if unets and (policy.level == "part" or isinstance(policy, LinearStandIn)):
        message = "have no parts" if policy.level == "part" else "do not have the shapes"
        with pytest.raises(UsageError, match=message), attach(pipe, policy):
            tiny.images(pipe, request, (0, 1), STEPS)
        return
    with attach(pipe, policy) as handle:
        result = tiny.images(pipe, request, (0, 1), STEPS)
        assert set(handle.counts()) == {"computed"}
        assert handle.counts()["computed"] == STEPS * len(handle.places)
    assert torch.equal(result, plain)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_random_programs_compute_what_their_cost_says(pipelines, name):
    """The FLOPs of a run are those that the graph computes, and the images those of a slow emulation."""
    pipe, request, plain = pipelines(name)
    graph = trace(pipe, lambda: tiny.images(pipe, request, (0, 1), STEPS))
    denoiser = denoiser_of(pipe)
    for seed, reuse in enumerate(["output", "output", "residual"]):
        if reuse == "residual" and name not in tiny.CHAINS:
            continue
        rows = random_rows(STEPS, graph.units, seed, (0.8, 0.5, 0.5)[seed])
        rows[1][0], rows[2][0], rows[3][0] = False, True, False  # what is reused last is not what was reused first
        counted = []

        def counting(*args, original=None, counted=counted, **kwargs):
            with flop_counter() as counter:
                result = original(*args, **kwargs)
            counted.append(counter.get_total_flops())
            return result

        with attach(pipe, Gates(rows, reuse)) as handle:
            inner = denoiser.forward
            denoiser.forward = lambda *args, inner=inner, counting=counting, **kwargs: counting(
                *args, original=inner, **kwargs
            )
            fast = tiny.images(pipe, request, (0, 1), STEPS)
            denoiser.forward = inner
            done = [[what == "computed" for what in row] for row in handle.history]
        assert counted == [graph.row_cost(row, reuse) for row in rows]
        assert done == [graph.computed(row, reuse) for row in rows]
        emulated = Emulated(pipe, rows, graph, reuse)
        slow = tiny.images(pipe, request, (0, 1), STEPS)
        emulated.remove()
        assert torch.equal(fast, slow)
        assert not torch.equal(fast, plain)
    assert torch.equal(tiny.images(pipe, request, (0, 1), STEPS), plain)  # detached, nothing is left


def test_graphs_are_traced(pipelines):
    graph_of = lambda name: trace(pipelines(name)[0], lambda: tiny.images(*pipelines(name)[:2]))
    for name in tiny.CHAINS:
        graph = graph_of(name)
        assert [sorted(readers) for readers in graph.readers] == [[1], [2], [3], []]
        assert graph.outside == {3}
    sd = graph_of("sd")
    assert [sorted(readers) for readers in sd.readers] == [
        [1, 7, 8], [2, 6, 7], [3, 5, 6], [4, 5], [5], [6], [7], [8], [],
    ]  # fmt: skip
    assert sd.outside == {8}


def test_traced_flops_are_those_of_linears_convolutions_and_attention(pipelines):
    """Counted by hand for DiT: 16 tokens of width 16, MLP 64, conditioning 6 · 16, in a batch of one with guidance."""
    pipe, request, _ = pipelines("dit")
    graph = trace(pipe, lambda: tiny.images(pipe, request))
    tokens, width = 16, 16
    linears = 4 * width * width + 2 * width * 4 * width
    attention = 2 * tokens * width
    embedding = 256 * width + width * width + width * 6 * width  # time, and adaLN of this block, once per image
    assert graph.flops == (2 * 2 * (tokens * (linears + attention) + embedding),) * 4


def test_interval_deepcache_and_fora(pipelines):
    pipe, request, plain = pipelines("sd")
    with attach(pipe, Interval(2, shallow=1)) as handle:
        result = tiny.images(pipe, request, (0, 1), STEPS)
        skipped = ["computed", *["unread"] * 6, "reused", "computed"]
        assert handle.history == [["computed"] * 9, skipped, ["computed"] * 9, skipped]
    assert not torch.equal(result, plain)
    pipe, request, plain = pipelines("sd3")
    with attach(pipe, Interval(2, level="part")) as handle:
        result = tiny.images(pipe, request, (0, 1), STEPS)
        assert handle.counts() == {"computed": 2 * len(handle.places), "reused": 2 * len(handle.places)}
    assert not torch.equal(result, plain)


@pytest.mark.parametrize("name", tiny.CHAINS)
def test_thresholds_reuse_residuals_and_stand_ins_are_fitted(pipelines, name):
    pipe, request, plain = pipelines(name)
    with attach(pipe, Threshold(1e9)) as handle:
        reused = tiny.images(pipe, request, (0, 1), STEPS)
        assert handle.counts() == {"computed": 4, "reused": (STEPS - 1) * 4}
    errors = {}
    for weights in ("ridge", "released"):
        policy = LinearStandIn(1e9, weights=weights)
        with attach(pipe, policy) as handle:
            if weights == "ridge":
                assert torch.equal(tiny.images(pipe, request, (0, 1), STEPS), plain)  # nothing is fitted yet
                policy.fit()
            result = tiny.images(pipe, request, (0, 1), STEPS)
            assert handle.counts() == {"computed": 4, "approximated": (STEPS - 1) * 4}
        errors[weights] = float((result - plain).square().mean())
    assert errors["ridge"] < errors["released"]
    assert not torch.equal(reused, plain)


def test_output_change_scores(pipelines):
    pipe, request, _ = pipelines("dit")
    policy = OutputChange()
    with attach(pipe, policy):
        for index in range(2):
            tiny.images(pipe, request, (index,), STEPS)
    scores = policy.scores()
    assert [len(row) for row in scores] == [4] * STEPS
    assert scores[0] == [0.0] * 4
    assert all(score > 0 for row in scores[1:] for score in row)


def test_runs_do_not_see_each_other(pipelines):
    """A run gives the same after another one, after one that broke off, and in another batch."""
    pipe, request, _ = pipelines("dit")
    rows = random_rows(STEPS, 4, 5)
    with attach(pipe, Gates(rows)) as handle:
        alone = tiny.images(pipe, request, (0, 1), STEPS)
        tiny.images(pipe, request, (7, 8), STEPS)
        assert torch.equal(tiny.images(pipe, request, (0, 1), STEPS), alone)
        broken = pipe.scheduler.step
        calls = []

        def step(*args, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return broken(*args, **kwargs)

        pipe.scheduler.step = step
        with pytest.raises(KeyboardInterrupt):
            tiny.images(pipe, request, (3,), STEPS)
        del pipe.scheduler.step
        assert torch.equal(tiny.images(pipe, request, (0, 1), STEPS), alone)
        assert len(handle.history) == STEPS


@pytest.mark.parametrize("sampler, calls", [("ddim", 6), ("dpm", 6), ("plms", 7), ("pndm", 15), ("flow", 6)])
def test_calls_are_counted_per_sampler(sampler, calls):
    """PLMS calls the denoiser once more than it has steps, PNDM's Runge-Kutta start nine times more."""
    pipe, request = tiny.make("dit" if sampler != "flow" else "sd3", sampler)
    plain = tiny.images(pipe, request, steps=6)
    with attach(pipe, StepCachePolicy()) as handle:
        for _ in range(2):
            assert torch.equal(tiny.images(pipe, request, steps=6), plain)
            assert len(handle.history) == calls == handle.clock.calls
    rows = random_rows(calls, 4, 1)
    with attach(pipe, Gates(rows, steps=6)) as handle:
        first = tiny.images(pipe, request, steps=6)
        assert torch.equal(tiny.images(pipe, request, steps=6), first)
        with pytest.raises(UsageError, match="the program is for 6 steps; this run has 4"):
            tiny.images(pipe, request, steps=4)


def test_a_denoiser_alone_and_a_change_of_scheduler():
    pipe, request = tiny.make("dit")
    rows = random_rows(STEPS, 4, 2)
    with attach(pipe, Gates(rows)):
        expected = tiny.images(pipe, request, steps=STEPS)
    with attach(pipe.transformer, Gates(rows)) as handle:  # a run begins where the time rises
        for _ in range(2):
            assert torch.equal(tiny.images(pipe, request, steps=STEPS), expected)
    with attach(pipe.transformer, Gates(rows), pipe.scheduler):
        assert torch.equal(tiny.images(pipe, request, steps=STEPS), expected)
    with attach(pipe, Gates(rows, sampler="DDIMScheduler")) as handle:
        tiny.images(pipe, request, steps=STEPS)
        pipe.scheduler = tiny.SAMPLERS["dpm"]()
        with pytest.raises(UsageError, match="for the sampler DDIMScheduler; this run has DPMSolverMultistep"):
            tiny.images(pipe, request, steps=STEPS)
    assert "set_timesteps" not in vars(pipe.scheduler)
    assert "forward" not in vars(pipe.transformer)
    handle.detach()


def test_guidance_off_batches_and_half_precision():
    pipe, request = tiny.make("dit")
    rows = random_rows(STEPS, 4, 3)
    with attach(pipe, Gates(rows)):
        both = tiny.images(pipe, request, (0, 1), STEPS)
        assert torch.allclose(tiny.images(pipe, request, (1,), STEPS), both[1:], atol=1e-5)
        tiny.images(pipe, request, (0,), STEPS, guidance_scale=1.0)
    pipe.to(torch.bfloat16)
    plain = tiny.images(pipe, request, (0, 1), STEPS)
    with attach(pipe, StepCachePolicy()):
        assert torch.equal(tiny.images(pipe, request, (0, 1), STEPS), plain)
    with attach(pipe, Gates(rows)):
        half = tiny.images(pipe, request, (0, 1), STEPS)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), both, atol=0.05)


def test_a_batch_that_shrinks_within_a_run_is_computed_in_full(pipelines):
    denoiser = pipelines("dit")[0].transformer
    call = lambda batch, time: denoiser(
        torch.ones(batch, 4, 8, 8),
        timestep=torch.full((batch,), time),
        class_labels=torch.zeros(batch, dtype=torch.long),
    )
    with torch.no_grad(), attach(denoiser, Interval(9)) as handle:
        for batch, time in ((2, 900), (2, 800), (1, 700), (1, 600)):
            call(batch, time)
        assert [row[-1] for row in handle.history] == ["computed", "reused", "computed", "reused"]


def test_packed_weights_run_and_count():
    from jettison.encodings.quantized import QuantizedWeight
    from jettison.encodings.uniform import UniformGrid
    from jettison.graph.modules import PackedLinear
    from jettison.numerics.ranges import find_range

    pipe, request = tiny.make("dit")
    dense = trace(pipe, lambda: tiny.images(pipe, request))
    grid = UniformGrid(8, 16, True)
    for block in pipe.transformer.transformer_blocks:
        for owner, name in ((block.ff.net[0], "proj"), (block.ff.net, "2")):
            linear = getattr(owner, name)
            weight = linear.weight.detach().float()
            scale, zero = find_range(grid.grouped(weight), grid, clip=False)
            setattr(
                owner, name, PackedLinear.of(QuantizedWeight.nearest(weight, scale, zero, grid), linear.bias.detach())
            )
    assert trace(pipe, lambda: tiny.images(pipe, request)) == dense
    plain = tiny.images(pipe, request, (0, 1), STEPS)
    with attach(pipe, StepCachePolicy()):
        assert torch.equal(tiny.images(pipe, request, (0, 1), STEPS), plain)
    with attach(pipe, Gates(random_rows(STEPS, 4, 4))) as handle:
        tiny.images(pipe, request, (0, 1), STEPS)
        assert handle.counts()["reused"]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["denoiser", "blocks"])
def test_compiled_models_run(where):
    pipe, request = tiny.make("dit", blocks=2)
    rows = [[True, True], [True, False], [False, True], [True, True]]
    with attach(pipe, Gates(rows)):
        expected = tiny.images(pipe, request, steps=STEPS)
    transformer = pipe.transformer
    if where == "denoiser":
        pipe.transformer = torch.compile(transformer, backend="eager")
    else:
        for block in transformer.transformer_blocks:
            block.compile(backend="eager")
    with attach(pipe, Gates(rows)) as handle:
        assert torch.allclose(tiny.images(pipe, request, steps=STEPS), expected, atol=1e-5)
        assert [row.count("computed") for row in handle.history] == [2, 0, 1, 2]
    torch._dynamo.reset()


def test_what_cannot_be_attached_is_refused():
    pipe, _ = tiny.make("dit")
    with attach(pipe, StepCachePolicy()), pytest.raises(UsageError, match="attached to this denoiser already"):
        attach(pipe, StepCachePolicy())
    with pytest.raises(UsageError, match="unknown denoiser 'Linear'; valid: DiTTransformer2DModel"):
        attach(torch.nn.Linear(2, 2), StepCachePolicy())
    with pytest.raises(UsageError, match="object has no denoiser"):
        attach(object(), StepCachePolicy())
    with pytest.raises(UsageError, match="first row must be all open"):
        Gates([[True, False]])
    unet, request = tiny.make("sd")
    with attach(unet, Threshold(1e9)), pytest.raises(UsageError, match="down_blocks.0 has no residual"):
        tiny.images(unet, request)


def test_controlnets_are_refused():
    """They change what blocks pass on, so that nobody could say which block reads which."""
    pipe, _ = tiny.make("sd")
    call = lambda **extra: pipe.unet(torch.ones(1, 4, 8, 8), 5, encoder_hidden_states=torch.ones(1, 5, 12), **extra)
    with attach(pipe.unet, StepCachePolicy()), torch.no_grad():
        call()
        with pytest.raises(UsageError, match="mid_block_additional_residual: with that, no step is skipped"):
            call(mid_block_additional_residual=torch.zeros(1))
