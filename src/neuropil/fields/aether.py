"""Aether: forecast interacting bodies, and discover the field that pushes them all (Kofinas, Bekkers, Nagaraja & Gavves 2023,
NeurIPS, arXiv:2310.20679).

f_i = field(p_i, …)                                     one force field in absolute coordinates, learned from motion alone
node, edge, R = localize(p, u, f)                       everything seen from each body's moving frame (`nn.local_frames`)
h = graph net(node, edge)                               pairwise interactions, blind to where the group is
[p, u]_i(t + 1) = [p, u]_i(t) + R_i δ(h_i)

Without a field this is LoCS (Kofinas et al. 2021, arXiv:2110.14961): shift and turn the bodies, and its forecast shifts and turns
with them. The field is the only thing that knows where a body is; the graph net may use it through any linear map, so f is found
up to one: score it by `explained_force`.

Three fields: `StaticField` f(γ(p)), γ Gaussian Fourier features; `ChargedField` f(p, u, charge) for forces that depend on velocity
and charge; `DynamicField` f(γ(p), z), modulated by a summary z of what was seen of this episode. The released one-step net
forecasts positions alone; here, as in the sequence version, velocities as well. In space frames are blind to turns about the z
axis only (`nn.local_frames`). The sequence version with latent types of pairs is `aether_sequence`.

Scale positions and velocities each by ONE number to about unit variance: frames survive that, and untouched units do not train.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neuropil.errors import Refused, choose
from neuropil.fields.encodings import GaussianFourier
from neuropil.nn.checks import at_least, finite, fits, same_kind, some, within
from neuropil.nn.film import FiLM
from neuropil.nn.local_frames import localize, others
from neuropil.nn.mlp import MLP

COORDINATES = ("local", "absolute")


class StaticField(nn.Module):
    """f(p) = MLP(γ(p)), γ(p) = [sin, cos](2π B p), B ~ N(0, bandwidth²) fixed; three linear layers, SiLU. O(hidden²) a point.

    >>> StaticField(2)(torch.randn(7, 5, 2), torch.randn(7, 5, 2), None).shape
    torch.Size([7, 5, 2])
    """

    def __init__(self, d: int, hidden: int = 64, bandwidth: float = 1.0) -> None:
        super().__init__()
        self.encoding = GaussianFourier(d, hidden // 2, bandwidth)
        self.net = MLP([self.encoding.width, hidden, hidden, d], activation="silu")

    def forward(self, p: Float[Tensor, "*b d"], u: Float[Tensor, "*b d"] | None, context: None = None) -> Float[Tensor, "*b d"]:
        """The force at positions `p`; velocities are not looked at."""
        fits("p", p, self.encoding.B.shape[1], self.encoding.B)
        return self.net(self.encoding(p))


class ChargedField(nn.Module):
    """f(p, u, charge) = MLP([p, u, embedding of the kind of charge]): it may depend on velocity, as Lorentz' force does.

    The context is each body's kind, int64 0 … kinds − 1.

    >>> ChargedField(2)(torch.randn(5, 2), torch.randn(5, 2), torch.tensor([0, 2, 2, 1, 0])).shape
    torch.Size([5, 2])
    """

    def __init__(self, d: int, hidden: int = 32, kinds: int = 3, embedding: int = 16) -> None:
        super().__init__()
        self.kind = nn.Embedding(kinds, embedding)
        self.net = MLP([2 * d + embedding, hidden, hidden, d], activation="silu")

    def forward(self, p: Float[Tensor, "*b d"], u: Float[Tensor, "*b d"], context: Int[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        """The force on bodies of kind `context` at `p` that move with `u`."""
        fits("p", p, self.net[-1].out_features, self.kind.weight)  # type: ignore[arg-type]
        same_kind("u", u, p)
        within("context", context, self.kind.num_embeddings)
        return self.net(torch.cat([p, u, self.kind(context)], -1))


class DynamicField(nn.Module):
    """f(p; z): as `StaticField`, but each hidden layer modulated by the episode's summary: h ↦ (1 + g(z)) h + b(z).

    The context is z (…, summary), one for all bodies of an episode; see `TrackSummary`.

    >>> DynamicField(2, summary=8)(torch.randn(7, 5, 2), None, torch.randn(7, 8)).shape
    torch.Size([7, 5, 2])
    """

    def __init__(self, d: int, summary: int, hidden: int = 64, bandwidth: float = 1.0) -> None:
        super().__init__()
        self.encoding = GaussianFourier(d, hidden // 2, bandwidth)
        self.first, self.second = nn.Linear(self.encoding.width, hidden), nn.Linear(hidden, hidden)
        self.modulate = nn.ModuleList(FiLM(hidden, summary, hidden) for _ in range(2))
        self.last = nn.Linear(hidden, d)

    def forward(
        self, p: Float[Tensor, "*b n d"], u: Float[Tensor, "*b n d"] | None, context: Float[Tensor, "*b z"]
    ) -> Float[Tensor, "*b n d"]:
        """The force at positions `p` in the episode that `context` sums up."""
        fits("p", p, self.encoding.B.shape[1], self.encoding.B)
        fits("context", context, self.modulate[0].g[0].in_features, self.encoding.B)  # type: ignore[index,union-attr]
        h, z = self.encoding(p), context[..., None, :]
        for layer, film in zip((self.first, self.second), self.modulate, strict=True):
            h = nn.functional.silu(film(layer(h), z))
        return self.last(h)


class TrackSummary(nn.Module):
    """z of an episode from the tracks seen of it: a GRU an object, then attention over all pairs of object and time.

    y_it = [x_it, GRU_i] + position code of t,   a = softmax over (i, t) of gate(y),   z = Σ a_it value(y_it),   x = [p, u]

    O(n t hidden²) an episode.

    >>> TrackSummary(2, hidden=8)(torch.randn(3, 10, 5, 2), torch.randn(3, 10, 5, 2)).shape
    torch.Size([3, 8])
    """

    def __init__(self, d: int, hidden: int = 64) -> None:
        super().__init__()
        at_least(1, d=d, hidden=hidden)
        self.embed = nn.Linear(2 * d, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.gate = MLP([2 * d + hidden, hidden, 1], activation="silu")
        self.value = MLP([2 * d + hidden, hidden, hidden], activation="silu")

    def forward(self, p: Float[Tensor, "b t n d"], u: Float[Tensor, "b t n d"]) -> Float[Tensor, "b z"]:
        """The summary of frames 0 … t − 1."""
        fits("p", p, self.embed.in_features // 2, self.embed.weight)
        same_kind("u", u, p)
        for axis in range(3):
            some("p", p, axis)
        x = torch.cat([p, u], -1).transpose(1, 2)  # b n t 2d
        b, n, t, _ = x.shape
        last = self.gru(self.embed(x).flatten(0, 1))[1][0].view(b, n, 1, -1)
        y = torch.cat([x, last.expand(b, n, t, -1)], -1)
        y = y + _time_code(t, y.shape[-1], y)
        share = self.gate(y).flatten(1).softmax(-1)
        return (share[..., None] * self.value(y).flatten(1, 2)).sum(1)


def _time_code(t: int, width: int, like: Tensor) -> Tensor:
    """sin and cos of t at geometrically spaced rates, interleaved (Vaswani et al. 2017): (t, width)."""
    rate = 10_000.0 ** (-torch.arange(0, width, 2, device=like.device, dtype=like.dtype) / width)
    angle = torch.arange(t, device=like.device, dtype=like.dtype)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :width]


class GraphNet(nn.Module):
    """Messages between all pairs: ``m ← message(x_j, x_i, m)``, ``x ← W x + mean_j m``, ``x ← x + update(x)``; a head in the end.

    The first layer's message sees the edge features alone. Edges are (…, n, n − 1, e), row i from all j ≠ i.
    O(n² hidden²) time, O(n² hidden) memory a layer.

    >>> GraphNet(node=4, edge=12, hidden=16, out=2)(torch.randn(5, 4), torch.randn(5, 4, 12)).shape
    torch.Size([5, 2])
    """

    def __init__(self, node: int, edge: int, hidden: int, out: int, layers: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        at_least(1, node=node, edge=edge, hidden=hidden, out=out, layers=layers)
        widths = [edge] + [3 * hidden] * (layers - 1)
        self.message = nn.ModuleList(
            nn.Sequential(nn.Linear(w, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()) for w in widths
        )
        self.skip = nn.ModuleList(nn.Linear(node, hidden) if not k and node != hidden else nn.Identity() for k in range(layers))
        self.update = nn.ModuleList(MLP([hidden, 2 * hidden, hidden], activation="silu") for _ in range(layers))
        self.head = MLP([hidden, hidden, hidden, out], activation="silu", dropout=dropout)

    def forward(self, x: Float[Tensor, "*b n a"], m: Float[Tensor, "*b n k e"]) -> Float[Tensor, "*b n o"]:
        """Node features and edge features to `out` numbers a node."""
        first: nn.Linear = self.message[0][0]  # type: ignore[index,assignment]
        fits("m", m, first.in_features, first.weight)
        if x.shape[-2] < 2 or m.shape[-2] != x.shape[-2] - 1:
            raise Refused(
                f"m: edges from all others, (…, n, n − 1, e) for n ≥ 2, are needed, got {tuple(m.shape)} for x {tuple(x.shape)}"
            )
        if isinstance(skip := self.skip[0], nn.Linear):
            fits("x", x, skip.in_features, skip.weight)
        else:
            fits("x", x, first.out_features, first.weight)
        to = others(x.shape[-2], x.device)
        for k, (message, skip, update) in enumerate(zip(self.message, self.skip, self.update, strict=True)):
            if k:
                m = torch.cat([x[..., to, :], x[..., :, None, :].expand_as(m), m], -1)
            m = message(m)
            x = skip(x) + m.mean(-2)
            x = x + update(x)
        return self.head(x)


class Aether(nn.Module):
    """One step [p, u](t) → [p, u](t + 1) of n bodies in d dimensions (2 or 3), with a learned force field or none.

    Args:
        d: dimensions.
        field: one of the three fields of this file, or any module ``(p, u, context) → (…, n, d)``; None: LoCS.
        hidden: width of the graph net (the paper: 512 for sequences); `layers`: 4 as published.
        pair: width of further features of each pair (a known product of charges, say), given to `forward` as `pair`.
        coordinates: "local", or "absolute": the same graph net on [p, u] as they are, a baseline with no frames.

    >>> model = Aether(2, StaticField(2), hidden=16)
    >>> p, u = model(torch.randn(3, 5, 2), torch.randn(3, 5, 2))
    >>> p.shape, u.shape
    (torch.Size([3, 5, 2]), torch.Size([3, 5, 2]))
    """

    def __init__(
        self,
        d: int,
        field: nn.Module | None = None,
        hidden: int = 64,
        layers: int = 4,
        pair: int = 0,
        coordinates: str = "local",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if d not in (2, 3):
            raise Refused(f"d: must be 2 or 3, got {d}")
        self.d, self.field = d, field
        self.coordinates = choose("coordinates", coordinates, COORDINATES)
        node = (2 + (field is not None)) * d
        turn = d * (d - 1) // 2
        edge = (3 * d + turn if coordinates == "local" else 2 * d + 1) + (d if field is not None else 0) + node + pair
        self.net = GraphNet(node, edge, hidden, 2 * d, layers, dropout)

    def forward(
        self,
        p: Float[Tensor, "*b n d"],
        u: Float[Tensor, "*b n d"],
        context: Tensor | None = None,
        pair: Float[Tensor, "*b n m e"] | None = None,
    ) -> tuple[Float[Tensor, "*b n d"], Float[Tensor, "*b n d"]]:
        """The next positions and velocities. `context` goes to the field; `pair` row i belongs to the pairs with all j ≠ i."""
        for name, x in (("p", p), ("u", u)):
            fits(name, x, self.d, self.net.head[0].weight)  # type: ignore[arg-type]
        f = None if self.field is None else self.field(p, u, context)
        node, edge, R = localize(p, u, f) if self.coordinates == "local" else _absolute(p, u, f)
        delta = self.net(node, edge if pair is None else torch.cat([edge, pair], -1))
        dp, du = (R[..., None, :, :] @ delta.unflatten(-1, (2, -1))[..., None])[..., 0].unbind(-2)
        return p + dp, u + du


def _absolute(p: Tensor, u: Tensor, f: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What `localize` gives, without frames: everything in absolute coordinates, and R = I."""
    vectors = [u] if f is None else [u, f]
    node, to = torch.cat([p, *vectors], -1), others(p.shape[-2], p.device)
    gap = p[..., to, :] - p[..., :, None, :]
    own = node[..., :, None, :].expand(*gap.shape[:-1], -1)
    edge = torch.cat([gap, gap.square().sum(-1, keepdim=True).add(1e-16).sqrt(), *(v[..., to, :] for v in vectors), own], -1)
    return node, edge, torch.eye(p.shape[-1], dtype=p.dtype, device=p.device).expand(*p.shape, -1)


def rollout(
    model: nn.Module, p: Float[Tensor, "*b n d"], u: Float[Tensor, "*b n d"], steps: int, context: Tensor | None = None
) -> tuple[Float[Tensor, "s *b n d"], Float[Tensor, "s *b n d"]]:
    """`steps` steps of `model`, each from the one before: positions and velocities, time first. `Refused` for fewer than one.

    >>> rollout(Aether(2, hidden=8), torch.randn(3, 5, 2), torch.randn(3, 5, 2), 4)[0].shape
    torch.Size([4, 3, 5, 2])
    """
    if steps < 1:
        raise Refused(f"steps: must be at least 1, got {steps}")
    path = []
    for _ in range(steps):
        p, u = model(p, u, context)
        path.append((p, u))
    positions, velocities = zip(*path, strict=True)
    return torch.stack(positions), torch.stack(velocities)


def explained_force(found: Float[Tensor, "k d"], true: Float[Tensor, "k d"]) -> float:
    """R² of the true force by the best single d × d map of the found one: f is known up to such a map, no better. O(k d²).

    1 − |true − found M|²/|true − mean|², M by least squares.

    >>> f = torch.randn(50, 2)
    >>> round(explained_force(f @ torch.tensor([[0.0, 3.0], [-3.0, 0.0]]), f), 4)
    1.0
    """
    if len(found) < 2:
        raise Refused(f"found: at least two forces are needed, got {len(found)}")
    some("found", found)
    finite("found", found)
    finite("true", true)
    found, true = found.double(), true.double()
    # torch's default on the CPU, gelsy, starts from pivots that nobody has set: its last bits differ from call to call (torch 2.13)
    M = torch.linalg.lstsq(found, true, driver="gelsd" if found.device.type == "cpu" else "gels").solution
    return 1 - float((true - found @ M).square().sum() / (true - true.mean(0)).square().sum())
