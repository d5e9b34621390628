"""Checks that operators on fields (b, c, *grid) share; see `neuropil.nn.checks`."""

from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import same_kind


def channels(name: str, v: Tensor, c: int, d: int, like: Tensor) -> None:
    """`Refused` unless v is (b, c, *grid) with a grid of d axes, and of the kind of `like`.

    >>> import torch
    >>> channels("v", torch.zeros(1, 2, 8), 3, 1, torch.zeros(1))
    Traceback (most recent call last):
    neuropil.errors.Refused: v: must be (b, 3, *grid) with 1 axes, got (1, 2, 8)
    """
    if v.ndim != d + 2 or v.shape[1] != c:
        raise Refused(f"{name}: must be (b, {c}, *grid) with {d} axes, got {tuple(v.shape)}")
    same_kind(name, v, like)
