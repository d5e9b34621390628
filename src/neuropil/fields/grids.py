"""Grid representations: features stored at vertices and read by multilinear interpolation, on coordinates in [−1, 1]^d.

- `DenseGrid`: one level, every vertex its own row.
- `HashGrid`: L levels with ``N_l = ⌊N_min b^l⌋, b = (N_max/N_min)^{1/(L−1)}`` cells an axis, rows shared by a hash beyond T of them
  (Müller et al. 2022, arXiv:2201.05989).
- `Planes`: a grid for every pair of axes, multiplied (K-planes, Fridovich-Keil et al. 2023, arXiv:2301.10241), summed
  (tri-plane, Chan et al. 2021, arXiv:2112.07945) or times a line on the third axis (VM, Chen et al. 2022, arXiv:2203.09517).

Each is a map ``(… d) → (… width)``; see `numerics.multilinear` for cost, derivatives and what happens outside the cube.
"""

import itertools
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.errors import Refused, choose
from neuropil.numerics.multilinear import multilinear, rows


def _positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise Refused(f"{name}: must be at least 1, got {value}")


class DenseGrid(nn.Module):
    """A grid of `resolution` cells an axis with `features` numbers at each of its (resolution + 1)^d vertices.

    `spread` is the standard deviation of the first values. O(2^d F) time a point. Also the spatially varying parameter
    that modulated layers read.

    >>> DenseGrid(2, features=4, resolution=8)(torch.zeros(5, 2)).shape
    torch.Size([5, 4])
    """

    def __init__(self, d: int, features: int, resolution: int, spread: float = 0.1) -> None:
        super().__init__()
        _positive(d=d, features=features, resolution=resolution)
        self.d, self.width, self.resolution = d, features, resolution
        self.table = nn.Parameter(spread * torch.randn(rows(resolution, d), features))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b f"]:
        """The features at x."""
        return multilinear(x, self.table, [self.resolution], [len(self.table)])

    def refined(self, resolution: int) -> "DenseGrid":
        """The same function on a grid of other resolution: its vertices read from this one. O(resolution^d F)."""
        axis = torch.linspace(-1, 1, resolution + 1, dtype=self.table.dtype, device=self.table.device)
        vertices = torch.stack(torch.meshgrid(*[axis] * self.d, indexing="ij"), -1).flip(-1)  # the first axis is the fastest
        grid = DenseGrid(self.d, self.width, resolution, 0.0).to(self.table)
        with torch.no_grad():
            grid.table.copy_(self(vertices.reshape(-1, self.d)))
        return grid


class HashGrid(nn.Module):
    """The multi-resolution hash encoding: `levels` grids from `coarsest` to `finest` cells an axis, `features` numbers a vertex.

    A level takes at most `table` rows (a power of two). First values are uniform in ±10⁻⁴. O(L 2^d F) time a point and at most
    L T F numbers. A plain `nn.Linear` or `MLP` follows it.

    >>> encode = HashGrid(3, levels=4, features=2, table=2**10, coarsest=4, finest=32)
    >>> encode.resolutions, encode.width, encode(torch.zeros(2, 5, 3)).shape
    ([4, 8, 16, 32], 8, torch.Size([2, 5, 8]))
    """

    def __init__(
        self, d: int = 3, levels: int = 16, features: int = 2, table: int = 2**19, coarsest: int = 16, finest: int = 2048
    ) -> None:
        super().__init__()
        _positive(d=d, levels=levels, features=features, table=table, coarsest=coarsest)
        if table & (table - 1):
            raise Refused(f"table: must be a power of two, got {table}")
        if finest < coarsest:
            raise Refused(f"finest: at least coarsest = {coarsest} cells are needed, got {finest}")
        growth = (finest / coarsest) ** (1 / max(levels - 1, 1))
        self.d, self.width = d, levels * features
        self.resolutions = [int(coarsest * growth**level + 1e-6) for level in range(levels)]
        self.sizes = [rows(n, d, table) for n in self.resolutions]
        self.table = nn.Parameter(torch.empty(sum(self.sizes), features).uniform_(-1e-4, 1e-4))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b lf"]:
        """The features of all levels at x, coarsest first."""
        return multilinear(x, self.table, self.resolutions, self.sizes)


class Planes(nn.Module):
    """A 2-D grid of `features` for every pair of axes; `mode` says how the pairs are put together.

    "product": ``Π_p P_p(x_p)`` (width F); "sum": ``Σ_p P_p(x_p)`` (width F); "vm" (d = 3 only): ``P_xy L_z, P_xz L_y, P_yz L_x``
    side by side (width 3 F). O(d² F) time a point, O(d² N² F) numbers: a field of N³ cells at the price of N².

    >>> Planes(3, features=4, resolution=16, mode="vm")(torch.zeros(5, 3)).shape
    torch.Size([5, 12])
    """

    def __init__(self, d: int, features: int, resolution: int, mode: str = "product") -> None:
        super().__init__()
        choose("mode", mode, ("product", "sum", "vm"))
        if d < 2 or (mode == "vm" and d != 3):
            raise Refused(f"d: at least 2 for planes and exactly 3 for mode 'vm', got {d}")
        self.d, self.mode, self.width = d, mode, features * (3 if mode == "vm" else 1)
        self.pairs = list(itertools.combinations(range(d), 2))
        self.planes = nn.ModuleList(DenseGrid(2, features, resolution) for _ in self.pairs)
        self.lines = nn.ModuleList(DenseGrid(1, features, resolution) for _ in self.pairs) if mode == "vm" else None
        if mode != "sum":  # a product of small numbers would start, and stay, at zero
            for grid in [*self.planes, *(self.lines or [])]:
                nn.init.uniform_(cast(DenseGrid, grid).table, 0.1, 0.5)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b f"]:
        """The features at x."""
        planes = [plane(x[..., list(pair)]) for plane, pair in zip(self.planes, self.pairs, strict=True)]
        if self.lines is not None:
            rest = [3 - sum(pair) for pair in self.pairs]
            products = [p * line(x[..., k : k + 1]) for p, line, k in zip(planes, self.lines, rest, strict=True)]
            return torch.cat(products, -1)
        stacked = torch.stack(planes)
        return stacked.prod(0) if self.mode == "product" else stacked.sum(0)
