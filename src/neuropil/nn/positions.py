"""Codes of places by sines and cosines: where a patch of a picture, a pixel or a token lies, as a vector."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused


def sine_pos_2d(height: int, width: int, d: int, temperature: float = 10_000.0) -> Float[Tensor, "{height}*{width} d"]:
    """The places of a grid, row by row: d/2 features of the row, then d/2 of the column.

        p_{2i}, p_{2i+1} = sin, cos(2π u / T^(4i/d)),      u = 1/n, 2/n … 1 down (then along) n rows (columns), T the temperature

    The slowest features hardly turn, the fastest go round once. The d/2 features of a place are d/4 pairs, so d must be a
    multiple of 4; `Refused` otherwise, or for sizes below 1. (Carion et al. 2020, DETR, arXiv:2005.12872, normalised places,
    without their 10⁻⁶ beside n.)

    >>> sine_pos_2d(2, 1, 4).round() + 0.0             # rows ½ and 1, column 1
    tensor([[ 0., -1.,  0.,  1.],
            [ 0.,  1.,  0.,  1.]])
    """
    if min(height, width) < 1 or d < 4 or d % 4:
        raise Refused(f"height, width, d: sizes of at least 1 and a positive multiple of 4 are needed, got {height}, {width}, {d}")
    rates = 2 * math.pi / temperature ** (4 * torch.arange(d // 4) / d)

    def along(n: int) -> Tensor:
        angle = torch.arange(1, n + 1)[:, None] / n * rates
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)

    rows, columns = along(height), along(width)
    return torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], 1)
