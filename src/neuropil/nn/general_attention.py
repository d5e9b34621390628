"""Attention with every choice open: how keys are scored, how scores become weights, and what is expected of keys beforehand.

    e = align(Q, K) + log p,    a = distribute(e),    out = a V          (Chaudhari et al. 2021, arXiv:1904.02874; p is the prior)

    align        scaled-dot  q·k / √d        dot  q·k        cosine  q·k / ‖q‖‖k‖        distance  −‖q − k‖² / 2√d
                 `Bilinear`  φ(qᵀ(W k + b))                                                 (Luong et al. 2015, arXiv:1508.04025)
                 `Additive`  wᵀ tanh(U q + W k + b)                                      (Bahdanau et al. 2015, arXiv:1409.0473)
    distribute   softmax
                 sparsemax   argmin_{a ∈ Δ} ‖a − e‖² = [e − τ]₊                (Martins & Astudillo 2016, arXiv:1602.02068)
                 entmax15    argmax_{a ∈ Δ} a·e + (4/3) Σ (a − a^1.5) = [e/2 − τ]₊²  (Peters et al. 2019, arXiv:1905.05702)
                 sigmoid     each key by itself: no sum                        `top_k`   softmax over the k best, zero elsewhere
                 `gumbel`    a sample: soft, or one key with the soft gradient (see `nn.choice`)
    prior        `Alibi`     −s |i − j|, s = 2^(−8h/H)                              (Press et al. 2022, arXiv:2108.12409)
                 `RelativePositions`    b_{h, i−j}, learned

With the defaults it is `nn.attention.attend`, which has a fused kernel and should be used there. Weights are formed here: O(q k)
memory. Masked keys have weight 0 exactly, and a query that may look nowhere gets zeros.
"""

import functools
import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from neuropil.errors import Refused, choose
from neuropil.nn.attention import MultiHead
from neuropil.nn.checks import at_least, fits, looks, same_kind, some
from neuropil.nn.choice import gumbel_simplex

Align = Callable[[Tensor, Tensor], Tensor]
Distribute = Callable[[Tensor], Tensor]


def attend_by(
    query: Float[Tensor, "*batch q d"],
    key: Float[Tensor, "*#batch k e"],
    value: Float[Tensor, "*#batch k v"],
    align: str | Align = "scaled-dot",
    distribute: str | Distribute = "softmax",
    prior: Float[Tensor, "*#batch #q #k"] | None = None,
    mask: Bool[Tensor, "*#batch #q #k"] | None = None,
    factor: Float[Tensor, "*#batch #q #k"] | None = None,
) -> Float[Tensor, "*batch q v"]:
    """``distribute(align(Q, K) + prior) V``; `mask` is True where a query may look.

    Args:
        query, key, value: as for `nn.attention.attend`; `key` has another width only for an `align` that takes it.
        align: a name in `ALIGN`, or a function of queries and keys to scores (…, q, k).
        distribute: a name in `DISTRIBUTE`, or a function of scores to weights along the last axis that gives −inf the weight 0.
        prior: added to the scores, log p: for softmax, weights ∝ p exp(score).
        factor: ≥ 0, multiplies the weights, which are then scaled to their old sum: a prior that acts alike on every `distribute`.

    O(q k (d + v)) time and O(q k) memory, `Additive` O(q k hidden). `Refused` for unknown names or shapes that do not fit.

    >>> eye = torch.eye(3)
    >>> attend_by(2 * eye, eye, torch.tensor([[1.0], [2.0], [3.0]]), "dot", "sparsemax")
    tensor([[1.],
            [2.],
            [3.]])
    """
    if min(query.ndim, key.ndim, value.ndim) < 2 or key.shape[-2] != value.shape[-2]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        raise Refused(f"query, key, value: got shapes {shapes}; needed are (…, q, d), (…, k, d), (…, k, v)")
    return weigh(_align(align)(query, key), distribute, prior, mask, factor).to(value) @ value


def weigh(
    scores: Float[Tensor, "*batch q k"],
    distribute: str | Distribute = "softmax",
    prior: Float[Tensor, "*#batch #q #k"] | None = None,
    mask: Bool[Tensor, "*#batch #q #k"] | None = None,
    factor: Float[Tensor, "*#batch #q #k"] | None = None,
) -> Float[Tensor, "*batch q k"]:
    """The weights a of `attend_by`, from the scores.

    >>> weigh(torch.zeros(2, 2), mask=torch.tensor([[True, False], [False, False]]))
    tensor([[1., 0.],
            [0., 0.]])
    """
    spread = DISTRIBUTE[choose("distribute", distribute, DISTRIBUTE)] if isinstance(distribute, str) else distribute
    if prior is not None:
        scores = scores + prior
    if mask is not None:
        if mask.dtype != torch.bool:
            raise Refused(f"mask: must be boolean (True = may look), got {mask.dtype}")
        some = mask.any(-1, keepdim=True)  # a row of −inf alone would be NaN
        weights = spread(scores.masked_fill(~mask & some, -math.inf)).masked_fill(~mask, 0.0)
    else:
        weights = spread(scores)
    if factor is None:
        return weights
    scaled = weights * factor
    total = scaled.sum(-1, keepdim=True)
    return scaled / total.where(total > 0, 1.0) * weights.sum(-1, keepdim=True)


# --- align ---------------------------------------------------------------------------------------------------------------------


def dot(query: Float[Tensor, "*b q d"], key: Float[Tensor, "*#b k d"], scale: float | None = 1.0) -> Float[Tensor, "*b q k"]:
    """``scale q·k``; None is 1/√d.

    >>> dot(torch.ones(1, 4), torch.ones(1, 4), scale=None)
    tensor([[2.]])
    """
    _same_width(query, key)
    return (query.shape[-1] ** -0.5 if scale is None else scale) * query @ key.mT


def cosine(query: Float[Tensor, "*b q d"], key: Float[Tensor, "*#b k d"], scale: float = 1.0) -> Float[Tensor, "*b q k"]:
    """``scale q·k / ‖q‖‖k‖``, 0 for a zero vector.

    >>> cosine(torch.tensor([[3.0, 4.0]]), torch.tensor([[6.0, 8.0], [4.0, -3.0]]))
    tensor([[1., 0.]])
    """
    _same_width(query, key)
    return scale * normalize(query, dim=-1) @ normalize(key, dim=-1).mT


def distance(query: Float[Tensor, "*b q d"], key: Float[Tensor, "*#b k d"], scale: float | None = None) -> Float[Tensor, "*b q k"]:
    """``−scale ‖q − k‖²``; None is 1/2√d, so that for keys of one length the softmax is that of the scaled dot product.

    >>> distance(torch.zeros(1, 4), torch.ones(1, 4))
    tensor([[-1.]])
    """
    _same_width(query, key)
    squares = query.square().sum(-1)[..., :, None] + key.square().sum(-1)[..., None, :]
    return (0.5 * query.shape[-1] ** -0.5 if scale is None else scale) * (2 * query @ key.mT - squares)


class Bilinear(nn.Module):
    """``φ(qᵀ (W k + b))``: W is (d, e) for queries of width d and keys of width e, and starts near I/√d where it can.

    `bias` adds b ("biased general"), `activation` a φ ("activated general"). O(k d e + q k d).

    >>> Bilinear(4, 3)(torch.randn(2, 5, 4), torch.randn(2, 6, 3)).shape
    torch.Size([2, 5, 6])
    """

    def __init__(self, d: int, e: int | None = None, bias: bool = False, activation: nn.Module | None = None) -> None:
        super().__init__()
        at_least(1, d=d, e=e or d)
        self.weigh = nn.Linear(e or d, d, bias)
        self.activation = activation or nn.Identity()
        with torch.no_grad():
            self.weigh.weight.mul_(0.1).add_(torch.eye(d, e or d) * d**-0.5)

    def forward(self, query: Float[Tensor, "*b q d"], key: Float[Tensor, "*#b k e"]) -> Float[Tensor, "*b q k"]:
        """Scores."""
        fits("query", query, self.weigh.out_features, self.weigh.weight)
        fits("key", key, self.weigh.in_features, self.weigh.weight)
        return self.activation(query @ self.weigh(key).mT)


class Additive(nn.Module):
    """``wᵀ tanh(U q + W k + b)``, the same as wᵀ tanh([U W][q; k] + b) ("concat"). O(q k hidden) time and memory.

    >>> Additive(4, 3, hidden=8)(torch.randn(2, 5, 4), torch.randn(2, 6, 3)).shape
    torch.Size([2, 5, 6])
    """

    def __init__(self, d: int, e: int | None = None, hidden: int = 32) -> None:
        super().__init__()
        at_least(1, d=d, e=e or d, hidden=hidden)
        self.of_query, self.of_key = nn.Linear(d, hidden, bias=False), nn.Linear(e or d, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, query: Float[Tensor, "*b q d"], key: Float[Tensor, "*#b k e"]) -> Float[Tensor, "*b q k"]:
        """Scores."""
        fits("query", query, self.of_query.in_features, self.of_query.weight)
        fits("key", key, self.of_key.in_features, self.of_key.weight)
        return self.score(torch.tanh(self.of_query(query)[..., :, None, :] + self.of_key(key)[..., None, :, :])).squeeze(-1)


def _same_width(query: Tensor, key: Tensor) -> None:
    some("query", query)
    same_kind("key", key, query)
    if query.shape[-1] != key.shape[-1]:
        raise Refused(f"key: needs the width of the query, {query.shape[-1]}, got {key.shape[-1]} (Bilinear, Additive take others)")


ALIGN: dict[str, Align] = {"scaled-dot": functools.partial(dot, scale=None), "dot": dot, "cosine": cosine, "distance": distance}


def _align(align: str | Align) -> Align:
    return ALIGN[choose("align", align, ALIGN)] if isinstance(align, str) else align


# --- distribute ----------------------------------------------------------------------------------------------------------------


def sparsemax(scores: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
    """The point of the simplex nearest to the scores: ``[e − τ]₊``, τ such that it sums to 1. O(n log n).

    τ = (Σ_S e − 1) / |S| over the support S, the longest beginning of the sorted scores whose last one is above its own τ.

    >>> sparsemax(torch.tensor([0.5, 0.25, -1.0]))
    tensor([0.6250, 0.3750, 0.0000])
    """
    e = _from_the_top(scores)
    with torch.no_grad():
        order = e.sort(-1, descending=True).values
        k = torch.arange(1, e.shape[-1] + 1, device=e.device, dtype=e.dtype)
        least = order.gather(-1, (order > (order.cumsum(-1) - 1) / k).sum(-1, keepdim=True) - 1)
        S = e >= least
    tau = ((e * S).sum(-1, keepdim=True) - 1) / S.sum(-1, keepdim=True)
    return (e - tau).where(S, 0.0)  # not clamp_min: its slope at 0 is 1, and what was cut at −1 can lie there


def entmax15(scores: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
    """1.5-entmax, between softmax and sparsemax: ``[e/2 − τ]₊²``, τ such that it sums to 1. O(n log n).

    With x = e/2 and M, D the mean and the sum of squared deviations over the support S: τ = M − √((1 − D) / |S|).

    >>> entmax15(torch.tensor([1.0, 1.0, -1.0]))
    tensor([0.5000, 0.5000, 0.0000])
    """
    x = _from_the_top(scores / 2)
    with torch.no_grad():
        order = x.sort(-1, descending=True).values
        k = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
        M = order.cumsum(-1) / k
        D = order.square().cumsum(-1) - k * M.square()
        taus = M - ((1 - D) / k).clamp_min(0).sqrt()
        S = x >= order.gather(-1, (order > taus).sum(-1, keepdim=True) - 1)
    size = S.sum(-1, keepdim=True)
    M = (x * S).sum(-1, keepdim=True) / size
    D = ((x - M).square() * S).sum(-1, keepdim=True)
    tau = M - ((1 - D) / size).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
    return (x - tau).clamp_min(0).square()


def _from_the_top(e: Tensor) -> Tensor:
    """e − max e, cut at −1: what is lower has weight 0 in both maps, −inf too. In float32 at least."""
    if not e.shape[-1] or (looks(e) and not bool(e.detach().amax(-1).isfinite().all())):
        raise Refused("scores (of x, or query, key and prior): every row needs a finite maximum, got none, NaN or infinity")
    e = e.to(torch.promote_types(e.dtype, torch.float32))
    return (e - e.detach().amax(-1, keepdim=True)).clamp_min(-1)


def top_k(k: int) -> Distribute:
    """Softmax over the k best keys (one of equals is chosen), zero elsewhere; over all if there are fewer.

    >>> top_k(2)(torch.tensor([0.0, 3.0, 3.0]))
    tensor([0.0000, 0.5000, 0.5000])
    """
    if k < 1:
        raise Refused(f"k: must be at least 1, got {k}")

    def hard(scores: Tensor) -> Tensor:
        best = scores.topk(min(k, scores.shape[-1]), -1)
        return torch.zeros_like(scores).scatter(-1, best.indices, best.values.softmax(-1).to(scores))

    return hard


def gumbel(tau: float = 1.0, hard: bool = True, generator: torch.Generator | None = None) -> Distribute:
    """A key at random, with the probabilities of softmax; see `nn.choice.gumbel_simplex`.

    >>> gumbel()(torch.tensor([0.0, 50.0]))
    tensor([0., 1.])
    """
    return functools.partial(gumbel_simplex, tau=tau, hard=hard, generator=generator)


DISTRIBUTE: dict[str, Distribute] = {
    "softmax": functools.partial(torch.softmax, dim=-1),
    "sparsemax": sparsemax,
    "entmax15": entmax15,
    "sigmoid": torch.sigmoid,
}


# --- prior ---------------------------------------------------------------------------------------------------------------------


def _between(queries: int, keys: int, device: str | torch.device) -> Tensor:
    """i − j, where the last query stands at the last key."""
    j = torch.arange(keys, device=device)
    return torch.arange(keys - queries, keys, device=device)[:, None] - j


class Alibi(nn.Module):
    """The log-prior −s_h |i − j| with s_h = 2^(−8 h / heads), h = 1 … heads; nothing is learned. O(heads q k).

    >>> Alibi(8)(1, 3)[0]
    tensor([[-1.0000, -0.5000, -0.0000]])
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        if heads < 1:
            raise Refused(f"heads: must be at least 1, got {heads}")
        self.register_buffer("slopes", 2.0 ** (-8 / heads * torch.arange(1, heads + 1)), persistent=False)

    def forward(self, queries: int, keys: int) -> Float[Tensor, "h q k"]:
        """The prior for the last `queries` of `keys` positions."""
        if min(queries, keys) < 0:
            raise Refused(f"queries, keys: must be at least 0, got {queries} and {keys}")
        slopes: Tensor = self.get_buffer("slopes")
        return -slopes[:, None, None] * _between(queries, keys, slopes.device).abs()


class RelativePositions(nn.Module):
    """A learned log-prior b_{h, i−j} for each head; distances beyond `reach` count as `reach`. It starts at 0. O(heads q k).

    >>> RelativePositions(2, reach=4)(5, 5).shape
    torch.Size([2, 5, 5])
    """

    def __init__(self, heads: int, reach: int) -> None:
        super().__init__()
        if heads < 1 or reach < 0:
            raise Refused(f"heads, reach: at least 1 and 0 are needed, got {heads} and {reach}")
        self.reach, self.bias = reach, nn.Parameter(torch.zeros(heads, 2 * reach + 1))

    def forward(self, queries: int, keys: int) -> Float[Tensor, "h q k"]:
        """The prior for the last `queries` of `keys` positions."""
        if min(queries, keys) < 0:
            raise Refused(f"queries, keys: must be at least 0, got {queries} and {keys}")
        between = _between(queries, keys, self.bias.device).clamp(-self.reach, self.reach)
        return self.bias[:, between + self.reach]


class GeneralAttention(MultiHead):
    """`MultiHead` whose every head attends by `align`, `distribute` and `prior` of `attend_by`.

    Args:
        d, heads: width and number of heads.
        align: a name, or a module on queries and keys (b, heads, …, d/heads), the same for all heads.
        prior: a module called with the numbers of queries and keys, such as `Alibi` or `RelativePositions`.

    Sites are those of `MultiHead`; scores are those before prior and mask. As a layer of `nn.transformer.Transformer`:
    ``attention=lambda d, heads, positions, context: GeneralAttention(d, heads, …)``, and as `Block`'s attention.

    >>> GeneralAttention(8, 2, "cosine", "entmax15", prior=RelativePositions(2, reach=4))(torch.randn(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        d: int,
        heads: int,
        align: str | Align = "scaled-dot",
        distribute: str | Distribute = "softmax",
        prior: nn.Module | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__(d, heads, bias=bias)
        self.align, self.prior = _align(align), prior
        self.distribute = DISTRIBUTE[choose("distribute", distribute, DISTRIBUTE)] if isinstance(distribute, str) else distribute

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        memory: Float[Tensor, "b m d"] | None = None,
        mask: Bool[Tensor, "#b #n #k"] | None = None,
        beta: float | Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Attend from `x` to `memory` (default `x` itself); `mask` is True where one may look; `beta` multiplies the scores."""
        q, k, v = self.project(x, x if memory is None else memory)
        q, k, v = self.q(q), self.k(k), self.v(v)
        scores = self.scores(self.align(q, k) if beta is None else beta * self.align(q, k))
        prior = None if self.prior is None else self.prior(q.shape[-2], k.shape[-2])[None]
        weights = self.pattern(weigh(scores, self.distribute, prior, None if mask is None else mask.unsqueeze(1)))
        return self.out(self.z(weights.to(v) @ v).transpose(1, 2).flatten(2))
