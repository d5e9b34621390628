"""The other fixed functions (sections 3.9 to 3.48); formulas and initial values in ``others.toml``."""

import math

import torch
from torch import Tensor, asinh, atan, expm1, log1p, maximum, relu, sinh, tanh
from torch.nn import functional as F

from neuropil.nn.activations.ops import Functions, Number, cexp, clip, like, logcosh, magnitude, neg, sinc, sp

s = torch.sigmoid


def _root(z: Tensor) -> Tensor:
    """sgn(z) sqrt|z|."""
    return torch.sign(z) * magnitude(z).sqrt()


def _spocu(z: Tensor, a: Number, b: Number, c: Number, d: Number) -> Tensor:
    def h(x: Tensor) -> Tensor:
        u = clip(x, 0, d)
        return neg(x) + u**3 * (u**5 - 2 * u**4 + 2)

    return a * (h(z / c + b) - h(like(z, b)))


def _puaf(z: Tensor, a: Number, b: Number, c: Number) -> Tensor:
    u = clip(z, -c, c)
    return z**a * (c + u) ** b / ((c + u) ** b + (c - u) ** b)


def _bfire(z: Tensor, a: Number) -> Tensor:
    u = z.abs().clamp(max=a)
    return u * u / (2 * a) + z.abs() - u


def _pmaf(z: Tensor, a: Number) -> Tensor:
    t = (z.abs() - a).square()
    return 2 / (math.sqrt(3) * math.pi**0.25) * (1 - t) * (-t / 2).exp()


def _hclsh(z: Tensor) -> Tensor:
    """ln cosh z, plus z below 0, plus ln(1 + z cosh(z/2)/cosh z) above."""
    p = relu(z)
    return logcosh(z) + neg(z) + log1p(p * (-p / 2).exp() * (1 + (-p).exp()) / (1 + (-2 * p).exp()))


def _kwta(z: Tensor, k: int, dim: int) -> Tensor:
    return torch.where(z >= z.topk(k, dim).values.amin(dim, keepdim=True), z, 0.0)


def _hcaf(z: Tensor, r: Number, k: int) -> tuple[Tensor, ...]:
    c = s(z)
    return tuple(c := r * c * (1 - c) for _ in range(k))


def _fcaf(z: Tensor, r: Number, a: Number, b: Number) -> Tensor:
    return r * z * (1 - z) + z + a - b / (2 * math.pi) * (2 * math.pi * z).sin()


FUNCTIONS: Functions = {
    "sqrt": _root,
    "ssaf": lambda z, a: _root(2 * a * z),
    "bent_identity": lambda z: ((z * z + 1).sqrt() - 1) / 2 + z,
    "mishra": lambda z: (m := F.softsign(z)) * (m + 1) / 2,
    "sbaf": lambda z, k, a: 1 / (1 + k * z**a * (1 - z) ** (1 - a)),
    "symlog": lambda z: log1p(relu(z)) - log1p(-neg(z)),
    "symexp": lambda z: expm1(relu(z)) - expm1(-neg(z)),
    "spocu": _spocu,
    "puaf": _puaf,
    "softplus": F.softplus,
    "parametric_softplus": lambda z, a, b: a * (sp(z) - b),
    "soft_plus_plus": lambda z, a, b: sp(a * z) + z / b - math.log(2),
    "rand_softplus": lambda z, r: (1 - r) * relu(z) + r * sp(z),
    "aranda_ordaz": lambda z, a: -expm1(-log1p(a * cexp(z)) / a),
    "bfire": _bfire,
    "bbfire": lambda z, a, b: _bfire(z, a).clamp(max=b),
    "pmaf": _pmaf,
    "prbf": lambda z, a, b: (-0.5 * (torch.where(z.abs() < a, z, z.abs() - 2 * a) / b).square()).exp(),
    "comb_h_sine": lambda z, a: sinh(a * z) + asinh(a * z),
    "m_arcsinh": lambda z: asinh(z) * magnitude(z).sqrt() / 12,
    "hyper_sinh": lambda z: sinh(relu(z)) / 3 + neg(z) ** 3 / 4,
    "arctid": lambda z: atan(z).square() - z,
    "sine_pi": lambda z: (math.pi * z).sin(),
    "sine": torch.sin,
    "half_sine": lambda z, a: 0.5 * (a * z).sin() + 0.3,
    "cosine": lambda z: 2 * (z / 2).sin().square(),
    "cosid": lambda z: z.cos() - z,
    "sinp": lambda z, a: z.sin() - a * z,
    "gcu": lambda z: z * z.cos(),
    "asu": lambda z: z * z.sin(),
    "sinc": sinc,
    "ssu": lambda z: math.pi * sinc(z - math.pi),
    "dsu": lambda z: math.pi / 2 * (sinc(z - math.pi) - sinc(z + math.pi)),
    "hclsh": _hclsh,
    "polyexp": lambda z, a, b, c, d: (a * z * z + b * z + c) * (-d * z * z).exp(),
    "exponential": lambda z: (-z).exp(),
    "e_tanh": lambda z, a: a * z.exp() * tanh(z),
    "evolved_tanh_relu": lambda z, a: a * (tanh(z * z) + relu(z)),
    "evolved_tanh_log": lambda z: maximum(1 - 2 / (z * z + 1), relu(z)),
    "wave": lambda z, a: (1 - z * z) * (-a * z * z).exp(),
    "ncu": lambda z: z - z**3,
    "triple": lambda z, a: a * z**3,
    "squ": lambda z: z * z + z,
    "gaussian": lambda z: (-0.5 * z * z).exp(),
    "kwta": _kwta,
    "vbaf": lambda z, dim: z.std(dim, correction=0),
    "hcaf": _hcaf,
    "fcaf": _fcaf,
    "fcaf_output": lambda z, r, a, b, c, d: _fcaf(z, r, a, b) + (-c * z * z).exp() + d,
    "ccaf": lambda z, a, b: a * (math.pi * b * (math.pi * z).sin()).sin(),
}
