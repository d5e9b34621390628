"""Linear recurrences without a loop over time.

    h_t = A_t h_{t−1} + b_t,    t = 1 … T

The maps h ↦ A h + b compose associatively, (A₂, b₂) ∘ (A₁, b₁) = (A₂ A₁, A₂ b₁ + b₂), so that all prefixes come out of log₂ T
rounds of pairwise products (Blelloch 1990, Prefix sums and their applications; Martin & Cundy 2018, arXiv:1709.04057).
"""

import functools

import torch
from jaxtyping import Shaped
from torch import Tensor

from neuropil.errors import Refused


def linear_scan(
    a: Shaped[Tensor, "..."], b: Shaped[Tensor, "t *h"], h0: Shaped[Tensor, "*h"] | None = None, matrix: bool = False
) -> Shaped[Tensor, "t *h"]:
    """h_1 … h_T, real or complex, differentiable in every argument.

    Args:
        a: the factors, (t, *h) or what broadcasts to it; with `matrix` (t, *batch, n, n), acting on the last axis of b.
        b: the inputs, time first.
        h0: the state before the first step; zeros by default.

    O(T) products (O(T n³) with `matrix`), O(log T) rounds, O(T) memory. Raises `Refused` for no time step or a wrong shape of a.

    >>> linear_scan(torch.tensor(0.5), torch.tensor([1.0, 1.0, 1.0]))
    tensor([1.0000, 1.5000, 1.7500])
    """
    if not len(b):
        raise Refused("b: at least one time step is needed, got 0")
    shape = (*b.shape, b.shape[-1]) if matrix else b.shape
    dtype = functools.reduce(torch.promote_types, [x.dtype for x in (a, b, h0) if x is not None])  # one step multiplies nothing
    a, b = a.to(dtype), b.to(dtype)
    try:
        a = a.expand(shape)
    except RuntimeError:
        raise Refused(f"a: must broadcast to {tuple(shape)}, got {tuple(a.shape)}") from None
    if h0 is not None:
        b = torch.cat([(b[0] + _apply(a[0], h0.to(dtype), matrix))[None], b[1:]])
    return _scan(a, b, matrix)


def _apply(a: Tensor, h: Tensor, matrix: bool) -> Tensor:
    return (a @ h[..., None])[..., 0] if matrix else a * h


def _scan(a: Tensor, b: Tensor, matrix: bool) -> Tensor:
    """Steps 2k and 2k + 1 become one of half as many, solved by the same rule; the steps in between are one application away."""
    if len(b) == 1:
        return b
    even = len(b) // 2 * 2
    first, second = a[0:even:2], a[1:even:2]
    late = _scan(second @ first if matrix else second * first, b[1:even:2] + _apply(second, b[0:even:2], matrix), matrix)
    early = b[2::2] + _apply(a[2::2], late[: len(b[2::2])], matrix)
    early = torch.cat([b[:1], early])
    return torch.cat([torch.stack([early[: len(late)], late], 1).flatten(0, 1), early[len(late) :]])
