"""One decoder layer of the DETR type: learned queries look at tokens (patches of a picture) and take away what they need.

    t ← 0                                                                  one target token for each query
    t ← t + A_self(q = k = norm(t) + e, v = norm(t))                       only with `self_attention`
    t ← t + A_cross(q = norm₁(t) + e, k = m + p, v = m)                    e query codes, m tokens, p codes of their places
    t ← t + W₂ relu(W₁ norm₃(t));      out = norm(t)

Places go to the keys only: what is taken away does not say where it was. Carion et al. 2020 (DETR, arXiv:2005.12872); with zero
targets and one layer Adeli, Sun & Kriegeskorte 2025, arXiv:2505.17329. Their code leaves out the self-attention among queries
that the paper's figure and DETR have, and so does the default here: in a first layer the targets are zero, so that its values
norm(0) are one learned vector, and it adds the same vector to every query, whatever the picture. The dropout of attention weights
is left out; that of what is added to t is as in the paper.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from neuropil.errors import Refused
from neuropil.nn.attention import MultiHead
from neuropil.nn.checks import at_least, finite, fits
from neuropil.nn.mlp import MLP


class KeyedHead(MultiHead):
    """`MultiHead` whose keys and values are made of different things: `memory` holds both side by side, (b, m, 2 d).

    >>> keys, values = torch.randn(3, 7, 8), torch.randn(3, 7, 8)
    >>> KeyedHead(8, heads=2)(torch.randn(3, 5, 8), torch.cat([keys, values], -1)).shape
    torch.Size([3, 5, 8])
    """

    def project(
        self, x: Float[Tensor, "b n d"], memory: Float[Tensor, "b m e"]
    ) -> tuple[Float[Tensor, "b h n c"], Float[Tensor, "b h m c"], Float[Tensor, "b h m c"]]:
        """Queries, keys and values of each head."""
        fits("x", x, self.query.in_features, self.query.weight)
        fits("memory", memory, 2 * self.key.in_features, self.key.weight)
        keys, values = memory.chunk(2, -1)
        q, k, v = (
            w(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for w, y in ((self.query, x), (self.key, keys), (self.value, values))
        )
        return q, k, v


class QueryDecoderLayer(nn.Module):
    """Queries attend over tokens: one layer of pre-norm cross-attention and feed-forward, without the last norm.

    Args:
        d, heads: width of queries and tokens, and heads that divide it.
        hidden: units of the feed-forward net.
        dropout: of what the two halves add, and of the hidden units.
        self_attention: queries first attend to one another.

    Sites (see `nn.sites`): ``cross_attention.pattern`` (b, heads, q, m) is where each query looks; rows sum to 1. 4 d² + 2 d hidden
    numbers (8 d² with self-attention); O(b m d (d + q) + b q d hidden) time. `Refused` for bad sizes or what does not fit.

    >>> layer = QueryDecoderLayer(8, heads=2, hidden=16)
    >>> target, codes = torch.zeros(3, 5, 8), torch.randn(5, 8)
    >>> layer(target, torch.randn(3, 49, 8), query_pos=codes, pos=torch.randn(49, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, d: int, heads: int, hidden: int, dropout: float = 0.1, self_attention: bool = False) -> None:
        super().__init__()
        at_least(1, d=d)
        if hidden < 1 or not 0 <= dropout < 1:
            raise Refused(f"hidden, dropout: at least 1 unit and a share in [0, 1) are needed, got {hidden} and {dropout}")
        self.self_norm = nn.LayerNorm(d) if self_attention else None
        self.self_attention = KeyedHead(d, heads) if self_attention else None
        self.cross_norm, self.cross_attention = nn.LayerNorm(d), KeyedHead(d, heads)
        self.feedforward_norm, self.feedforward = nn.LayerNorm(d), MLP([d, hidden, d], "relu", dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                nn.init.xavier_uniform_(weight)
            elif "norm" not in name:
                nn.init.zeros_(weight)

    def forward(
        self,
        target: Float[Tensor, "b q d"],
        memory: Float[Tensor, "b m d"],
        query_pos: Float[Tensor, "q d"],
        pos: Float[Tensor, "*#b m d"] | None = None,
        mask: Bool[Tensor, "#b #q #m"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """`query_pos` are the queries' codes, `pos` those of the tokens' places; `mask` is True where a query may look."""
        for name, x in (("target", target), ("memory", memory), ("query_pos", query_pos), ("pos", memory if pos is None else pos)):
            fits(name, x, self.cross_norm.normalized_shape[0], self.cross_norm.weight)
        finite("target", target)
        finite("query_pos", query_pos)
        if pos is not None:
            finite("pos", pos)
        t = target
        if self.self_norm is not None and self.self_attention is not None:
            x = self.self_norm(t)
            t = t + self.dropout(self.self_attention(x + query_pos, torch.cat([x + query_pos, x], -1)))
        keys = memory if pos is None else memory + pos
        looked = self.cross_attention(self.cross_norm(t) + query_pos, torch.cat([keys, memory], -1), mask)
        t = t + self.dropout(looked)
        return t + self.dropout(self.feedforward(self.feedforward_norm(t)))
