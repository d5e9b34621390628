"""NeRF: a multilayer perceptron of position and direction, sampled coarsely and then finely along each ray.

    γ(x) → 8 × 256 ReLU, γ(x) again before the 5th → σ and 256 features;  features, γ(d) → 128 ReLU → colour
    loss = MSE(Ĉ_coarse) + MSE(Ĉ_fine),  the fine borders drawn from the coarse weights and sorted in with the coarse ones

Mildenhall et al. 2020, arXiv:2003.08934, §5 and appendix A. Differs: softplus instead of ReLU for the density, which cannot start
dead; the quadrature is over intervals between the borders instead of points; positions are scaled to [−1, 1] about `centre`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from neuropil.data.cameras import Rays
from neuropil.errors import Refused
from neuropil.fields.encodings import Fourier
from neuropil.fields.radiance import RadianceModel, Rendered
from neuropil.fields.rendering import accumulation, composite, median_depth, weights
from neuropil.fields.sampling import Samples, resample, spaced
from neuropil.nn.checks import fits


class NeRFField(nn.Module):
    """Position and direction to density and colour; with the defaults 595,844 numbers (63 and 27 inputs).

    >>> sum(p.numel() for p in NeRFField().parameters())
    595844
    """

    def __init__(self, width: int = 256, depth: int = 8, octaves: int = 10, direction_octaves: int = 4) -> None:
        super().__init__()
        if width < 2 or depth < 2:
            raise Refused(f"width, depth: at least 2 each, got {width} and {depth}")
        self.position, self.direction = Fourier(3, octaves), Fourier(3, direction_octaves)
        self.skip = depth // 2 + 1  # γ(x) is read again before this layer, counted from 1
        widths = [self.position.width if i == 0 else width + (i + 1 == self.skip) * self.position.width for i in range(depth)]
        self.layers = nn.ModuleList(nn.Linear(n, width) for n in widths)
        self.sigma, self.features = nn.Linear(width, 1), nn.Linear(width, width)
        self.colour = nn.Sequential(nn.Linear(width + self.direction.width, width // 2), nn.ReLU(), nn.Linear(width // 2, 3))

    def _trunk(self, x: Tensor) -> Tensor:
        gamma = self.position(x)
        h = gamma
        for number, layer in enumerate(self.layers, 1):
            h = layer(torch.cat([gamma, h], -1) if number == self.skip else h).relu()
        return h

    def density(self, x: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
        """σ at x alone."""
        fits("x", x, 3, self.sigma.weight)
        return softplus(self.sigma(self._trunk(x))[..., 0])

    def forward(
        self, x: Float[Tensor, "*b 3"], direction: Float[Tensor, "*b 3"]
    ) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b 3"]]:
        """σ ≥ 0 and colour in [0, 1] at points x in [−1, 1]³ seen along unit directions."""
        fits("x", x, 3, self.sigma.weight)
        fits("direction", direction, 3, self.sigma.weight)
        h = self._trunk(x)
        colour = self.colour(torch.cat([self.features(h), self.direction(direction)], -1)).sigmoid()
        return softplus(self.sigma(h)[..., 0]), colour


class NeRF(RadianceModel):
    """The baseline of all radiance fields: coarse and fine `NeRFField`.

    Args:
        centre, radius: the cube that holds the scene, in the world's unit.
        width, depth, octaves: of both networks.
        coarse, fine: intervals a ray; the fine network sees coarse + fine + 1.

    O((2 coarse + fine) · depth · width²) time a ray: 4 GFLOP forward and backward with the defaults.

    >>> from neuropil.data.cameras import Rays
    >>> rays = Rays(torch.zeros(5, 3), torch.eye(3)[[0] * 5], torch.zeros(5), torch.ones(5), torch.zeros(5, dtype=torch.long))
    >>> NeRF(width=16, coarse=4, fine=4)(rays).colour.shape
    torch.Size([5, 3])
    """

    centre: Tensor

    def __init__(
        self,
        centre: tuple[float, float, float] = (0.0, 0.0, 0.0),
        radius: float = 1.0,
        width: int = 256,
        depth: int = 8,
        octaves: int = 10,
        coarse: int = 64,
        fine: int = 128,
        lr: float = 5e-4,
    ) -> None:
        super().__init__()
        if not radius > 0:
            raise Refused(f"radius: must be positive, got {radius}")
        self.radius, self.counts, self.lr = radius, (coarse, fine), lr
        self.register_buffer("centre", torch.tensor(centre))
        self.coarse, self.fine = (NeRFField(width, depth, octaves) for _ in range(2))

    def forward(self, rays: Rays, background: Float[Tensor, "#*b c"] | None = None) -> Rendered:
        """What the fine network shows."""
        return self._both(rays, background)[1]

    def density(self, positions: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
        """σ of the fine network, in 1/length of the world."""
        return self.fine.density((positions - self.centre) / self.radius) / self.radius

    def loss(
        self, rays: Rays, target: Float[Tensor, "*b c"], background: Float[Tensor, "#*b c"] | None = None
    ) -> Float[Tensor, ""]:
        """The squared errors of both networks."""
        coarse, fine = self._both(rays, background)
        return (coarse.colour - target).square().mean() + (fine.colour - target).square().mean()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All at the rate `lr`, 5·10⁻⁴ in the paper."""
        return [{"params": list(self.parameters()), "lr": self.lr}]

    def _both(self, rays: Rays, background: Tensor | None) -> tuple[Rendered, Rendered]:
        jitter = "sample" if self.training else "none"
        samples = spaced(rays.near, rays.far, self.counts[0], "uniform", jitter)
        coarse, w = self._render(self.coarse, rays, samples, background)
        samples = resample(samples, w, self.counts[1], padding=1e-5, jitter=jitter, keep=True)
        return coarse, self._render(self.fine, rays, samples, background)[0]

    def _render(self, field: nn.Module, rays: Rays, samples: Samples, background: Tensor | None) -> tuple[Rendered, Tensor]:
        x = (samples.positions(rays) - self.centre) / self.radius
        sigma, colour = field(x, rays.directions[..., None, :].expand_as(x))
        w = weights(sigma, samples.delta / self.radius)
        return Rendered(composite(w, colour, background), median_depth(w, samples.middle), accumulation(w)), w
