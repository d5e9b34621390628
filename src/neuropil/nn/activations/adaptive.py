"""Adaptive functions other than rectified ones (sections 4.3 to 4.28); formulas and initial values in ``adaptive.toml``."""

import math

import torch
from torch import Tensor, atan, erf, expm1, log1p, relu, rsqrt, tanh
from torch.nn import functional as F

from neuropil.nn.activations.ops import Functions, Number, Phi, cexp, clip, elu, like, ln, magnitude, neg, sp

s = torch.sigmoid


def _tanhsoft_3(z: Tensor, a: Number) -> Tensor:
    """ln(1 + e^z tanh az), with e^max(z, 0) drawn out of the logarithm."""
    return relu(z) + log1p(expm1(-relu(z)) + neg(z).exp() * tanh(a * z))


def _log_sum(z: Tensor, d: Number) -> Tensor:
    """ln(d + e^z)."""
    return relu(z) + (d * (-relu(z)).exp() + neg(z).exp()).log()


def _saaaf(z: Tensor, a: Number, b: Number) -> Tensor:
    u = (neg(z) / b).exp()
    return z * u / (z * u / a + (-relu(z) / b).exp())


def _rsign(z: Tensor, a: Number) -> Tensor:
    c = (z - a).clamp(-1, 1)
    return c + (torch.sign(c) - c).detach()


def _frac_relu(z: Tensor, a: Number) -> Tensor:
    a = like(z, a)
    return torch.where(z > 0, magnitude(relu(z)) ** (1 - a), 0.0) / torch.lgamma(2 - a).exp()


def _falu(z: Tensor, a: Number, b: Number) -> Tensor:
    """First a from 0 to 1, then what is left of it."""
    a, w = like(z, a), s(b * z)
    h = z * w
    h = h + a.clamp(0, 1) * w * (1 - h)
    return h + (a - 1).clamp(0, 1) * w * (1 - 2 * h)


def _over(z: Tensor, y: Tensor, root: Number | Tensor, d: Number, e: Number) -> Tensor:
    """y/(root + d e^(−e z)), numerator and denominator times e^(e min(z, 0))."""
    w = (e * neg(z)).exp()
    return y * w / (root * w + d * (-e * relu(z)).exp())


FUNCTIONS: Functions = {
    "shape_autotuning_sigmoid": lambda z, a: 2 / a * tanh(a * z / 2),
    "generalized_tanh": lambda z, a, b: a * tanh(b * z / 2),
    "trainable_amplitude": lambda z, a, b, g: a * g(z) + b,
    "assf": lambda z, a: s(a * z),
    "svaf": lambda z, a: tanh(a * z),
    "tanhsoft": lambda z, a, b, c, d: tanh(a * z + b * cexp(c * z)) * _log_sum(z, d),
    "tanhsoft_1": lambda z, a: tanh(a * z) * sp(z),
    "tanhsoft_2": lambda z, b, c: z * tanh(b * cexp(c * z)),
    "tanhsoft_3": _tanhsoft_3,
    "psigmoid": lambda z, a, b: a * s(b * z),
    "psf": lambda z, m: (m * F.logsigmoid(z)).exp(),
    "stac_tanh": lambda z, a, b: tanh(c := clip(z, -a, a)) + b * (z - c),
    "swish": lambda z, a: z * s(a * z),
    "ahaf": lambda z, a, b: a * z * s(b * z),
    "pssilu": lambda z, a, b: z * (s(a * z) - b) / (1 - b),
    "e_swish": lambda z, a: a * F.silu(z),
    "acon_b": lambda z, a, b: (u := (1 - b) * z) * s(a * u) + b * z,
    "acon_c": lambda z, a, b, c: (u := (c - b) * z) * s(a * u) + b * z,
    "psgu": lambda z, a: z * tanh(a * s(z)),
    "tbsrelul": lambda z, a: z * tanh(a * tanh(z / 2)),
    "pats": lambda z, a: z * atan(a * math.pi * s(z)),
    "aqulu": lambda z, a, b: z * (a * z + b).clamp(0, 1),
    "sinlu": lambda z, a, b: (z + a * (b * z).sin()) * s(z),
    "erfact": lambda z, a, b: z * erf(a * cexp(b * z)),
    "pserf": lambda z, a, b: z * erf(a * sp(b * z)),
    "swim": lambda z, a: z / 2 * (1 + a * z * rsqrt(1 + z * z)),
    "arbf": lambda z, a, b: (-0.5 * ((z - a) / b).square()).exp(),
    "pgelu": lambda z, a: z * Phi(z / a),
    "geu": lambda z, a: Phi(z / a),
    "pfts": lambda z, T: relu(z) * s(z) + T,
    "pfpm": lambda z, p: F.mish(relu(z)) + p,
    "rsign": _rsign,
    "p_sig_ramp": lambda z, a, b: a * s(z) + (1 - a) * (b * z + 0.5).clamp(0, 1),
    "laaf": lambda z, a, n, g: g(n * a * z),
    "pstanh": lambda z, a, b: 2 * a * z * s(2 * b * z),
    "ssinh": lambda z, a, b: a * (b * z).sinh(),
    "sexp": lambda z, a, b: a * expm1(b * z),
    "lau": lambda z, a, b: z * log1p(a * s(b * z)),
    "coslu": lambda z, a, b: (z + a * (b * z).cos()) * s(z),
    "agumb": lambda z, a: s(z + ln(a)),
    "saaaf": _saaaf,
    "frac_relu": _frac_relu,
    "falu": _falu,
    "scaled_softsign": lambda z, a, b: a * z / (b + z.abs()),
    "s_plus_2l": lambda z, a: sp(z) - a,
    "uaf": lambda z, a, b, c, d, e: sp(a * (z + b) + c * z * z) - sp(d * (z - b)) + e,
    "leaf": lambda z, a, b, c, d: (a * z + b) * s(c * z) + d,
    "generalized_relu": lambda z, a, b: sp(b * z * ln(a)) / (b * ln(a)),
    "maf": lambda z, a, b: ((z - a) ** 2 + b * b).sqrt(),
    "eis": lambda z, a, b, c, d, e: _over(z, z * sp(z).clamp(min=1e-30) ** a, (b + c * z * z) ** 0.5, d, e),
    "eis_1": lambda z, d, e: _over(z, z * sp(z), z.abs(), d, e),
    "eis_2": lambda z, b: z * sp(z) * rsqrt(b + z * z),
    "eis_3": lambda z, d, e: _over(z, z, 1.0, d, e),
    "elus_plus_2l": lambda z, a, b: b * elu(z) + (1 - b) * (sp(z) - a),
    "gln": lambda z, a: (w := s(like(z, a))) * z.sin() + (1 - w) * tanh(z),
    "naf": lambda z, a, b, c, d: a * (-((b * z) ** 2)).exp() + c * s(d * z),
    "sls_ss": lambda z, a, b, c, d: a * s(b * z) + c * (d * z).sin(),
    "naf_2": lambda z, a, b, c, d, e, f: a * (b * z).sin() + c * (-((d * z) ** 2)).exp() + e * s(f * z),
}
