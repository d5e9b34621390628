"""Aether over sequences: the pairs have latent kinds, inferred from how they move (Kofinas et al. 2023, arXiv:2310.20679;
dynamic neural relational inference after Graber & Schwing 2020).

h_ij(t) = pair net(localize(p, u, f))                           every frame, every ordered pair
prior      p(k_ij(t) | past)  = softmax W GRU→(h_ij)            posterior  q(k_ij(t) | all) = softmax W [GRU→, GRU←](h_ij)
x_i(t+1)  = x_i(t) + R_i δ(mean_j Σ_k k_ij message_k(edge_ij) + W node_i),       k ~ Gumbel-softmax(q, τ)
loss      = Σ |x̂ − x|²/(2 σ²) + KL(q ‖ p),   σ² = 5e-5, summed over bodies, pairs and numbers, mean over frames and episodes

Differs from the released code: pairs are embedded by an MLP there where LoCS generates its weights from relative positions; the
decoder is the Markov one; forecasts take the likeliest kind instead of a drawn one.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.errors import Refused
from neuropil.nn.checks import fits, same_kind, some
from neuropil.nn.choice import gumbel_simplex
from neuropil.nn.local_frames import localize, others
from neuropil.nn.mlp import MLP


class SequenceAether(nn.Module):
    """n bodies in d dimensions, `kinds` latent kinds of ordered pairs (2 as published), a force `field` or none.

    Tracks are (b, t, n, d). O(b t n² hidden²) time, O(b t n² hidden) memory. `Refused` for fewer than two kinds or frames.

    >>> model = SequenceAether(2, hidden=8)
    >>> p, u = torch.randn(3, 6, 5, 2), torch.randn(3, 6, 5, 2)
    >>> model.forecast(p, u, steps=4)[0].shape
    torch.Size([3, 4, 5, 2])
    """

    def __init__(
        self,
        d: int,
        field: nn.Module | None = None,
        hidden: int = 64,
        kinds: int = 2,
        tau: float = 0.5,
        variance: float = 5e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if d not in (2, 3) or kinds < 2 or not tau > 0 or not variance > 0:
            raise Refused(f"d, kinds, tau, variance: 2 or 3, at least 2, and above 0; got {d}, {kinds}, {tau}, {variance}")
        self.field, self.kinds, self.tau, self.variance = field, kinds, tau, variance
        node = (2 + (field is not None)) * d
        edge = 3 * d + d * (d - 1) // 2 + (d if field is not None else 0) + node
        self.embed, self.embed_node = MLP([edge, hidden, hidden], "elu"), nn.Linear(node, hidden)
        self.mix, self.pair = MLP([hidden, hidden, hidden], "elu"), MLP([3 * hidden, hidden, hidden], "elu")
        self.past, self.future = nn.GRU(hidden, hidden, batch_first=True), nn.GRU(hidden, hidden, batch_first=True)
        self.prior, self.posterior = nn.Linear(hidden, kinds), nn.Linear(2 * hidden, kinds)
        self.message = nn.Sequential(nn.Linear(edge, hidden), nn.ReLU(), nn.Linear(hidden, hidden * kinds), nn.ReLU())
        self.own = nn.Linear(node, hidden)
        self.head = MLP([hidden, hidden, hidden, 2 * d], "relu", dropout=dropout)

    def seen(self, p: Tensor, u: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Node features, edge features and frames, with the field's force in them; `context` has one row an episode."""
        if self.field is None:
            return localize(p, u)
        if context is not None and p.ndim == 4:
            context = context[:, None].expand(-1, p.shape[1], *context.shape[1:])
        return localize(p, u, self.field(p, u, context))

    def pairs(self, node: Tensor, edge: Tensor) -> Tensor:
        """h_ij: (b, n, n − 1, t, hidden) of features (b, t, n, …)."""
        if node.ndim != 4 or edge.ndim != 5:
            raise Refused(
                f"node, edge: (b, t, n, …) and (b, t, n, n − 1, …) are needed, got {tuple(node.shape)} and {tuple(edge.shape)}"
            )
        fits("edge", edge, self.message[0].in_features, self.own.weight)  # type: ignore[arg-type]
        fits("node", node, self.own.in_features, self.own.weight)
        m = nn.functional.elu(self.embed(edge))
        x = self.mix(m.mean(-2) + self.embed_node(node))
        to = others(x.shape[-2], x.device)
        h = self.pair(torch.cat([x[..., to, :], x[..., :, None, :].expand_as(m), m], -1))
        return h.movedim(1, 3)

    def logits(self, node: Tensor, edge: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prior and posterior logits (b, t, n, n − 1, kinds), and the state of the GRU that goes forwards."""
        h = self.pairs(node, edge)
        rows = h.flatten(0, 2)
        past, state = self.past(rows)
        future = self.future(rows.flip(1))[0].flip(1)
        both = (self.prior(past), self.posterior(torch.cat([past, future], -1)))
        prior, posterior = (x.view(*h.shape[:4], -1).movedim(3, 1) for x in both)
        return prior, posterior, state

    def step(self, p: Tensor, u: Tensor, seen: tuple[Tensor, Tensor, Tensor], kind: Tensor) -> tuple[Tensor, Tensor]:
        """One step, given what each body sees and the (soft) kind of each pair."""
        same_kind("kind", kind, p)
        node, edge, R = seen
        messages = self.message(edge).unflatten(-1, (self.kinds, -1))
        mean = (kind[..., None] * messages).sum(-2).mean(-2)
        delta = self.head(mean + self.own(node))
        dp, du = (R[..., None, :, :] @ delta.unflatten(-1, (2, -1))[..., None])[..., 0].unbind(-2)
        return p + dp, u + du

    def loss(
        self,
        p: Float[Tensor, "b t n d"],
        u: Float[Tensor, "b t n d"],
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """The negative evidence bound of tracks, each step from the true one before it."""
        if p.shape[1] < 2:
            raise Refused(f"p: a loss needs at least two frames, got {p.shape[1]}")
        seen = self.seen(p[:, :-1], u[:, :-1], context)
        prior, posterior, _ = self.logits(*seen[:2])
        kind = gumbel_simplex(posterior, self.tau, generator=generator)
        found = torch.cat(self.step(p[:, :-1], u[:, :-1], seen, kind), -1)
        error = (found - torch.cat([p, u], -1)[:, 1:]).square().sum((-1, -2)) / (2 * self.variance)
        q, log_q = posterior.softmax(-1), posterior.log_softmax(-1)
        kl = (q * (log_q - prior.log_softmax(-1))).sum((-1, -2, -3))
        return (error + kl).mean()

    @torch.no_grad()
    def forecast(
        self, p: Float[Tensor, "b t n d"], u: Float[Tensor, "b t n d"], steps: int, context: Tensor | None = None
    ) -> tuple[Float[Tensor, "b s n d"], Float[Tensor, "b s n d"]]:
        """`steps` frames after the last one seen, with the prior's likeliest kinds."""
        if steps < 1:
            raise Refused(f"steps: must be at least 1, got {steps}")
        for axis in range(2):
            some("p", p, axis)
        fits("p", p, self.head[-1].out_features // 2, self.own.weight)  # type: ignore[operator,arg-type]
        prior, _, state = self.logits(*self.seen(p, u, context)[:2])
        logits, now, path = prior[:, -1], (p[:, -1], u[:, -1]), []
        for s in range(steps):
            seen = self.seen(*now, context)
            if s:
                h = self.pairs(seen[0][:, None], seen[1][:, None])
                out, state = self.past(h.flatten(0, 2), state)
                logits = self.prior(out[:, 0]).view_as(logits)
            now = self.step(*now, seen, nn.functional.one_hot(logits.argmax(-1), self.kinds).to(p.dtype))
            path.append(now)
        positions, velocities = zip(*path, strict=True)
        return torch.stack(positions, 1), torch.stack(velocities, 1)
