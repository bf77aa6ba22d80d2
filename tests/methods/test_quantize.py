"""Quantization methods against their official implementations, and the properties of each."""

import pytest
import torch
from golden_vectors import golden

from jettison.core.errors import UsageError
from jettison.encodings.uniform import UniformGrid
from jettison.methods.quantize.caldera import caldera
from jettison.methods.quantize.gptaq import gptaq
from jettison.methods.quantize.gptq import gptq
from jettison.methods.quantize.hqq import hqq
from jettison.methods.quantize.rtn import rtn
from jettison.numerics.low_rank import best_correction
from jettison.recipe.registry import methods
from jettison.statistics.stats import Stats

FEW = {"caldera": {"iterations": 2}}  # for tests that do not measure the error
EXACT = {"scale_type": "float32"}


def share_of_other_codes(quantized, case) -> float:
    return float(
        (quantized.codes.float() != case.tensor("codes").reshape(quantized.codes.shape).float()).float().mean()
    )


@pytest.mark.parametrize("case", [c for c in golden("rtn") if c.key.startswith("case")], ids=lambda case: case.key)
def test_rtn(case):
    quantized = rtn(case.weight, UniformGrid(case["bits"], case["group_size"], case["symmetric"], **EXACT), clip=False)
    # On symmetric grids the largest value of a group lies halfway between two codes.
    assert share_of_other_codes(quantized, case) <= (0.01 if case["symmetric"] else 0.0)


@pytest.mark.parametrize("case", [c for c in golden("hqq") if c["axis"] == 1], ids=lambda case: case.key)
def test_hqq(case):
    iterations = case["iters"] if case["optimize"] else 0
    quantized = hqq(case.weight, UniformGrid(case["bits"], 64, False, **EXACT), iterations=iterations, round_zero=False)
    assert share_of_other_codes(quantized, case) <= 0.005
    assert case.error_ratio(quantized.dequantize()) == pytest.approx(case["error_ratio"], rel=0.01)


def stored_order(case) -> bool:
    """Return whether checkpoints can store the case.

    Groups along permuted columns need an index per column, which is not stored any more.
    """
    return not case["act_order"] or case["static_groups"] or case["group_size"] == -1


@pytest.mark.parametrize("case", [c for c in golden("gptq") if stored_order(c)], ids=lambda case: case.key)
def test_gptq(case):
    grid = UniformGrid(case["bits"], case["group_size"], case["symmetric"], **EXACT)
    options = {"act_order": case["act_order"], "block_size": case["blocksize"], "damp": case["percdamp"]}
    quantized = gptq(case.weight, grid, Stats.of(case.inputs), clip=False, **options)
    assert share_of_other_codes(quantized, case) <= 0.01
    assert case.error_ratio(quantized.dequantize()) == pytest.approx(case["error_ratio"], rel=0.01)


@pytest.fixture(scope="module")
def layer():
    """Return weight (64, 128) and correlated inputs (1024, 128)."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(128, 128, generator=generator) / 11
    inputs = torch.randn(1024, 128, generator=generator) @ mix
    return torch.randn(64, 128, generator=generator), inputs


def output_error(weight, quantized, inputs):
    return float(((weight - quantized.dequantize()) @ inputs.T).square().mean())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_each_step_up_pays(layer, bits, symmetric):
    """Clipping reduces the weight error of the full range; GPTQ reduces the output error of rounding."""
    weight, inputs = layer
    grid, stats = UniformGrid(bits, 32, symmetric), Stats.of(inputs)
    plain, clipped = rtn(weight, grid, clip=False), rtn(weight, grid)
    assert (weight - clipped.dequantize()).square().sum() < (weight - plain.dequantize()).square().sum()
    assert output_error(weight, gptq(weight, grid, stats), inputs) < output_error(weight, clipped, inputs)


def test_a_negative_scale_makes_a_symmetric_grid_as_good(layer):
    weight, _ = layer
    error = lambda grid: float((weight - rtn(weight, grid).dequantize()).square().mean())
    assert error(UniformGrid(2, 32)) < 1.01 * error(UniformGrid(2, 32, symmetric=False))
    assert (rtn(weight, UniformGrid(2, 32)).scale < 0).any()


def test_hqq_has_a_smaller_lp_error_than_rtn(layer):
    weight, _ = layer
    grid = UniformGrid(2, 64, symmetric=False)
    norm = lambda quantized: float((weight - quantized.dequantize()).abs().pow(0.7).mean())
    assert norm(hqq(weight, grid, round_zero=False)) < 0.97 * norm(rtn(weight, grid, clip=False))


def test_hqq_rounds_its_zero_points_for_storage(layer):
    assert hqq(layer[0], UniformGrid(4, 64, symmetric=False)).zero.dtype == torch.uint8
    with pytest.raises(UsageError, match="symmetric: false"):
        hqq(layer[0], UniformGrid(4, 64, symmetric=True))


def test_hqq_keeps_groups_of_one_sign(layer):
    """Their range must include zero, where the zero point is."""
    weight = layer[0].abs() * 0.01 + 1
    assert float((weight - hqq(weight, UniformGrid(4, 32, symmetric=False)).dequantize()).abs().max()) < 0.1


def test_gptq_zeroes_dead_columns(layer):
    weight, inputs = layer
    inputs = inputs.clone()
    inputs[:, 5] = 0
    assert (gptq(weight, UniformGrid(4, 32), Stats.of(inputs)).dequantize()[:, 5] == 0).all()


def test_gptq_survives_a_singular_hessian(layer):
    weight, inputs = layer
    quantized = gptq(weight, UniformGrid(4, 32), Stats.of(inputs[:3]), damp=1e-12)
    assert torch.isfinite(quantized.dequantize()).all()


@pytest.mark.parametrize("grid", [UniformGrid(2, 32), UniformGrid(3, 32, symmetric=False)], ids=str)
def test_gptaq_gives_the_original_outputs_from_disturbed_inputs(layer, grid):
    """The error is measured on held-out text; share 0 is GPTQ."""
    weight, inputs = layer
    mix = torch.randn(128, 128, generator=torch.Generator().manual_seed(1)) / 11
    disturbed = 0.8 * inputs + 0.4 * inputs @ mix  # the original inputs are a linear function of these
    (train, test), (train_original, test_original) = disturbed.split(768), inputs.split(768)
    stats = Stats.of(train, train_original)

    def error(quantized):
        return float((test @ quantized.dequantize().T - test_original @ weight.T).square().mean())

    plain = gptq(weight, grid, stats)
    errors = [error(gptaq(weight, grid, stats, share=share)) for share in (0.0, 0.5, 1.0)]
    assert errors[0] == error(plain)
    assert errors[1] < 0.9 * errors[0] and errors[2] < errors[1]
    # Without the original's inputs there is no correction.
    assert torch.equal(gptaq(weight, grid, Stats.of(train)).codes, plain.codes)


@pytest.mark.parametrize("grid", [UniformGrid(2, 32), UniformGrid(3, 32, symmetric=False)], ids=str)
def test_caldera_leaves_less_than_gptq_once_a_adapter_is_there(layer, grid):
    weight, inputs = layer
    stats = Stats.of(inputs)

    def error_with_adapter(quantized):
        error = weight - quantized.dequantize()
        a, b = best_correction(error, stats.hessian, 8)
        return float(((error - b @ a) @ inputs.T).square().mean())

    plain = error_with_adapter(gptq(weight, grid, stats))
    few, many = (error_with_adapter(caldera(weight, grid, stats, rank=8, iterations=count)) for count in (2, 20))
    assert many < few and many < 0.9 * plain


def test_a_best_correction_of_any_shape_is_the_truncated_svd(layer):
    """In the metric of the inputs, the remaining error is the singular values beyond the rank."""
    weight, inputs = layer
    hessian = inputs.T @ inputs / len(inputs) + 0.5 * torch.eye(128)
    for error in (weight, torch.cat([weight, weight.flip(1), weight.flip(0)])):
        a, b = best_correction(error, hessian, 8)
        assert (a.shape, b.shape) == ((8, 128), (len(error), 8))
        rest = (error - b @ a).double()
        values = torch.linalg.svdvals(error.double() @ torch.linalg.cholesky(hessian.double()))
        assert float((rest * (rest @ hessian.double())).sum()) == pytest.approx(
            float(values[8:].square().sum()), rel=0.01
        )


LINEAR = sorted(name for name, method in methods("quantize").items() if method.scope == "linear")


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize(
    "grid", [UniformGrid(b, g, s) for b in (2, 3, 4, 8) for g in (16, -1) for s in (True, False)], ids=str
)
def test_scales_are_stored_as_seen(layer, name, grid):
    """Codes are chosen for the rounded scales: storing loses nothing, and codes are valid for the grid."""
    if name == "hqq" and grid.symmetric:
        pytest.skip("hqq is asymmetric")
    weight, inputs = layer
    quantized = methods("quantize")[name].function(weight, grid, Stats.of(inputs), **FEW.get(name, {}))
    assert quantized.scale.dtype == torch.bfloat16
    assert quantized.codes.max() <= grid.max_code
    assert (quantized.zero is None) == grid.symmetric
    error = float((weight - quantized.dequantize()).square().sum() / weight.square().sum())
    if name == "caldera":  # leaves part of the error to the LoRA adapter
        return
    assert error < {2: 0.6, 3: 0.15, 4: 0.05, 8: 0.001}[grid.bits]
