"""Sensitivity: the loss from quantizing one part, estimated by gradients, by measurement and by the prior."""

import pytest
import torch

from jettison.core.errors import UsageError
from jettison.domains.text.data import Text, token_windows
from jettison.encodings.uniform import UniformGrid
from jettison.graph.folder import ModelFolder
from jettison.planning.groups import find_units
from jettison.statistics.prior import prior_loss, recovered_part
from jettison.statistics.sensitivity import LENGTH, SAMPLES, Bench, known_sensitivity, sensitivity, unseen_windows

SMALL = {"samples": 4, "length": 32}
GRIDS = (UniformGrid(3, 32), UniformGrid(5, 32))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JETTISON_CACHE", str(tmp_path / "cache"))


def parts_of(source):
    units = [unit for unit in find_units(source.anatomy) if unit.role != "embed"]
    return {unit.name: unit.linears for unit in units}


def find(source, kind, grids=GRIDS, **options):
    """Return the sensitivity of every part but the embedding."""
    parts = parts_of(source)
    return sensitivity(source, parts, dict.fromkeys(parts, grids), Text(), kind=kind, method="rtn", **(SMALL | options))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradients_foretell_what_is_measured(tiny, family):
    source = ModelFolder(tiny(family))
    many = {"samples": 32, "length": 32}
    predicted, measured = (find(source, kind, (UniformGrid(5, 32),), **many) for kind in ("gradients", "measured"))
    ratios = [predicted[name][UniformGrid(5, 32)] / measured[name][UniformGrid(5, 32)] for name in predicted]
    assert all(0.5 < ratio < 2.0 for ratio in ratios), ratios
    assert 0.75 < sum(ratios) / len(ratios) < 1.3


def test_fewer_bits_cost_more(tiny):
    source = ModelFolder(tiny("qwen3_moe"))
    for kind in ("gradients", "measured"):
        by_part = find(source, kind)
        assert all(losses[UniformGrid(3, 32)] > losses[UniformGrid(5, 32)] > 0 for losses in by_part.values()), by_part


def test_it_is_kept_and_goes_on(tiny, monkeypatch):
    source = ModelFolder(tiny("llama"))
    parts = parts_of(source)
    first = dict(list(parts.items())[:3])
    few = sensitivity(source, first, dict.fromkeys(first, GRIDS), Text(), kind="measured", method="rtn", **SMALL)
    whole = find(source, "measured")
    assert {name: whole[name] for name in few} == few
    monkeypatch.setattr("jettison.statistics.sensitivity._by_measuring", None)  # fails if anything is measured again
    assert find(source, "measured") == whole


def test_what_is_known(tiny):
    source = ModelFolder(tiny("llama"))
    parts = {name: linears for name, linears in parts_of(source).items() if "layers.0" in name}
    grids = dict.fromkeys(parts, (UniformGrid(4, 32),))
    assert known_sensitivity(source, parts, grids, Text()) == ({}, "prior")
    measured = sensitivity(source, parts, grids, Text())
    assert known_sensitivity(source, parts, grids, Text()) == (measured, "gradients")
    assert known_sensitivity(source, parts, dict.fromkeys(parts, GRIDS), Text()) == ({}, "prior")


def test_what_steers_refinement_was_not_seen(tiny):
    source = ModelFolder(tiny("llama"))
    length = source.window(LENGTH)
    calibration, unseen = token_windows(source, "books", length, SAMPLES), unseen_windows(source, Text())
    assert unseen.shape == calibration.shape and len({tuple(row.tolist()) for row in unseen}) == SAMPLES
    assert not {tuple(row.tolist()) for row in unseen} & {tuple(row.tolist()) for row in calibration}


def test_the_bench_puts_everything_back(tiny):
    source = ModelFolder(tiny("qwen3"))  # has a tied head
    windows = token_windows(source, "books", 32, 4)
    bench = Bench(source, windows, "gptq")
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    linears = [linear for linear in source.anatomy if "embed" not in linear.roles]
    assert bench.divergence() == pytest.approx(0.0, abs=1e-9)
    with bench.changed((linear, UniformGrid(2, 32)) for linear in linears):
        assert bench.divergence() > 0.01
        embedding = bench.model.get_input_embeddings().weight
        assert torch.equal(embedding, before["model.embed_tokens.weight"])
    assert all(torch.equal(value, before[name]) for name, value in bench.model.state_dict().items())
    with bench.changed([(linears[0], None)]):
        assert bench.divergence() == pytest.approx(0.0, abs=1e-9)


def test_an_unknown_kind(tiny):
    with pytest.raises(UsageError, match="sensitivity 'guess': gradients and measured are valid"):
        find(ModelFolder(tiny("llama")), "guess")


class TestPrior:
    def test_bits_roles_and_depth(self):
        loss_of = lambda bits, role="gate_up", depth=0.5, blocks=8, group=128: prior_loss(
            role, depth, blocks, UniformGrid(bits, group)
        )
        assert loss_of(2) > loss_of(3) > loss_of(4) > loss_of(5) > loss_of(6) > loss_of(8) > 0
        assert loss_of(2, group=128) > loss_of(2, group=32)
        assert loss_of(2, "gate_up") > loss_of(2, "down") > loss_of(2, "o")  # the order measured on scribe
        assert loss_of(2, "expert gate_up") == loss_of(2, "gate_up")
        assert loss_of(3, blocks=16) == loss_of(3) / 2
        assert prior_loss("head", None, 8, UniformGrid(4, 128)) == prior_loss("head", None, 80, UniformGrid(4, 128))

    def test_recovery_leaves_a_part(self):
        assert 0 < recovered_part() < 1
