"""z · squash(z), fixed, gated units and softmax (sections 3.3 to 3.5); formulas and initial values in ``squashed.toml``."""

import math

import torch
from torch import Tensor, atan, erf, expm1, log1p, relu, tanh
from torch.nn import functional as F

from neuropil.nn.activations.ops import Functions, cexp, gumbel, neg, sech, sp

s = torch.sigmoid


def _colu(z: Tensor) -> Tensor:
    """z/(1 − z e^−(z + e^z)), numerator and denominator times e^min(z, 0)."""
    p = neg(z).exp()
    return z * p / (p - z * (-relu(z) - cexp(z)).exp())


FUNCTIONS: Functions = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "gelu_sigmoid": lambda z: z * s(1.702 * z),
    "sgelu": lambda z, a: a * z * erf(z * math.sqrt(0.5)),
    "calu": lambda z: z * (atan(z) / math.pi + 0.5),
    "lalu": lambda z: z * torch.where(z < 0, h := (-z.abs()).exp() / 2, 1 - h),
    "colu": _colu,
    "triple_state_swish": lambda z, a, b: z * s(z) * (s(z) + s(z - a) + s(z - b)),
    "generalized_swish": lambda z: z * s(cexp(-z)),
    "exponential_swish": lambda z: s(-z),
    "sigmoid_derivative": lambda z: s(z) * s(-z),
    "gish": lambda z: z * log1p(-expm1(-cexp(z))),
    "logish": lambda z: z * log1p(s(z)),
    "loglogish": lambda z: -z * expm1(-cexp(z)),
    "expexpish": lambda z: z * gumbel(z),
    "self_arctan": lambda z: z * atan(z),
    "plogish": lambda z, a, b: a * z * log1p(s(b * z)),
    "phish": lambda z: z * tanh(F.gelu(z)),
    "suish": lambda z: z * neg(z).exp(),
    "tsrelu": lambda z: z * tanh(s(z)),
    "tbsrelu": lambda z: z * tanh(tanh(z / 2)),
    "log_sigmoid": F.logsigmoid,
    "dsilu": lambda z: s(z) * (1 + z * s(-z)),
    "double_silu": lambda z: z * s(F.silu(z)),
    "msilu": lambda z: F.silu(z) + (-z * z - 1).exp() / 4,
    "tsilu": lambda z: tanh(F.silu(z)),
    "atsilu": lambda z: atan(F.silu(z)),
    "swat": lambda z: z * s(atan(z)),
    "resech": lambda z: z * sech(z),
    "lisht": lambda z: z * tanh(z),
    "mish": F.mish,
    "smish": lambda z, a, b: a * z * tanh(log1p(s(b * z))),
    "tanhexp": lambda z: z * tanh(cexp(z)),
    "serf": lambda z: z * erf(sp(z)),
    "eanaf": lambda z: z * s(z - math.log(2)),
    "sinsig": lambda z: z * (s(z) * (math.pi / 2)).sin(),
    "sielu": lambda z: F.gelu(z, approximate="tanh"),
    "glu": lambda z, gate: z * s(gate),
    "gtu": lambda z, gate: tanh(z) * s(gate),
    "reglu": lambda z, gate: z * relu(gate),
    "geglu": lambda z, gate: z * F.gelu(gate),
    "swiglu": lambda z, gate, b: z * gate * s(b * gate),
    "softmax": lambda z, dim: z.softmax(dim),
    "beta_softmax": lambda z, b, dim: (b * z).softmax(dim),
}
