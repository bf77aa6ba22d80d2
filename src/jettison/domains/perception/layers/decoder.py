"""Layers of a decoder as in DETR: queries attend to each other, then to an image, then every one for itself."""

from collections.abc import Sequence

from torch import Tensor, nn

from jettison.domains.perception.layers.steps import POINTS, Attention, DeformableAttention, FeedForward


class DecoderLayer(nn.Module):
    """A layer whose attention to the image is dense, or deformable if it is built with a number of levels.

    Source: arXiv:2005.12872, section 3.2 (dense, post-norm); arXiv:2010.04159, section 4.1 (deformable).
    """

    def __init__(
        self, width: int, heads: int, hidden: int, *, levels: int = 0, points: int = POINTS, before: bool = False
    ):
        super().__init__()
        self.self_attention = Attention(width, heads, before)
        if levels:
            self.cross_attention: nn.Module = DeformableAttention(width, heads, levels, points, before)
        else:
            self.cross_attention = Attention(width, heads, before)
        self.mlp = FeedForward(width, hidden, before)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | Sequence[Tensor],
        positions: Tensor | None = None,
        memory_positions: Tensor | None = None,
        references: Tensor | None = None,
        mask: Tensor | None = None,
        self_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the queries after the layer, (batch, queries, width).

        memory: tokens (batch, others, width); for deformable attention maps (batch, width, height, width of the map).
        positions, memory_positions: of queries and tokens, see ``Attention``.
        references: for deformable attention, see ``DeformableAttention``.
        mask, self_mask: for dense attention to the tokens and between the queries, see ``Attention``.
        """
        x = self.self_attention(x, positions=positions, mask=self_mask)
        if isinstance(self.cross_attention, DeformableAttention):
            x = self.cross_attention(x, memory, references, positions)
        else:
            x = self.cross_attention(x, memory, positions, memory_positions, mask)
        return self.mlp(x)
