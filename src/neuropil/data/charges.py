"""Simulator: charged bodies that push one another and are pushed by sources nobody sees.

F_i = q_i [ Σ_{j≠i} q_j (p_i − p_j)/r_ij³ + Σ_s Q_s (p_i − s)/r_is³ + B J u_i ],        r² = |·|² + ε²,   J u = (u_y, −u_x)

with unit masses, Coulomb's law without constants, and in the plane a uniform magnetic field B across it. Leapfrog steps (kick,
drift, turn by B, drift, kick) of length `dt`, second order; forces are cut at 0.1/dt as in the data of Aether (Kofinas et al.
2023, arXiv:2310.20679), after Kipf et al. 2018 (NRI, arXiv:1802.04687).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused, choose

CHARGES = ("same", "random")


@dataclass(frozen=True)
class Tracks:
    """Where the bodies of each run were, and what pushed them; the first frame is the start, frames are `interval` apart.

    `sources` (runs, m, d) is where the hidden ones started, `drift` their velocity, `source_charges` their charge.
    """

    positions: Float[Tensor, "runs t n d"]
    velocities: Float[Tensor, "runs t n d"]
    charges: Float[Tensor, "runs n"]
    sources: Float[Tensor, "runs m d"]
    drift: Float[Tensor, "runs m d"]
    source_charges: Float[Tensor, "runs m"]
    interval: float

    def __len__(self) -> int:
        return len(self.positions)


def coulomb(
    points: Float[Tensor, "*b k d"], sources: Float[Tensor, "*#b m d"], charges: Float[Tensor, "*#b m"], softening: float = 0.0
) -> Float[Tensor, "*b k d"]:
    """The force of the sources on a unit charge at each point: Σ_s Q_s (x − s)/r³, r² = |x − s|² + softening². O(k m d).

    A source that sits on a point does not push it.

    >>> coulomb(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([1.0]))
    tensor([[0.2500, 0.0000]])
    """
    gap = points[..., :, None, :] - sources[..., None, :, :]
    square = gap.square().sum(-1) + softening**2
    strength = charges[..., None, :] * torch.where(square > 0, square, torch.inf).pow(-1.5)
    return (strength[..., None] * gap).sum(-2)


def charged_tracks(
    runs: int,
    generator: torch.Generator,
    *,
    movers: int = 5,
    sources: int = 8,
    frames: int = 49,
    d: int = 2,
    box: float = 5.0,
    spread: float = 1.0,
    speed: float = 0.5,
    charges: str = "same",
    shared: bool = True,
    drift: float = 0.0,
    magnetic: float = 0.0,
    softening: float = 0.0,
    field_seed: int | None = None,
    every: int = 100,
    dt: float = 1e-3,
) -> Tracks:
    """`runs` runs of `frames` frames, one every `every` steps of `dt`, computed in float64 and given as float32.

    Args:
        movers: bodies, started at N(0, spread²) with speed `speed` in a random direction.
        sources: hidden charges ±1 in [−box, box]^d; 0 for none.
        charges: of the movers: "same" (+1 each) or "random" (±1).
        shared: True: all runs have the same sources; False: each run its own.
        drift: the sources' speed, each in a direction of its own; 0: they stand still.
        magnetic: B, for d = 2 only.
        softening: ε in r² = |·|² + ε².
        field_seed: what the shared sources are drawn from; default: `generator`. The same number gives the same field.

    O(frames · every · runs · movers (movers + sources)) time. `Refused` for sizes below one, d outside 2 and 3, dt ≤ 0.

    >>> tracks = charged_tracks(2, torch.Generator().manual_seed(0), frames=3, every=10)
    >>> tracks.positions.shape, tracks.sources.shape, tracks.interval
    (torch.Size([2, 3, 5, 2]), torch.Size([2, 8, 2]), 0.01)
    """
    for name, value in (("runs", runs), ("movers", movers), ("frames", frames), ("every", every)):
        if value < 1:
            raise Refused(f"{name}: must be at least 1, got {value}")
    choose("charges", charges, CHARGES)
    if sources < 0 or d not in (2, 3) or not dt > 0 or (magnetic and d != 2):
        got = f"{sources}, {d}, {dt}, {magnetic}"
        raise Refused(f"sources, d, dt, magnetic: ≥ 0 sources, 2 or 3 dimensions, dt > 0, and B only in the plane; got {got}")

    def normal(*size: int, by: torch.Generator = generator) -> Tensor:
        return torch.randn(size, generator=by, dtype=torch.float64)

    by = generator if field_seed is None else torch.Generator().manual_seed(field_seed)
    fields = 1 if shared else runs
    place = (2 * torch.rand(fields, sources, d, generator=by, dtype=torch.float64) - 1) * box
    sign = 2.0 * torch.randint(2, (fields, sources), generator=by) - 1
    heading = torch.nn.functional.normalize(normal(fields, sources, d, by=by), dim=-1) * drift
    place, sign, heading = (x.expand(runs, *x.shape[1:]).double() for x in (place, sign, heading))
    q = torch.ones(runs, movers) if charges == "same" else 2.0 * torch.randint(2, (runs, movers), generator=generator) - 1
    q = q.double()
    p = spread * normal(runs, movers, d)
    u = speed * torch.nn.functional.normalize(normal(runs, movers, d), dim=-1)
    strongest = 0.1 / dt
    turn = torch.tensor(-magnetic * dt, dtype=torch.float64) * q  # the angle a step turns a velocity by

    def force(p: Tensor, time: float) -> Tensor:
        F = q[..., None] * coulomb(p, torch.cat([p, place + time * heading], 1), torch.cat([q, sign], 1), softening)
        return F * (strongest / F.norm(dim=-1, keepdim=True).clamp(min=strongest))

    path, F = [(p, u)], force(p, 0.0)
    for step in range(1, (frames - 1) * every + 1):
        u = u + dt / 2 * F
        if magnetic:
            p = p + dt / 2 * u
            cos, sin = turn.cos(), turn.sin()
            u = torch.stack([cos * u[..., 0] - sin * u[..., 1], sin * u[..., 0] + cos * u[..., 1]], -1)
            p = p + dt / 2 * u
        else:
            p = p + dt * u
        F = force(p, step * dt)
        u = u + dt / 2 * F
        if step % every == 0:
            path.append((p, u))
    positions, velocities = (torch.stack(x, 1).float() for x in zip(*path, strict=True))
    return Tracks(positions, velocities, q.float(), place.float(), heading.float(), sign.float(), every * dt)
