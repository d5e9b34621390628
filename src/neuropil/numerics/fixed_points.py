"""Fixed points z* = f(z*) of a map of a batch to itself: iterate all rows at once, merge the end points, see which of them attract.

    z_{t+1} = f(z_t)   until   |f(z_t) − z_t| ≤ tolerance (1 + |z_t|)   or t = `steps`

A small residual alone is no fixed point: on z ↦ z + 10⁻⁶ every row "converges". What attracts has, beside a small residual, a
Jacobian of spectral radius ρ(∂f/∂z) < 1 there (Ostrowski 1960), and the distance still to go is about residual / (1 − ρ).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neuropil.errors import Refused, choose
from neuropil.nn.checks import full_precision
from neuropil.numerics.jacobians import spectral_radius

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Settled:
    """Where each of b rows ended.

    `z` (b, *d) are the end points, `residual` (b) |f(z) − z| there and `first` (b) the same at the start; `steps` (b) counts
    updates; `converged` (b) rows met the tolerance, `diverged` (b) ones left the finite numbers (their z is the last finite one);
    the others ran out of steps. `path` (t, b, *d) are the rows after 0, 1, … updates, a row that stopped staying where it is;
    None if not kept.
    """

    z: Tensor
    residual: Tensor
    first: Tensor
    steps: Tensor
    converged: Tensor
    diverged: Tensor
    path: Tensor | None = None


@torch.no_grad()
def settle(f: Function, z: Float[Tensor, "b *d"], tolerance: float = 1e-5, steps: int = 3000, keep: bool = False) -> Settled:
    """Iterate f from each row of z until the row's residual is small; a row that is done stays where it is.

    f must treat rows one by one and keep their shape (a net in eval mode). Rows that are done leave the batch when half of it is:
    f sees few batch sizes. At most `steps` + 1 calls of f; memory O(b d), and O(steps b d) for a `keep` of all positions.
    `Refused` for no steps, a tolerance below 0, rows that are not finite, or an f that changes the shape.

    >>> found = settle(lambda z: z / 2 + 1, torch.zeros(1, 1), tolerance=1e-6)
    >>> found.z.round(decimals=3), found.steps, found.converged
    (tensor([[2.]]), tensor([19]), tensor([True]))
    """
    if steps < 1:
        raise Refused(f"steps: at least 1, got {steps}")
    if not tolerance >= 0:
        raise Refused(f"tolerance: must be at least 0, got {tolerance}")
    if not len(z) or not bool(z.isfinite().all()):
        raise Refused(
            f"z: at least one row, of finite numbers, is needed, got {len(z)} rows, {int((~z.isfinite()).sum())} not finite"
        )
    ends, b = z.clone(), len(z)
    first, residual = z.new_full((b,), torch.inf), z.new_full((b,), torch.inf)
    count = torch.zeros(b, dtype=torch.int64, device=z.device)
    converged, diverged = (torch.zeros(b, dtype=torch.bool, device=z.device) for _ in range(2))
    rows = torch.arange(b, device=z.device)  # of the batch that f sees
    path = [ends.clone()] if keep else []
    for t in range(steps + 1):
        there = ends[rows]
        after = f(there)
        if not isinstance(after, Tensor) or after.shape != there.shape:
            given = tuple(after.shape) if isinstance(after, Tensor) else type(after).__name__
            raise Refused(f"f: must give the shape that it takes, {tuple(there.shape)}, got {given}")
        active = ~(converged | diverged)[rows]
        step = length(after - there)
        lost = active & ~(step.isfinite() & length(after).isfinite())
        done = active & (step <= tolerance * (1 + length(there)))
        residual[rows] = torch.where(active, step, residual[rows])
        if t == 0:
            first = residual.clone()
        converged[rows] |= done
        diverged[rows] |= lost
        moving = active & ~done & ~lost
        if t == steps or not bool(moving.any()):
            break
        ends[rows] = torch.where(moving.reshape(-1, *[1] * (z.ndim - 1)), after, there)
        count[rows] += moving
        if keep:
            path.append(ends.clone())
        if 2 * int(moving.sum()) <= len(rows):
            rows = rows[moving]
    return Settled(ends, residual, first, count, converged, diverged, torch.stack(path) if keep else None)


def merge(z: Float[Tensor, "b *d"], tolerance: float = 1e-2, measure: str = "l2") -> Int[Tensor, "b"]:
    """The group of each row: rows within the tolerance of one another, or linked by such rows, share one. The largest is 0.

    "l2": |a − b| ≤ tolerance (1 + (|a| + |b|) / 2). "cosine": 1 − cos(a, b) ≤ tolerance. O(b² d) time, O(b²) memory. `Refused` for
    another measure, a negative tolerance, or rows that are not finite.

    >>> merge(torch.tensor([[0.0], [5.0], [5.001]]))
    tensor([1, 0, 0])
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    choose("measure", measure, ("l2", "cosine"))
    if not tolerance >= 0:
        raise Refused(f"tolerance: must be at least 0, got {tolerance}")
    if not bool(z.isfinite().all()):
        raise Refused(f"z: finite numbers are needed, {int((~z.isfinite()).sum())} are not")
    if not len(z):
        return torch.zeros(0, dtype=torch.int64, device=z.device)
    rows = _rows(z.detach())
    size = rows.norm(dim=1)
    if measure == "cosine":
        unit = torch.nn.functional.normalize(rows, dim=1)
        near = 1 - unit @ unit.T <= tolerance
    else:
        full_precision("z", z)
        apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        near = apart <= tolerance * (1 + (size[:, None] + size) / 2)
    i, j = near.nonzero(as_tuple=True)
    links = coo_array((torch.ones(len(i)).numpy(), (i.cpu().numpy(), j.cpu().numpy())), shape=(len(z), len(z)))
    label = torch.from_numpy(connected_components(links, directed=False)[1]).long().to(z.device)
    order = label.bincount().argsort(descending=True, stable=True)
    return order.argsort()[label]


def radius(f: Function, z: Float[Tensor, "b *d"], exact: int = 256, rows: int = 64) -> Float[Tensor, "b"]:
    """ρ(∂f/∂z) at each row: from all of the Jacobian up to `exact` numbers a row, by 64 Arnoldi steps above; `rows` rows at once.

    See `numerics.jacobians.spectral_radius`.

    >>> radius(lambda z: z @ torch.diag(torch.tensor([0.5, -0.8])), torch.zeros(1, 2))
    tensor([0.8000])
    """
    if not len(z):
        return z.new_zeros(0)
    full_precision("z", z)
    if not z[0].numel():
        raise Refused(f"z: rows must not be empty, got shape {tuple(z.shape)}")
    krylov = None if z[0].numel() <= exact else 64
    return torch.cat([spectral_radius(f, part, krylov).to(z.dtype) for part in z.detach().split(rows)])


def attracting(f: Function, found: Settled, margin: float = 1e-3) -> Bool[Tensor, "b"]:
    """Which rows ended at an attractor: they converged, and ρ(∂f/∂z) < 1 − `margin`: slow drift does not count.

    >>> drift = lambda z: z + 1e-6
    >>> found = settle(drift, torch.zeros(1, 1))
    >>> found.converged, attracting(drift, found)
    (tensor([True]), tensor([False]))
    """
    good = found.converged.clone()
    good[found.converged] = radius(f, found.z[found.converged]) < 1 - margin
    return good


def length(z: Float[Tensor, "b *d"]) -> Float[Tensor, "b"]:
    """The Euclidean length of each row."""
    return _rows(z).norm(dim=1)


def _rows(z: Tensor) -> Tensor:
    """The rows as a matrix."""
    if z.ndim < 2:
        raise Refused(f"z: rows (b, *d) are needed, got shape {tuple(z.shape)}")
    return z.flatten(1)
