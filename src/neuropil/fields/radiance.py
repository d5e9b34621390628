"""What every radiance field of the wing offers, so that claims, studio and viewer can take any of them.

render:  rays → samples (t₀, t₁) → density and colour → weights → colour, depth, accumulation        (see `sampling`, `rendering`)
train:   loss(rays, target) → one number, `update(step)` before it → an optimiser on `parameter_groups()`
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.data.cameras import Cameras, Rays


@dataclass(frozen=True)
class Rendered:
    """What rays see: `colour` over the background, `depth` (median, the world's unit), `accumulation` in [0, 1]."""

    colour: Float[Tensor, "*b c"]
    depth: Float[Tensor, "*b"]
    accumulation: Float[Tensor, "*b"]


class RadianceModel(nn.Module):
    """A radiance field with its sampler, renderer and losses. Subclasses give `forward` and `density`, and what else they need."""

    def forward(self, rays: Rays, background: Float[Tensor, "#*b c"] | None = None) -> Rendered:
        """What `rays` see over `background` (black by default). In training mode torch's global generator jitters the samples."""
        raise NotImplementedError

    def density(self, positions: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
        """σ ≥ 0 in 1/length at points of the world."""
        raise NotImplementedError

    def loss(
        self, rays: Rays, target: Float[Tensor, "*b c"], background: Float[Tensor, "#*b c"] | None = None
    ) -> Float[Tensor, ""]:
        """The number to minimise for rays whose colours are known: by default the mean squared error."""
        return (self(rays, background).colour - target).square().mean()

    def update(self, step: int) -> None:
        """Housekeeping before step `step` (0, 1, …): annealing, occupancy. Nothing by default; all state lies in buffers."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for `torch.optim.Adam`, each with the starting rate that suits it."""
        return [{"params": list(self.parameters()), "lr": 1e-2}]


@torch.no_grad()
def render_picture(
    model: Callable[..., Rendered],
    cameras: Cameras,
    camera: int,
    near: float = 0.0,
    far: float = torch.inf,
    background: Float[Tensor, "c"] | None = None,
    chunk: int = 1 << 14,
) -> Rendered:
    """One whole picture, (height, width, …), `chunk` rays at a time. `model` should be in eval mode."""
    rays = cameras.picture_rays(camera, near, far)
    flat = rays.map(lambda x: x.flatten(0, 1))
    parts = [model(flat[start : start + chunk], background) for start in range(0, flat.shape[0], chunk)]
    joined = (torch.cat([getattr(p, name) for p in parts]) for name in ("colour", "depth", "accumulation"))
    return Rendered(*(x.reshape(*rays.shape, *x.shape[1:]) for x in joined))
