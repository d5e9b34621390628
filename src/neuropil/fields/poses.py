"""Camera poses that are learned along with a field: a rotation and a shift for each picture, and the frame they are compared in.

    o ← o + t_c        d ← exp([ω_c]×) d        exp([ω]×) = I + (sin θ/θ) [ω]× + ((1 − cos θ)/θ²) [ω]×²,   θ = ‖ω‖

SO(3) × R³: rotation and shift do not mix, and act on the rays in the world's axes, the rotation about the camera's own place
(Tancik et al. 2023, arXiv:2302.04264, §4.1, as in their code).
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.data.cameras import Rays
from neuropil.errors import Refused
from neuropil.nn.checks import finite, same_kind


def so3_exp(omega: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """The rotation by ‖ω‖ radians about ω (Rodrigues); smooth at ω = 0.

    >>> so3_exp(torch.tensor([0.0, 0.0, torch.pi / 2])).round(decimals=4) @ torch.tensor([1.0, 0.0, 0.0])
    tensor([0., 1., 0.])
    """
    if omega.dtype == torch.float16:  # holds no θ² below 6e-8: 0/0
        raise Refused("omega: float32, float64 or bfloat16 is needed, got torch.float16")
    x, y, z = omega.unbind(-1)
    o = torch.zeros_like(x)
    cross = torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))
    square = omega.square().sum(-1)[..., None, None]
    theta = square.clamp_min(1e-8).sqrt()
    small = square < 1e-8  # there the series, whose derivatives are finite
    a = torch.where(small, 1 - square / 6, theta.sin() / theta)
    b = torch.where(small, 0.5 - square / 24, (1 - theta.cos()) / theta.square())
    return torch.eye(3, dtype=omega.dtype, device=omega.device) + a * cross + b * (cross @ cross)


class PoseCorrection(nn.Module):
    """A learned shift and rotation for each of n pictures, zero at first.

    >>> rays = Rays(torch.zeros(2, 3), torch.eye(3)[:2], torch.zeros(2), torch.ones(2), torch.tensor([0, 1]))
    >>> bool((PoseCorrection(2)(rays).directions == rays.directions).all())
    True
    """

    def __init__(self, pictures: int) -> None:
        super().__init__()
        if pictures < 1:
            raise Refused(f"pictures: at least 1, got {pictures}")
        self.shift = nn.Parameter(torch.zeros(pictures, 3))
        self.rotation = nn.Parameter(torch.zeros(pictures, 3))

    def forward(self, rays: Rays) -> Rays:
        """The rays as their pictures' corrected cameras send them."""
        turn = so3_exp(self.rotation[rays.camera])
        directions = torch.einsum("...ij,...j->...i", turn, rays.directions)
        return replace(rays, origins=rays.origins + self.shift[rays.camera], directions=directions)

    def corrected(self, c2w: Float[Tensor, "n 3 4"]) -> Float[Tensor, "n 3 4"]:
        """The n pictures' cameras, corrected."""
        turned = so3_exp(self.rotation) @ c2w[:, :, :3]
        return torch.cat([turned, c2w[:, :, 3:] + self.shift[..., None]], -1)

    def penalty(self) -> Float[Tensor, ""]:
        """``10⁻² mean ‖t‖ + 10⁻³ mean ‖ω‖``: corrections stay small where nothing speaks for them."""
        return 1e-2 * self.shift.norm(dim=-1).mean() + 1e-3 * self.rotation.norm(dim=-1).mean()


def align(source: Float[Tensor, "n 3"], target: Float[Tensor, "n 3"]) -> tuple[float, Float[Tensor, "3 3"], Float[Tensor, "3"]]:
    """The similarity (s, R, t) that minimises ``Σ ‖s R source + t − target‖²`` (Umeyama 1991); n ≥ 3 points not on a line.

    >>> s, R, t = align(torch.eye(3), 2 * torch.eye(3) + 1)
    >>> round(s, 4), R.round(decimals=3).abs().diag(), t.round(decimals=4)
    (2.0, tensor([1., 1., 1.]), tensor([1., 1., 1.]))
    """
    if len(source) != len(target) or len(source) < 3:
        raise Refused(f"source, target: as many points, at least 3, are needed, got {len(source)} and {len(target)}")
    same_kind("target", target, source)
    finite("source", source)
    finite("target", target)
    a, b = source.mean(0), target.mean(0)
    u, scale, vt = torch.linalg.svd((target - b).mT @ (source - a))
    flip = torch.ones_like(scale)
    flip[-1] = torch.det(u @ vt).sign()
    rotation = (u * flip) @ vt
    size = float((scale * flip).sum() / (source - a).square().sum())
    return size, rotation, b - size * rotation @ a
