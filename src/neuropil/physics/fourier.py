"""Fourier layers: a convolution over the whole domain as a product at each wave number, the same operator on every grid.

    (K v)(x) = F⁻¹( R_k · (F v)(k) ),  |k_i| ≤ K_i          R_k ∈ C^{out × in}, F v(k) = (1/n) Σ_j v(x_j) e^{−2πi k·x_j}
    v ← φ(W v + b + K v)                                      one layer; W acts at each point

(Li et al. 2021, arXiv:2010.08895, as laid out by Berner, Liu-Schiaffini, Kossaifi, Duruisseaux, Bonev, Azizzadenesheli & Anandkumar
2025, arXiv:2506.10973.) With the 1/n in the forward transform F v(k) are the coefficients of the function and do not grow with n.
The lone mode n/2 of an even grid stands for both +n/2 and −n/2, half of it each: it is split before, and joined after R.

Differs: the modes −K…K of an axis (2K + 1 of them) rather than an even count; fields are (b, c, *grid), 1 to 3 axes; a grid that
cannot carry the modes (n < 2K) is refused rather than given another operator.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from neuropil.errors import Refused
from neuropil.nn.checks import at_least, filled, same_kind, transformable
from neuropil.nn.mlp import MLP
from neuropil.physics.checks import channels


def resample(u: Float[Tensor, "b c *grid"], size: int | Sequence[int]) -> Float[Tensor, "b c ..."]:
    """The trigonometric interpolant of periodic samples, read on a grid of `size` points (one number, or one for each axis).

    Exact up and down for functions without modes at or beyond half of either grid; a mode at just half is a cosine. Going down,
    what the new grid cannot carry is left out (not folded back). O(b c n log n).

    >>> wave = lambda n: torch.cos(2 * math.pi * torch.arange(n) / n)[None, None]
    >>> torch.allclose(resample(wave(6), 15), wave(15), atol=1e-6)
    True
    """
    d = u.ndim - 2
    sizes = [size] * d if isinstance(size, int) else list(size)
    if d < 1 or len(sizes) != d or min(sizes) < 1:
        raise Refused(f"size: a positive number, or one for each of {d} axes, is needed, got {size}")
    for axis, m in enumerate(sizes, start=2):
        n = u.shape[axis]
        if n == m:
            continue
        transformable("u", u)
        least = min(n, m)
        c = torch.fft.rfft(u, dim=axis, norm="forward").narrow(axis, 0, least // 2 + 1)
        if least % 2 == 0:  # the lone mode: to ± halves going up, their sum going down
            lone = c.narrow(axis, least // 2, 1).real * (0.5 if m > n else 2.0)
            c = torch.cat([c.narrow(axis, 0, least // 2), lone.to(c.dtype)], axis)
        u = torch.fft.irfft(c, n=m, dim=axis, norm="forward")
    return u


def with_coordinates(u: Float[Tensor, "b c *grid"], periodic: bool = True) -> Float[Tensor, "b d ..."]:
    """The field with its coordinate functions as further channels, from 0 to 1: i/n, or i/(n − 1) where the grid holds both ends.

    >>> with_coordinates(torch.zeros(1, 1, 4))[0, 1]
    tensor([0.0000, 0.2500, 0.5000, 0.7500])
    """
    axes = [torch.arange(n, dtype=u.dtype, device=u.device) / (n if periodic else max(n - 1, 1)) for n in u.shape[2:]]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return torch.cat([u, x.expand(len(u), *x.shape)], 1)


class Pointwise(MLP):
    """An MLP (see `neuropil.nn.mlp`) on the channels of each point: the same function of v(x) on any grid.

    >>> Pointwise([2, 8, 3])(torch.zeros(5, 2, 4, 4)).shape
    torch.Size([5, 3, 4, 4])
    """

    def __init__(self, sizes: Sequence[int], activation: str = "gelu") -> None:
        super().__init__(sizes, activation)

    def forward(self, v: Float[Tensor, "b c *grid"]) -> Float[Tensor, "b o *grid"]:
        """Channels from `sizes[0]` to `sizes[-1]`."""
        first: nn.Linear = self[0]  # type: ignore[assignment]
        if v.ndim < 3 or v.shape[1] != first.in_features:
            raise Refused(f"v: must be (b, {first.in_features}, grid…), got {tuple(v.shape)}")
        same_kind("v", v, first.weight)
        y = v.flatten(2)
        for layer in self:
            if isinstance(layer, nn.Linear):  # W y with channels left where they are: three times as fast as moving them
                y = torch.baddbmm(layer.bias[:, None], layer.weight.expand(len(y), *layer.weight.shape), y)
            else:
                y = layer(y)
        return y.unflatten(2, v.shape[2:])


class SpectralConvolution(nn.Module):
    """``F⁻¹(R F v)``: the modes −K…K of each axis, mixed by a matrix each. `modes` has one K an axis; a number means one axis.

    `weight` is (2K_1 + 1, …, K_d + 1, in, out, 2): modes from −K to K (0 to K along the last axis, the rest are its twins), real
    and imaginary parts. Where weights of twin modes (k, 0) and (−k, 0) do not agree, only what keeps the output real acts. Bad
    sizes are `Refused`, and so is a grid of fewer than 2K points along an axis. O(b in n log n + b in out Π(2K + 1)) time.
    Half precision is computed in float32.

    >>> SpectralConvolution(2, 3, modes=(4, 4))(torch.zeros(1, 2, 16, 12)).shape
    torch.Size([1, 3, 16, 12])
    """

    def __init__(self, c_in: int, c_out: int, modes: int | Sequence[int]) -> None:
        super().__init__()
        self.modes = (modes,) if isinstance(modes, int) else tuple(modes)
        if min(c_in, c_out) < 1:
            raise Refused(f"c_in, c_out: must be at least 1, got {c_in} and {c_out}")
        if not 1 <= len(self.modes) <= 3 or min(self.modes) < 1:
            raise Refused(f"modes: one to three positive numbers are needed, got {modes}")
        kept = [2 * k + 1 for k in self.modes[:-1]] + [self.modes[-1] + 1]
        self.weight = nn.Parameter(torch.randn(*kept, c_in, c_out, 2) / math.sqrt(c_in + c_out))

    def forward(self, v: Float[Tensor, "b i *grid"]) -> Float[Tensor, "b o *grid"]:
        """Samples of the same function on any grid that carries the modes."""
        self._check(v)
        grid = v.shape[2:]
        weight = self.weight.float() if self.weight.dtype in (torch.float16, torch.bfloat16) else self.weight
        R = torch.view_as_complex(weight)
        c = torch.fft.rfft(v.to(weight.dtype), norm="forward")[..., : self.modes[-1] + 1]
        for axis, (n, K) in enumerate(zip(grid[:-1], self.modes[:-1], strict=True)):
            c = _keep(torch.fft.fft(c, dim=axis + 2, norm="forward"), axis + 2, n, K)
        c = torch.einsum("bi...,...io->bo...", c, R)
        for axis, (n, K) in enumerate(zip(grid[:-1], self.modes[:-1], strict=True)):
            c = torch.fft.ifft(_spread(c, axis + 2, n, K), dim=axis + 2, norm="forward")
        return torch.fft.irfft(c, n=grid[-1], norm="forward").to(v.dtype)  # drops the imaginary parts of the modes 0 and n/2

    def _check(self, v: Tensor) -> None:
        d, c_in = len(self.modes), self.weight.shape[-3]
        if v.ndim != d + 2 or v.shape[1] != c_in:
            raise Refused(f"v: must be (b, {c_in}, *grid) with {d} axes, got {tuple(v.shape)}")
        filled("v", v)
        if any(n < 2 * k for n, k in zip(v.shape[2:], self.modes, strict=True)):
            raise Refused(f"grid: modes up to {self.modes} need at least twice as many points, got {tuple(v.shape[2:])}")


def _keep(c: Tensor, axis: int, n: int, K: int) -> Tensor:
    """The modes −K…K of an axis, in this order; on a grid of 2K points ±K are halves of one."""
    low, high = c.narrow(axis, n - K, K), c.narrow(axis, 0, K + 1)
    if n == 2 * K:
        lone = 0.5 * c.narrow(axis, K, 1)
        low, high = torch.cat([lone, low.narrow(axis, 1, K - 1)], axis), torch.cat([c.narrow(axis, 0, K), lone], axis)
    return torch.cat([low, high], axis)


def _spread(c: Tensor, axis: int, n: int, K: int) -> Tensor:
    """All n modes in the order of the FFT from −K…K."""
    low, high = c.narrow(axis, 0, K), c.narrow(axis, K, K + 1)
    if n == 2 * K:
        lone = c.narrow(axis, 0, 1) + c.narrow(axis, 2 * K, 1)
        return torch.cat([c.narrow(axis, K, K), lone, c.narrow(axis, 1, K - 1)], axis)
    between = list(c.shape)
    between[axis] = n - 2 * K - 1
    return torch.cat([high, c.new_zeros(between), low], axis)


class FourierLayer(nn.Module):
    """``F⁻¹(R F v) + W v + b``: see `SpectralConvolution`; W mixes the channels of a point.

    >>> FourierLayer(2, 2, modes=4)(torch.zeros(1, 2, 16)).shape
    torch.Size([1, 2, 16])
    """

    def __init__(self, c_in: int, c_out: int, modes: int | Sequence[int]) -> None:
        super().__init__()
        self.spectral, self.W = SpectralConvolution(c_in, c_out, modes), Pointwise([c_in, c_out])

    def forward(self, v: Float[Tensor, "b i *grid"]) -> Float[Tensor, "b o *grid"]:
        """Samples of the same function on any grid that carries the modes."""
        return self.spectral(v) + self.W(v)


class FNO(nn.Module):
    """Fourier neural operator: lift, `layers` blocks, project; the same weights on any grid of at least 2K points an axis.

        v ← φ(F⁻¹(R F v) + W v + b),  v' ← φ(MLP(v) + g ⊙ v_before)          no φ in the last block

    Args:
        c_in, c_out: channels of the functions.
        width: channels within.
        modes: K, or one for each axis.
        lifting, projection: hidden width of the pointwise MLPs at both ends, as multiples of `width` (4.13 in the paper's runs).
        expansion: hidden width of the MLP of a block, likewise.
        coordinates: append the coordinate functions to the input; `periodic` says whether the grid leaves out its last end.

    About layers · width² Π(2K + 1) numbers. `Refused` as in `SpectralConvolution`.

    >>> fno = FNO(1, 1, width=8, modes=(4, 4), layers=2)
    >>> [tuple(fno(torch.zeros(2, 1, n, n)).shape) for n in (16, 24)]
    [(2, 1, 16, 16), (2, 1, 24, 24)]
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        width: int,
        modes: int | Sequence[int],
        layers: int = 4,
        lifting: float = 2.0,
        projection: float = 2.0,
        expansion: float = 0.5,
        coordinates: bool = True,
        periodic: bool = True,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise Refused(f"layers: must be at least 1, got {layers}")
        at_least(1, c_out=c_out)
        if min(int(lifting * width), int(projection * width), round(expansion * width)) < 1:
            raise Refused(f"width: times lifting, projection and expansion must be at least 1, got {width}")
        d = 1 if isinstance(modes, int) else len(modes)
        self.c_in, self.d, self.coordinates, self.periodic = c_in, d, coordinates, periodic
        self.lift = Pointwise([c_in + d * coordinates, int(lifting * width), width])
        self.blocks = nn.ModuleList(_Block(width, modes, round(expansion * width), i + 1 == layers) for i in range(layers))
        self.project = Pointwise([width, int(projection * width), c_out])

    def forward(self, u: Float[Tensor, "b i *grid"]) -> Float[Tensor, "b o *grid"]:
        """The image of a function, on its grid."""
        channels("u", u, self.c_in, self.d, self.lift[0].weight)  # type: ignore[arg-type]
        filled("u", u)
        v = self.lift(with_coordinates(u, self.periodic) if self.coordinates else u)
        for block in self.blocks:
            v = block(v)
        return self.project(v)


class _Block(nn.Module):
    """A Fourier layer and a pointwise MLP with a gated skip."""

    def __init__(self, width: int, modes: int | Sequence[int], hidden: int, last: bool) -> None:
        super().__init__()
        self.fourier, self.mlp, self.last = FourierLayer(width, width, modes), Pointwise([width, hidden, width]), last
        self.gate = nn.Parameter(torch.ones(width))

    def forward(self, v: Float[Tensor, "b c *grid"]) -> Float[Tensor, "b c *grid"]:
        y = self.fourier(v)
        y = self.mlp(y if self.last else gelu(y)) + self.gate.view(-1, *[1] * (v.ndim - 2)) * v
        return y if self.last else gelu(y)
