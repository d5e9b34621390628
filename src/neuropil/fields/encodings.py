"""Encodings without grids: coordinates to a wider vector that an MLP can read. Each is a map ``(… d) → (… width)``."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.errors import Refused
from neuropil.nn.checks import fits


class Fourier(nn.Module):
    """``x ↦ (x, sin 2^0 πx, cos 2^0 πx, …, sin 2^{m−1} πx, cos 2^{m−1} πx)`` for m `octaves`: NeRF's positional encoding.

    Mildenhall et al. 2020, arXiv:2003.08934, eq. 4 (for coordinates in [−1, 1]). O(d m) a point.

    >>> Fourier(3, octaves=4)(torch.zeros(2, 3)).shape
    torch.Size([2, 27])
    """

    def __init__(self, d: int, octaves: int, include_input: bool = True) -> None:
        super().__init__()
        if d < 1 or octaves < 0 or (octaves == 0 and not include_input):
            raise Refused(f"d, octaves: at least one coordinate and one octave are needed, got {d} and {octaves}")
        self.octaves, self.include_input = octaves, include_input
        self.width = d * (2 * octaves + include_input)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b f"]:
        """Features grouped by octave."""
        frequency = math.pi * 2.0 ** torch.arange(self.octaves, dtype=x.dtype, device=x.device)
        angle = x[..., None, :] * frequency[:, None]
        waves = torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)
        return torch.cat([x, waves], -1) if self.include_input else waves


class GaussianFourier(nn.Module):
    """``x ↦ (sin 2π B x, cos 2π B x)`` with m fixed rows B ~ N(0, scale²): random Fourier features.

    Tancik et al. 2020, arXiv:2006.10739. `scale` is the bandwidth in cycles a unit of x; B is a buffer, drawn from torch's
    generator when the module is made. O(d m) a point.

    >>> GaussianFourier(2, features=16, scale=4.0)(torch.zeros(5, 2)).shape
    torch.Size([5, 32])
    """

    B: Tensor

    def __init__(self, d: int, features: int, scale: float) -> None:
        super().__init__()
        if d < 1 or features < 1 or not scale > 0:
            raise Refused(f"d, features, scale: must be positive, got {d}, {features} and {scale}")
        self.width = 2 * features
        self.register_buffer("B", scale * torch.randn(features, d))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b f"]:
        """The m sines, then the m cosines."""
        fits("x", x, self.B.shape[1], self.B)
        angle = 2 * math.pi * torch.einsum("...d,md->...m", x, self.B)
        return torch.cat([angle.sin(), angle.cos()], -1)


class SphericalHarmonics(nn.Module):
    """The real spherical harmonics of degree 0 … degree − 1 at unit directions (x, y, z): ``degree²`` numbers, 1 ≤ degree ≤ 4.

    Orthonormal on the sphere, with the sign convention of the graphics literature (Condon–Shortley phase kept), in the order
    l = 0, 1, …; m = −l … l. Directions are unit vectors as they are, not rescaled to [0, 1]. O(degree²) a point.

    >>> SphericalHarmonics(2)(torch.tensor([0.36, 0.48, 0.8]))
    tensor([ 0.2821, -0.2345,  0.3909, -0.1759])
    """

    def __init__(self, degree: int = 4) -> None:
        super().__init__()
        if not 1 <= degree <= 4:
            raise Refused(f"degree: must lie in 1 … 4, got {degree}")
        self.degree, self.width = degree, degree**2

    def forward(self, direction: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b f"]:
        """The harmonics' values."""
        x, y, z = direction.unbind(-1)
        xx, yy, zz = x * x, y * y, z * z
        r = [torch.full_like(x, math.sqrt(1 / (4 * math.pi)))]
        if self.degree > 1:
            a = math.sqrt(3 / (4 * math.pi))
            r += [-a * y, a * z, -a * x]
        if self.degree > 2:
            a = math.sqrt(15 / (4 * math.pi))
            b = math.sqrt(5 / (16 * math.pi))
            r += [a * x * y, -a * y * z, b * (3 * zz - 1), -a * x * z, 0.5 * a * (xx - yy)]
        if self.degree > 3:
            a, b = math.sqrt(35 / (32 * math.pi)), math.sqrt(105 / (4 * math.pi))
            c, d = math.sqrt(21 / (32 * math.pi)), math.sqrt(7 / (16 * math.pi))
            r += [-a * y * (3 * xx - yy), b * x * y * z, -c * y * (5 * zz - 1), d * z * (5 * zz - 3)]
            r += [-c * x * (5 * zz - 1), 0.5 * b * z * (xx - yy), -a * x * (xx - 3 * yy)]
        return torch.stack(r, -1)
