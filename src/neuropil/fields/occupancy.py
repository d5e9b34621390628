"""Occupancy grid: which cells of the cube [−radius, radius]³ hold anything, so that samples elsewhere need not be looked at.

    v ← max(γ v, σ(x)),  x ~ U(cell)            occupied ⟺ v > min(τ, mean v)

Müller et al. 2022, arXiv:2201.05989, appendix E.2, for any density. Differs: all cells are looked at in every update, not a part of
them, and a cell's neighbours (up to `margin` cells away) count as occupied with it, as a surface may lie between its random points.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import max_pool3d

from neuropil.errors import Refused


class OccupancyGrid(nn.Module):
    """`resolution`³ cells on the cube of half side `radius`; all are occupied until the first `update`.

    Args:
        threshold: τ in 1/length, the density below which a cell is empty.
        decay: γ in [0, 1), how much of a cell's value stays with each update.
        margin: how many cells round an occupied one count as occupied, too.

    Asking costs O(1) a point, an update `resolution`³ evaluations of the density. Not differentiable; the state lies in buffers.

    >>> grid = OccupancyGrid(resolution=8, radius=1.0, threshold=0.5, margin=0)
    >>> _ = grid.update(lambda x: (x[..., 0] > 0).float())
    >>> grid(torch.tensor([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0], [1.5, 0.0, 0.0]]))
    tensor([ True, False, False])
    """

    value: Tensor
    occupied: Tensor

    def __init__(
        self, resolution: int = 32, radius: float = 1.0, threshold: float = 1.0, decay: float = 0.9, margin: int = 1
    ) -> None:
        super().__init__()
        if resolution < 1 or margin < 0:
            raise Refused(f"resolution, margin: at least 1 cell and a margin of 0 are needed, got {resolution} and {margin}")
        if not (radius > 0 and threshold > 0 and 0 <= decay < 1):
            raise Refused(f"radius, threshold, decay: positive, and a decay in [0, 1), got {radius}, {threshold} and {decay}")
        self.resolution, self.radius, self.threshold, self.decay, self.margin = resolution, radius, threshold, decay, margin
        self.register_buffer("value", torch.zeros(resolution**3))
        self.register_buffer("occupied", torch.ones(resolution**3, dtype=torch.bool))

    def forward(self, x: Float[Tensor, "*b 3"]) -> Bool[Tensor, "*b"]:
        """Whether the cells of points are occupied; points outside the cube are in none."""
        cell = ((x + self.radius) * (self.resolution / (2 * self.radius))).floor()
        inside = ((cell >= 0) & (cell < self.resolution)).all(-1)
        place = cell.clamp(0, self.resolution - 1).long()
        index = (place[..., 0] * self.resolution + place[..., 1]) * self.resolution + place[..., 2]
        return inside & self.occupied[index]

    @torch.no_grad()
    def update(self, density: Callable[[Tensor], Tensor]) -> float:
        """Look at `density` (points (… 3) → σ) once in every cell, at a random point; gives the share of occupied cells."""
        n = self.resolution
        axis = torch.arange(n, device=self.value.device)
        cell = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
        x = (cell + torch.rand(cell.shape, device=cell.device)) * (2 * self.radius / n) - self.radius
        self.value.copy_(torch.maximum(self.decay * self.value, density(x)))
        filled = self.value > self.value.mean().clamp_max(self.threshold)
        if self.margin:
            near = max_pool3d(filled.float().reshape(1, n, n, n), 2 * self.margin + 1, 1, self.margin)
            filled = near.reshape(-1) > 0
        self.occupied.copy_(filled)
        return float(filled.float().mean())
