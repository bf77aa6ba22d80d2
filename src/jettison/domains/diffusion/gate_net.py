"""The pruner network of DiP-GO: a learned query for every unit at every step, which becomes a gate."""

from typing import Literal

import torch
from torch import nn

from jettison.core.errors import unknown

ENCODERS = ("attention", "linear", "released")
Encoder = Literal["attention", "linear", "released"]


class GateNet(nn.Module):
    """Maps queries to gates: one encoder layer over all queries, then a head that says skip or keep.

    calls, units: of the program.
    width: of the queries.
    encoder: ``attention``: self-attention over all queries with an MLP. ``linear``: a layer for every query alone.
        ``released``: none; the encoder layer of the published code returns its input.
    Every query has a last layer of its own, with weight 0 and a bias of 1 to keep: all gates begin open.
    Source: arXiv:2410.16942, section 3; that hidden layers are shared by all queries, and last layers are not, is our
    reading.
    """

    def __init__(self, calls: int, units: int, width: int = 512, encoder: Encoder = "attention", seed: int = 0):
        super().__init__()
        if encoder not in ENCODERS:
            raise unknown("encoder", encoder, ENCODERS)
        self.shape, queries = (calls, units), calls * units
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.queries = nn.Parameter(torch.randn(queries, width))
            heads = max(heads for heads in (8, 4, 2, 1) if width % heads == 0)
            self.encoder = {
                "attention": lambda: nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True),
                "linear": lambda: nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)),
                "released": nn.Identity,
            }[encoder]()
            self.hidden = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.last_weight = nn.Parameter(torch.zeros(queries, width, 2))
        self.last_bias = nn.Parameter(torch.tensor([0.0, 1.0]).repeat(queries, 1))

    def forward(self) -> torch.Tensor:
        """Return the logits to skip and to keep, (calls, units, 2)."""
        hidden = self.hidden(self.encoder(self.queries[None])[0])  # (queries, width)
        logits = torch.einsum("qw,qwc->qc", hidden, self.last_weight) + self.last_bias
        return logits.view(*self.shape, 2)

    @torch.no_grad()
    def scores(self) -> torch.Tensor:
        """Return the logit of the probability to keep, (calls, units): keep minus skip."""
        logits = self()
        return logits[..., 1] - logits[..., 0]


def straight_through(logits: torch.Tensor) -> torch.Tensor:
    """Return gates: 1 where keep is at least as probable as skip, with the gradient of that probability.

    logits: (calls, units, 2). The gates of the first call are open, without a gradient. Returns (calls, units).
    """
    keep = logits.softmax(-1)[..., 1]
    hard = (keep >= 0.5).to(keep.dtype)
    gates = hard + (keep - keep.detach())
    return torch.cat([torch.ones_like(gates[:1]), gates[1:]])
