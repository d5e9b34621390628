"""Flatland: textured opaque discs in the plane and the 1-D pictures that cameras on a circle take of them. A simulator.

A camera at the angle φ stands at ``o = R (cos φ, sin φ)`` and looks at the origin; pixel u of r sees along

    d ∝ −cos φ, −sin φ  +  s (−sin φ, cos φ)        s = tan(fov/2) (2 (u + ½)/r − 1)

The truth is exact: a ray takes the colour of the nearest disc that it meets, ``|o + t d − c| = ϱ``, at that very point, else
the background, and a pixel is the mean of 16 such rays over its width. A disc's texture is a wave across the plane, ``colour(x) =
b + a sin(2π f·x + ψ)`` for each channel. Pictures are bytes, as those of a real camera; noise is added before they are rounded.

Inverse rendering in two dimensions is the same problem as in three (occlusion, parallax, compositing along rays) at a hundredth of
the cost: a fair field to try losses and heads on.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import normalize

from neuropil.errors import Refused

FINE = 16  # rays a pixel


@dataclass(frozen=True)
class Discs:
    """k opaque discs within the unit circle.

    Attributes:
        centres, radii: where they are, in the plane's unit.
        base, swing: mean colour b and amplitude a of each channel; every colour lies in [0, 1].
        frequency: f of each disc's wave, in cycles a unit.
        phase: ψ of each channel, in radians.
        background: the colour where a ray meets no disc.
    """

    centres: Float[Tensor, "k 2"]
    radii: Float[Tensor, " k"]
    base: Float[Tensor, "k 3"]
    swing: Float[Tensor, "k 3"]
    frequency: Float[Tensor, "k 2"]
    phase: Float[Tensor, "k 3"]
    background: Float[Tensor, "3"]

    def texture(self, points: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b k 3"]:
        """The colour that each disc has at the points."""
        wave = torch.sin(2 * math.pi * (points @ self.frequency.T)[..., None] + self.phase)
        return self.base + self.swing * wave

    def look(self, origins: Float[Tensor, "*b 2"], directions: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b 3"]:
        """What rays with unit `directions` see, exactly. Origins must lie outside all discs. O(k) a ray."""
        offset = self.centres - origins[..., None, :]
        along = (offset * directions[..., None, :]).sum(-1)
        miss = offset.square().sum(-1) - along.square()
        depth = along - (self.radii.square() - miss).clamp_min(0).sqrt()
        depth = torch.where((miss < self.radii.square()) & (depth > 0), depth, torch.inf)
        nearest, disc = depth.min(-1)
        point = origins + torch.where(nearest < torch.inf, nearest, 0.0)[..., None] * directions
        colour = torch.take_along_dim(self.texture(point), disc[..., None, None], -2)[..., 0, :]
        return torch.where((nearest < torch.inf)[..., None], colour, self.background)


@dataclass(frozen=True)
class FlatPictures:
    """n pictures of r pixels, and the ray of each pixel; `background` is the known colour of empty space, as bytes are."""

    origins: Float[Tensor, "n r 2"]
    directions: Float[Tensor, "n r 2"]
    pixels: UInt8[Tensor, "n r 3"]
    background: Float[Tensor, "3"]

    @property
    def colours(self) -> Float[Tensor, "n r 3"]:
        """The pixels in [0, 1]."""
        return self.pixels.float() / 255


@dataclass(frozen=True)
class Flatland:
    """One world, and pictures of it to fit (`train`), to choose settings with (`validation`) and to judge by (`test`)."""

    discs: Discs
    train: FlatPictures
    validation: FlatPictures
    test: FlatPictures


def discs(count: int, generator: torch.Generator) -> Discs:
    """`count` discs of radius 0.08 … 0.2 with textures of 2 … 6 cycles a unit, before a bluish wall. Discs may overlap.

    >>> bool((discs(10, torch.Generator().manual_seed(0)).centres.norm(dim=1) < 1).all())
    True
    """
    if count < 1:
        raise Refused(f"count: at least one disc is needed, got {count}")

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    radii = uniform(0.08, 0.2, count)
    far, angle, turn = (
        uniform(0.0, 1.0, count).sqrt() * (0.95 - radii),
        uniform(0.0, 2 * math.pi, count),
        uniform(0.0, 2 * math.pi, count),
    )
    base = uniform(0.2, 0.8, count, 3)
    swing = uniform(0.5, 1.0, count, 3) * torch.minimum(base, 1 - base)
    cycles = uniform(2.0, 6.0, count)
    return Discs(
        centres=_polar(far, angle),
        radii=radii,
        base=base,
        swing=swing,
        frequency=_polar(cycles, turn),
        phase=uniform(0.0, 2 * math.pi, count, 3),
        background=torch.tensor([51.0, 77.0, 102.0]) / 255,
    )


def pictures(
    world: Discs,
    angles: Float[Tensor, " n"],
    rays: int = 64,
    radius: float = 2.5,
    fov: float = 0.8,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> FlatPictures:
    """What cameras at `angles` (radians) on a circle of `radius` see, each with `rays` pixels over `fov` radians.

    `noise` is the standard deviation of normal noise on colours in [0, 1], clipped and then rounded to bytes.
    """
    if rays < 1 or not radius > 1 or not 0 < fov < math.pi or not noise >= 0:
        got = f"{rays}, {radius}, {fov} and {noise}"
        raise Refused(f"rays, radius, fov, noise: at least 1, above 1, in (0, π) and at least 0 are needed, got {got}")
    outward = _polar(torch.ones_like(angles), angles)[:, None]
    sideways = torch.stack([-outward[..., 1], outward[..., 0]], -1)
    s = math.tan(fov / 2) * (2 * (torch.arange(rays) + 0.5) / rays - 1)
    directions = normalize(s[:, None] * sideways - outward, dim=-1)
    origins = (radius * outward).expand_as(directions)
    fine = s[:, None] + math.tan(fov / 2) * (2 * (torch.arange(FINE) + 0.5) / FINE - 1) / rays
    through = normalize(fine[..., None] * sideways[:, None] - outward[:, None], dim=-1)
    colours = world.look(origins[:, :, None].expand_as(through), through).mean(-2)
    if noise:
        colours = colours + noise * torch.randn(colours.shape, generator=generator)
    return FlatPictures(origins, directions, (255 * colours).round().clamp(0, 255).to(torch.uint8), world.background)


def flatland(
    generator: torch.Generator, views: int = 24, rays: int = 64, count: int = 10, noise: float = 0.0, held: int = 24
) -> Flatland:
    """A world of `count` discs, seen by `views` evenly spaced cameras with `noise`, and by twice `held` at random angles without.

    >>> flatland(torch.Generator().manual_seed(0), views=8).train.pixels.shape
    torch.Size([8, 64, 3])
    """
    if min(views, held) < 1:
        raise Refused(f"views, held: at least one camera each is needed, got {views} and {held}")
    world = discs(count, generator)
    angles = 2 * math.pi * torch.rand(2, held, generator=generator).sort(1).values
    train = pictures(world, 2 * math.pi * torch.arange(views) / views, rays, noise=noise, generator=generator)
    return Flatland(world, train, *(pictures(world, at, rays) for at in angles))


def _polar(length: Float[Tensor, "*b"], angle: Float[Tensor, "*b"]) -> Float[Tensor, "*b 2"]:
    return length[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
