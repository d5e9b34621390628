"""Softmax attention in three uses: read-out (`attend`), learned heads (`MultiHead`), pooling of a bag (`AttentionPool`).

attend(Q, K, V) = softmax(β Q Kᵀ) V                        β = 1/√d unless given
pool(h)         = Σᵢ aᵢ hᵢ,   a = softmax(wᵀ tanh(V h))    Ilse, Tomczak & Welling 2018, arXiv:1802.04712, eq. 7–8
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from neuropil.errors import Refused
from neuropil.nn.checks import fits, looks, numbers, same_kind, some
from neuropil.nn.sites import Site


def attend(
    query: Float[Tensor, "*batch q d"],
    key: Float[Tensor, "*#batch k d"],
    value: Float[Tensor, "*#batch k v"],
    beta: float | Float[Tensor, ""] | None = None,
    mask: Bool[Tensor, "*#batch #q #k"] | None = None,
    dropout: float = 0.0,
    names: tuple[str, str] = ("query", "key"),
) -> Float[Tensor, "*batch q v"]:
    """``softmax(β Q Kᵀ) V``; `mask` is True where a query may look, and a query that may look nowhere gets zeros.

    `beta` is a number or a learnable scalar tensor (default 1/√d); `dropout` is the share of associations
    that are dropped. O(q k (d + v)) time; memory O(q k) on the CPU with a mask,
    less where torch has a fused kernel. Raises `Refused` for shapes that do not fit, a mask that is not boolean,
    or NaN in queries or keys alone, which it calls by `names`: whoever makes them need not look for it, too.

    >>> eye = torch.eye(3)
    >>> attend(eye, eye, torch.tensor([[1.0], [2.0], [3.0]]), beta=50.0)
    tensor([[1.],
            [2.],
            [3.]])
    """
    if min(query.ndim, key.ndim, value.ndim) < 2 or query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        raise Refused(f"query, key, value: got shapes {shapes}; needed are (…, q, d), (…, k, d), (…, k, v)")
    if mask is not None and mask.dtype != torch.bool:
        raise Refused(f"mask: must be boolean (True = may look), got {mask.dtype}")
    same_kind("key", key, query)
    same_kind("value", value, query)
    if looks(value) and not value.detach().sum().isnan():  # NaN there comes out, of other NaN torch may make numbers
        numbers(names[0], query)
        numbers(names[1], key)
    if isinstance(beta, Tensor):
        query, beta = beta * query, 1.0
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=beta)


class MultiHead(nn.Module):
    """``concat_h attend(x Wq_h, m Wk_h, m Wv_h) Wo``: `heads` attentions side by side, each on d_model/heads features.

    `d_memory` is the width of what is attended to (default d_model). O(d_model²) parameters, O(n m d_model) time.
    Raises `Refused` if `heads` does not divide `d_model`, for what does not fit, or as `attend`.

    Sites (see `nn.sites`), all (b, heads, …): q, k, v (…, n, d_model/heads); scores β q kᵀ before the mask, and pattern, their
    softmax (…, n, m); z, pattern · v. While scores or pattern are recorded or overridden they are formed, O(b heads n m) memory;
    else a fused kernel runs.

    >>> MultiHead(8, heads=2)(torch.randn(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, d_model: int, heads: int, d_memory: int | None = None, bias: bool = True) -> None:
        super().__init__()
        if heads < 1 or d_model < 1 or d_model % heads:
            raise Refused(f"heads: must be a positive divisor of d_model={d_model}, got {heads}")
        self.heads = heads
        self.query = nn.Linear(d_model, d_model, bias)
        self.key = nn.Linear(d_memory or d_model, d_model, bias)
        self.value = nn.Linear(d_memory or d_model, d_model, bias)
        self.out = nn.Linear(d_model, d_model, bias)
        self.q, self.k, self.v, self.scores, self.pattern, self.z = (Site() for _ in range(6))

    def project(
        self, x: Float[Tensor, "b n d"], memory: Float[Tensor, "b m e"]
    ) -> tuple[Float[Tensor, "b h n c"], Float[Tensor, "b h m c"], Float[Tensor, "b h m c"]]:
        """Queries, keys and values of each head: what a subclass changes to bring in positions."""
        fits("x", x, self.query.in_features, self.query.weight)
        fits("memory", memory, self.key.in_features, self.key.weight)
        q, k, v = (
            w(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # b h n d/h
            for w, y in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        return q, k, v

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        memory: Float[Tensor, "b m e"] | None = None,
        mask: Bool[Tensor, "#b #n #k"] | None = None,
        beta: float | Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Attend from `x` to `memory` (default `x` itself); `mask` is True where a position may look, the same for all heads."""
        fits("x", x, self.query.in_features, self.query.weight)
        names = ("query of x", f"key of {'x' if memory is None else 'memory'}")
        memory = x if memory is None else memory
        q, k, v = self.project(x, memory)
        q, k, v = self.q(q), self.k(k), self.v(v)
        mask = None if mask is None else mask.unsqueeze(1)
        if self.scores.watched or self.pattern.watched:
            scores = self.scores((q.shape[-1] ** -0.5 if beta is None else beta) * q @ k.mT)
            z = self.pattern(masked_softmax(scores, mask)) @ v
        else:
            z = attend(q, k, v, beta, mask, names=names)
        return self.out(self.z(z).transpose(1, 2).flatten(2))


def masked_softmax(scores: Float[Tensor, "*b q k"], mask: Bool[Tensor, "*#b #q #k"] | None) -> Float[Tensor, "*b q k"]:
    """softmax over the keys where `mask` is True; a query that may look nowhere gets zeros, and its gradient is zero, too.

    >>> masked_softmax(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))
    tensor([[1., 0.],
            [0., 0.]])
    """
    if mask is None:
        return scores.softmax(-1)
    some = mask.any(-1, keepdim=True)
    return scores.masked_fill(~mask & some, float("-inf")).softmax(-1).masked_fill(~some, 0.0)


class AttentionPool(nn.Module):
    """``Σᵢ aᵢ hᵢ`` with ``a = softmax(wᵀ tanh(V h))``: a permutation-invariant, weighted mean of a bag (Ilse et al. 2018, eq. 7–8).

    `heads` independent w's give `heads` means, concatenated. `hidden` is the width of V. O(n d hidden) time per bag.

    >>> AttentionPool(4, hidden=8)(torch.randn(2, 7, 4)).shape
    torch.Size([2, 4])
    """

    def __init__(self, d: int, hidden: int, heads: int = 1) -> None:
        super().__init__()
        for name, size in (("d", d), ("hidden", hidden), ("heads", heads)):
            if size < 1:
                raise Refused(f"{name}: must be at least 1, got {size}")
        self.V = nn.Linear(d, hidden, bias=False)
        self.w = nn.Linear(hidden, heads, bias=False)

    def weights(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b heads n"]:
        """The aᵢ of each head: they sum to 1 over the bag and are 0 where `mask` is False. An empty bag is `Refused`."""
        fits("x", x, self.V.in_features, self.V.weight)
        some("x", x, 1)
        score = self.w(torch.tanh(self.V(x))).transpose(1, 2)
        if mask is not None:
            score = score.masked_fill(~members(x, mask)[:, None], float("-inf"))
        return score.softmax(-1)

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b m"]:
        """The pooled bags; elements where `mask` is False have no influence, unless they are not finite."""
        return (self.weights(x, mask) @ x).flatten(1)


def mean_pool(x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b d"]:
    """``(1/|S|) Σ_{i∈S} xᵢ``, with S where `mask` is True (default: everywhere). An empty bag is `Refused`. O(b n d).

    >>> mean_pool(torch.tensor([[[1.0], [3.0], [99.0]]]), torch.tensor([[True, True, False]]))
    tensor([[2.]])
    """
    some("x", x, 1)
    if mask is None:
        return x.mean(1)
    member = members(x, mask)[..., None]
    return x.masked_fill(~member, 0).sum(1) / member.sum(1)


def members(x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
    """The mask, if it is boolean, fits and leaves no bag empty (on a GPU this look costs one synchronisation, compiled none).

    >>> members(torch.ones(1, 2, 3), torch.tensor([[True, False]]))
    tensor([[ True, False]])
    """
    if mask.dtype != torch.bool or mask.shape != x.shape[:2]:
        raise Refused(f"mask: must be boolean of shape {tuple(x.shape[:2])}, got {mask.dtype} of {tuple(mask.shape)}")
    if not torch.compiler.is_compiling() and not bool(mask.any(1).all()):
        raise Refused(f"mask: every bag needs a member, bag {int(mask.any(1).int().argmin())} has none")
    return mask
