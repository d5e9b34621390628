"""Checks that operators on fields (b, c, *grid) share; see `neuropil.nn.checks`."""

import torch
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import filled, same_kind


def channels(name: str, v: Tensor, c: int, d: int, like: Tensor) -> None:
    """`Refused` unless v is (b, c, *grid) with a grid of d axes, and of the kind of `like`.

    >>> channels("v", torch.zeros(1, 2, 8), 3, 1, torch.zeros(1))
    Traceback (most recent call last):
    neuropil.errors.Refused: v: must be (b, 3, *grid) with 1 axes, got (1, 2, 8)
    """
    if v.ndim != d + 2 or v.shape[1] != c:
        raise Refused(f"{name}: must be (b, {c}, *grid) with {d} axes, got {tuple(v.shape)}")
    same_kind(name, v, like)


def transformable(name: str, u: Tensor) -> None:
    """`Refused` for what torch has no FFT of: nothing at all, bfloat16, and on the CPU float16.

    >>> transformable("u", torch.zeros(0, 1, 8))
    Traceback (most recent call last):
    neuropil.errors.Refused: u: must not be empty, got shape (0, 1, 8)
    """
    filled(name, u)
    if u.dtype == torch.bfloat16 or (u.dtype == torch.float16 and u.device.type == "cpu"):
        raise Refused(f"{name}: float32 or float64 is needed, got {u.dtype}")
