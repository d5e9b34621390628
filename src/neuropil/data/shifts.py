"""Images that a classifier of digits was not trained on: other real images cut to the digits' size, and the digits changed.

    patches(["brick", "grass"], 100, 28, generator)     squares of photographs at random places and sizes
    turned(x, 30)  inverted(x)  noisy(x, 0.3, generator) the same images, shifted

All are (n, side, side), grey, float32 in [0, 1], and on the device of what they are made from.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from neuropil.data.loaders import faces, photographs
from neuropil.errors import Refused


def patches(names: Sequence[str], n: int, side: int, generator: torch.Generator | None = None) -> Float[Tensor, "n side side"]:
    """`n` squares of these photographs (see `photographs`), in turn: places and sides (from `side` to the whole) are random.

    >>> patches(["brick", "page"], 3, 28, torch.Generator().manual_seed(0)).shape
    torch.Size([3, 28, 28])
    """
    if not names or n < 1 or side < 1:
        raise Refused(f"names, n, side: at least one each, got {len(names)}, {n}, {side}")
    pictures = [grey(photographs(name)) for name in names]
    cut = []
    for i in range(n):
        picture = pictures[i % len(pictures)]
        u = torch.rand(3, generator=generator).tolist()
        room = min(picture.shape)
        size = min(room, round(side * (max(room, side) / side) ** u[0]))  # as many octaves of size above as below
        top, left = (int(v * (k - size + 1)) for v, k in zip(u[1:], picture.shape, strict=True))
        cut.append(resized(picture[None, top : top + size, left : left + size], side))
    return torch.cat(cut)


def small_faces(side: int) -> Float[Tensor, "n side side"]:
    """The 400 ORL faces (see `faces`): the middle square of each, made small.

    >>> small_faces(28).shape
    torch.Size([400, 28, 28])
    """
    pixels = faces().pixels
    return resized(pixels[:, 10:102], side)


def grey(picture: Float[Tensor, "h w"] | Float[Tensor, "h w 3"]) -> Float[Tensor, "h w"]:
    """The mean of the colours."""
    return picture.mean(-1) if picture.ndim == 3 else picture


def resized(x: Float[Tensor, "n h w"], side: int) -> Float[Tensor, "n {side} {side}"]:
    """Squares of `side` pixels: means over areas where they are smaller, bilinear where they are larger."""
    small = min(x.shape[1:]) >= side
    return interpolate(x[:, None], size=(side, side), mode="area" if small else "bilinear")[:, 0]


def turned(x: Float[Tensor, "n side side"], degrees: int | float) -> Float[Tensor, "n side side"]:
    """Each image turned about its middle, counter-clockwise, bilinear; dark comes in at the corners.

    >>> x = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    >>> turned(x, 90).round().tolist()
    [[[1.0, 0.0], [0.0, 0.0]]]
    """
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin, 0 * cos]), torch.stack([sin, cos, 0 * cos])]).to(x)
    grid = affine_grid(matrix.expand(len(x), 2, 3), [len(x), 1, *x.shape[1:]], align_corners=False)
    return grid_sample(x[:, None], grid, align_corners=False)[:, 0]


def inverted(x: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """``1 − x``: dark on bright."""
    return 1 - x


def noisy(x: Float[Tensor, "n h w"], scale: float, generator: torch.Generator | None = None) -> Float[Tensor, "n h w"]:
    """Gaussian noise of this standard deviation added, clipped to [0, 1]."""
    return (x + scale * torch.randn(x.shape, generator=generator).to(x)).clamp(0, 1)
