"""Pruning methods against their official implementations, and what each promises."""

import pytest
import torch
from golden_vectors import golden

from jettison.calibrate import Stats
from jettison.grid import Grid
from jettison.pattern import Pattern
from jettison.prune import alps, sparsegpt, wanda

TWO_OF_FOUR = Pattern.parse("2:4")


def pattern_of(case) -> Pattern:
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
    if not pattern.grouped:  # the original prunes one more in every block of 128 columns
        pattern = Pattern(float((theirs == 0).float().mean()))
    ours = sparsegpt(case.weight, pattern, Stats.of(case.inputs), damp=case["percdamp"], block_size=case["blocksize"])
    assert float(((ours == 0) == (theirs == 0)).float().mean()) >= 0.999
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())
    assert case.error_ratio(ours) == pytest.approx(case["error_ratio"], rel=0.01)


@pytest.mark.parametrize("case", [c for c in golden("sparsegpt") if c["bits"]], ids=lambda case: case.key)
def test_sparsegpt_with_joint_quantization(case):
    grid = Grid(case["bits"], -1, case["symmetric"], torch.float32)
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
