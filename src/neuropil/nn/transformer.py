"""Small pre-norm transformers whose every value has a name: `Transformer` from vectors to vectors, `GPT` from tokens to logits.

    x ← x + attention(norm(x));   x ← x + mlp(norm(x)), unless there is no MLP            Xiong et al. 2020, arXiv:2002.04745

Positions (one of `POSITIONS`) come in through queries and keys, or the vectors:

    rotary     q_n ← R(n) q_n, k_n ← R(n) k_n: feature pairs turned by angles ∝ n            Su et al. 2021, arXiv:2104.09864
    attended   q = W_q (x + p), k = W_k (x + p), v = W_v x: vectors carry no position        Press et al. 2021, arXiv:2012.15832
    learned    x ← x + p before the first layer
    none

Sites (see `nn.sites`) of layer i: ``layers.i`` the residual stream after it, ``layers.i:in`` before it, ``layers.i.middle`` between
its halves; ``layers.i.attention`` and ``layers.i.mlp`` what they add; ``layers.i.attention.pattern`` and others of `MultiHead`;
``layers.i.mlp.1`` the MLP's units. Those of `GPT`: also ``embed``, ``norm`` and ``unembed``.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from neuropil.errors import Refused, choose
from neuropil.nn.attention import MultiHead
from neuropil.nn.checks import at_least, fits, within
from neuropil.nn.mlp import MLP
from neuropil.nn.sites import Site

POSITIONS = ("rotary", "attended", "learned", "none")


def rotate(x: Float[Tensor, "*b n c"], base: float = 10_000.0) -> Float[Tensor, "*b n c"]:
    """R(n) x_n: the pair (i, i + c/2) of row n turned by n base^(−2i/c), so that ⟨R(n) q, R(m) k⟩ depends on m − n only.

    The angles are float32 at least. O(n c). `Refused` for an odd c.

    >>> rotate(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor([[1.0000, 0.0000],
            [0.5403, 0.8415]])
    """
    n, c = x.shape[-2:]
    if c % 2:
        raise Refused(f"x: rotary positions need an even number of features a head, got {c}")
    dtype = torch.promote_types(x.dtype, torch.float32)
    rates = base ** (-torch.arange(0, c, 2, device=x.device, dtype=dtype) / c)
    angle = torch.arange(n, device=x.device, dtype=dtype)[:, None] * rates
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(MultiHead):
    """Self-attention whose queries and keys know their positions.

    Args:
        d, heads: width and number of heads.
        positions: "rotary", "attended" (then with `context` learned vectors), or "learned" or "none": nothing is done here.
        context: how many positions there are at most.

    >>> Attention(8, heads=2, positions="rotary", context=5)(torch.randn(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, d: int, heads: int, positions: str, context: int, bias: bool = True) -> None:
        super().__init__(d, heads, bias=bias)
        self.positions = choose("positions", positions, POSITIONS)
        if positions == "rotary" and d // heads % 2:
            raise Refused(f"heads: rotary positions need an even number of features a head, got {d} / {heads}")
        self.place = nn.Parameter(0.5 * torch.randn(context, d)) if positions == "attended" else None

    def project(
        self, x: Float[Tensor, "b n d"], memory: Float[Tensor, "b m d"]
    ) -> tuple[Float[Tensor, "b h n c"], Float[Tensor, "b h m c"], Float[Tensor, "b h m c"]]:
        """Queries and keys with positions, values without."""
        if self.place is not None:
            placed_x, placed_memory = (y + self.place[: y.shape[1]] for y in (x, memory))
            read = ((self.query, placed_x), (self.key, placed_memory), (self.value, memory))
            q, k, v = (w(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w, y in read)
            return q, k, v
        q, k, v = super().project(x, memory)
        return (rotate(q), rotate(k), v) if self.positions == "rotary" else (q, k, v)


class Block(nn.Module):
    """One layer: ``x ← x + attention(norm(x))``, then ``x ← x + mlp(norm(x))`` if there is an MLP.

    `attention` is the module to use; `hidden` the MLP's width, 0 for none; without `norm` nothing is normalised.

    >>> Block(8, MultiHead(8, 2), hidden=16)(torch.randn(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, d: int, attention: nn.Module, hidden: int = 0, activation: str = "gelu", norm: bool = True) -> None:
        super().__init__()
        at_least(1, d=d)
        self.attention_norm = nn.LayerNorm(d) if norm else nn.Identity()
        self.attention = attention
        self.middle = Site()
        if hidden:
            self.mlp_norm = nn.LayerNorm(d) if norm else nn.Identity()
        self.mlp = MLP([d, hidden, d], activation) if hidden else None

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "#b #n #n"] | None = None) -> Float[Tensor, "b n d"]:
        """`mask` is True where a position may look."""
        if isinstance(self.attention_norm, nn.LayerNorm):
            fits("x", x, self.attention_norm.normalized_shape[0], self.attention_norm.weight)
        x = self.middle(x + self.attention(self.attention_norm(x), mask=mask))
        return x if self.mlp is None else x + self.mlp(self.mlp_norm(x))


def placed(
    x: Float[Tensor, "b n d"], mask: Bool[Tensor, "#b #n #n"] | None, place: Float[Tensor, "c d"] | None, context: int, causal: bool
) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "#b #n #n"] | None]:
    """How a transformer begins: x with the vectors of its positions, and the mask with what causality forbids.

    `Refused` for more than `context` positions.

    >>> placed(torch.zeros(1, 2, 3), None, torch.ones(4, 3), 4, causal=True)[1]
    tensor([[[ True, False],
             [ True,  True]]])
    """
    n = x.shape[1]
    if n > context:
        raise Refused(f"x: at most context = {context} positions, got {n}")
    if causal:
        earlier = torch.ones(1, n, n, dtype=torch.bool, device=x.device).tril()
        mask = earlier if mask is None else mask & earlier
    return x if place is None else x + place[:n], mask


class Transformer(nn.Module):
    """`layers` blocks over sequences of vectors, and a last norm.

    Args:
        d: width of the vectors.
        heads, layers: heads a layer, and how many layers.
        context: the longest sequence.
        positions: one of `POSITIONS`.
        hidden: width of each MLP; 0 makes it attention-only.
        causal: position n looks at positions ≤ n only.
        norm: layer norms; without them logits of an attention-only model are sums of products of weights and patterns.
        attention: ``attention(d, heads, positions, context)`` makes the attention of a layer, say a subclass of `Attention`.

    4 d² + 2 d hidden numbers a layer; O(n d (4 d + 2 hidden) + n² d) time a layer and sequence. `Refused` for sizes below 1, an
    unknown kind of positions, heads that do not divide d, or, when called, a sequence longer than `context`.

    >>> model = Transformer(8, heads=2, layers=2, context=5)
    >>> model(torch.randn(3, 4, 8)).shape
    torch.Size([3, 4, 8])
    """

    def __init__(
        self,
        d: int,
        heads: int,
        layers: int,
        context: int,
        *,
        positions: str = "rotary",
        hidden: int = 0,
        activation: str = "gelu",
        causal: bool = True,
        norm: bool = True,
        attention: Callable[[int, int, str, int], nn.Module] = Attention,
    ) -> None:
        super().__init__()
        for name, size in (("d", d), ("layers", layers), ("context", context)):
            if size < 1:
                raise Refused(f"{name}: must be at least 1, got {size}")
        choose("positions", positions, POSITIONS)
        self.context, self.causal = context, causal
        self.place = nn.Parameter(0.1 * torch.randn(context, d)) if positions == "learned" else None
        made = (attention(d, heads, positions, context) for _ in range(layers))
        self.layers = nn.ModuleList(Block(d, one, hidden, activation, norm) for one in made)
        self.norm = nn.LayerNorm(d) if norm else nn.Identity()

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "#b #n #n"] | None = None) -> Float[Tensor, "b n d"]:
        """`mask` is True where a position may look, beside what causality forbids."""
        if isinstance(self.norm, nn.LayerNorm):
            fits("x", x, self.norm.normalized_shape[0], self.norm.weight)
        x, mask = placed(x, mask, self.place, self.context, self.causal)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


class GPT(Transformer):
    """A causal language model: ``logits = unembed(transformer(embed(tokens)))``; attention-only unless `hidden` is given.

    `vocabulary` is the number of tokens, `outputs` of logits (default the same); further arguments are those of `Transformer`.

    >>> GPT(10, d=8, heads=2, layers=2, context=5)(torch.zeros(3, 4, dtype=torch.long)).shape
    torch.Size([3, 4, 10])
    """

    def __init__(
        self, vocabulary: int, d: int, heads: int, layers: int, context: int, *, outputs: int | None = None, **options: Any
    ) -> None:
        at_least(1, vocabulary=vocabulary, outputs=outputs or vocabulary)
        super().__init__(d, heads, layers, context, **options)
        self.embed = nn.Embedding(vocabulary, d)
        self.unembed = nn.Linear(d, outputs or vocabulary, bias=False)

    def forward(self, tokens: Int[Tensor, "b n"], mask: Bool[Tensor, "#b #n #n"] | None = None) -> Float[Tensor, "b n v"]:
        """Logits of the next token at every position."""
        if tokens.shape[1] > self.context:
            raise Refused(f"tokens: at most context = {self.context} positions, got {tokens.shape[1]}")
        within("tokens", tokens, self.embed.num_embeddings)
        return self.unembed(super().forward(self.embed(tokens), mask))
