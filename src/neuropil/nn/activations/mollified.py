"""The mollified family, ``|z|_e = sqrt(z² + e)`` (section 4.55); formulas and initial values in ``mollified.toml``."""

from torch import Tensor, expm1, log1p

from neuropil.nn.activations.ops import Functions, Number
from neuropil.nn.activations.ops import mollified as m


def _squareplus(z: Tensor, e: Number) -> Tensor:
    return (z + m(z, e)) / 2


def _eluplus(z: Tensor, a: Number, e: Number) -> Tensor:
    """Above z = 40 what is subtracted, (v − |v|_e)/2, has long been 0."""
    v = a * expm1(z.clamp(max=40))
    return _squareplus(z, e) + (v - m(v, e)) / 2


def _mishplus(z: Tensor, e: Number) -> Tensor:
    p = _squareplus(z, e)
    return z * p / m(p, e)


FUNCTIONS: Functions = {
    "squareplus": _squareplus,
    "stepplus": lambda z, e: (1 + z / m(z, e)) / 2,
    "bipolarplus": lambda z, e: z / m(z, e),
    "lreluplus": lambda z, a, e: ((1 + a) * z + m((1 - a) * z, e)) / 2,
    "vreluplus": m,
    "softshrinkplus": lambda z, a, e: z + (m(z - a, e) - m(z + a, e)) / 2,
    "panplus": lambda z, a, e: (m(z - a, e) + m(z + a, e)) / 2 - a,
    "breluplus": lambda z, e: (1 + m(z, e) - m(z - 1, e)) / 2,
    "sreluplus": lambda z, a, t, e: a * z + (a - 1) * (m(z - t, e) - m(z + t, e)) / 2,
    "hardtanhplus": lambda z, e: (m(z + 1, e) - m(z - 1, e)) / 2,
    "hardshrinkplus": lambda z, a, e: z * (1 + ((z - a) / m(z - a, e) - (z + a) / m(z + a, e)) / 2),
    "meluplus": lambda z, b, c, e: (m(z - b - c, e) + m(z - b + c, e)) / 2 - m(z - b, e),
    "eluplus": _eluplus,
    "swishplus": lambda z, e: z * (1 + z / m(z, e)) / 2,
    "mishplus": _mishplus,
    "logishplus": lambda z, e: z * log1p((1 + z / m(z, e)) / 2),
    "softsignplus": lambda z, e: z / (1 + m(z, e)),
    "signreluplus": lambda z, e: _squareplus(z, e) + (z - m(z, e)) / (2 * m(1 - z, e)),
}
