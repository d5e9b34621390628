"""The words of the formulas in torch, in forms whose values and gradients stay finite where an exponential would overflow.

Branches are cut by clamping their argument first (`neg`, `torch.relu`), never by choosing after the fact: the branch that `where`
throws away still has a gradient, and 0 · inf is not a number.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Number = Tensor | float | int
Functions = dict[str, Callable[..., Any]]


def clip(z: Tensor, lo: Number, hi: Number) -> Tensor:
    """``max(lo, min(z, hi))``; either bound may be a number or a tensor."""
    return z.clamp(min=lo).clamp(max=hi)


def neg(z: Tensor) -> Tensor:
    """``min(z, 0)``; its slope at 0 is 1, that of relu is 0: a sum of both takes the left derivative."""
    return z.clamp(max=0)


def sp(z: Tensor) -> Tensor:
    """Softplus ``ln(1 + e^z)``, exact to float64."""
    return F.softplus(z, threshold=40.0)


def cexp(z: Tensor) -> Tensor:
    """``e^min(z, 80)``, for use inside functions that are flat long before: finite in float32."""
    return z.clamp(max=80.0).exp()


def gumbel(z: Tensor) -> Tensor:
    """``exp(-e^-z)``."""
    return (-cexp(-z)).exp()


def Phi(z: Tensor) -> Tensor:
    """The standard normal distribution function."""
    return 0.5 * torch.erfc(-z * math.sqrt(0.5))


def phi(z: Tensor) -> Tensor:
    """The standard normal density."""
    return (-0.5 * z * z).exp() / math.sqrt(2 * math.pi)


def hs(z: Tensor) -> Tensor:
    """``clip((z + 1)/2, 0, 1)``."""
    return F.hardtanh((z + 1) / 2, 0.0, 1.0)


def sech(z: Tensor) -> Tensor:
    """``1/cosh z``."""
    u = (-z.abs()).exp()
    return 2 * u / (1 + u * u)


def logcosh(z: Tensor) -> Tensor:
    """``ln cosh z``."""
    return z.abs() + torch.log1p((-2 * z.abs()).exp()) - math.log(2)


def sinc(z: Tensor) -> Tensor:
    """``sin(z)/z``, by its series near 0."""
    near = z.abs() < 1e-2
    safe = torch.where(near, 1.0, z)
    small = torch.where(near, z, 0.0).square()
    return torch.where(near, 1 - small / 6 * (1 - small / 20 * (1 - small / 42)), safe.sin() / safe)


def magnitude(z: Tensor) -> Tensor:
    """``|z|``, kept above 0 so that a root or a power of it has a finite slope."""
    return z.abs().clamp(min=1e-30)


def elu(z: Tensor) -> Tensor:
    """``z if z >= 0 else e^z - 1``."""
    return F.elu(z)


def like(z: Tensor, a: Number) -> Tensor:
    """A parameter as a tensor of z's dtype, for functions of the parameter alone."""
    return a if isinstance(a, Tensor) else z.new_full((), a)


def ln(a: Number) -> Number:
    """The logarithm of a parameter."""
    return a.log() if isinstance(a, Tensor) else math.log(a)


def poly(z: Tensor, a: Tensor) -> Tensor:
    """``Σ_k a_k z^k`` by Horner's rule; a: (… K)."""
    total = torch.zeros_like(z) + a[..., -1]
    for k in range(a.shape[-1] - 2, -1, -1):
        total = total * z + a[..., k]
    return total


def mollified(z: Tensor, e: Number) -> Tensor:
    """``|z|_e = sqrt(z² + e)``."""
    return (z * z + e).sqrt()
