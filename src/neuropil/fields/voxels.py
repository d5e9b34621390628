"""Voxels: a radiance field without a network, density and colour read from grids; made for a CPU.

    σ(x) = softplus(Σ_l D_l(x) + b) · α/δ        c(x, d) = head(Σ_l Σ_k Y_k(d) C_lk(x))        l = 0 … L − 1

D_l and C_l live on grids of N/2^{L−1−l} cells an axis and are read by multilinear interpolation; Y are spherical harmonics.
Coarse to fine: level l counts from step `l · every` on, so that shape comes before detail; all levels exist from the start, and
one optimiser serves all of training. Rays are clipped to the cube and cut into steps of `pace` cells of the finest level that
counts; steps in empty cells of an occupancy grid are skipped, and colours are read only where a sample's weight exceeds `least`.

Sources: Sun, Sun & Chen 2022, DVGO, arXiv:2111.11215 (density by a shifted softplus, skipping by weight); Fridovich-Keil et al.
2022, Plenoxels, arXiv:2112.05131 (harmonics at voxels, coarse to fine). Differs: levels are summed instead of one grid being
resampled, so that tables keep their shape; no total variation.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from neuropil.data.cameras import Rays
from neuropil.errors import Refused
from neuropil.fields.encodings import SphericalHarmonics
from neuropil.fields.occupancy import OccupancyGrid
from neuropil.fields.radiance import RadianceModel, Rendered
from neuropil.fields.rendering import accumulation, median_depth, weights
from neuropil.fields.sampling import clip_to_box
from neuropil.numerics.multilinear import multilinear, rows

ALPHA = 0.1  # softplus(D + b) = ALPHA, a step's opacity at the start, where D = 0


class VoxelField(RadianceModel):
    """Density and colour on grids in the cube [−radius, radius]³ of the world; nothing outside.

    Args:
        radius: half the cube's side, the world's unit.
        resolution: N, cells an axis of the finest level.
        levels: L; each coarser level has half the cells, and 2 at least.
        channels: of the colour.
        head: from any real numbers to colours, elementwise.
        degree: of the harmonics, 1 (no view dependence) … 4.
        every: steps between levels; `update(step)` counts them, a field that was never updated has all.
        pace: δ in cells of the finest level that counts.
        least: weight below which a sample's colour is not read, in training and in rendering.

    (1 + channels degree²) Σ_l (N_l + 1)³ numbers; O(2√3 N / pace) time a ray to find the occupied steps, and
    O(L (1 + channels degree²)) for each of these. Raises `Refused` for sizes below 1, or a radius or pace that is not positive.

    >>> field = VoxelField(resolution=16, levels=2)
    >>> rays = Rays(torch.zeros(5, 3), torch.eye(3)[[0] * 5], torch.zeros(5), torch.ones(5), torch.zeros(5, dtype=torch.long))
    >>> field(rays).colour.shape, field.density(torch.tensor([[0.0, 0.0, 2.0]]))
    (torch.Size([5, 3]), tensor([0.], grad_fn=<MulBackward0>))
    """

    active: Tensor

    def __init__(
        self,
        radius: float = 1.0,
        resolution: int = 64,
        levels: int = 3,
        channels: int = 3,
        head: Callable[[Tensor], Tensor] = torch.sigmoid,
        degree: int = 1,
        every: int = 16,
        pace: float = 0.75,
        least: float = 1e-3,
    ) -> None:
        super().__init__()
        for name, value in (("resolution", resolution), ("levels", levels), ("channels", channels), ("every", every)):
            if value < 1:
                raise Refused(f"{name}: must be at least 1, got {value}")
        if not (0 < radius < math.inf and 0 < pace < math.inf):
            raise Refused(f"radius, pace: must be positive and finite, got {radius} and {pace}")
        self.radius, self.channels, self.head, self.every, self.least = radius, channels, head, every, least
        self.resolutions = [max(2, resolution >> (levels - 1 - l)) for l in range(levels)]
        self.deltas = [pace * 2 * radius / n for n in self.resolutions]
        self.harmonics = SphericalHarmonics(degree)
        self.D = nn.ParameterList(torch.zeros(rows(n, 3), 1) for n in self.resolutions)
        self.C = nn.ParameterList(torch.zeros(rows(n, 3), channels * degree**2) for n in self.resolutions)
        self.occupancy = OccupancyGrid(min(32, resolution), radius, threshold=0.01 / self.deltas[-1])
        self.register_buffer("active", torch.tensor(levels))

    def forward(self, rays: Rays, background: Float[Tensor, "#*b c"] | None = None) -> Rendered:
        """What `rays` see; in training mode a ray's steps begin anywhere within the first."""
        batch = len(rays.shape)
        flat = clip_to_box(rays.map(lambda x: x.reshape(-1, *x.shape[batch:])), self.radius)
        first = torch.rand_like(flat.near) if self.training else torch.full_like(flat.near, 0.5)
        delta = self.deltas[int(self.active) - 1]
        count = math.ceil(2 * math.sqrt(3) * self.radius / delta)  # along the cube's diagonal
        t = flat.near[:, None] + (first[:, None] + torch.arange(count, device=first.device)) * delta
        x = flat.origins[:, None] + t[..., None] * flat.directions[:, None]
        ray, step = ((t < flat.far[:, None]) & self.occupancy(x)).nonzero(as_tuple=True)
        x = x[ray, step]

        sigma = torch.zeros_like(t).index_put((ray, step), self.density(x).to(t.dtype))
        w = weights(sigma, torch.full_like(t, delta))
        through = w[ray, step]
        seen = (through.detach() > self.least).nonzero()[:, 0]
        ray, through = ray[seen], through[seen, None]
        values = self.colour(x[seen], flat.directions[ray])
        colour = values.new_zeros(len(t), self.channels).index_add(0, ray, through.to(values.dtype) * values)

        total = accumulation(w).reshape(rays.shape)
        colour = colour.reshape(*rays.shape, self.channels)
        if background is not None:
            colour = colour + (1 - total)[..., None] * background
        return Rendered(colour, median_depth(w.detach(), t).reshape(rays.shape), total)

    def density(self, positions: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
        """σ(x) in 1/length; 0 outside the cube."""
        raw = self._read(self.D, positions)[..., 0] + math.log(math.expm1(ALPHA))
        return softplus(raw) * ((positions.abs() <= self.radius).all(-1) / self.deltas[-1])

    def colour(self, positions: Float[Tensor, "*b 3"], directions: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b c"]:
        """c(x, d) for unit directions d."""
        coefficients = self._read(self.C, positions).unflatten(-1, (self.channels, -1))
        if coefficients.shape[-1] == 1:
            return self.head(coefficients[..., 0])
        return self.head((coefficients * self.harmonics(directions)[..., None, :]).sum(-1))

    def _read(self, tables: nn.ParameterList, positions: Tensor) -> Tensor:
        """The sum of the levels that count."""
        x = positions / self.radius
        levels = list(zip(tables, self.resolutions, strict=True))[: int(self.active)]
        return torch.stack([multilinear(x, table, [n], [len(table)]) for table, n in levels]).sum(0)

    def update(self, step: int) -> None:
        """The next level when its time has come; every 16 steps a look at which cells are occupied."""
        self.active.fill_(min(len(self.resolutions), 1 + step // self.every))
        if step and step % 16 == 0:
            self.occupancy.update(self.density)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Rates for mean losses over a thousand rays; `eps` keeps Adam from following the noise of voxels that are hardly seen."""
        return [{"params": list(self.D), "lr": 0.3, "eps": 1e-6}, {"params": list(self.C), "lr": 0.1, "eps": 1e-6}]
