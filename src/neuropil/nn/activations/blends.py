"""Piecewise, blended, series and rational functions (sections 4.29 to 4.54); formulas and initial values in ``blends.toml``.

A parameter that is a list here is a tensor (… K) there; its K terms lie in a last dimension that is summed away.
"""

from collections.abc import Callable

import torch
from torch import Tensor, relu, tanh
from torch.nn import functional as F

from neuropil.nn.activations.ops import Functions, Number, clip, elu, like, neg, phi, poly

s = torch.sigmoid


def _leaky(z: Tensor, a: Number) -> Tensor:
    return relu(z) + a * neg(z)


def _hats(z: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return relu(c - (z[..., None] - b).abs())


def _dips(z: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return neg((z[..., None] - b - 2 * c).abs() - c)


def _srelu(z: Tensor, tr: Number, ar: Number, tl: Number, al: Number) -> Tensor:
    return clip(z, tl, tr) + ar * relu(z - tr) + al * (z - z.clamp(min=tl))


def _n(z: Tensor, a: Number, b: Number) -> Tensor:
    a, b = like(z, a), like(z, b)
    return z - 2 * clip(z, torch.minimum(a, b), torch.maximum(a, b))


def _pool(z: Tensor) -> Tensor:
    """The members of a blend, (… 5), each at its own argument: z (…, 1) or (…, 5)."""
    x = z.expand(*z.shape[:-1], 5)
    return torch.stack([tanh(x[..., 0]), elu(x[..., 1]), relu(x[..., 2]), F.silu(x[..., 3]), x[..., 4]], -1)


def _tca(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return _pool(a.exp() * z[..., None] + b)


def _fsa(z: Tensor, a: Number, b: Tensor, c: Tensor, d: Number) -> Tensor:
    angle = (d * z)[..., None] * torch.arange(1, 6, dtype=z.dtype, device=z.device)
    return a + (b * angle.cos() + c * angle.sin()).sum(-1)


def _ratio(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """P(z)/Q(z) as P(1/z) z^(m−n)/Q(1/z) where |z| > 1, so that high powers do not overflow."""
    m, n = a.shape[-1] - 1, b.shape[-1] - 1
    far = z.abs() > 1
    near, u = torch.where(far, 1.0, z), 1 / torch.where(far, z, 1.0)
    outside = torch.where(far, z, 1.0) ** (m - n) * poly(u, a.flip(-1)) / poly(u, b.flip(-1))
    return torch.where(far, outside, poly(near, a) / poly(near, b))


def _with_one(b: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(b[..., :1]), b], -1)


def _safe_pau(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The sign of Q decides which of P/(1 + Q) and P/(1 − Q) it is."""
    q = poly(z, torch.cat([torch.zeros_like(b[..., :1]), b], -1))
    sign = torch.where(q < 0, -1.0, 1.0).to(z.dtype)
    return _ratio(z, a, _with_one(sign[..., None] * b))


def _era(z: Tensor, a: Tensor, c: Tensor, d: Tensor) -> Tensor:
    quadratic = torch.stack([c**2 + d**2, -2 * c, torch.ones_like(c)], -1)  # (… 2, 3), coefficients from the lowest
    p, q = quadratic[..., 0, :], quadratic[..., 1, :]
    terms = [[p[..., i] * q[..., k - i] for i in range(max(0, k - 2), min(k, 2) + 1)] for k in range(5)]
    floor = torch.tensor([1e-6, 0, 0, 0, 0], dtype=p.dtype, device=p.device)
    return _ratio(z, a, floor + torch.stack([torch.stack(t).sum(0) for t in terms], -1))


Table = tuple[tuple[float | int, ...], ...]
CHEBYSHEV = ((1, 0, 0, 0), (0, 1, 0, 0), (-1, 0, 2, 0), (0, -3, 0, 4))
LEGENDRE = ((1, 0, 0, 0), (0, 1, 0, 0), (-0.5, 0, 1.5, 0), (0, -1.5, 0, 2.5))
HERMITE = ((1, 0, 0, 0), (0, 2, 0, 0), (-2, 0, 4, 0), (0, -12, 0, 8))


def _series(table: Table) -> Callable[[Tensor, Tensor], Tensor]:
    def series(z: Tensor, a: Tensor) -> Tensor:
        return poly(z, a @ torch.tensor(table, dtype=a.dtype, device=a.device))

    return series


FUNCTIONS: Functions = {
    "aplu": lambda z, a, b: relu(z) + (a * relu(b - z[..., None])).sum(-1),
    "splash": lambda z, p, n, b: (p * relu(z[..., None] - b) + n * relu(-z[..., None] - b)).sum(-1),
    "mba": lambda z, b, g: tuple(g(z + x) for x in b.unbind(-1)),
    "melu": lambda z, p, a, b, c: _leaky(z, p) + (a * _hats(z, b, c)).sum(-1),
    "mmelu": lambda z, a, b, c: a * relu(b - (z - c).abs()) + (1 - a) * relu(z),
    "galu": lambda z, p, a, b, c: _leaky(z, p) + (a * (_hats(z, b, c) + _dips(z, b, c))).sum(-1),
    "adaptive_hard_swish": lambda z, b: 2 * z * (0.2 * b * z + 0.5).clamp(0, 1),
    "srelu": _srelu,
    "n_activation": _n,
    "alisa": lambda z, ar, al: _srelu(z, 1, ar, 0, al),
    "lisa": lambda z, ar, al: _srelu(z, 1, ar, 0, al),
    "all_relu": lambda z, a, sign: relu(z) + sign * a * neg(z),
    "plu": lambda z, a, b: (c := clip(z, -b, b)) + a * (z - c),
    "aria2": lambda z, a, b: z * (a * F.logsigmoid(b * z)).exp(),
    "mwf": lambda z, a, b, c, d: (z / a) ** (b - 1) * (-((z / c) ** d)).exp(),
    "sincos": lambda z, a, b, c, d: a * (b * z).sin() + c * (d * z).cos(),
    "css": lambda z, a, b, c, d: a * (b * z).sin() + c * s(d * z),
    "cataf": lambda z, a, g: z * like(z, a).sin() + g(z) * like(z, a).cos(),
    "expcos": lambda z, a, b: (-a * z * z).exp() * (b * z).cos(),
    "maxout": lambda z, w, b: (w * z[..., None] + b).amax(-1),
    "abu": lambda z, a: (a * _pool(z[..., None])).sum(-1),
    "tca": lambda z, a, b: _tca(z, a, b).mean(-1),
    "tca_v2": lambda z, a, b, w: (w.softmax(-1) * _tca(z, a, b)).sum(-1),
    "apaf": lambda z, a: (a * _pool(z[..., None])).sum(-1) / a.sum(-1),
    "gabu": lambda z, a: (s(a) * _pool(z[..., None])).sum(-1),
    "dknn": lambda z, a, b: (a * _pool(b * z[..., None])).sum(-1),
    "slaf": poly,
    "chpaf": _series(CHEBYSHEV),
    "lpaf": _series(LEGENDRE),
    "hpaf": _series(HERMITE),
    "mogu": lambda z, a, m, sig: (a * phi((z[..., None] - m) / sig) / sig).sum(-1),
    "fsa": _fsa,
    "pau": lambda z, a, b: _ratio(z, a, _with_one(b)),
    "safe_pau": _safe_pau,
    "rational": _ratio,
    "era": _era,
}
