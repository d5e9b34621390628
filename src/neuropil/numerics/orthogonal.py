"""Orthogonal matrices from free numbers: skew-symmetric matrices, their exponential and their Cayley map.

    A = −Aᵀ  ⇒  exp(A)  and  (I − A/2)⁻¹ (I + A/2)  are orthogonal with determinant 1

More generally, if M L + Lᵀ M = 0 for M > 0, both maps of L keep the norm xᵀ M x.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import at_least, full_precision


def skew(values: Float[Tensor, "*b m"], n: int) -> Float[Tensor, "*b {n} {n}"]:
    """The n × n matrix ``A = −Aᵀ`` with `values` below its diagonal, row by row; m = n (n − 1) / 2, else `Refused`.

    >>> skew(torch.tensor([1.0, 2.0, 3.0]), 3)
    tensor([[ 0., -1., -2.],
            [ 1.,  0., -3.],
            [ 2.,  3.,  0.]])
    """
    at_least(0, n=n)
    if values.shape[-1] != n * (n - 1) // 2:
        raise Refused(f"values: an n of {n} needs {n * (n - 1) // 2} numbers, got {values.shape[-1]}")
    row, column = torch.tril_indices(n, n, -1, device=values.device)
    lower = values.new_zeros(*values.shape[:-1], n, n)
    lower[..., row, column] = values
    return lower - lower.mT


def exp_skew(values: Float[Tensor, "*b m"], n: int) -> Float[Tensor, "*b {n} {n}"]:
    """``exp(A)`` of `skew` (values): every rotation is one. O(n³).

    >>> Q = exp_skew(torch.tensor([torch.pi / 2]), 2)
    >>> Q.round(decimals=4) + 0.0
    tensor([[ 0., -1.],
            [ 1.,  0.]])
    """
    full_precision("values", values)
    return torch.linalg.matrix_exp(skew(values, n))


def cayley(A: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
    """``(I − A/2)⁻¹ (I + A/2) = exp(A) + O(A³)``: one solve, O(n³); orthogonal for a skew A, like the exponential.

    `Refused` where I − A/2 is singular, which for a skew A it can only be by rounding, and for another precision than full.

    >>> Q = cayley(skew(torch.tensor([1.0, -2.0, 0.5]), 3))
    >>> torch.allclose(Q @ Q.T, torch.eye(3), atol=1e-6)
    True
    """
    full_precision("A", A)
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    try:
        return torch.linalg.solve(eye - A / 2, eye + A / 2)
    except torch.linalg.LinAlgError:
        raise Refused("A: I − A/2 must not be singular, got one that is (too large for its precision, or not skew)") from None
