"""TAAF and the adaptive rectified family (sections 4.1 and 4.2); formulas and initial values in ``adaptive_rectified.toml``."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, erf, expm1, log1p, relu, tanh
from torch.nn import functional as F

from neuropil.nn.activations.ops import Functions, Number, Phi, clip, elu, like, neg, phi, sp

s = torch.sigmoid
Base = Callable[[Tensor], Tensor]


def _leaky(z: Tensor, a: Number) -> Tensor:
    return relu(z) + a * neg(z)


def _pelu(z: Tensor, a: Number, b: Number) -> Tensor:
    return a / b * relu(z) + a * expm1(neg(z) / b)


def _arelu(z: Tensor, a: Number, b: Number) -> Tensor:
    return (1 + s(like(z, b))) * relu(z) + like(z, a).clamp(0.01, 0.99) * neg(z)


def _reltanh(z: Tensor, a: Number, b: Number) -> Tensor:
    t = tanh(c := clip(z, a, b))
    return t + (1 - t * t) * (z - c)


def _edelu(z: Tensor, a: Number, c: Number) -> Tensor:
    u = z.clamp(max=c)
    return z - u + c * expm1(a * u) / expm1(like(z, a * c))


def _soft_exponential(z: Tensor, a: Number) -> Tensor:
    """By its series near a = 0, where value and slope in a stay smooth."""
    a = like(z, a)
    up, down = a > 1e-6, a < -1e-6
    p, n = torch.where(up, a, 1.0), torch.where(down, a, -1.0)
    above = expm1(torch.where(up, a * z, 0.0)) / p + p
    below = -log1p(torch.where(down, -a * (z + a), 0.0)) / n
    return torch.where(up, above, torch.where(down, below, z + a * (1 + z * z / 2)))


def _celu(z: Tensor, a: Number) -> Tensor:
    """torch's own where it is exact: its gradient rounds 1/a to float32."""
    if isinstance(a, Tensor) or z.dtype == torch.float64:
        return relu(z) + a * expm1(neg(z) / a)
    return F.celu(z, a)


def _delu(z: Tensor, a: Number) -> Tensor:
    p = relu(z)
    return (a + 0.5) * p - expm1(-p) + F.silu(neg(z))


def _fpaf(z: Tensor, a: Number, b: Number, g: Base, h: Base) -> Tensor:
    return torch.where(z < 0, b * h(z), a * g(z))


def _tail(z: Tensor, a: Number, b: Number) -> Tensor:
    """PReLU-like z with a b (e^z − 1) below 0, scaled by a: SELU with its two numbers free."""
    return a * (relu(z) + b * expm1(neg(z)))


def _marrelu(z: Tensor) -> Tensor:
    return torch.maximum(z, neg(z).sum() / (z < 0).sum().clamp(min=1))


FUNCTIONS: Functions = {
    "taaf": lambda z, a, b, c, d, g: a * g(b * z + c) + d,
    "prelu": _leaky,
    "prelu_plus": lambda z, a: a * relu(z),
    "marrelu": _marrelu,
    "rprelu": lambda z, a, b, c: _leaky(z - a, c) + b,
    "sau": lambda z, a, b: a * z + (1 - a) * (z * Phi(b * z) + phi(b * z) / b),
    "smu": lambda z, a, b: ((1 + a) * z + (1 - a) * z * erf(b * (1 - a) * z)) / 2,
    "smu_1": lambda z, a, m: ((1 + a) * z + (((1 - a) * z) ** 2 + m * m).sqrt()) / 2,
    "lelelu": lambda z, a: a * F.leaky_relu(z),
    "preu": lambda z, a, b: a * z * (b * neg(z)).exp(),
    "rt_prelu": lambda z, a, b: _leaky(z + b, a),
    "probact": lambda z, sig, e, g: g(z) + sig * e,
    "aoaf": lambda z, b, c: relu(z - b * (m := z.mean())) + c * m,
    "dlrelu": lambda z, a, m: _leaky(z, a * m),
    "exp_dlrelu": lambda z, a, m: _leaky(z, a * math.e**-m),
    "drelu": lambda z: torch.maximum(z, (z.amax() + z.amin()) / 2),
    "flexible_relu": lambda z, b: relu(z) + b,
    "shilu": lambda z, a, b: a * relu(z) + b,
    "starrelu": lambda z, a, b: a * relu(z).square() + b,
    "adaptive_hard_tanh": lambda z, a, b: F.hardtanh(a * (z - b)),
    "arelu": _arelu,
    "dprelu": lambda z, a, b: a * relu(z) + b * neg(z),
    "dual_line": lambda z, a, b, m: a * relu(z) + b * neg(z) + m,
    "pilu": lambda z, a, b, c: a * relu(z - c) + b * neg(z - c) + c,
    "dpaf": lambda z, a, m, g: torch.where(z < 0, y := g(z), a * y) + m,
    "fpaf": _fpaf,
    "eprelu": lambda z, a, k: k * relu(z) + a * neg(z),
    "paired_relu": lambda z, a, b, c, d: (relu(a * z - b), relu(c * z - d)),
    "tent": lambda z, a: relu(a - z.abs()),
    "hat": lambda z, a: relu(a / 2 - (z - a / 2).abs()),
    "rmaf": lambda z, a, b, c: (b * s(z + math.log(4))) ** c * a * z,
    "ptelu": lambda z, a, b: relu(z) + a * tanh(b * neg(z)),
    "talu": lambda z, a: relu(z) + tanh(clip(z, a, 0)),
    "ptalu": lambda z, a, b: torch.where(z >= b, z, tanh(z.clamp(min=a))),
    "tanhlu": lambda z, a, b, c: a * tanh(b * z) + c * z,
    "telu_mercioni": lambda z, a: z * tanh(elu(a * z)),
    "trelu": lambda z, b: relu(z) + tanh(b * neg(z)),
    "trelu2": lambda z, a: relu(z) + a * tanh(neg(z)),
    "reltanh": _reltanh,
    "blu": lambda z, a: a * ((z * z + 1).sqrt() - 1) + z,
    "reblu": lambda z, a: a * (((p := relu(z)) ** 2 + 1).sqrt() - 1) + p,
    "delu": _delu,
    "sc_mish": lambda z, a: relu(z) * tanh(sp(a * z)),
    "scl_mish": lambda z, a: relu(z) * tanh(sp(a * z)),
    "sc_swish": lambda z: F.silu(relu(z)),
    "pelu": _pelu,
    "edelu": _edelu,
    "lrelu_elu_mix": lambda z, a: a * F.leaky_relu(z) + (1 - a) * elu(z),
    "gated_prelu_pelu": lambda z, a, p, b, c: s(a * z) * _leaky(z, p) + s(-a * z) * _pelu(z, b, c),
    "felu": lambda z, a: relu(z) + a * expm1(neg(z)),
    "p_felu": lambda z, a, b: relu(z) + a * expm1(neg(z)) + b,
    "mpelu": lambda z, a, b: relu(z) + a * expm1(b * neg(z)),
    "p_e2_relu": lambda z, a, b: a * relu(z) + b * elu(z) - (1 - a - b) * elu(-z),
    "p_e2_id": lambda z, a: a * z + (1 - a) * (elu(z) - elu(-z)),
    "p_e2_relu_1": lambda z, a: a * relu(z) + (1 - a) * (elu(z) - elu(-z)),
    "soft_exponential": _soft_exponential,
    "celu": _celu,
    "erfrelu": lambda z, a: relu(z) + a * erf(neg(z)),
    "pselu": _tail,
    "lpselu": lambda z, a, b, c: _tail(z, a, b) + c * neg(z),
    "lpselu_rp": lambda z, a, b, c, m: _tail(z, a, b) + c * neg(z) + m,
    "shelu": lambda z, b: elu(z + b),
    "svelu": lambda z, b: elu(z) + b,
    "pshelu": lambda z, a, b, c: _pelu(z + c, a, b),
    "psvelu": lambda z, a, b, c: _pelu(z, a, b) + c,
    "t_swish": lambda z, a, b, c: torch.where(z >= c, z, a * z * s(b * z)),
    "pdelu": lambda z, a, b: relu(z) + a * (relu(1 + (1 - b) * neg(z)) ** (1 / (1 - b)) - 1),
    "eelu": lambda z, a, b, e, u, n: clip(like(z, 1 + e * u * n), 0, 2) * relu(z) + a * expm1(b * neg(z)),
    "pfplus": lambda z, a, b: a * (relu(z) + (n := neg(z)) / (1 - b * n)),
    "pvlu": lambda z, a, b: relu(z) + a * (b * z).sin(),
}
