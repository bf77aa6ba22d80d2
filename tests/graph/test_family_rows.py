"""Rows of families.yaml are checked when they are read: an error names the row, the field and valid values."""

import pytest

from jettison.core.errors import UsageError
from jettison.graph.families import read_families

ROW = """
mine:
  blocks: model.layers
  linears: {self_attn.q_proj: q, mlp.up_proj: [gate, up]}
"""


def test_a_row_needs_only_blocks_and_linears():
    family = read_families(ROW)["mine"]
    assert family.linears == {"self_attn.q_proj": ("q",), "mlp.up_proj": ("gate", "up")}
    assert (family.fused, family.folds, family.domain, family.sizes) == ({}, {}, "text", None)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("  fold: {norm: [q]}", "unknown field 'fold'.* of family 'mine' in families.yaml.*folds"),
        ("  folds: {norm: [q, upp]}", "unknown role 'upp'.*did you mean 'up'"),
        ("  folds: {norm: [down]}", "folds of norm: no linear has role down"),
        ("  fused: [q]", "family 'mine' of families.yaml: fused = "),
        ("  sizes: {block: [hidden_size]}", "family 'mine' of families.yaml: sizes"),
        ("  norm_offset: one", "norm_offset = 'one'"),
        ("  experts: {at: mlp, stored: apart, gate: gated}", "experts.stored = 'apart'"),
        ("  caching: {rate: much, units: []}", "family 'mine' of families.yaml: caching.rate = 'much'"),
        ("  caching: {rate: {value: 1.0, gates: 1}, units: []}", "units = 0 entries: one for each of model.layers"),
        ("  router: [", "families.yaml is not YAML: "),
    ],
)
def test_what_is_wrong_is_named(line, words):
    with pytest.raises(UsageError, match=words):
        read_families(f"{ROW}{line}\n")
