"""The layers of usual nets as operations on functions: the same weights on any grid, one result as the grid is refined.

    dense layer         u(x) = Σ_j q_j κ(x, y_j) v(y_j) + W v(x)                  `IntegralLayer`; q_j quadrature weights
    convolution         (κ ⋆ v)(x) = ∫ κ(y) v(x + y) dy, κ read between its taps    `KernelConv`
    difference stencil  (1/h) Σ_j (w_j − w̄) v(x + j h)  → a·∇v(x)                  `DifferenceConv`
    local integral      ∫_{|y| ≤ r} κ(y) v(x + y) dy, κ = Σ_l w_l φ_l, r fixed      `LocalIntegral`
    attention           Σ_j q_j e^{β⟨q(x), k_j⟩} v_j / Σ_j q_j e^{β⟨q(x), k_j⟩}       `quad_attention`, `QuadAttention`
    patch embedding     ∫_{patch} κ(y) v(y) dy, patches of one physical size        `PatchIntegral`
    normalisation       (v − ∫v) / √(∫(v − ∫v)² + ε)                               `instance_norm`
    anything else       resize to the grid it knows, apply, resize back            `OnBaseGrid`
    1 × 1 convolution, activation: as they are (`fourier.Pointwise`); Fourier layer: `fourier.FourierLayer`

Berner, Liu-Schiaffini, Kossaifi, Duruisseaux, Bonev, Azizzadenesheli & Anandkumar 2025, arXiv:2506.10973; local layers:
Liu-Schiaffini et al. 2024, arXiv:2402.16845. Fields are (b, c, *grid); sets of points are (b, n, c) with positions (n, d).

Differs: kernels are interpolated with their outermost taps where they belong (the authors' call of `interpolate` moves them inwards
by a part of a cell); besides the paper's rule there are "hat", which keeps the kernel's integral whatever the taps, and "points".
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d, conv3d, interpolate, pad, scaled_dot_product_attention

from neuropil.errors import Refused, choose
from neuropil.nn.attention import MultiHead, attend
from neuropil.nn.checks import at_least, fits, same_kind, suits, transformable
from neuropil.nn.mlp import MLP
from neuropil.physics.checks import channels
from neuropil.physics.fourier import resample

CONV = {1: conv1d, 2: conv2d, 3: conv3d}
RULES = ("linear", "hat", "points")
PADDING = {"periodic": "circular", "zeros": "constant", "replicate": "replicate"}


def quad_attention(
    query: Float[Tensor, "*b q d"],
    key: Float[Tensor, "*#b k d"],
    value: Float[Tensor, "*#b k v"],
    weights: Float[Tensor, "..."] | None = None,
    beta: float | None = None,
) -> Float[Tensor, "*b q v"]:
    """``Σ_j w_j e^{β q·k_j} v_j / Σ_j w_j e^{β q·k_j}``: attention to a function at points that stand for shares w_j.

    `weights` are (…, k). Only their proportions matter, a weight of 0 removes its point; without them, or with equal ones, it is
    `nn.attention.attend`. O(q k (d + v)) time. `Refused` for weights of the wrong length.

    >>> k, v = torch.randn(3, 4), torch.randn(3, 2)
    >>> twice = quad_attention(k, k[[0, 1, 2, 2]], v[[0, 1, 2, 2]], torch.tensor([1.0, 1.0, 0.5, 0.5]))
    >>> torch.allclose(twice, quad_attention(k, k, v), atol=1e-6)
    True
    """
    if weights is None:
        return attend(query, key, value, beta)
    if weights.shape[-1] != key.shape[-2]:
        raise Refused(f"weights: one for each of {key.shape[-2]} keys is needed, got {weights.shape[-1]}")
    if weights.ndim >= query.ndim:
        raise Refused(f"weights: fewer axes than those of the queries {tuple(query.shape)} are needed, got {tuple(weights.shape)}")
    same_kind("key", key, query)
    same_kind("value", value, query)
    bias = weights.log()[..., None, :].to(query.dtype)
    return scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=beta)


class QuadAttention(MultiHead):
    """`nn.attention.MultiHead` over points that stand for shares of a domain; ``weights`` as in `quad_attention`.

    >>> QuadAttention(8, heads=2)(torch.randn(3, 5, 8), weights=torch.full((5,), 0.2)).shape
    torch.Size([3, 5, 8])
    """

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "b n d"],
        memory: Float[Tensor, "b m e"] | None = None,
        weights: Float[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Attend from x to `memory` (default: x itself); weights are (m,) or (b, m)."""
        if weights is not None:
            fits("weights", weights, (x if memory is None else memory).shape[-2])
        q, k, v = self.project(x, x if memory is None else memory)
        q, k, v = self.q(q), self.k(k), self.v(v)
        weights = None if weights is None else weights.expand(len(x), -1)[:, None]
        if self.scores.watched or self.pattern.watched:
            scores = self.scores(q.shape[-1] ** -0.5 * q @ k.mT)
            z = self.pattern((scores if weights is None else scores + weights.log()[..., None, :]).softmax(-1)) @ v
        else:
            z = quad_attention(q, k, v, weights)
        return self.out(self.z(z).transpose(1, 2).flatten(2))


class IntegralLayer(nn.Module):
    """``u(x) = Σ_j q_j κ(x, y_j) v(y_j) + W v(x)``: the dense layer of functions; κ is an MLP of both places, a matrix out × in.

    (c_in · c_out · hidden) numbers; O(n m (c_in c_out + hidden)) time and memory for m points in, n out.

    >>> layer = IntegralLayer(2, 3, d=1)
    >>> y = torch.linspace(0, 1, 5)[:, None]
    >>> layer(torch.randn(4, 5, 2), y, torch.full((5,), 0.2)).shape
    torch.Size([4, 5, 3])
    """

    def __init__(self, c_in: int, c_out: int, d: int, hidden: int = 32) -> None:
        super().__init__()
        self.kernel, self.W = MLP([2 * d, hidden, c_in * c_out]), nn.Linear(c_in, c_out)

    def forward(
        self,
        v: Float[Tensor, "b m c_in"],
        y: Float[Tensor, "m d"],
        q: Float[Tensor, "m"],
        x: Float[Tensor, "n d"] | None = None,
    ) -> Float[Tensor, "b _ c_out"]:
        """u at x. At the points y themselves (x is None) with W v, else the integral alone: v is not known there."""
        fits("v", v, self.W.in_features, self.W.weight)
        fits("y", y, self.kernel[0].in_features // 2, self.W.weight)  # type: ignore[operator,arg-type]
        same_kind("q", q, v)
        at = y if x is None else x
        pairs = torch.cat(torch.broadcast_tensors(at[:, None], y), -1)
        kappa = self.kernel(pairs).unflatten(-1, (self.W.out_features, self.W.in_features))
        u = torch.einsum("nmoi,bmi,m->bno", kappa, v, q)
        return u if x is not None else u + self.W(v)


class KernelConv(nn.Module):
    """A convolution with k taps at the spacing it was made for, as an integral: on a grid `scale` times as fine it has more taps.

    `rule`: "linear" (the paper's): s(k − 1) + 1 taps, read linearly between the k, times (k / taps)^d. "hat": a hat function
    on each tap, s(k + 1) − 1 taps, times s^{−d}: the sum of the taps stays what it was. "points": the k taps where they were, zeros
    between (whole s only): no integral, but exactly the sum Σ_j w_j v(x + j h_0) that was trained. At scale 1 all are the kernel
    itself: a plain convolution. c_in c_out k^d + c_out numbers; O(s^{2d}) the time of the base grid. k must be odd (`Refused`).

    >>> conv = KernelConv(1, 1, k=3, d=1, rule="hat")
    >>> conv.weight.data[:] = torch.tensor([1.0, 2.0, 3.0])
    >>> conv.taps(2.0)
    tensor([[[0.2500, 0.5000, 0.7500, 1.0000, 1.2500, 1.5000, 0.7500]]], grad_fn=...)
    """

    def __init__(
        self, c_in: int, c_out: int, k: int, d: int, stride: int = 1, padding: str = "periodic", rule: str = "linear"
    ) -> None:
        super().__init__()
        if k < 1 or k % 2 == 0 or d not in CONV:
            raise Refused(f"k, d: an odd number of taps and 1 to 3 axes are needed, got {k} and {d}")
        at_least(1, c_in=c_in, c_out=c_out, stride=stride)
        self.k, self.d, self.stride = k, d, stride
        self.padding, self.rule = choose("padding", padding, PADDING), choose("rule", rule, RULES)
        bound = (c_in * k**d) ** -0.5
        self.weight = nn.Parameter(torch.empty(c_out, c_in, *[k] * d).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(c_out).uniform_(-bound, bound))

    def taps(self, scale: float) -> Float[Tensor, "o i ..."]:
        """The kernel on a grid `scale` times as fine."""
        if not 0 < scale < math.inf:
            raise Refused(f"scale: must be positive and finite, got {scale}")
        if scale == 1:
            return self.weight
        if self.rule == "points" and scale != round(scale):
            raise Refused(f"scale: a grid that holds the points of the base is needed for rule 'points', got {scale}")
        j = math.ceil((self.k + 1) / 2 * scale - 1e-9) - 1 if self.rule == "hat" else math.floor((self.k - 1) / 2 * scale + 1e-9)
        places = torch.arange(-j, j + 1, device=self.weight.device, dtype=self.weight.dtype) / scale
        ours = torch.arange(self.k, device=self.weight.device, dtype=self.weight.dtype) - (self.k - 1) / 2
        hats = (1 - (places[:, None] - ours).abs() * (scale if self.rule == "points" else 1)).clamp_min(0)
        hats = hats * {"linear": self.k / len(places), "hat": 1 / scale, "points": 1.0}[self.rule]
        w: Tensor = self.weight
        for axis in range(2, w.ndim):
            w = (w.movedim(axis, -1) @ hats.T).movedim(-1, axis)
        return w

    def forward(self, v: Float[Tensor, "b i *grid"], scale: float = 1.0) -> Float[Tensor, "b o ..."]:
        """The convolution on a grid `scale` times as fine as the one it was made for; outputs at every `stride`-th point."""
        channels("v", v, self.weight.shape[1], self.d, self.weight)
        w = self.taps(scale)
        return CONV[self.d](_padded(v, w.shape[-1] // 2, self.padding), w, self.bias, self.stride)


class DifferenceConv(nn.Module):
    """``(1/h) Σ_j (w_j − w̄) v(x + j h)``: a stencil that tends to a·∇v as h → 0, with a = Σ_j w_j j. First order; second if odd.

    Without the mean the sum grows like 1/h, without the 1/h it dies out, and a convolution becomes a matrix at each point.
    c_in c_out k^d numbers. k must be odd and more than 1 (`Refused`).

    >>> DifferenceConv(1, 2, k=3, d=1)(torch.ones(1, 1, 8), h=0.1).abs().max() < 1e-5
    tensor(True)
    """

    def __init__(self, c_in: int, c_out: int, k: int, d: int, padding: str = "periodic") -> None:
        super().__init__()
        if k < 3 or k % 2 == 0 or d not in CONV:
            raise Refused(f"k, d: an odd number of at least 3 taps and 1 to 3 axes are needed, got {k} and {d}")
        at_least(1, c_in=c_in, c_out=c_out)
        self.d, self.padding = d, choose("padding", padding, PADDING)
        bound = (c_in * k**d) ** -0.5
        self.weight = nn.Parameter(torch.empty(c_out, c_in, *[k] * d).uniform_(-bound, bound))

    def forward(self, v: Float[Tensor, "b i *grid"], h: float) -> Float[Tensor, "b o *grid"]:
        """The derivatives on a grid of spacing h > 0, the same along all axes."""
        channels("v", v, self.weight.shape[1], self.d, self.weight)
        w = (self.weight - self.weight.mean(tuple(range(2, self.d + 2)), keepdim=True)) / _spacing(h)
        return CONV[self.d](_padded(v, w.shape[-1] // 2, self.padding), w)


class LocalIntegral(nn.Module):
    """``∫_{|y| ≤ r} κ(y) v(x + y) dy / |disc|`` by the points of the grid inside: in one dimension or two, r in physical units.

    κ = Σ_l w_l φ_l with `rings` hats along the radius (the outermost is 0 at r) times cos mθ, sin mθ for m = 0 … `angles`; in one
    dimension times 1 and sign y. c_in c_out (rings (1 + 2 angles)) numbers; O((r/h)^d) time a point. A grid with fewer than one
    neighbour within r is `Refused`.

    >>> LocalIntegral(1, 2, r=0.2, d=2)(torch.randn(1, 1, 16, 16), h=1 / 16).shape
    torch.Size([1, 2, 16, 16])
    """

    def __init__(self, c_in: int, c_out: int, r: float, d: int, rings: int = 2, angles: int = 2, padding: str = "periodic") -> None:
        super().__init__()
        if d not in (1, 2) or r <= 0 or rings < 1 or angles < 0:
            raise Refused(f"d, r, rings, angles: 1 or 2, > 0, ≥ 1 and ≥ 0 are needed, got {d}, {r}, {rings} and {angles}")
        at_least(1, c_in=c_in, c_out=c_out)
        self.r, self.d, self.rings, self.angles = r, d, rings, angles if d == 2 else 1
        self.padding = choose("padding", padding, PADDING)
        count = rings * (1 + 2 * angles) if d == 2 else 2 * rings
        self.weight = nn.Parameter(torch.randn(c_out, c_in, count) / math.sqrt(c_in * count))

    def basis(self, h: float, like: Tensor) -> Float[Tensor, "l ..."]:
        """φ_l at the points of a grid of spacing h around 0."""
        reach = math.floor(self.r / _spacing(h) + 1e-9)
        if reach < 1:
            raise Refused(f"h: a disc of radius {self.r} holds no neighbour on a grid of spacing {h}; at most the radius is needed")
        y = torch.arange(-reach, reach + 1, dtype=like.dtype, device=like.device) * h
        place = torch.meshgrid(*[y] * self.d, indexing="ij")
        rho = torch.stack(place).square().sum(0).sqrt() / self.r * self.rings
        radial = torch.stack([(1 - (rho - i).abs()).clamp_min(0) for i in range(self.rings)])
        if self.d == 1:
            around = torch.stack([torch.ones_like(y), y.sign()])
        else:
            theta = torch.atan2(place[1], place[0])
            around = torch.stack(
                [f(m * theta) for m in range(self.angles + 1) for f in ((torch.cos, torch.sin) if m else (torch.cos,))]
            )
            around[1:, reach, reach] = 0  # no direction at the centre
        return (radial[:, None] * around).flatten(0, 1)

    def forward(self, v: Float[Tensor, "b i *grid"], h: float) -> Float[Tensor, "b o *grid"]:
        """The integrals at every point of a grid of spacing h."""
        channels("v", v, self.weight.shape[1], self.d, self.weight)
        disc = 2 * self.r if self.d == 1 else math.pi * self.r**2
        w = torch.tensordot(self.weight, self.basis(h, self.weight), 1) * (h**self.d / disc)
        return CONV[self.d](_padded(v, w.shape[-1] // 2, self.padding), w)


class PatchIntegral(nn.Module):
    """Tokens ``∫_{patch} κ(y) v(y) dy`` of patches of one physical size: as many tokens on every grid. In 1 to 3 dimensions.

    `patches`: how many along each axis; κ has `k` points along each axis of a patch, read linearly between. `Refused` if patches
    do not divide the grid. c_in width k^d + width numbers; O(b n c_in width) time.

    >>> embed = PatchIntegral(1, 8, patches=4, k=4, d=2)
    >>> [tuple(embed(torch.randn(2, 1, n, n)).shape) for n in (16, 32)]
    [(2, 8, 4, 4), (2, 8, 4, 4)]
    """

    def __init__(self, c_in: int, width: int, patches: int, k: int, d: int) -> None:
        super().__init__()
        if min(patches, k) < 1 or d not in CONV:
            raise Refused(f"patches, k, d: at least 1, 1 and 1 to 3 axes are needed, got {patches}, {k} and {d}")
        at_least(1, c_in=c_in, width=width)
        self.patches, self.k, self.d = patches, k, d
        bound = (c_in * k**d) ** -0.5
        self.weight = nn.Parameter(torch.empty(width, c_in, *[k] * d).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, v: Float[Tensor, "b i *grid"]) -> Float[Tensor, "b o *p"]:
        """One token for each patch, on the grid of patches."""
        channels("v", v, self.weight.shape[1], self.d, self.weight)
        if any(not n or n % self.patches for n in v.shape[2:]):
            raise Refused(f"grid: {self.patches} patches along each axis must divide it, got {tuple(v.shape[2:])}")
        w: Tensor = self.weight
        size = [n // self.patches for n in v.shape[2:]]
        for axis, p in enumerate(size, start=2):
            at = torch.arange(p, device=w.device, dtype=w.dtype) * (self.k / p)  # the first point of a patch lies on its edge
            ours = torch.arange(self.k, device=w.device, dtype=w.dtype)
            hats = (1 - (at.clamp_max(self.k - 1)[:, None] - ours).abs()).clamp_min(0) * (self.k / p)
            w = (w.movedim(axis, -1) @ hats.T).movedim(-1, axis)
        return CONV[self.d](v, w, self.bias, stride=size)


def instance_norm(
    v: Float[Tensor, "b c *grid"], weights: Float[Tensor, "*grid"] | None = None, eps: float = 1e-5
) -> Float[Tensor, "b c *grid"]:
    """``(v − ∫v) / √(∫(v − ∫v)² + ε)`` for each sample and channel; `weights`: the points' shares of the domain (default: equal).

    With eps = 0 what does not vary is nan. `Refused` for a grid without points, or a negative eps.

    >>> instance_norm(torch.tensor([[[1.0, 3.0]]]))
    tensor([[[-1.0000,  1.0000]]])
    """
    at_least(0, eps=eps)
    if v.ndim < 3 or 0 in v.shape[2:]:
        raise Refused(f"v: (b, c, *grid) with points is needed, got shape {tuple(v.shape)}")
    dims = tuple(range(2, v.ndim))
    q = torch.full((), 1 / math.prod(v.shape[2:]), dtype=v.dtype, device=v.device) if weights is None else weights / weights.sum()
    v = v - (q * v).sum(dims, keepdim=True)
    return v * ((q * v.square()).sum(dims, keepdim=True) + eps).rsqrt()


def resize(u: Float[Tensor, "b c *grid"], size: Sequence[int], periodic: bool = True) -> Float[Tensor, "b c ..."]:
    """The field on another grid: by its Fourier modes if periodic, else linearly between points of grids that hold both ends.

    >>> resize(torch.tensor([[[0.0, 2.0]]]), [3], periodic=False)
    tensor([[[0., 1., 2.]]])
    """
    if periodic:
        return resample(u, size)
    return interpolate(u, tuple(size), mode=("linear", "bilinear", "trilinear")[u.ndim - 3], align_corners=True)


class OnBaseGrid(nn.Module):
    """Resize to the grid that a layer or a whole net was made for, apply it, resize back: works anywhere, sees the base alone.

    What changes the size of its field (a transposed convolution) changes it in the same proportion here.

    >>> net = OnBaseGrid(nn.ConvTranspose1d(1, 1, 2, stride=2), base=[8])
    >>> net(torch.randn(1, 1, 16)).shape
    torch.Size([1, 1, 32])
    """

    def __init__(self, layer: Callable[[Tensor], Tensor], base: Sequence[int], periodic: bool = True) -> None:
        super().__init__()
        self.layer, self.base, self.periodic = layer, tuple(base), periodic

    def forward(self, v: Float[Tensor, "b i *grid"]) -> Float[Tensor, "b o ..."]:
        """The layer's result on the field's own grid. `Refused` for another number of axes, or what does not suit the layer."""
        if len(self.base) != v.ndim - 2:
            raise Refused(f"v: {len(self.base)} axes as in base={self.base} are needed, got {tuple(v.shape)}")
        suits("v", v, self.layer)
        if self.periodic and v.shape[2:] != self.base:
            transformable("v", v)
        u = self.layer(resize(v, self.base, self.periodic))
        size = [round(m * n / base) for m, n, base in zip(u.shape[2:], v.shape[2:], self.base, strict=True)]
        return resize(u, size, self.periodic)


class AttentionOperator(nn.Module):
    """A transformer on the points of a function: blocks of `QuadAttention` and a pointwise MLP; any points, with their weights.

    Places x ∈ [0, 1]^d enter as cos 2πmx, sin 2πmx, m = 1 … `waves`, so that the domain is a torus. 12 layers · width² numbers;
    O(layers n² width) time.

    >>> net = AttentionOperator(1, 1, d=1, width=16, heads=2, layers=1)
    >>> x = torch.rand(7, 1)
    >>> net(torch.randn(2, 7, 1), x, torch.full((7,), 1 / 7)).shape
    torch.Size([2, 7, 1])
    """

    def __init__(self, c_in: int, c_out: int, d: int, width: int, heads: int, layers: int, waves: int = 4) -> None:
        super().__init__()
        at_least(1, c_in=c_in, c_out=c_out, d=d, width=width)
        self.waves = waves
        self.lift = MLP([c_in + 2 * d * waves, 2 * width, width])
        self.attention = nn.ModuleList(QuadAttention(width, heads) for _ in range(layers))
        self.mlp = nn.ModuleList(MLP([width, 2 * width, width]) for _ in range(layers))
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.project = MLP([width, 2 * width, c_out])

    def forward(
        self, v: Float[Tensor, "b n i"], x: Float[Tensor, "n d"], weights: Float[Tensor, "n"] | None = None
    ) -> Float[Tensor, "b n o"]:
        """Values at the same points. `weights`: shares of the domain; None: all points count alike, whatever they stand for."""
        turns = 2 * math.pi * x[..., None] * torch.arange(1, self.waves + 1, device=x.device, dtype=x.dtype)
        places = torch.cat([turns.cos(), turns.sin()], -1).flatten(1)
        h = self.lift(torch.cat([v, places.expand(len(v), *places.shape)], -1))
        for i, (attention, mlp) in enumerate(zip(self.attention, self.mlp, strict=True)):
            h = h + attention(self.norm[2 * i](h), weights=weights)
            h = h + mlp(self.norm[2 * i + 1](h))
        return self.project(h)


def _padded(v: Tensor, by: int, padding: str) -> Tensor:
    """The field with `by` points more at each end of each axis."""
    d = v.ndim - 2
    least = max(1, by) if padding == "periodic" else 1
    if min(v.shape[2:]) < least:
        raise Refused(f"v: a grid of at least {least} points along each axis is needed for this kernel, got {tuple(v.shape[2:])}")
    return pad(v, [by] * (2 * d), mode=PADDING[padding])


def _spacing(h: float) -> float:
    if not 0 < h < math.inf:
        raise Refused(f"h: must be positive and finite, got {h}")
    return h
