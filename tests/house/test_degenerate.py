"""Degenerate inputs and weights: every method returns finite weights or raises one clear error."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from jettison.core.errors import JettisonError
from jettison.encodings.pattern import Pattern
from jettison.encodings.uniform import UniformGrid
from jettison.graph.anatomy import Linear
from jettison.methods.prune.magnitude import magnitude
from jettison.methods.prune.sparsegpt import sparsegpt
from jettison.methods.quantize.gptaq import gptaq
from jettison.methods.quantize.gptq import gptq
from jettison.numerics.columns import dampings
from jettison.numerics.low_rank import best_correction
from jettison.pipeline.applying import LARGEST
from jettison.pipeline.compression import compress
from jettison.pipeline.pruning import Task, run_task
from jettison.recipe.registry import methods
from jettison.runtime.load import load
from jettison.statistics.stats import Stats, watch
from jettison.training.trainables import add_lora

COLUMNS = 32
QUICK = {  # fewer rounds: faults show in the first ones
    "caldera": {"iterations": 2, "clip": False},
    "alps": {"iterations": 40},
    "sds": {"dense_steps": 5, "second_steps": 5},
}


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


WEIGHT, INPUTS = _random(16, COLUMNS), _random(200, COLUMNS)
ORIGINALS = INPUTS + 0.1 * _random(201, COLUMNS)[1:]


def _without(states: torch.Tensor) -> torch.Tensor:
    """Set input 5 to zero."""
    return states * (torch.arange(COLUMNS) != 5)


def _twice(states: torch.Tensor) -> torch.Tensor:
    """Make every two neighbouring inputs equal."""
    return states[:, torch.arange(COLUMNS) // 2]


ONE_ROW = torch.cat([WEIGHT[:3], torch.zeros(1, COLUMNS), WEIGHT[4:]])
CASES = {  # weight (rows, columns), inputs of the compressed and of the original model (tokens, columns)
    "an input always zero": (WEIGHT, _without(INPUTS), _without(ORIGINALS)),
    "an input zero once compressed": (WEIGHT, _without(INPUTS), ORIGINALS),
    "an input zero before": (WEIGHT, INPUTS, _without(ORIGINALS)),
    "all inputs zero": (WEIGHT, 0 * INPUTS, 0 * ORIGINALS),
    "all inputs zero once compressed": (WEIGHT, 0 * INPUTS, ORIGINALS),
    "all inputs zero before": (WEIGHT, INPUTS, 0 * ORIGINALS),
    "inputs twice": (WEIGHT, _twice(INPUTS), _twice(ORIGINALS)),
    "one token": (WEIGHT, INPUTS[:1], ORIGINALS[:1]),
    "a row of zeros": (ONE_ROW, INPUTS, ORIGINALS),
    "all weights zero": (0 * WEIGHT, INPUTS, ORIGINALS),
    "all weights equal": (0 * WEIGHT + 0.5, INPUTS, ORIGINALS),
    "large weights": (WEIGHT / WEIGHT.abs().max() * LARGEST, INPUTS, ORIGINALS),
    "tiny weights": (1e-30 * WEIGHT, INPUTS, ORIGINALS),
    "large inputs": (WEIGHT, 1e7 * INPUTS, 1e7 * ORIGINALS),
    "large both": (WEIGHT / WEIGHT.abs().max() * LARGEST, 1e7 * INPUTS, 1e7 * ORIGINALS),
    "tiny inputs": (WEIGHT, 1e-22 * INPUTS, 1e-22 * ORIGINALS),
    "no inputs in float32": (WEIGHT, 1e-30 * INPUTS, 1e-30 * ORIGINALS),
    "inputs of all sizes": (WEIGHT, INPUTS * torch.logspace(-20, 7, COLUMNS), ORIGINALS * torch.logspace(-20, 7, 32)),
    "weights of all sizes": (WEIGHT * torch.logspace(-30, 7, COLUMNS), INPUTS, ORIGINALS),
    "one column": (WEIGHT[:, :1], INPUTS[:, :1], ORIGINALS[:, :1]),
    "one weight": (WEIGHT[:1, :1], INPUTS[:, :1], ORIGINALS[:, :1]),
}
EITHER = pytest.mark.parametrize("alone", [False, True], ids=["both", "alone"])


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def statistics(case, alone: bool) -> Stats:
    """Return the calibration statistics of a case. alone: without the inputs of the original."""
    _, inputs, originals = case
    return Stats.of(inputs) if alone else Stats.of(inputs, originals, dense=True)


LINEAR = sorted(name for name, method in methods("quantize").items() if method.scope == "linear")


@EITHER
@pytest.mark.parametrize("name", LINEAR)
def test_quantizers(case, name, alone):
    """The result is never worse than the zero matrix, and zeros stay zero."""
    weight, width = case[0], 8 if case[0].shape[1] % 8 == 0 else -1
    for grid in (UniformGrid(4, -1), UniformGrid(3, width, symmetric=False)):
        if name == "hqq" and grid.symmetric:
            continue
        result = (
            methods("quantize")[name]
            .function(weight, grid, statistics(case, alone), **QUICK.get(name, {}))
            .dequantize()
        )
        assert torch.isfinite(result).all()
        assert (result - weight).double().square().sum() <= 1.001 * weight.double().square().sum()
        assert (result[weight == 0] == 0).all()


@EITHER
@pytest.mark.parametrize("name", sorted(methods("prune")))
def test_pruners(case, name, alone):
    """The result has the requested number of zeros and finite weights; ``run_task`` checks both."""
    for pattern in (Pattern(0.5), Pattern(0.5, scope="row"), Pattern(0.5, 2, 4)):
        if pattern.grouped and case[0].shape[1] % 4:
            continue
        pruned = run_task(Task("it", name, QUICK.get(name, {}), case[0], pattern, statistics(case, alone)))
        pattern.check(pruned)
        assert torch.isfinite(pruned).all()
        if name in ("magnitude", "wanda"):
            assert torch.equal(pruned[pruned != 0], case[0][pruned != 0])


def test_joint_pruning_and_quantization(case):
    task = Task("it", "sparsegpt", {"joint": True}, case[0], Pattern(0.5), statistics(case, True), UniformGrid(4, -1))
    assert torch.isfinite(run_task(task).dequantize()).all()


@pytest.mark.parametrize("rank", [1, 40])
def test_best_corrections(case, rank):
    """Corrections of any rank are finite and, in the metric of the inputs, no worse than no correction."""
    hessian = statistics(case, True).hessian
    a, b = best_correction(case[0], hessian, rank)
    assert (a.shape, b.shape) == ((rank, case[0].shape[1]), (case[0].shape[0], rank))
    assert torch.isfinite(a).all() and torch.isfinite(b).all()
    loss = lambda error: float((error.double() @ hessian.double() * error.double()).sum())
    assert loss(case[0].double() - b.double() @ a.double()) <= 1.001 * loss(case[0])


def test_where_no_input_is_active_the_weights_alone_decide():
    stats = Stats.of(torch.zeros(20, COLUMNS), ORIGINALS[:20])
    grid = UniformGrid(4, 8)
    assert torch.equal(gptaq(WEIGHT, grid, stats).codes, gptq(WEIGHT, grid, stats).codes)
    mask = sparsegpt(WEIGHT, Pattern(0.5), stats) != 0
    assert torch.equal(mask, magnitude(WEIGHT, Pattern(0.5)) != 0)
    a, b = best_correction(WEIGHT, stats.hessian, 4)
    u, s, v = torch.linalg.svd(WEIGHT)
    assert torch.allclose(b @ a, u[:, :4] * s[:4] @ v[:4], atol=1e-4)


def test_an_input_that_died_is_corrected_by_the_others():
    """With a dead input, GPTAQ's least squares solution is that of the other inputs."""
    inputs = _without(INPUTS)
    result = gptaq(WEIGHT, UniformGrid(8, 8), Stats.of(inputs, INPUTS), share=1.0, damp=1e-6).dequantize()
    target = torch.linalg.lstsq(inputs.double(), (INPUTS @ WEIGHT.T).double(), driver="gelsd").solution.T.float()
    assert float((result - target).abs().max()) < 0.03 and (result[:, 5] == 0).all()


def test_damping_that_cannot_help_ends_in_one_error():
    with pytest.raises(JettisonError, match="not positive definite even with damp = 10000: calibrate on more text"):
        assert len(list(dampings(0.01))) == 7
    # A negative eigenvalue: no second moment has one, but a damaged file may.
    hessian = torch.diag(torch.tensor([1e6 + 32, -1e6] + 30 * [1.0]))
    for solve in (
        lambda: best_correction(WEIGHT, hessian, 2),
        lambda: gptq(WEIGHT, UniformGrid(4, 8), Stats(hessian, 9)),
    ):
        with pytest.raises(JettisonError, match="not positive definite"):
            solve()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, 1e10])
@pytest.mark.parametrize("whose", ["inputs", "originals"])
def test_inputs_that_float32_cannot_square_are_named(value, whose):
    """The error comes before any method uses the inputs."""
    bad = INPUTS.clone()
    bad[7, 3] = value
    module = torch.nn.Sequential(torch.nn.Linear(COLUMNS, 4))
    linear = Linear("block.0", ("q",), 4, COLUMNS, 0, "block.0", "block.0")
    batches = {"inputs": (INPUTS, bad), "originals": (bad, INPUTS)}[whose]
    with (
        pytest.raises(JettisonError, match=r"block\.0: its inputs have a mean square of .* but at most 1e\+16"),
        watch(module, "block", [linear], dense=True) as watching,
    ):
        watching.original = True
        module(batches[0])
        watching.original = False
        module(batches[1])


@pytest.mark.parametrize("init", ["svd", "olora"])
def test_adapters_of_more_than_full_rank(init):
    """Adapters have the requested rank, which their config will state."""
    linear = Linear("0", ("q",), 4, 6, 0, "0", "0")
    student, teacher = (torch.nn.Sequential(torch.nn.Linear(6, 4)) for _ in range(2))
    tensors = add_lora(student, teacher, [linear], 8, 16.0, init, 0, {"0": Stats.of(_random(30, 6))})
    assert tensors["0.lora_a"].shape == (8, 6) and tensors["0.lora_b"].shape == (4, 8)
    assert all(torch.isfinite(value).all() for value in tensors.values())


def edited(folder, out, edit):
    """Copy a model to ``out``, change its tensors by ``edit``, and return ``out``."""
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    edit(tensors)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.mark.parametrize("method", ["gptq", "gptaq", "caldera"])
def test_a_model_with_an_input_that_is_always_zero(tiny, tmp_path, method):
    silent = "model.layers.1.self_attn.v_proj.weight"
    source = edited(tiny("llama"), tmp_path / "model", lambda tensors: tensors[silent].zero_())
    quantize = {"quantize": {"method": method, "bits": 4, "group_size": 32} | QUICK.get(method, {})}
    calibration = {"samples": 4, "length": 32}
    compress(source, {"calibration": calibration, "steps": [quantize]}, tmp_path / "out")
    assert torch.isfinite(load(tmp_path / "out").logits(torch.arange(8).unsqueeze(0))).all()


def test_states_that_are_all_zero(tiny, tmp_path):
    """With a zero embedding, block outputs are zero; the relative error must not divide by their size."""
    source = edited(tiny("llama"), tmp_path / "model", lambda tensors: tensors["model.embed_tokens.weight"].zero_())
    quantize = {"quantize": {"method": "gptq", "bits": 4, "group_size": 32}}
    manifest = compress(source, {"calibration": {"samples": 4, "length": 32}, "steps": [quantize]}, tmp_path / "out")
    assert [block["error"] for block in manifest["blocks"][:2]] == [0.0, 0.0]


def test_weights_that_float32_cannot_square_are_named(tiny, tmp_path):
    name = "model.layers.1.mlp.up_proj"
    source = edited(tiny("llama"), tmp_path / "model", lambda tensors: tensors[f"{name}.weight"][0].fill_(1e30))
    for number, step in enumerate(
        (
            {"quantize": {"method": "rtn", "bits": 4, "group_size": 32}},
            {"prune": {"method": "magnitude", "sparsity": 0.5}},
        )
    ):
        with pytest.raises(JettisonError, match=f"{name} has a weight of .*e.30; at most 1e.08"):
            compress(source, {"steps": [step]}, tmp_path / f"out{number}")
