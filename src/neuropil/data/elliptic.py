"""Simulators of boundary value problems in the unit square, by finite volumes and a sparse direct solver.

    −∇·(a ∇u) = f,  u = 0 on the border                                                   Darcy flow
    −Δu − (ω/c)² u = 0,  ∂u/∂n = 1 on the upper side and 0 on the others                  Helmholtz

Points are x = i/(n − 1), i = 0 … n − 1, both ends held; axis −2 is y, axis −1 is x. Between neighbours a is the harmonic mean: flow
through two phases in a row. Half cells lie along the border. Second order where a is smooth, first across jumps.
"""

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from neuropil.data.pde import gaussian_field
from neuropil.errors import Refused

BLOCK = 16  # problems that are solved as one sparse system


def two_phases(
    b: int, n: int, generator: torch.Generator, low: float = 3.0, high: float = 12.0, smoothness: float = 2.0, tau: float = 3.0
) -> Float[Tensor, "b 1 {n} {n}"]:
    """Random media of two phases: `high` where a Gaussian field is positive, else `low` (Li et al. 2021, arXiv:2010.08895).

    Field N(0, (−Δ + τ²)^{−smoothness}), drawn on a torus of twice the size, of which a quarter is kept. O(b n² log n).

    >>> sorted(two_phases(2, 17, torch.Generator().manual_seed(0)).unique().tolist())
    [3.0, 12.0]
    """
    if b < 1 or n < 3 or not 0 < low <= high:
        raise Refused(f"b, n, low, high: ≥ 1, ≥ 3 and 0 < low ≤ high are needed, got {b}, {n}, {low} and {high}")
    field = gaussian_field(b, (2 * n, 2 * n), generator, smoothness=smoothness, tau=2 * tau)[..., :n, :n]
    return torch.where(field > 0, high, low)


def darcy(a: Float[Tensor, "b 1 n n"], f: Float[Tensor, "b 1 n n"] | float = 1.0) -> Float[Tensor, "b 1 n n"]:
    """u of ``−∇·(a ∇u) = f`` with zeros on the border. O(b n³) time by nested dissection's bound; float64 within.

    `Refused` if `a` is not positive everywhere or a grid has fewer than three points.

    >>> u = darcy(torch.ones(1, 1, 33, 33))
    >>> round(float(u[0, 0, 16, 16]), 4)  # exact: 0.0737
    0.0736
    """
    n = _square(a, "a")
    if not bool((a > 0).all()):
        raise Refused(f"a: must be positive everywhere, got {float(a.min())}")
    right = torch.as_tensor(f, dtype=torch.float64).expand(a.shape).reshape(len(a), n, n).numpy()
    inner = np.zeros((n, n), dtype=bool)
    inner[1:-1, 1:-1] = True
    u = np.zeros((len(a), n, n))
    u[:, inner] = _solve(a, None, np.ascontiguousarray(right[:, inner]) / (n - 1) ** 2, inner)
    return torch.from_numpy(u)[:, None].to(a.dtype)


def helmholtz(c: Float[Tensor, "b 1 n n"], omega: float) -> Float[Tensor, "b 1 n n"]:
    """u of ``−Δu − (ω/c)² u = 0`` that is shaken with unit slope from above (y = 0) and reflected by the other sides.

    (De Hoop et al. 2022, arXiv:2203.13181, have ω = 1000 and c about 20 on 101² points: 12.6 points a wave, 2π c/ω.) Nothing is
    damped: near a resonance u is large and jumps with c, by the equation itself. In a square of one speed resonances lie at
    (ω/πc)² = i² + j². At least eight points a wave are needed for errors of a few per cent. `Refused` if c or ω is not positive.

    >>> helmholtz(torch.ones(1, 1, 33, 33), omega=8.0).shape
    torch.Size([1, 1, 33, 33])
    """
    n = _square(c, "c")
    if not bool((c > 0).all()) or not omega > 0:
        raise Refused(f"c, omega: must be positive, got {float(c.min())} and {omega}")
    h = 1 / (n - 1)
    right = np.zeros((len(c), n, n))
    right[:, 0] = h * _half(n)  # the flux through the upper sides of the cells
    k2 = ((omega / c.double()) ** 2).reshape(len(c), n, n).numpy() * h**2 * _half(n) * _half(n)[:, None]
    everywhere = np.ones((n, n), dtype=bool)
    u = _solve(torch.ones_like(c), k2, right.reshape(len(c), -1), everywhere)
    return torch.from_numpy(u.reshape(len(c), 1, n, n)).to(c.dtype)


def speeds(
    b: int, n: int, generator: torch.Generator, mean: float = 20.0, smoothness: float = 2.0, tau: float = 3.0
) -> Float[Tensor, "b 1 {n} {n}"]:
    """Random smooth wave speeds ``c = mean + tanh g``, g ~ N(0, (−Δ + τ²)^{−smoothness}) with level borders. For `helmholtz`.

    g is a sum of cosines without its mean, as in the data of de Hoop et al. 2022 (arXiv:2203.13181): at the defaults its standard
    deviation is .1, and c varies by half a per cent. O(b n³).

    >>> c = speeds(64, 33, torch.Generator().manual_seed(0))
    >>> round(float(c.mean()), 2), round(float(c.std()), 1)
    (20.0, 0.1)
    """
    if not mean > 1 or not smoothness > 1 or not tau > 0:
        raise Refused(f"mean, smoothness, tau: mean > 1, smoothness > 1 and τ > 0 are needed, got {mean}, {smoothness} and {tau}")
    k = torch.arange(n, dtype=torch.float64)
    cosines = torch.cos(torch.pi * k[:, None] * k / max(n - 1, 1)) * torch.where(k > 0, 2**0.5, 1.0)
    size = (torch.pi**2 * (k[:, None] ** 2 + k**2) + tau**2) ** (-smoothness / 2)
    size[0, 0] = 0
    g = cosines @ (size * torch.randn(b, 1, n, n, generator=generator, dtype=torch.float64)) @ cosines.T
    return (mean + torch.tanh(g)).float()


def _half(n: int) -> np.ndarray:
    """Widths of the cells along an axis, in units of h: half at the ends."""
    width = np.ones(n)
    width[[0, -1]] = 0.5
    return width


def _square(a: Tensor, name: str) -> int:
    n = a.shape[-1]
    if n < 3:
        raise Refused(f"{name}: at least 3 points an axis are needed, got {tuple(a.shape)}")
    return n


def _solve(a: Tensor, k2: np.ndarray | None, right: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Fluxes through cell faces (times h²/h²) minus k², inverted; rows of `right` hold the `unknown` points of a problem."""
    field = a.double().reshape(len(a), *unknown.shape).numpy()
    out = np.empty_like(right)
    for start in range(0, len(a), BLOCK):
        part = slice(start, start + BLOCK)
        blocks = [_matrix(field[i], None if k2 is None else k2[i], unknown) for i in range(len(a))[part]]
        found = splu(sparse.block_diag(blocks, format="csc")).solve(right[part].ravel())
        out[part] = found.reshape(out[part].shape)
    return out


def _matrix(a: np.ndarray, k2: np.ndarray | None, unknown: np.ndarray) -> sparse.csr_matrix:
    """The five-point matrix of one medium, on its unknown points."""
    n = len(a)
    number = np.arange(n * n).reshape(n, n)
    width = _half(n)
    rows, columns, values = [], [], []
    for axis in (0, 1):
        one, two = (number[:-1], number[1:]) if axis == 0 else (number[:, :-1], number[:, 1:])
        first, second = (a[:-1], a[1:]) if axis == 0 else (a[:, :-1], a[:, 1:])
        across = width[None, :] if axis == 0 else width[:, None]
        flux = (2 * first * second / (first + second) * across).ravel()
        i, j = one.ravel(), two.ravel()
        rows += [i, j, i, j]
        columns += [j, i, i, j]
        values += [-flux, -flux, flux, flux]
    if k2 is not None:
        rows.append(number.ravel())
        columns.append(number.ravel())
        values.append(-k2.ravel())
    shape = (n * n, n * n)
    whole = sparse.csr_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=shape)
    keep = np.flatnonzero(unknown.ravel())
    return whole[keep][:, keep]
