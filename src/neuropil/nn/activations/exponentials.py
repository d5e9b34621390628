"""Exponential, power and square-based functions (sections 3.7 and 3.8); formulas and initial values in ``exponentials.toml``."""

import torch
from torch import Tensor, expm1, log1p, maximum, relu, rsqrt, tanh
from torch.nn import functional as F

from neuropil.nn.activations.ops import Functions, Number, clip, elu, hs, magnitude, neg, sp

s = torch.sigmoid


def _sqnl(z: Tensor) -> Tensor:
    c = z.clamp(-2, 2)
    return c - c * c.abs() / 4


def _rsigelud(z: Tensor, a: Number, b: Number) -> Tensor:
    return relu(z) + b * expm1(neg(z)) + torch.where(z > 1, a * z * s(z), 0.0)


FUNCTIONS: Functions = {
    "maxsig": lambda z: maximum(z, s(z)),
    "maxtanh": lambda z: maximum(z, tanh(z)),
    "thlu": lambda z: relu(z) + tanh(neg(z) / 2),
    "dual_elu": lambda z, gate: elu(z) - elu(gate),
    "diffelu": lambda z, a, b: torch.where(z < 0, a * ((n := neg(z)) * n.exp() - b * (b * n).exp()), z),
    "polylu": lambda z: relu(z) + (n := neg(z)) / (1 - n),
    "iplu": lambda z, a: relu(z) + (n := neg(z)) / (1 + magnitude(n) ** a),
    "polu": lambda z, a: relu(z) + expm1(-a * log1p(-neg(z))),
    "pflu": lambda z: z / 2 * (1 + z * rsqrt(1 + z * z)),
    "fpflu": lambda z: relu(z) + (n := neg(z)) * (1 + n * rsqrt(1 + n * n)),
    "eacu": lambda z, a, b: b * relu(z) + a * (n := neg(z)) * tanh(sp(a * n)),
    "selu": F.selu,
    "lselu": lambda z, l, a, c: l * (relu(z) + a * expm1(n := neg(z)) + c * n),
    "sselu": lambda z, l, a, c: l * (relu(z) + a * expm1(c * neg(z))),
    "serlu": lambda z, l, a: l * (relu(z) + a * (n := neg(z)) * n.exp()),
    "rsigelu": lambda z, a: _rsigelud(z, a, a),
    "rsigelud": _rsigelud,
    "hard_srelue": lambda z, a: (p := relu(z)) + a * p * hs(p) + a * expm1(neg(z)),
    "elish": lambda z: s(z) * elu(z),
    "hard_elish": lambda z: hs(z) * elu(z),
    "lsrelu": lambda z, a, b: (
        F.softsign(neg(z)) + torch.where(z > b, log1p(a * relu(z)) + (log1p(a * (c := clip(z, 0, b))) - c).abs(), relu(z))
    ),
    "sqnl": _sqnl,
    "sqlu": lambda z: relu(z) + (c := z.clamp(-2, 0)) + c * c / 4,
    "squish": lambda z: (p := relu(z)) + p * p / 32 + (c := z.clamp(-2, 0)) + c * c / 2,
    "sqreu": lambda z: relu(z) + (c := z.clamp(-2, 0)) + c * c / 2,
    "sqsoftplus": lambda z: (z + 0.5).clamp(0, 1) ** 2 / 2 + relu(z - 0.5),
    "log_sqnl": lambda z: (_sqnl(z) + 1) / 2,
    "sqmax": lambda z, c, dim: (u := (z + c) ** 2) / u.sum(dim, keepdim=True),
    "linq": lambda z, a: (c := clip(z, 2 * a - 2, 2 - 2 * a)) * (4 - c.abs()) / 4 + a * (z - c),
    "isrlu": lambda z, a: relu(z) + (n := neg(z)) * rsqrt(1 + a * n * n),
    "isru": lambda z, a: z * rsqrt(1 + a * z * z),
    "modified_elliott": lambda z: z * rsqrt(1 + z * z) + 0.5,
}
