"""Pruning methods against their official implementations, and the properties of each."""

import pytest
import torch
from golden_vectors import golden

from jettison.core.errors import JettisonError, UsageError
from jettison.encodings.pattern import Pattern
from jettison.encodings.uniform import UniformGrid
from jettison.methods.prune.alps import alps
from jettison.methods.prune.magnitude import magnitude
from jettison.methods.prune.sds import sds
from jettison.methods.prune.sparsegpt import sparsegpt
from jettison.methods.prune.wanda import wanda
from jettison.methods.quantize.rtn import rtn
from jettison.recipe.registry import methods
from jettison.statistics.stats import Stats

TWO_OF_FOUR = Pattern.parse("2:4")


def pattern_of(case) -> Pattern:
    """Return the pattern that a case's key names."""
    name = case.key.split(".")[1].removesuffix("_4bit")
    return Pattern(0.5) if name == "unstructured50" else Pattern.parse(name.replace("of", ":"))


@pytest.mark.parametrize("case", golden("wanda"), ids=lambda case: case.key)
def test_wanda(case):
    weight = wanda(case.weight, pattern_of(case), Stats.of(case.inputs))
    keep = case.tensor("keep").bool()
    assert torch.equal(weight != 0, keep)
    assert torch.equal(weight[keep], case.weight[keep])


@pytest.mark.parametrize("case", [c for c in golden("sparsegpt") if not c["bits"]], ids=lambda case: case.key)
def test_sparsegpt(case):
    pattern, theirs = pattern_of(case), case.tensor("W")
    if not pattern.grouped:  # the official code prunes one more in every block of 128 columns
        pattern = Pattern(float((theirs == 0).float().mean()))
    ours = sparsegpt(case.weight, pattern, Stats.of(case.inputs), damp=case["percdamp"], block_size=case["blocksize"])
    assert float(((ours == 0) == (theirs == 0)).float().mean()) >= 0.999
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())
    assert case.error_ratio(ours) == pytest.approx(case["error_ratio"], rel=0.01)


@pytest.mark.parametrize("case", [c for c in golden("sparsegpt") if c["bits"]], ids=lambda case: case.key)
def test_sparsegpt_with_joint_quantization(case):
    grid = UniformGrid(case["bits"], -1, case["symmetric"], "float32")
    ours = sparsegpt(case.weight, TWO_OF_FOUR, Stats.of(case.inputs), grid, damp=case["percdamp"], clip=False)
    assert float((ours.codes.float() != case.tensor("codes").float()).float().mean()) <= 0.01
    assert case.error_ratio(ours.dequantize()) == pytest.approx(case["error_ratio"], rel=0.01)
    TWO_OF_FOUR.check(ours.dequantize())


@pytest.mark.parametrize("case", golden("alps"), ids=lambda case: case.key)
def test_alps(case):
    pattern, theirs = pattern_of(case), case.tensor("W")
    ours = alps(case.weight, pattern, Stats.of(case.inputs), damp=case["damp"])
    assert float(((ours == 0) == (theirs == 0)).float().mean()) >= 0.99
    assert case.error_ratio(ours) == pytest.approx(case["error_ratio"], rel=0.01)


@pytest.fixture(scope="module")
def layer():
    """Return weight (48, 64) and inputs (1024, 64), correlated and with channels of different size."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(64, 64, generator=generator) / 8
    inputs = torch.randn(1024, 64, generator=generator) @ mix * torch.linspace(0.2, 3, 64)
    return torch.randn(48, 64, generator=generator), inputs


def output_error(weight, pruned, inputs):
    return float(((weight - pruned) @ inputs.T).square().mean())


FEW = {"sds": {"dense_steps": 20, "second_steps": 20}}  # for tests that do not measure the error
PATTERNS = [
    Pattern(0.5),
    Pattern(0.7),
    Pattern(0.6, scope="row"),
    Pattern(0.0),
    *map(Pattern.parse, ("2:4", "4:8", "8:16")),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: f"{p} {p.scope}")
@pytest.mark.parametrize("name", sorted(methods("prune")))
def test_counts_are_as_asked_for(layer, name, pattern):
    weight, inputs = layer
    pruned = methods("prune")[name].function(weight, pattern, Stats.of(inputs), **FEW.get(name, {}))
    pattern.check(pruned)
    zero = pruned == 0
    if pattern.grouped:
        assert (zero.unflatten(1, (-1, pattern.of)).sum(-1) == pattern.of - pattern.kept).all()
    elif pattern.scope == "row":
        assert (zero.sum(1) == round(pattern.sparsity * 64)).all()
    elif name != "wanda":  # wanda prunes the same whole number of every row
        assert int(zero.sum()) == round(pattern.sparsity * weight.numel())


@pytest.mark.parametrize("pattern", [Pattern(0.5), TWO_OF_FOUR], ids=str)
def test_each_method_pays(layer, pattern):
    weight, inputs = layer
    stats = Stats.of(inputs)
    errors = [
        output_error(weight, method(weight, pattern, stats), inputs) for method in (magnitude, wanda, sparsegpt, alps)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.8 * errors[1]


@pytest.mark.parametrize("pattern", [Pattern(0.5), TWO_OF_FOUR, Pattern.parse("8:16")], ids=str)
@pytest.mark.parametrize("group_size", [16, -1])
def test_joint_quantization_beats_rounding_what_pruning_left(layer, pattern, group_size):
    weight, inputs = layer
    stats, grid = Stats.of(inputs), UniformGrid(2, group_size)
    joint = sparsegpt(weight, pattern, stats, grid).dequantize()
    rounded = rtn(sparsegpt(weight, pattern, stats), grid).dequantize()
    for quantized in (joint, rounded):
        pattern.check(quantized)
    assert output_error(weight, joint, inputs) < output_error(weight, rounded, inputs)


@pytest.mark.parametrize("base", ["magnitude", "wanda", "sparsegpt", "alps"])
@pytest.mark.parametrize("pattern", [Pattern(0.7), TWO_OF_FOUR], ids=str)
def test_sds_is_better_than_its_base_and_than_as_many_steps_without_the_dense_stage(layer, pattern, base):
    weight, inputs = layer
    stats = Stats.of(inputs)
    plain = methods("prune")[base].function(weight, pattern, stats)
    control = sds(weight, pattern, stats, base=base, dense_steps=0, second_steps=200, rechoose=False, damp=0.0)
    full = sds(weight, pattern, stats, base=base, dense_steps=100, second_steps=100, damp=0.0)
    errors = [output_error(weight, pruned, inputs) for pruned in (plain, control, full)]
    assert errors[2] < errors[0]
    if base != "alps":  # alps has already searched its mask
        assert errors[2] < errors[1] < errors[0]
    assert torch.equal(control == 0, plain == 0)


def test_sds_aims_at_what_the_original_gives(layer):
    """Inputs are disturbed and the text is held out: the cross moments compensate the disturbance."""
    weight, inputs = layer
    mix = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)) / 8
    disturbed = 0.8 * inputs + 0.3 * inputs @ mix
    (train, test), (train_original, test_original) = disturbed.split(768), inputs.split(768)
    stats = Stats.of(train, train_original, dense=True)
    error = lambda pruned: float((test @ pruned.T - test_original @ weight.T).square().mean())
    sparse_data, half, dense_data = (
        error(sds(weight, TWO_OF_FOUR, stats, **options)) for options in ({}, {"share": 0.0}, {"data": "dd"})
    )
    assert sparse_data < half
    assert sparse_data < dense_data
    no_cross = Stats.of(train)  # as for experts: there is no target but its own inputs
    assert torch.equal(sds(weight, TWO_OF_FOUR, no_cross, data="dd"), sds(weight, TWO_OF_FOUR, no_cross))


def test_sds_early_exit(layer):
    """Early exit returns the second pruning without adjustment, if it is better than the first pruning."""
    weight, inputs = layer
    stats = Stats.of(inputs)
    early = sds(weight, TWO_OF_FOUR, stats, base="magnitude", early_exit=True)
    full = sds(weight, TWO_OF_FOUR, stats, base="magnitude")
    plain = magnitude(weight, TWO_OF_FOUR)
    errors = [output_error(weight, pruned, inputs) for pruned in (full, early, plain)]
    assert errors[0] < errors[1] <= errors[2]


@pytest.mark.parametrize("name", sorted(methods("prune")))
@pytest.mark.parametrize("pattern", [Pattern(0.5), TWO_OF_FOUR], ids=str)
def test_dead_channels_and_singular_hessians(layer, name, pattern):
    """The inputs are three tokens with half of the channels dead; then all zeros."""
    weight, inputs = layer
    few = inputs[:3].clone()
    few[:, ::2] = 0
    for text in (few, torch.zeros(4, 64)):
        pruned = methods("prune")[name].function(weight, pattern, Stats.of(text), **FEW.get(name, {}))
        assert torch.isfinite(pruned).all()
        pattern.check(pruned)


def test_a_hessian_that_is_not_finite_is_named(layer):
    with pytest.raises(JettisonError, match="not positive definite"):
        sparsegpt(layer[0], TWO_OF_FOUR, Stats(torch.full((64, 64), float("nan"))))


BAD = [
    (lambda: Pattern(1.0), "sparsity = 1.0: a share from 0 to 1, 1 excluded"),
    (lambda: Pattern(-0.1), "sparsity = -0.1"),
    (lambda: Pattern(float("nan")), "sparsity = nan"),
    (lambda: Pattern(0.5, scope="column"), "scope = 'column': layer and row"),
    (lambda: Pattern.parse("4:2"), "pattern = '4:2': N:M with 0 < N < M"),
    (lambda: Pattern.parse("0:4"), "pattern = '0:4'"),
    (lambda: Pattern.parse("half"), "pattern = 'half'"),
    (lambda: TWO_OF_FOUR.check_columns(66), "2:4 does not divide a row of 66 weights; valid here: a sparsity"),
    (lambda: Pattern.parse("8:16").check_columns(72), "8:16 does not .*valid here: 2:4, 4:8"),
    (
        lambda: sds(torch.ones(4, 4), TWO_OF_FOUR, Stats(torch.eye(4)), base="sds"),
        "unknown base 'sds' of sds.*valid: alps",
    ),
]


@pytest.mark.parametrize(("make", "words"), BAD, ids=[words[:25] for _, words in BAD])
def test_bad_input_is_named(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def test_yaml_reads_a_pattern_without_quotes_as_a_number_in_base_60():
    assert Pattern.parse(124) == TWO_OF_FOUR and Pattern.parse(8 * 60 + 16) == Pattern.parse("8:16")
