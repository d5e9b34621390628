"""Sparse codes by orthogonal matching pursuit (Pati et al. 1993): x ≈ Σ_j c_j a_j with at most s atoms, chosen greedily.

    j ← argmax_j |a_j · r| / |a_j|,     c ← argmin |x − Σ_{chosen} c_j a_j|²,     r ← x − Σ_{chosen} c_j a_j

The residual r is orthogonal to all chosen atoms, so none is chosen twice; the codes of s = 1, 2, … nest. All rows run at once, on
an orthonormal basis of their chosen atoms that grows by Gram–Schmidt.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import at_least, looks, same_kind


@dataclass(frozen=True)
class Pursuit:
    """Sparse codes of n rows.

    `chosen` (n, s) are atoms in the order chosen, −1 where the residual had vanished; `coefficients` (n, s) belong to them, 0
    there. `approximations` (s, n, d) are the best fits by the first 1, 2, … s atoms, the last of them with `coefficients`.
    """

    chosen: Tensor
    coefficients: Tensor
    approximations: Tensor

    def dense(self, atoms: int) -> Tensor:
        """The codes as a matrix (n, atoms).

        >>> matching_pursuit(torch.tensor([[3.0, 0.5]]), torch.eye(2), 1).dense(2)
        tensor([[3., 0.]])
        """
        least = 1 + int(self.chosen.max().clamp_min(0)) if looks(self.chosen) and self.chosen.numel() else 0
        at_least(least, atoms=atoms)
        code = self.coefficients.new_zeros(len(self.chosen), atoms)
        return code.scatter_add_(1, self.chosen.clamp_min(0), self.coefficients)


def matching_pursuit(x: Float[Tensor, "n d"], atoms: Float[Tensor, "m d"], s: int) -> Pursuit:
    """Code each row of x with at most s of the m atoms.

    Atoms may have any length but 0. A row stops early when its residual vanishes, or all that is left is orthogonal to all atoms.
    O(s n d (m + s)) time, O(n (m + s d)) memory. `Refused` unless 1 ≤ s ≤ m, for an atom of length 0, or numbers that are not
    finite.

    >>> found = matching_pursuit(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]]), 2)
    >>> found.chosen, found.coefficients
    (tensor([[1, 0]]), tensor([[ 2.5000, -0.5000]]))
    """
    (n, d), m = x.shape, len(atoms)
    if not 1 <= s <= m:
        raise Refused(f"s: must lie in 1 … {m} (the atoms), got {s}")
    if not (bool(x.isfinite().all()) and bool(atoms.isfinite().all())):
        raise Refused("x, atoms: must be finite numbers")
    same_kind("atoms", atoms, x)
    length = atoms.norm(dim=1, keepdim=True)
    if bool((length == 0).any()):
        raise Refused(f"atoms: {int((length == 0).sum())} of {m} have length 0")
    A, each = atoms / length, torch.arange(n, device=x.device)
    Q = x.new_zeros(n, s, d)  # orthonormal rows that span the chosen atoms
    R = torch.eye(s, dtype=x.dtype, device=x.device).repeat(n, 1, 1)  # chosen = Rᵀ Q
    chosen = torch.full((n, s), -1, device=x.device)
    alive, r = torch.ones(n, dtype=torch.bool, device=x.device), x
    small = 100 * torch.finfo(x.dtype).eps
    approximations = x.new_zeros(s, n, d)
    for t in range(s):
        fit = r @ A.T
        best = fit.abs().argmax(1)
        alive = alive & (fit[each, best].abs() > small * x.norm(dim=1))
        q = A[best]
        for _ in range(2):  # once leaves rounding errors
            h = torch.einsum("ntd,nd->nt", Q, q)
            q = q - torch.einsum("nt,ntd->nd", h, Q)
            R[:, :, t] += h * alive[:, None] * (torch.arange(s, device=x.device) < t)
        rest = q.norm(dim=1)
        alive = alive & (rest > small)
        Q[:, t] = torch.where(alive[:, None], q / rest.clamp_min(small)[:, None], 0 * q)
        R[:, t, t] = torch.where(alive, rest, torch.ones_like(rest))
        chosen[:, t] = torch.where(alive, best, chosen[:, t])
        r = r - (Q[:, t] * r).sum(1, keepdim=True) * Q[:, t]
        approximations[t] = x - r
    c = torch.linalg.solve_triangular(R, torch.einsum("ntd,nd->nt", Q, x)[..., None], upper=True)[..., 0]
    lengths = length[chosen.clamp_min(0), 0]
    return Pursuit(chosen, torch.where(chosen >= 0, c / lengths, torch.zeros_like(c)), approximations)
