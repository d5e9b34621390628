"""Pictures of two to four hollow shapes with the mask of each (a simulator): what belongs together must be found along contours.

Grey 40 × 40 pictures: triangles, squares, circles and diamonds of lines about 2 pixels thick and value 1, evenly drawn, evenly
placed in the picture, on a ground whose grey is even in 0.1 … 0.6. Modelled on the set made by the authors of Miyato et al. 2024,
arXiv:2410.13821; the shapes are drawn by formula here, so that the outlines differ by some pixels.
"""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.errors import Refused

SIDE = 15  # of the square that a shape fills


@dataclass(frozen=True)
class Shapes:
    """Grey pictures in 0 … 1, and the number of the shape at each pixel: 1 … 4, 0 for the ground, −1 where two overlap."""

    pixels: Float[Tensor, "n h w"]
    masks: Int[Tensor, "n h w"]

    def __len__(self) -> int:
        return len(self.masks)


@functools.cache
def outlines() -> Int[Tensor, "4 s s"]:
    """Triangle, square, circle, diamond: 1 on the line, 0 elsewhere.

    >>> outlines().sum((1, 2)).tolist()
    [76, 104, 80, 72]
    """
    y, x = torch.meshgrid(*[torch.arange(SIDE) - SIDE // 2] * 2, indexing="ij")
    rings = (
        (torch.maximum(y - 3, (2 * x.abs() - y) // 2 - 1) + 4, 5),
        (torch.maximum(x.abs(), y.abs()), 5),
        ((x.square() + y.square()).sqrt().round(), 5),
        (x.abs() + y.abs(), 4),
    )
    return torch.stack([((radius > inner) & (radius <= 7)).long() for radius, inner in rings])


def hollow_shapes(count: int, generator: torch.Generator, side: int = 40, shapes: tuple[int, int] = (2, 4)) -> Shapes:
    """`count` pictures of `shapes` = (least, most) hollow shapes each, as many of each number.

    O(count · most · side²) time. Raises `Refused` for fewer than 1 picture, a range outside 1 … 255 or a side below 15.

    >>> pictures = hollow_shapes(3, torch.Generator().manual_seed(0))
    >>> pictures.pixels.shape, 2 <= int(pictures.masks.max()) <= 4
    (torch.Size([3, 40, 40]), True)
    """
    least, most = shapes
    if count < 1:
        raise Refused(f"count: at least 1, got {count}")
    if not 1 <= least <= most <= 255:
        raise Refused(f"shapes: a range within 1 … 255 is needed, got {shapes}")
    if side < SIDE:
        raise Refused(f"side: at least {SIDE}, a shape's, got {side}")
    number = torch.randint(least, most + 1, (count,), generator=generator)
    kind = torch.randint(4, (count, most), generator=generator)
    row, column = torch.randint(side - SIDE + 1, (2, count, most, 1), generator=generator)
    ground = 0.1 + 0.5 * torch.rand(count, generator=generator)

    # pixel (r, c) of the picture is pixel (r − row, c − column) of the shape, if there is one
    framed = torch.nn.functional.pad(outlines(), (1, 1, 1, 1))  # a frame of zeros takes what lies outside
    r, c = ((torch.arange(side) - at + 1).clamp(0, SIDE + 1) for at in (row, column))  # count most side
    drawn = framed[kind[..., None, None], r[..., :, None], c[..., None, :]]
    drawn = drawn * (torch.arange(most) < number[:, None])[..., None, None]
    masks = (drawn * torch.arange(1, most + 1)[:, None, None]).sum(1)
    covered = drawn.sum(1)
    return Shapes(torch.where(covered > 0, 1.0, ground[:, None, None]), torch.where(covered > 1, -1, masks))
