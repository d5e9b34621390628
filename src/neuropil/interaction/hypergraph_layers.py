"""The named layers on hypergraphs, each a choice of f_VE and f_EV in the two-stage core of `message_passing`.

    HGNN        X' = D_v^{−½} H W D_e⁻¹ Hᵀ D_v^{−½} X Θ                                      Feng et al. 2019, arXiv:1809.09401
    HGNNPlus    X' = D_v⁻¹ H W D_e⁻¹ Hᵀ X Θ                                                  Gao et al. 2022, TPAMI 45:3181
    HyperGCN    X' = D̃^{−½} (A + I) D̃^{−½} X Θ, A the mediator graph of X Θ                  Yadati et al. 2019, arXiv:1809.02589
    HNHN        z_e = σ(Σ_v d_v^β x_v Θ_1 / Σ_v d_v^β), x' the same over edges with |e|^α    Dong et al. 2020, arXiv:2006.12278
    HypergraphAttention  a_ve = softmax_{e ∋ v} LeakyReLU(a · [t_v; z_e]) in place of H      Bai et al. 2021, arXiv:1901.08150
    UniGCN      x' = d_v^{−½} Σ_e d̄_e^{−½} h_e Θ,  h_e the mean of the members                Huang & Yang 2021, arXiv:2105.00956
    UniGAT      x' = Σ_e a_ve h_e Θ      UniSAGE  x' = (x + Σ_e h_e) Θ      UniGIN  x' = ((1 + ε) x + Σ_e h_e) Θ         (the same)
    AllDeepSets f(S) = MLP(Σ_{s ∈ S} MLP(s)) both ways                                       Chien et al. 2022, arXiv:2106.13264
    AllSetTransformer    f(S) = LN(Y + MLP(Y)), Y = LN(θ + Σ_s softmax_s(θ · K s) V s)       (the same)
    EDHNN       z_e = Σ φ(x_v), x' = ψ((1 − α) Σ_e ρ(x_v, z_e) + α x_0)                      Wang et al. 2023, arXiv:2207.06680
    WHATsNet    members attend to one another within each edge before it is told, and so do the edges of a node
                                                                                             Choe et al. 2023, arXiv:2306.03032
Every layer returns states before the outer activation σ; dropout and normalisation are the caller's. **The bias** of the five
linear layers and HyperGCN is part of Θ and so is smoothed with the features (``bias="before"``: the authors' and DeepHypergraph's
way), or is added after smoothing ("after"), or absent ("none"): different numbers wherever the rows of the operator do not add up
to 1. An isolated node gets zeros, but its own features in UniSAGE, UniGIN and (by x_0) ED-HNN, HyperGCN, and a bias "after".
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from neuropil.errors import Refused, choose
from neuropil.interaction.hypergraph import Hypergraph, Pairs
from neuropil.interaction.hypergraph_features import order_in_edge
from neuropil.interaction.message_passing import TwoStage, Weights, coefficients, covers, gcn_links, kept
from neuropil.nn.checks import at_least, fits
from neuropil.nn.mlp import MLP
from neuropil.nn.segments import segment_reduce

BIAS = ("before", "after", "none")


class Linear(nn.Module):
    """Θ and its bias, which is added before smoothing, after it, or not at all."""

    def __init__(self, d: int, out: int, bias: str) -> None:
        super().__init__()
        at_least(1, d=d, out=out)
        self.bias_at = choose("bias", bias, BIAS)
        self.weight = nn.Parameter(torch.empty(out, d))
        self.bias = None if bias == "none" else nn.Parameter(torch.zeros(out))
        nn.init.xavier_uniform_(self.weight)

    def before(self, x: Tensor) -> Tensor:
        """``x Θ``, with the bias if it comes before."""
        fits("x", x, self.weight.shape[1], self.weight)
        return nn.functional.linear(x, self.weight, self.bias if self.bias_at == "before" else None)

    def after(self, x: Tensor) -> Tensor:
        """What was smoothed, with the bias if it comes after."""
        return x + self.bias if self.bias is not None and self.bias_at == "after" else x


class Smoothing(TwoStage):
    """Linear layers: Θ, one fixed weighting to the edges and back, and 1 + ε times the node itself, if any."""

    weighting = "hgnn"
    eps: float | Tensor | None  # the node itself counts 1 + eps times

    def __init__(self, d: int, out: int, bias: str = "before", eps: float | Tensor | None = None) -> None:
        super().__init__()
        self.theta, self.eps = Linear(d, out, bias), eps

    def transform(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return self.theta.before(x)

    def f_VE(self, t: Float[Tensor, "n k"], h: Hypergraph) -> Float[Tensor, "m l"]:
        covers("t", t, h)
        return h.links.sum(t, *coefficients(h, self.weighting)[0])

    def f_EV(self, t: Float[Tensor, "n k"], z: Float[Tensor, "m l"], h: Hypergraph) -> Float[Tensor, "n o"]:
        covers("t", t, h)
        covers("z", z, h, side="edges")
        if self.eps is not None:
            fits("t", t, z.shape[1])
        x = h.links.back(z, *coefficients(h, self.weighting)[1])
        return self.theta.after(x if self.eps is None else x + (1 + self.eps) * t)


class HGNN(Smoothing):
    """``D_v^{−½} H W D_e⁻¹ Hᵀ D_v^{−½} X Θ``. O(n d out + p out) time.

    >>> HGNN(3, 2)(torch.ones(4, 3), Hypergraph.from_lists([[0, 1], [1, 2, 3]])).shape
    torch.Size([4, 2])
    """


class HGNNPlus(Smoothing):
    """``D_v⁻¹ H W D_e⁻¹ Hᵀ X Θ``: the mean over edges (by weight) of the means of their members. As DeepHypergraph's for W = I.

    >>> layer = HGNNPlus(1, 1, bias="none")
    >>> x = layer(torch.ones(3, 1), Hypergraph.from_lists([[0, 1], [1, 2]]))
    >>> bool(torch.allclose(x, layer.theta.weight.expand(3, 1)))
    True
    """

    weighting = "hgnn+"


class UniGCN(Smoothing):
    """``x_v' = d_v^{−½} Σ_e d̄_e^{−½} h_e Θ``: h_e the mean of the members, d̄_e their mean degree (counts; weights play no part).

    >>> UniGCN(3, 2)(torch.ones(4, 3), Hypergraph.from_lists([[0, 1], [1, 2, 3]])).shape
    torch.Size([4, 2])
    """

    weighting = "unigcn"


class UniSAGE(Smoothing):
    """``x_v' = (x_v + Σ_e h_e) Θ``.

    >>> UniSAGE(3, 2)(torch.ones(4, 3), Hypergraph.from_lists([[0, 1], [1, 2, 3]])).shape
    torch.Size([4, 2])
    """

    weighting = "sum"

    def __init__(self, d: int, out: int, bias: str = "before") -> None:
        super().__init__(d, out, bias, eps=0.0)


class UniGIN(Smoothing):
    """``x_v' = ((1 + ε) x_v + Σ_e h_e) Θ``; ε (`eps`) is learned if `train_eps`.

    >>> UniGIN(3, 2)(torch.ones(4, 3), Hypergraph.from_lists([[0, 1], [1, 2, 3]])).shape
    torch.Size([4, 2])
    """

    weighting = "sum"

    def __init__(self, d: int, out: int, eps: float = 0.0, train_eps: bool = False, bias: str = "before") -> None:
        super().__init__(d, out, bias, nn.Parameter(torch.tensor(eps)) if train_eps else eps)


class HyperGCN(nn.Module):
    """A GCN step on the mediator graph of the transformed features; O(n d out + Σ|e|² out), with a `direction` O(p out).

    `graph` (from `Hypergraph.mediators`) keeps one graph for all steps ("fast" HyperGCN); else it is found anew in every step.
    With `mediate` the weights are the paper's: every edge weighs 1 in all (DeepHypergraph leaves out the pair i – j itself).

    >>> HyperGCN(3, 2)(torch.rand(4, 3), Hypergraph.from_lists([[0, 1], [1, 2, 3]])).shape
    torch.Size([4, 2])
    """

    def __init__(self, d: int, out: int, mediate: bool = True, bias: str = "before") -> None:
        super().__init__()
        self.theta, self.mediate = Linear(d, out, bias), mediate

    def forward(
        self,
        x: Float[Tensor, "n d"],
        h: Hypergraph,
        graph: Pairs | None = None,
        direction: Float[Tensor, "o"] | None = None,
    ) -> Float[Tensor, "n o"]:
        """The new nodes. `direction`, if given, picks the extremes by one projection of the transformed features."""
        covers("x", x, h)
        t = self.theta.before(x)
        graph = h.mediators(t, direction, self.mediate) if graph is None else graph
        links, weights = gcn_links(graph, h.nodes)
        return self.theta.after(links.sum(t, weights))


class HNHN(TwoStage):
    """Edges are neurons: ``z_e = σ(Σ_v d_v^β x_v Θ_1 / Σ_v d_v^β)``, ``x_v' = Σ_e |e|^α z_e Θ_2 / Σ_e |e|^α``, σ = ReLU.

    α = β = 0 are plain means (DeepHypergraph's). Biases are part of Θ; a weighted mean leaves them as they are.

    >>> HNHN(3, 2)(torch.ones(4, 3), Hypergraph.from_lists([[0, 1], [1, 2, 3]])).shape
    torch.Size([4, 2])
    """

    def __init__(self, d: int, out: int, hidden: int | None = None, alpha: float = 0.0, beta: float = 0.0) -> None:
        super().__init__()
        at_least(1, d=d, out=out, hidden=hidden or out)
        self.alpha, self.beta = alpha, beta
        self.theta_ve, self.theta_ev = nn.Linear(d, hidden or out), nn.Linear(hidden or out, out)

    def transform(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        fits("x", x, self.theta_ve.in_features, self.theta_ve.weight)
        return self.theta_ve(x)

    def weights(self, h: Hypergraph) -> tuple[Weights, Weights]:
        """d_v^β / Σ d_v^β over the members of each edge, |e|^α / Σ |e|^α over the edges of each node."""

        def find() -> tuple[Tensor, Tensor]:
            d = h.counts.clamp(min=1).to(h.weights.dtype)[h.node] ** self.beta
            e = h.sizes.clamp(min=1).to(h.weights.dtype)[h.edge] ** self.alpha
            return d / segment_reduce(d, h.edge, h.edges)[h.edge], e / segment_reduce(e, h.node, h.nodes)[h.node]

        return kept(h, f"hnhn {self.alpha} {self.beta}", find)

    def f_VE(self, t: Float[Tensor, "n k"], h: Hypergraph) -> Float[Tensor, "m l"]:
        covers("t", t, h)
        return h.links.sum(t, *self.weights(h)[0]).relu()

    def f_EV(self, t: Float[Tensor, "n k"], z: Float[Tensor, "m l"], h: Hypergraph) -> Float[Tensor, "n o"]:
        covers("t", t, h)
        covers("z", z, h, self.theta_ev.weight, "edges")
        return h.links.back(self.theta_ev(z), *self.weights(h)[1])


class _Attention(TwoStage):
    """Θ, and scores ``LeakyReLU(a · [t_v; z_e])`` of every (node, edge) pair and head, softmax over the edges of each node."""

    def __init__(self, d: int, out: int, heads: int = 1, slope: float = 0.2, clamp: tuple[float, float] | None = None) -> None:
        super().__init__()
        at_least(1, d=d, out=out)
        if heads < 1 or out % heads:
            raise Refused(f"heads: must be a positive divisor of out={out}, got {heads}")
        self.heads, self.slope, self.clamp = heads, slope, clamp
        self.theta = nn.Linear(d, out)
        self.a_v, self.a_e = (nn.Parameter(torch.empty(heads, out // heads)) for _ in range(2))
        for a in (self.a_v, self.a_e):
            nn.init.xavier_uniform_(a)

    def transform(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        fits("x", x, self.theta.in_features, self.theta.weight)
        return self.theta(x)

    def attention(self, t: Tensor, z: Tensor, h: Hypergraph) -> Tensor:
        """a_ve, (p, heads); those of a node add up to 1."""
        for name, y in (("t", t), ("z", z)):
            fits(name, y, self.a_v.numel())
        s_v, s_e = ((y.unflatten(-1, (self.heads, -1)) * a).sum(-1) for y, a in ((t, self.a_v), (z, self.a_e)))
        score = leaky_relu(s_v[h.node] + s_e[h.edge], self.slope)
        if self.clamp is not None:
            score = score.clamp(*self.clamp)
        return segment_reduce(score, h.node, h.nodes, "softmax")

    def f_VE(self, t: Float[Tensor, "n k"], h: Hypergraph) -> Float[Tensor, "m l"]:
        covers("t", t, h)
        return h.links.sum(t, *coefficients(h, "mean")[0])


def _by_head(along: Callable[[Tensor, Tensor], Tensor], y: Tensor, weights: Tensor) -> Tensor:
    """Sums along links with weights of their own for each of the few heads: faster than one sum of rows (p, heads, d)."""
    heads = weights.shape[1]
    parts = zip(y.chunk(heads, -1), weights.unbind(1), strict=True)
    return torch.cat([along(part, w) for part, w in parts], -1)


class UniGAT(_Attention):
    """``x_v' = Σ_e a_ve h_e Θ``: h_e the mean of the members, a over the edges of v. O(n d out + p out).

    `clamp` bounds the scores (DeepHypergraph does so with (0.001, 5); the paper does not).

    >>> UniGAT(3, 2, heads=2)(torch.ones(4, 3), Hypergraph.from_lists([[0, 1], [1, 2, 3]])).shape
    torch.Size([4, 2])
    """

    def f_EV(self, t: Float[Tensor, "n k"], z: Float[Tensor, "m l"], h: Hypergraph) -> Float[Tensor, "n o"]:
        covers("t", t, h)
        covers("z", z, h, side="edges")
        return _by_head(h.links.back, z, self.attention(t, z, h))


class HypergraphAttention(_Attention):
    """The incidence itself is learned: ``X' = D_v⁻¹ A W D_e⁻¹ Aᵀ X Θ`` with A_ve = a_ve, the scores seeing the mean of the members.

    Row-normalised like the peers' layer; D_v and D_e are those of H.

    >>> HypergraphAttention(3, 2)(torch.ones(4, 3), Hypergraph.from_lists([[0, 1], [1, 2, 3]])).shape
    torch.Size([4, 2])
    """

    def states(self, x: Float[Tensor, "n d"], h: Hypergraph) -> tuple[Float[Tensor, "n o"], Float[Tensor, "m l"]]:
        covers("x", x, h)
        t = self.transform(x)
        a = self.attention(t, self.f_VE(t, h), h)
        there, back = (w[0] for w in coefficients(h, "hgnn+") if w)
        z = _by_head(h.links.sum, t, a * there[:, None])
        return _by_head(h.links.back, z, a * back[:, None]), z


def _there(y: Tensor, counts: Tensor) -> Tensor:
    """Zeros for what has no members: a bias must not speak for it."""
    return y * (counts > 0).to(y.dtype)[:, None]


class AllDeepSets(TwoStage):
    """``f(S) = MLP(Σ_{s ∈ S} MLP(s))``, from nodes to edges and back. O((n + m) hidden² + p hidden).

    >>> AllDeepSets(3, 2, hidden=8)(torch.ones(4, 3), Hypergraph.from_lists([[0, 1], [1, 2, 3]])).shape
    torch.Size([4, 2])
    """

    def __init__(self, d: int, out: int, hidden: int, activation: str = "relu") -> None:
        super().__init__()
        self.phi_ve, self.rho_ve, self.phi_ev = (MLP([n, hidden, hidden], activation) for n in (d, hidden, hidden))
        self.rho_ev = MLP([hidden, hidden, out], activation)

    def f_VE(self, t: Float[Tensor, "n k"], h: Hypergraph) -> Float[Tensor, "m l"]:
        covers("t = x", t, h, self.phi_ve[0].weight)  # type: ignore[arg-type]
        return _there(self.rho_ve(h.links.sum(self.phi_ve(t))), h.sizes)

    def f_EV(self, t: Float[Tensor, "n k"], z: Float[Tensor, "m l"], h: Hypergraph) -> Float[Tensor, "n o"]:
        covers("t = x", t, h)
        covers("z", z, h, self.phi_ev[0].weight, "edges")  # type: ignore[arg-type]
        return _there(self.rho_ev(h.links.back(self.phi_ev(z))), h.counts)


class SetPool(nn.Module):
    """``Y = LN(θ + concat_heads Σ_s softmax_s(θ · K s) V s)``, ``LN(Y + MLP(Y))``: θ is a learned query. Errors as `TwoStage`."""

    def __init__(self, d: int, out: int, heads: int) -> None:
        super().__init__()
        at_least(1, d=d, out=out)
        if heads < 1 or out % heads:
            raise Refused(f"heads: must be a positive divisor of out={out}, got {heads}")
        self.key, self.value = nn.Linear(d, out), nn.Linear(d, out)
        self.theta = nn.Parameter(torch.empty(heads, out // heads))
        nn.init.xavier_uniform_(self.theta)
        self.norm_1, self.norm_2, self.mlp = nn.LayerNorm(out), nn.LayerNorm(out), MLP([out, out, out], "relu")

    def forward(self, s: Float[Tensor, "k d"], h: Hypergraph, back: bool) -> Float[Tensor, "l o"]:
        """Pool the members of each edge, or with `back` the edges of each node."""
        covers("s", s, h, self.key.weight, "edges" if back else "nodes")
        element, owner, owners = (h.edge, h.node, h.counts) if back else (h.node, h.edge, h.sizes)
        # The query is the same for all sets, so an element's score does not depend on the set.
        score = (self.key(s).unflatten(-1, self.theta.shape) * self.theta).sum(-1)
        a = segment_reduce(score[element], owner, len(owners), "softmax")
        y = self.norm_1(self.theta.flatten() + _by_head(h.links.back if back else h.links.sum, self.value(s), a))
        return _there(self.norm_2(y + self.mlp(y)), owners)


class AllSetTransformer(TwoStage):
    """Learned-query attention pooling, from nodes to edges and back. O((n + m) out² + p out).

    >>> AllSetTransformer(3, 4, heads=2)(torch.ones(4, 3), Hypergraph.from_lists([[0, 1], [1, 2, 3]])).shape
    torch.Size([4, 4])
    """

    def __init__(self, d: int, out: int, heads: int = 1) -> None:
        super().__init__()
        self.pool_ve, self.pool_ev = SetPool(d, out, heads), SetPool(out, out, heads)

    def f_VE(self, t: Float[Tensor, "n k"], h: Hypergraph) -> Float[Tensor, "m l"]:
        covers("t = x", t, h, self.pool_ve.key.weight)
        return self.pool_ve(t, h, back=False)

    def f_EV(self, t: Float[Tensor, "n k"], z: Float[Tensor, "m l"], h: Hypergraph) -> Float[Tensor, "n o"]:
        covers("t = x", t, h)
        covers("z", z, h, self.pool_ev.key.weight, "edges")
        return self.pool_ev(z, h, back=True)


class EDHNN(TwoStage):
    """``z_e = Σ φ(x_v)``, ``x_v' = ψ((1 − α) Σ_{e ∋ v} ρ(x_v, z_e) + α x_0)``: what an edge says depends on who listens.

    φ, ρ and ψ have one hidden layer of ReLUs. x_0 is a linear view of `x`; the authors take the features before the first layer,
    which can be given as `x0`. O(p hidden) memory: ρ is worked out for every pair.

    >>> EDHNN(3, 2, hidden=8)(torch.ones(4, 3), Hypergraph.from_lists([[0, 1], [1, 2, 3]])).shape
    torch.Size([4, 2])
    """

    def __init__(self, d: int, out: int, hidden: int, alpha: float = 0.0, d0: int | None = None) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise Refused(f"alpha: must lie in [0, 1], got {alpha}")
        self.alpha = alpha
        self.phi, self.psi = MLP([d, hidden, hidden], "relu"), MLP([hidden, hidden, out], "relu")
        # ρ([x; z]) = R relu(A x + B z + b): A x and B z are taken once a node and once an edge, R after the sum.
        self.rho_x, self.rho_z = nn.Linear(d, hidden), nn.Linear(hidden, hidden, bias=False)
        self.rho = nn.Linear(hidden, hidden, bias=False)
        self.start = nn.Linear(d0 or d, hidden) if alpha else None

    def f_VE(self, t: Float[Tensor, "n k"], h: Hypergraph) -> Float[Tensor, "m l"]:
        covers("t = x", t, h, self.phi[0].weight)  # type: ignore[arg-type]
        return h.links.sum(self.phi(t))

    def f_EV(
        self, t: Float[Tensor, "n k"], z: Float[Tensor, "m l"], h: Hypergraph, x0: Float[Tensor, "n d0"] | None = None
    ) -> Float[Tensor, "n o"]:
        covers("t = x", t, h, self.rho_x.weight)
        covers("z", z, h, self.rho_z.weight, "edges")
        if x0 is not None and self.start is not None:
            covers("x0", x0, h, self.start.weight)
        told = (self.rho_x(t)[h.node] + self.rho_z(z)[h.edge]).relu()
        x = self.rho(segment_reduce(told, h.node, h.nodes))
        if self.start is not None:
            return self.psi((1 - self.alpha) * x + self.alpha * self.start(t if x0 is None else x0))
        return _there(self.psi(x), h.counts)

    def forward(self, x: Float[Tensor, "n d"], h: Hypergraph, x0: Float[Tensor, "n d0"] | None = None) -> Float[Tensor, "n o"]:
        """The new nodes."""
        covers("x", x, h)
        return self.f_EV(x, self.f_VE(x, h), h, x0) if x0 is not None else self.states(x, h)[0]


class MAB(nn.Module):
    """``O = q + Σ_s softmax_s(q · k_s / √d) v_s`` by heads, then ``O + relu(W O)`` (Lee et al. 2019, arXiv:1810.00825).

    `Refused` for what does not fit the weights or one another, and for owners above the sets there are.
    """

    def __init__(self, d_query: int, d_key: int, out: int, heads: int) -> None:
        super().__init__()
        at_least(1, d_query=d_query, d_key=d_key, out=out)
        if heads < 1 or out % heads:
            raise Refused(f"heads: must be a positive divisor of out={out}, got {heads}")
        self.heads, self.scale = heads, out**-0.5
        self.q, self.k, self.v, self.o = (nn.Linear(n, out) for n in (d_query, d_key, d_key, out))

    def _split(self, *y: Tensor) -> list[Tensor]:
        return [part.unflatten(-1, (self.heads, -1)) for part in y]

    def _out(self, o: Tensor) -> Tensor:
        o = o.flatten(-2)
        return o + self.o(o).relu()

    def pool(
        self, query: Float[Tensor, "m r d"], s: Float[Tensor, "p e"], owner: Int[Tensor, "p"], n: int
    ) -> Float[Tensor, "{n} r o"]:
        """The `r` queries of each set, (n or 1, r, ·), look at its elements `s` (p, ·): (n, r, out). O(p r out)."""
        fits("query", query, self.q.in_features, self.q.weight)
        fits("s", s, self.k.in_features, self.k.weight)
        if len(query) not in (1, n):
            raise Refused(f"query: must be that of all n = {n} sets or one for each, got {len(query)}")
        q, k, v = self._split(self.q(query), self.k(s), self.v(s))
        try:  # the range of the owners is looked at in here, and once is enough
            mine = q[owner] if len(q) > 1 else q
            a = segment_reduce((mine * k[:, None]).sum(-1) * self.scale, owner, n, "softmax")  # p r heads
        except (IndexError, Refused) as wrong:
            raise Refused(f"owner, n: one of the sets 0 … n − 1 for each element is needed ({wrong})") from None
        return self._out(q + segment_reduce(a[..., None] * v[:, None], owner, n))

    def look(self, s: Float[Tensor, "p d"], key: Float[Tensor, "n r e"], owner: Int[Tensor, "p"]) -> Float[Tensor, "p o"]:
        """Every element `s` (p, ·) looks at the `r` vectors `key` (n, r, ·) of its own set: (p, out). O(p r out)."""
        fits("s", s, self.q.in_features, self.q.weight)
        fits("key", key, self.k.in_features, self.k.weight)
        if owner.dtype != torch.int64 or owner.shape != s.shape[:1]:
            raise Refused(f"owner: must be int64, one for each of {len(s)} elements, got {owner.dtype} of {tuple(owner.shape)}")
        q, k, v = self._split(self.q(s), self.k(key), self.v(key))
        try:
            a = ((q[:, None] * k[owner]).sum(-1) * self.scale).softmax(1)
        except IndexError as wrong:
            raise Refused(f"owner: must lie in 0 … {len(key) - 1} for such a key ({wrong})") from None
        return self._out(q + (a[..., None] * v[owner]).sum(1))


class WithinAttention(nn.Module):
    """The elements of every set attend to one another through `inducing` vectors: (p, d) to (p, out), O(p inducing out)."""

    def __init__(self, d: int, out: int, heads: int, inducing: int) -> None:
        super().__init__()
        at_least(1, d=d, out=out, inducing=inducing)
        self.inducing = nn.Parameter(torch.empty(1, inducing, out))
        nn.init.xavier_uniform_(self.inducing)
        self.gather, self.spread = MAB(out, d, out, heads), MAB(d, out, out, heads)

    def forward(self, s: Float[Tensor, "p d"], owner: Int[Tensor, "p"], n: int) -> Float[Tensor, "p o"]:
        """`s` holds the elements of all sets, `owner` the set of each."""
        return self.spread.look(s, self.gather.pool(self.inducing, s, owner, n), owner)


class WHATsNet(TwoStage):
    """A node is another in every edge: members attend to one another within the edge, then the edge looks at them; the same back.

    Position: each member's order by degree within the edge (`order_in_edge`). The edge's query is the mean of its members (the
    authors': its former state). `roles` are states of (node, edge) pairs, for labels that depend on the edge. O(p inducing out).

    >>> layer, h = WHATsNet(3, 4, heads=2), Hypergraph.from_lists([[0, 1], [1, 2, 3]])
    >>> layer(torch.ones(4, 3), h).shape, layer.roles(torch.ones(4, 3), h).shape
    (torch.Size([4, 4]), torch.Size([5, 8]))
    """

    def __init__(self, d: int, out: int, heads: int = 1, inducing: int = 4) -> None:
        super().__init__()
        at_least(1, d=d, out=out)
        self.order_ve, self.order_ev = nn.Linear(1, d), nn.Linear(1, out)
        self.within_e, self.within_v = WithinAttention(d, out, heads, inducing), WithinAttention(out, out, heads, inducing)
        self.tell_e, self.tell_v = MAB(out, out, out, heads), MAB(d, out, out, heads)

    def f_VE(self, t: Float[Tensor, "n k"], h: Hypergraph) -> Float[Tensor, "m l"]:
        covers("t = x", t, h, self.within_e.gather.k.weight)
        order = order_in_edge(h).to(t.dtype)[:, None]
        member = self.within_e(t[h.node] + self.order_ve(order), h.edge, h.edges)
        mean = segment_reduce(member, h.edge, h.edges, "mean")
        return _there(self.tell_e.pool(mean[:, None], member, h.edge, h.edges)[:, 0], h.sizes)

    def f_EV(self, t: Float[Tensor, "n k"], z: Float[Tensor, "m l"], h: Hypergraph) -> Float[Tensor, "n o"]:
        covers("t = x", t, h, self.tell_v.q.weight)
        covers("z", z, h, self.within_v.gather.k.weight, "edges")
        order = order_in_edge(h).to(t.dtype)[:, None]
        told = self.within_v(z[h.edge] + self.order_ev(order), h.node, h.nodes)
        return _there(self.tell_v.pool(t[:, None], told, h.node, h.nodes)[:, 0], h.counts)

    def roles(self, x: Float[Tensor, "n d"], h: Hypergraph) -> Float[Tensor, "p r"]:
        """The state of every (node, edge) pair: ``[x_v'; z_e]``, (p, 2 out)."""
        x, z = self.states(x, h)
        return torch.cat([x[h.node], z[h.edge]], -1)
