"""A simulated visual cortex that looks at pictures with objects: what each voxel answers to is known, and so is its noise ceiling.

    a_c(x)   amplitude of the Gabor pair c (8 orientations, 2 widths) at pixel x, standardised over all pictures
    retinotopic region r:    s_v = Σ_c w_vc Σ_x G(x − place_r) a_c(x)             a fixed place, whatever is there
    category region k:       s_v = Σ_c w_vc mean_{x in the object of kind k} a_c(x),  0 if there is none: wherever it is
    answer = s_v / std(s_v) + σ_v noise, anew for each repeat;   ceiling_v = 1 / (1 + σ_v² / repeats)

A picture has one to three round objects on a textured background. A kind is the pair of orientations that an object's surface is
woven of (6 pairs of 4); size, contrasts, widths and phases are each object's own. Weights w are random, so that the voxels of a
region mix the same 16 features in their own ways. Tokens are HOG-like: the mean of a_c over each of 8 × 8 cells. It has one place
a region, no adaptation, no attention, no correlated noise: it tests routing, not vision.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

from neuropil.errors import Refused

SIDE, CELL = 48, 6
ORIENTATIONS, FREQUENCIES = 8, (0.14, 0.25)  # cycles a pixel
KINDS = tuple(itertools.combinations(range(4), 2))  # pairs of 0°, 45°, 90°, 135°
PLACES = ((12.0, 12.0), (12.0, 36.0), (36.0, 12.0), (36.0, 36.0))  # (row, column) of the retinotopic regions
REGIONS = ("upper left", "upper right", "lower left", "lower right", "kind 0", "kind 1", "kind 2", "kind 3")
CATEGORIES = 4  # the last four regions; kinds 4 and 5 have none


@dataclass(frozen=True)
class VisualCortex:
    """Pictures, their tokens, and what the voxels answered: `responses` by repeat, picture, voxel.

    `rois` says which voxels a region has (names in `REGIONS`), `objects` where the object of each kind lies, `ceiling` the share of
    the variance of the mean over repeats that is signal (as `brain.scores.noise_ceiling` estimates it).
    """

    images: Float[Tensor, "n side side"]
    tokens: Float[Tensor, "n h w c"]
    responses: Float[Tensor, "r n v"]
    signal: Float[Tensor, "n v"]
    rois: Bool[Tensor, "regions v"]
    objects: Bool[Tensor, "n kinds side side"]
    ceiling: Float[Tensor, "v"]

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, which: slice) -> "VisualCortex":
        """The same cortex before some of the pictures only."""
        taken = [x[which] for x in (self.images, self.tokens, self.signal, self.objects)]
        return VisualCortex(taken[0], taken[1], self.responses[:, which], taken[2], self.rois, taken[3], self.ceiling)


def visual_cortex_simulator(
    count: int, repeats: int = 3, voxels: int = 30, generator: torch.Generator | None = None
) -> VisualCortex:
    """`count` pictures of 48² pixels before a cortex of 8 regions of `voxels` voxels, each shown `repeats` times.

    The standard deviation σ of a voxel's noise is even in 0.7 … 2, its signal's is 1. Without a generator, torch's global one.
    1 ms a picture; memory 60 kB a picture. `Refused` for fewer than 2 pictures, or less than 1 repeat or voxel.

    >>> seen = visual_cortex_simulator(20, generator=torch.Generator().manual_seed(0))
    >>> seen.tokens.shape, seen.responses.shape, seen.rois.sum(1).tolist()
    (torch.Size([20, 8, 8, 16]), torch.Size([3, 20, 240]), [30, 30, 30, 30, 30, 30, 30, 30])
    """
    if count < 2 or repeats < 1 or voxels < 1:
        raise Refused(f"count, repeats, voxels: at least 2, 1 and 1 are needed, got {count}, {repeats} and {voxels}")
    images, objects = _pictures(count, generator)
    tokens, places, things = (torch.cat(x) for x in zip(*map(_seen, images.split(64), objects.split(64)), strict=True))
    mean, std = tokens.mean((0, 1, 2)), tokens.std((0, 1, 2))
    tokens, places = (tokens - mean) / std, (places - mean) / std
    there = objects.flatten(2).any(-1)[:, :CATEGORIES, None]
    things = torch.where(there, (things[:, :CATEGORIES] - mean) / std, 0.0)
    w = torch.randn(len(REGIONS), voxels, tokens.shape[-1], generator=generator)
    signal = torch.einsum("nrc,rvc->nrv", torch.cat([places, things], 1), w).flatten(1)
    spread = signal.std(0)
    if not bool((spread > 0).all()):
        raise Refused(f"count: {count} pictures do not show each of the {CATEGORIES} kinds; make more")
    signal = (signal - signal.mean(0)) / spread
    sigma = 0.7 + 1.3 * torch.rand(signal.shape[1], generator=generator)
    responses = signal + sigma * torch.randn(repeats, *signal.shape, generator=generator)
    rois = torch.eye(len(REGIONS), dtype=torch.bool).repeat_interleave(voxels, 1)
    return VisualCortex(images, tokens, responses, signal, rois, objects, 1 / (1 + sigma.square() / repeats))


def _pictures(count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """The pictures, and where on them the object of each kind lies."""

    def even(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    row, column = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")

    def grating(angle: Tensor, frequency: Tensor, phase: Tensor) -> Tensor:
        angle, frequency, phase = (x[:, None, None] for x in (angle, frequency, phase))
        return torch.cos(2 * math.pi * frequency * (column * angle.cos() + row * angle.sin()) + phase)

    images = 0.15 * torch.randn(count, SIDE, SIDE, generator=generator)
    for _ in range(4):  # the background: four gratings of any orientation
        images += even(0.0, 0.35)[:, None, None] * grating(even(0.0, math.pi), even(0.1, 0.3), even(0.0, 2 * math.pi))
    radius = even(7.0, 9.0, 3)
    centre = _apart(radius, generator)
    kinds = torch.rand(count, len(KINDS), generator=generator).argsort(1)[:, :3]
    shown = torch.arange(3) < torch.randint(1, 4, (count, 1), generator=generator)
    objects = torch.zeros(count, len(KINDS), SIDE, SIDE, dtype=torch.bool)
    pairs = torch.tensor(KINDS)
    for i in range(3):
        y, x = (centre[:, i, axis, None, None] for axis in (0, 1))
        inside = ((row - y).square() + (column - x).square() < radius[:, i, None, None].square()) & shown[:, i, None, None]
        surface = torch.zeros_like(images)
        for part in range(2):
            angle = pairs[kinds[:, i], part] * math.pi / 4 + even(-0.1, 0.1)
            surface += even(0.5, 1.2)[:, None, None] * grating(angle, even(0.12, 0.28), even(0.0, 2 * math.pi))
        images = torch.where(inside, surface + 0.15 * torch.randn(images.shape, generator=generator), images)
        objects[torch.arange(count), kinds[:, i]] |= inside
    return images, objects


def _apart(radius: Tensor, generator: torch.Generator | None) -> Tensor:
    """Centres of three discs that lie inside the picture and do not touch, even among all such places: drawn until they fit."""
    reach = radius[..., None] + torch.zeros(2)
    centre = torch.full_like(reach, torch.nan)
    open_ = torch.ones(len(radius), dtype=torch.bool)
    least = radius[:, :, None] + radius[:, None] - torch.eye(3) * 1e9
    while bool(open_.any()):
        drawn = reach[open_] + (SIDE - 2 * reach[open_]) * torch.rand(reach[open_].shape, generator=generator)
        centre[open_] = drawn
        open_[open_.clone()] = (torch.cdist(drawn, drawn) < least[open_]).flatten(1).any(1)
    return centre


def _gabors() -> Float[Tensor, "c2 1 k k"]:
    """Cosine and sine kernels, one after the other, of each orientation at each frequency; no answer to even light."""
    at = torch.arange(-5, 6.0)
    row, column = torch.meshgrid(at, at, indexing="ij")
    window = torch.exp(-(row.square() + column.square()) / (2 * 2.2**2))
    kernels = []
    for frequency, k in itertools.product(FREQUENCIES, range(ORIENTATIONS)):
        angle = math.pi * k / ORIENTATIONS
        phase = 2 * math.pi * frequency * (column * math.cos(angle) + row * math.sin(angle))
        for kernel in (window * phase.cos(), window * phase.sin()):
            kernels.append(kernel - window * kernel.sum() / window.sum())
    return torch.stack(kernels)[:, None] / window.sum()


def _seen(images: Tensor, objects: Shaped[Tensor, "b kinds side side"]) -> tuple[Tensor, Tensor, Tensor]:
    """Means of the Gabor pairs' amplitudes: of cells (b, h, w, c), about places (b, 4, c), on objects (b, kinds, c)."""
    pairs = conv2d(images[:, None], _gabors(), padding=5).unflatten(1, (-1, 2))
    amplitude = pairs.square().sum(2).add(1e-6).sqrt()
    at = torch.arange(SIDE) + 0.5
    axes = [torch.exp(-(at - torch.tensor([place[axis] for place in PLACES])[:, None]).square() / (2 * 3.0**2)) for axis in (0, 1)]
    window = axes[0][:, :, None] * axes[1][:, None]
    places = torch.einsum("bcij,pij->bpc", amplitude, window / window.sum((1, 2), keepdim=True))
    share = objects / objects.sum((2, 3), keepdim=True).clamp(min=1)
    return avg_pool2d(amplitude, CELL).permute(0, 2, 3, 1), places, torch.einsum("bcij,bkij->bkc", amplitude, share)
