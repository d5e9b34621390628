"""Products of features: what no sum of functions of single features can say.

    pair_sum         Σ_{i<j} ⟨e_i, e_j⟩ = ½ (|Σ_i e_i|² − Σ_i |e_i|²)       all pairs in O(F D)     (factorisation machines)
    pair_products    ⟨e_i, e_j⟩, i < j                                      each pair by itself, O(F² D)
    LowRankBilinear  z_o = Σ_r A_or (U x)_r (V y)_r                         a form xᵀ W_o y with W_o = Uᵀ diag(A_o) V of rank ≤ r
    HeadedBilinear   z = Σ_{j=1..k} x_jᵀ W_j y_j                            x, y in k chunks: W block-diagonal, 1/k of the numbers

Rendle 2010, Factorization machines, ICDM; Mao et al. 2023, FinalMLP, arXiv:2304.00902 (heads).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.errors import Refused
from neuropil.nn.checks import fits


def pair_sum(e: Float[Tensor, "*b f d"]) -> Float[Tensor, "*b"]:
    """``Σ_{i<j} ⟨e_i, e_j⟩`` over all pairs of F vectors, in O(F D) time.

    >>> pair_sum(torch.tensor([[1.0, 0.0], [2.0, 1.0], [3.0, 1.0]]))
    tensor(12.)
    """
    return (e.sum(-2).square().sum(-1) - e.square().sum((-2, -1))) / 2


def pair_products(e: Float[Tensor, "*b f d"]) -> Float[Tensor, "*b p"]:
    """``⟨e_i, e_j⟩`` for i < j in the order (0, 1), (0, 2), …; p = F (F − 1)/2 numbers, O(F² D) time.

    >>> pair_products(torch.tensor([[1.0, 0.0], [2.0, 1.0], [3.0, 1.0]]))
    tensor([2., 3., 7.])
    """
    i, j = torch.triu_indices(e.shape[-2], e.shape[-2], offset=1, device=e.device)
    return (e @ e.mT)[..., i, j]


class LowRankBilinear(nn.Module):
    """``z_o = Σ_r A_or (U x)_r (V y)_r``: bilinear forms of rank at most r, all with the same U and V.

    (n + m + outputs) r numbers, as much time a row. `Refused` for sizes below 1.

    >>> LowRankBilinear(6, 4, rank=2)(torch.randn(3, 6), torch.randn(3, 4)).shape
    torch.Size([3, 1])
    """

    def __init__(self, n: int, m: int, rank: int, outputs: int = 1) -> None:
        super().__init__()
        if min(n, m, rank, outputs) < 1:
            raise Refused(f"n, m, rank, outputs: must be at least 1, got {n}, {m}, {rank}, {outputs}")
        self.u, self.v = nn.Linear(n, rank, bias=False), nn.Linear(m, rank, bias=False)
        self.a = nn.Linear(rank, outputs, bias=False)

    def forward(self, x: Float[Tensor, "*b n"], y: Float[Tensor, "*b m"]) -> Float[Tensor, "*b o"]:
        """The forms of each row."""
        fits("x", x, self.u.in_features, self.u.weight)
        fits("y", y, self.v.in_features, self.v.weight)
        return self.a(self.u(x) * self.v(y))

    def matrix(self) -> Float[Tensor, "o n m"]:
        """The full W_o of each output."""
        return torch.einsum("or,rn,rm->onm", self.a.weight, self.u.weight, self.v.weight)


class HeadedBilinear(nn.Module):
    """``z = Σ_j x_jᵀ W_j y_j`` with x (n) and y (m) cut into k = `heads` chunks. k = 1 is the full bilinear form.

    W_j ~ N(0, 2/(n m/k + 1)): Xavier's rule for a table of n m/k rows and one column, as the authors draw it.
    n m/k numbers, as much time a row. `Refused` for sizes below 1 or heads that do not divide both.

    >>> form = HeadedBilinear(4, 2, heads=2)
    >>> x, y = torch.randn(3, 4), torch.randn(3, 2)
    >>> bool(torch.allclose(form(x, y), torch.einsum("bn,nm,bm->b", x, form.matrix(), y), atol=1e-6))
    True
    """

    def __init__(self, n: int, m: int, heads: int = 1) -> None:
        super().__init__()
        if min(n, m, heads) < 1 or n % heads or m % heads:
            raise Refused(f"heads: must divide the sizes {n} and {m}, got {heads}")
        self.heads = heads
        self.weight = nn.Parameter(torch.randn(heads, n // heads, m // heads) * math.sqrt(2 / (n * m // heads + 1)))

    def forward(self, x: Float[Tensor, "*b n"], y: Float[Tensor, "*b m"]) -> Float[Tensor, "*b"]:
        """The form of each row."""
        fits("x", x, self.weight.shape[1] * self.heads, self.weight)
        fits("y", y, self.weight.shape[2] * self.heads, self.weight)
        chunks = x.unflatten(-1, (self.heads, -1))
        return (torch.einsum("...ki,kij->...kj", chunks, self.weight).flatten(-2) * y).sum(-1)

    def matrix(self) -> Float[Tensor, "n m"]:
        """The block-diagonal W of the same form in one piece."""
        return torch.block_diag(*self.weight)
