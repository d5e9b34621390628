"""Errors of functions that are known on a grid: relative L² and H¹ norms that mean the same on every grid.

    ‖u‖²_{L²} = ∫ |u|² dx          ‖u‖²_{H¹} = ∫ |u|² + |∇u|² dx = L^d Σ_k (1 + |k|²) |û(k)|²          k = 2π (whole number) / L

Each is a quadrature of an integral: the error of one pair of functions tends to one number as the grid is refined. Fields are
(b, c, *grid); one error for each of b samples, squared norms summed over the c channels.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import transformable


def relative_l2(
    prediction: Float[Tensor, "b c *grid"], target: Float[Tensor, "..."], weights: Float[Tensor, "*grid"] | None = None
) -> Float[Tensor, "b"]:
    """``‖prediction − target‖ / ‖target‖`` in L².

    `weights` are the shares of the domain that the points stand for (see `trapezoid`); without them all count alike: the exact
    rule for smooth periodic data. Where the target is zero everywhere the error is inf, or 0 if it is met. O(b c n).

    >>> u = torch.linspace(0, 1, 9)[None, None]
    >>> relative_l2(1.1 * u, u)
    tensor([0.1000])
    """
    _same(prediction, target)
    dims = tuple(range(1, target.ndim))
    squares = [u.square() if weights is None else u.square() * weights for u in (prediction - target, target)]
    return _ratio(*(u.sum(dims) for u in squares))


def relative_h1(
    prediction: Float[Tensor, "b c *grid"],
    target: Float[Tensor, "..."],
    spacing: float | Sequence[float],
    periodic: bool = True,
) -> Float[Tensor, "b"]:
    """``‖prediction − target‖ / ‖target‖`` in H¹: values and slopes.

    `spacing` is the distance of neighbours, one number or one for each axis, in the unit in which slopes are to be taken. Periodic
    data: exact for the trigonometric polynomials of the grid, by FFT, O(b c n log n). Else, on grids that hold both ends: trapezoid
    rule for the values, differences of neighbours at the middle of cells for the slopes, second order, O(b c n).

    >>> x = torch.arange(16) * 2 * math.pi / 16
    >>> u, error = (torch.sin(k * x)[None, None] for k in (1, 3))
    >>> relative_h1(u + 0.1 * error, u, spacing=2 * math.pi / 16)  # 0.1 · √((1 + 3²) / (1 + 1²))
    tensor([0.2236])
    """
    _same(prediction, target)
    d = target.ndim - 2
    h = [float(spacing)] * d if isinstance(spacing, (int, float)) else [float(s) for s in spacing]
    if len(h) != d or not all(0 < s < math.inf for s in h):
        raise Refused(f"spacing: one positive number, or one for each of {d} axes, is needed, got {spacing}")
    if periodic:
        transformable("target", target)
    square = _h1_periodic if periodic else _h1_bounded
    return _ratio(square(prediction - target, h), square(target, h))


def trapezoid(grid: Sequence[int], like: Tensor | None = None) -> Float[Tensor, "..."]:
    """Weights of a grid that holds both ends, as shares of the domain: ½ at an end of an axis; `like` gives dtype and device.

    >>> trapezoid([3])
    tensor([0.2500, 0.5000, 0.2500])
    """
    if min(grid, default=0) < 2:
        raise Refused(f"grid: at least two points along each axis are needed, got {tuple(grid)}")
    weights = torch.ones(()) if like is None else like.new_ones(())
    for n in grid:
        along = weights.new_full((n,), 1 / (n - 1))
        along[0] = along[-1] = 0.5 / (n - 1)
        weights = weights[..., None] * along
    return weights


def _h1_periodic(u: Tensor, h: list[float]) -> Tensor:
    """Σ_k (1 + |k|²) |û(k)|² over the modes of the grid: those of the half that `rfft` leaves out count through their twins."""
    axes = list(range(2, u.ndim))
    n = u.shape[2:]
    power = torch.fft.rfftn(u, dim=axes, norm="forward").abs().square()
    weight = torch.ones((), dtype=power.dtype, device=u.device)
    for i, (size, step) in enumerate(zip(n, h, strict=True)):
        frequencies = torch.fft.rfftfreq if i == len(h) - 1 else torch.fft.fftfreq
        k = 2 * math.pi * frequencies(size, step, dtype=power.dtype, device=u.device)
        weight = weight[..., None] + k.square()
    twins = torch.full((n[-1] // 2 + 1,), 2.0, dtype=power.dtype, device=u.device)
    twins[0] = 1
    if n[-1] % 2 == 0:
        twins[-1] = 1
    return (power * weight * twins).flatten(1).sum(1)


def _h1_bounded(u: Tensor, h: list[float]) -> Tensor:
    """The mean over the domain of u² + |∇u|², with trapezoid weights along the axes that are not differentiated."""
    grid = u.shape[2:]
    total = (u.square() * trapezoid(grid, u)).flatten(1).sum(1)
    for axis, step in enumerate(h):
        slope = u.diff(dim=axis + 2) / step
        others = trapezoid([*grid[:axis], *grid[axis + 1 :]], u).unsqueeze(axis) if len(h) > 1 else 1.0
        total = total + (slope.square() * others).flatten(1).sum(1) / (grid[axis] - 1)
    return total


def _ratio(error: Tensor, size: Tensor) -> Tensor:
    # NaN is not ≤ 0 and stays: a model that diverged must not score 0
    return torch.where(error <= 0, 0.0, error).div(size.clamp_min(torch.finfo(size.dtype).tiny)).sqrt()


def _same(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape or target.ndim < 3 or not target.numel():
        shapes = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        raise Refused(f"prediction, target: the same shape (b, c, *grid) is needed, got {shapes}")
