"""Step and sigmoid class, fixed (sections 3.1 and 3.2); formulas and initial values in ``sigmoids.toml``."""

import math

import torch
from torch import Tensor, atan, expm1, log1p, relu, tanh
from torch.nn import functional as F

from neuropil.nn.activations.ops import Functions, Phi, cexp, clip, gumbel, neg, sech, sinc

s = torch.sigmoid


def _norm(t: Tensor) -> Tensor:
    """sinh u / sqrt(cosh 2u) of t = tanh u."""
    return t * torch.rsqrt(1 + t * t)


FUNCTIONS: Functions = {
    "step": lambda z: 1 - relu(torch.sign(-z)),
    "sigmoid": torch.sigmoid,
    "probit": Phi,
    "tanh": torch.tanh,
    "half_tanh": lambda z: tanh(z / 2),
    "scaled_sigmoid": lambda z: 2 * tanh(z / 2),
    "sss": lambda z, a, b: s(a * (z - b)),
    "vsf": lambda z, a, b, c: a * s(b * z) - c,
    "scaled_tanh": lambda z, a, b: a * tanh(b * z),
    "bimodal_sigmoid": lambda z, b: (s(z) + s(z + b)) / 2,
    "arctan": torch.atan,
    "arctan_gr": lambda z: atan(z) / ((1 + math.sqrt(2)) / 2),
    "sigmoid_algebraic": lambda z, a: s(z / (1 / (1 + a * z.abs()) + z.abs())),
    "triple_state_sigmoid": lambda z, a, b: s(z) * (s(z) + s(z - a) + s(z - b)),
    "improved_logistic": lambda z, a, b: s(clip(z, -b, b)) + a * (z - clip(z, -b, b)),
    "siglin": lambda z, a: s(z) + a * z,
    "penalized_tanh": lambda z, a: tanh(relu(z)) + tanh(neg(z)) / a,
    "srs": lambda z, a, b: z * (u := (neg(z) / b).exp()) / (z * u / a + (-relu(z) / b).exp()),
    "soft_clipping": lambda z, a: 1 - log1p(s(-a * z) * (2.718281828459045**a - 1)) / a,
    "hexpo": lambda z, a, b, c, d: c * expm1(neg(z) / d) - a * expm1(-relu(z) / b),
    "softsign": F.softsign,
    "smooth_step": lambda z, a: (u := clip(z / a, -0.5, 0.5)) * (1.5 - 2 * u * u) + 0.5,
    "elliott": lambda z: F.softsign(z) / 2 + 0.5,
    "sinc_sigmoid": lambda z: sinc(s(z)),
    "sigmoid_gumbel": lambda z: s(z) * gumbel(z),
    "new_sigmoid": lambda z: _norm(tanh(z)),
    "root2sigmoid": lambda z: _norm(tanh(z * (math.log(2) / 2))) / math.sqrt(8),
    "loglog": gumbel,
    "cloglog": lambda z: -expm1(-cexp(-z)),
    "cloglogm": lambda z: 1 - 2 * (-0.7 * cexp(-z)).exp(),
    "sech_sig": lambda z: (z + sech(z)) * s(z),
    "p_sech_sig": lambda z, a: (z + a * sech(z + a)) * s(z),
    "tanh_sig": lambda z: (z + tanh(z)) * s(z),
    "p_tanh_sig": lambda z, a: (z + a * tanh(z + a)) * s(z),
    "msaf": lambda z, a, b: a + s(z[..., None] - b).sum(-1),
    "symmetric_msaf": lambda z, a: s(z) - s(a - z),
    "rootsig": lambda z, a: a * z / (1 + (1 + (a * z) ** 2).sqrt()),
    "rootsig_abs": lambda z, a: F.softsign(a * z),
    "rootsig_norm": lambda z, a: a * z * torch.rsqrt(1 + (a * z) ** 2),
    "rootsig_ratio": lambda z, a: z / (z.abs() + a),
    "sigmoid_tanh": lambda z: tanh(relu(z) / 2) + tanh(neg(z)),
    "sigmoid_zero": lambda z: tanh(relu(z) / 2),
    "tanh_zero": lambda z: tanh(relu(z)),
    "sigmoid_linear": lambda z, a: tanh(relu(z) / 2) + a * neg(z),
    "tanh_linear": lambda z, a: tanh(relu(z)) + a * neg(z),
}
