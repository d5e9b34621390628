"""Rectified class, fixed (section 3.6); formulas and initial values in ``rectified.toml``."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, log1p, maximum, minimum, relu, tanh
from torch.nn import functional as F

from neuropil.nn.activations.ops import Functions, Number, clip, elu, hs, magnitude, neg, sp

s = torch.sigmoid


def _leaky(z: Tensor, slope: Number) -> Tensor:
    """z, times `slope` below 0; torch's own where the slope is a number."""
    return relu(z) + slope * neg(z) if isinstance(slope, Tensor) else F.leaky_relu(z, slope)


def _optimized_leaky(z: Tensor, l: Number, u: Number) -> Tensor:
    return relu(z) + math.e ** ((u + l) / (l - u)) * neg(z)


def _oplu(z: Tensor, dim: int) -> Tensor:
    pairs = z.movedim(dim, -1).unflatten(-1, (-1, 2))
    return torch.stack([pairs.amax(-1), pairs.amin(-1)], -1).flatten(-2).movedim(-1, dim)


def _baf(z: Tensor, dim: int, g: Callable[[Tensor], Tensor]) -> Tensor:
    z = z.movedim(dim, -1)
    sign = torch.ones_like(z[..., :1]).expand_as(z).clone()
    sign[..., 1::2] = -1
    return (sign * g(sign * z)).movedim(-1, dim)


def _huber(z: Tensor, d: Number) -> Tensor:
    """|z|^d/d up to |z| = 1, then a line of slope 1."""
    size = magnitude(z)
    c = size.clamp(max=1)
    return c**d / d + size - c


def _hardshrink(z: Tensor, a: Number) -> Tensor:
    return torch.where(z.abs() > a, z, 0.0) if isinstance(a, Tensor) else F.hardshrink(z, a)


FUNCTIONS: Functions = {
    "relu": torch.relu,
    "identity": lambda z: z,
    "shifted_relu": lambda z: z.clamp(min=-1),
    "leaky_relu": lambda z, a: _leaky(z, 1 / a),
    "very_leaky_relu": lambda z, a: _leaky(z, 1 / a),
    "optimized_leaky_relu": _optimized_leaky,
    "rrelu": lambda z, a: relu(z) + neg(z) / a,
    "s_rrelu": lambda z, a: 1 / (1 + z) ** 2 + relu(z) + a * neg(z),
    "sloped_relu": lambda z, a: a * relu(z),
    "noisy_relu": lambda z, e: relu(z + e * z.std(correction=0)),
    "sine_relu": lambda z, a: torch.where(z < 0, a * (z.sin() - z.cos()), z),
    "minsin": lambda z: minimum(z, z.sin()),
    "vlu": lambda z, a, b: relu(z) + a * (b * z).sin(),
    "rt_relu": lambda z, a: relu(z + a),
    "nlrelu": lambda z, b: log1p(b * relu(z)),
    "slu": lambda z: relu(z) + 2 * (sp(neg(z)) - math.log(2)),
    "resp": lambda z, a: a * relu(z) + sp(neg(z)),
    "prenu": lambda z, a: relu(z) - a * log1p(relu(z)),
    "brelu": lambda z, a: clip(z, 0, a),
    "relu6": F.relu6,
    "hard_sigmoid": hs,
    "hard_sigmoid_5": lambda z: F.hardtanh(0.2 * z + 0.5, 0.0, 1.0),
    "hard_tanh": lambda z, a, b: clip(z, a, b) if isinstance(a, Tensor) or isinstance(b, Tensor) else F.hardtanh(z, a, b),
    "raised_hard_tanh": lambda z, a: F.hardtanh(z) + a,
    "shifted_hard_tanh": lambda z, a: F.hardtanh(z + a),
    "hard_swish": F.hardswish,
    "trec": lambda z, a: torch.where(z > a, z, 0.0),
    "hardshrink": _hardshrink,
    "softshrink": lambda z, a: relu(z - a) - relu(-z - a) if isinstance(a, Tensor) else F.softshrink(z, a),
    "blrelu": lambda z, a, b: (c := clip(z, 0, b)) + a * (z - c),
    "vrelu": torch.abs,
    "pan": lambda z, a: relu(z.abs() - a),
    "abslu": lambda z, a: relu(z) - a * neg(z),
    "mrelu": lambda z: relu(1 - z.abs()),
    "lsptlu": lambda z, a: 0.2 * neg(z) + relu(a - (relu(z) - a).abs()),
    "soft_modulus_q": lambda z: (c := z.abs().clamp(max=1)) * c * (2 - c) + z.abs() - c,
    "soft_modulus_t": lambda z, a: z * tanh(z / a),
    "signrelu": lambda z, a: relu(z) + a * F.softsign(neg(z)),
    "li_relu": lambda z, a: a * z + relu(z),
    "crelu": lambda z: (relu(z), relu(-z)),
    "ncrelu": lambda z: (relu(z), -relu(-z)),
    "baf": _baf,
    "dual_relu": lambda z, gate: relu(z) - relu(gate),
    "oplu": _oplu,
    "erelu": lambda z, k: k * relu(z),
    "repu": lambda z, p: relu(z) ** p,
    "requ": lambda z: relu(z) ** 2,
    "recu": lambda z: relu(z) ** 3,
    "apprelu": lambda z, a, b: a * relu(z) ** b,
    "eplaf": _huber,
    "oplaf": lambda z, d: _huber(relu(z), d) - _huber(neg(z), d),
    "abrelu": lambda z: relu(z - z.mean()),
    "drlu": lambda z, a: relu(z - a),
    "disrelu": lambda z, a: maximum(z, -a * torch.ones_like(z)) if isinstance(a, Tensor) else z.clamp(min=-a),
    "mlrelu": lambda z, a: torch.where(z + a > 0, z, -a * z),
    "fts": lambda z, T: relu(z) * s(z) + T,
    "oaf": lambda z: relu(z) + F.silu(z),
    "elu": lambda z, a: relu(z) + a * neg(elu(z)) if isinstance(a, Tensor) else F.elu(z, a),
    "reu": lambda z: z * neg(z).exp(),
    "ada": lambda z, a, b: torch.where(z < 0, 0.0, (b - a * relu(z)).exp()),
    "lada": lambda z, a, b, c: torch.where(z < 0, c * z, (b - a * relu(z)).exp()),
    "siglu": lambda z: relu(z) + tanh(neg(z)),
    "sara": lambda z, a, b: relu(z) + (n := neg(z)) * (u := (b * n).exp()) / (u + a),
}
