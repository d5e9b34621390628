"""Simulators of partial differential equations on a torus: pairs of functions for nets that map one to the other.

    −Δu = f                              Poisson, exact by FFT
    u_t + u u_x = ν u_xx                 Burgers in one dimension; exact solutions, in more too, by Cole and Hopf
    ω_t + (u·∇)ω = ν Δω + f,  u = ∇^⊥ψ,  −Δψ = ω        Navier–Stokes in two, vorticity

Time goes by ETDRK4 (Cox & Matthews 2002; coefficients by a contour, Kassam & Trefethen 2005): diffusion exactly, the rest by four
stages, fourth order. Products are formed on the grid and cleared of modes beyond 2/3 of what it carries. Random inputs are Gaussian
fields (Li et al. 2021, arXiv:2010.08895). Fields are (b, 1, *grid) at x = i L / n. A grid finer than the solver's needs is better
taken from a fine solution by `subsample` than solved anew: both grids then hold one function.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused


def gaussian_field(
    b: int,
    grid: Sequence[int],
    generator: torch.Generator,
    *,
    smoothness: float = 2.5,
    tau: float = 7.0,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b 1 ..."]:
    """b draws of N(0, σ² (−Δ + τ²)^{−α}) on the unit torus, without their mean; α is `smoothness`, σ = τ^{α − d/2}.

    A mode k has the standard deviation σ (4π²|k|² + τ²)^{−α/2}: features of size 1/τ, smoother for larger α > d/2. O(b n log n).

    >>> gaussian_field(3, (16, 16), torch.Generator().manual_seed(0)).shape
    torch.Size([3, 1, 16, 16])
    """
    d = len(grid)
    if b < 1 or not 1 <= d <= 3 or min(grid) < 2:
        raise Refused(f"b, grid: at least 1 draw on one to three axes of at least 2 points is needed, got {b} and {tuple(grid)}")
    if smoothness <= d / 2 or tau <= 0:
        raise Refused(f"smoothness, tau: more than d/2 = {d / 2} and more than 0 are needed, got {smoothness} and {tau}")
    white = torch.fft.rfftn(torch.randn(b, 1, *grid, generator=generator, dtype=torch.float64), dim=_axes(d), norm="ortho")
    k2 = _laplacian(grid, 1.0)
    size = tau ** (smoothness - d / 2) * (k2 + tau**2) ** (-smoothness / 2) * (k2 > 0)
    return torch.fft.irfftn(white * size, s=tuple(grid), dim=_axes(d), norm="forward").to(dtype)


def poisson(f: Float[Tensor, "b c *grid"], length: float = 1.0) -> Float[Tensor, "b c *grid"]:
    """The u without mean of ``−Δu = f − mean f`` on a torus of `length`, exact for what the grid carries. O(b c n log n).

    >>> x = torch.arange(8) / 8
    >>> u = poisson(torch.sin(2 * math.pi * x)[None, None])
    >>> round(float(u.max() * 4 * math.pi**2), 5)
    1.0
    """
    grid, axes = f.shape[2:], _axes(f.ndim - 2)
    k2 = _laplacian(grid, length).to(f)
    inverse = torch.where(k2 > 0, 1 / k2.clamp_min(1e-30), 0.0)
    return torch.fft.irfftn(torch.fft.rfftn(f, dim=axes) * inverse, s=tuple(grid), dim=axes)


def burgers(u0: Float[Tensor, "b 1 n"], time: float, steps: int, viscosity: float, length: float = 1.0) -> Float[Tensor, "b 1 n"]:
    """u at `time`, after `steps` equal steps from u0. Shocks are about ν / |u| wide: the grid must have points within.

    Stable for about |u| · time / steps below a cell. O(steps b n log n). `Refused` for bad numbers or too long steps.

    >>> x = torch.arange(64) / 64
    >>> u = burgers(torch.sin(2 * math.pi * x)[None, None], time=0.5, steps=64, viscosity=0.02)
    >>> bool(u.abs().max() < 1)
    True
    """
    _positive(time=time, steps=steps, viscosity=viscosity, length=length)
    n = u0.shape[-1]
    k = 2 * math.pi * torch.fft.rfftfreq(n, length / n, dtype=u0.dtype, device=u0.device)
    slope = -0.5j * k * _dealias((n,)).to(u0)

    def N(c: Tensor) -> Tensor:  # −∂x u²/2
        return slope * torch.fft.rfft(torch.fft.irfft(c, n=n, norm="forward").square(), norm="forward")

    step = etdrk4(-viscosity * k.square(), time / steps, N)
    c = torch.fft.rfft(u0, norm="forward")
    for _ in range(steps):
        c = step(c)
    return _finite(torch.fft.irfft(c, n=n, norm="forward"))


def cole_hopf(u0: Float[Tensor, "b 1 n"], time: float, viscosity: float, length: float = 1.0) -> Float[Tensor, "b 1 n"]:
    """The exact solution of Burgers' equation, for u0 without mean: u = ∂U/∂x with U of `burgers_potential` and U_0 = ∫u0.

    In float64 on four times the grid. O(b n log n). `Refused` for a u0 with a mean, or as in `burgers_potential`.

    >>> x = torch.arange(32) / 32
    >>> cole_hopf(torch.sin(2 * math.pi * x)[None, None], 0.1, 0.1).shape
    torch.Size([1, 1, 32])
    """
    _positive(time=time, viscosity=viscosity, length=length)
    n = u0.shape[-1]
    if bool((u0.mean(-1).abs() > 1e-5 * u0.abs().amax(-1)).any()):
        raise Refused("u0: must have mean zero, or its integral is not periodic")
    k = 2 * math.pi * torch.fft.rfftfreq(4 * n, length / (4 * n), dtype=torch.float64, device=u0.device)
    c = torch.fft.rfft(u0.double(), norm="forward")
    if n % 2 == 0:
        c[..., -1] /= 2  # the highest mode of an even grid stands for k and −k, which a finer one tells apart
    c = torch.nn.functional.pad(c, (0, 2 * n - n // 2))
    potential = torch.fft.irfft(c / torch.where(k > 0, 1j * k, math.inf), n=4 * n, norm="forward")
    potential = burgers_potential(potential, time, viscosity, length)
    return torch.fft.irfft(1j * k * torch.fft.rfft(potential, norm="forward"), n=4 * n, norm="forward")[..., ::4].to(u0.dtype)


def burgers_potential(
    potential: Float[Tensor, "b 1 *grid"], time: float, viscosity: float, length: float = 1.0
) -> Float[Tensor, "b 1 *grid"]:
    """U at `time` for ``U_t + |∇U|²/2 = ν ΔU``, exactly: U = −2ν log φ, φ_t = ν Δφ (Hopf 1950, Cole 1951), in 1 to 3 dimensions.

    Its gradient u = ∇U solves Burgers' equation ``u_t + (u·∇)u = ν Δu``: valleys widen to paraboloids, ridges sharpen to kinks ν
    wide. Computed in float64; exact for grids that resolve exp(−U/2ν). O(b n log n). `Refused` if U spans more than 1000 ν.

    >>> burgers_potential(torch.ones(1, 1, 8, 8), time=0.1, viscosity=0.1).mean()
    tensor(1.)
    """
    _positive(time=time, viscosity=viscosity, length=length)
    axes, grid = _axes(potential.ndim - 2), tuple(potential.shape[2:])
    U = potential.double() / (-2 * viscosity)
    top, low = U.amax(axes, keepdim=True), U.amin(axes, keepdim=True)
    if float((top - low).max()) > 500:
        raise Refused(f"viscosity: {viscosity} is too small for the Cole–Hopf transform of this field in float64")
    decay = torch.exp(-viscosity * time * _laplacian(grid, length)).to(U)
    phi = torch.fft.irfftn(torch.fft.rfftn((U - top).exp(), dim=axes) * decay, s=grid, dim=axes)
    return (-2 * viscosity * (phi.clamp_min(1e-300).log() + top)).to(potential.dtype)


def navier_stokes(
    forcing: Float[Tensor, "b 1 n m"],
    time: float,
    steps: int,
    viscosity: float,
    vorticity: Float[Tensor, "b 1 n m"] | None = None,
    length: float = 2 * math.pi,
) -> Float[Tensor, "b 1 n m"]:
    """The vorticity at `time` of a fluid on a square torus under a steady forcing (of the vorticity), by default from rest.

    Means are left out. O(steps b n m log(n m)): 20 transforms a step. `Refused` for bad numbers, or steps so long that it blew up.

    >>> x = 2 * math.pi * torch.arange(16) / 16
    >>> f = torch.sin(x)[:, None].expand(1, 1, 16, 16)  # a shear flow: ω = f (1 − e^{−νt}) / ν
    >>> w = navier_stokes(f, time=1.0, steps=20, viscosity=0.5)
    >>> round(float(w.max()), 4) == round((1 - math.exp(-0.5)) / 0.5, 4)
    True
    """
    _positive(time=time, steps=steps, viscosity=viscosity, length=length)
    grid = tuple(forcing.shape[2:])
    kx, ky = (k.to(forcing) for k in _wavenumbers(grid, length))
    k2 = kx.square() + ky.square()
    inverse = torch.where(k2 > 0, 1 / k2.clamp_min(1e-30), 0.0)
    dealias = _dealias(grid).to(forcing)
    F = torch.fft.rfft2(forcing, norm="forward") * (k2 > 0)
    back = lambda c: torch.fft.irfft2(c, s=grid, norm="forward")  # noqa: E731

    def N(w: Tensor) -> Tensor:  # −u·∇ω + f
        psi = w * inverse
        u, v, wx, wy = back(torch.stack([1j * ky * psi, -1j * kx * psi, 1j * kx * w, 1j * ky * w]))
        return F - dealias * torch.fft.rfft2(u * wx + v * wy, norm="forward")

    step = etdrk4(-viscosity * k2, time / steps, N)
    w = torch.zeros_like(F) if vorticity is None else torch.fft.rfft2(vorticity, norm="forward") * (k2 > 0)
    for _ in range(steps):
        w = step(w)
    return _finite(back(w))


def etdrk4(L: Float[Tensor, "*k"], h: float, N: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """One step of h of ``c' = L c + N(c)`` with a diagonal L ≤ 0: exact in L, fourth order in N. Four calls of N a step.

    The φ-functions, (e^z − 1)/z and its like at z = hL, are means over 32 points of a circle around z: no cancellation near 0.

    >>> step = etdrk4(torch.tensor([-3.0]), 0.5, lambda c: 0 * c)
    >>> bool(torch.isclose(step(torch.ones(1)), torch.exp(torch.tensor(-1.5))))
    True
    """
    z = h * L.double()
    r = torch.exp(1j * math.pi * (torch.arange(1, 33, dtype=torch.float64, device=L.device) - 0.5) / 32)
    w = z[..., None] + r
    mean = lambda f: (h * f.mean(-1).real).to(L)  # noqa: E731  the upper half of the circle: the lower one is its conjugate
    E, E2 = z.exp().to(L), (z / 2).exp().to(L)
    Q = mean(((w / 2).exp() - 1) / w)
    f1 = mean((-4 - w + w.exp() * (4 - 3 * w + w**2)) / w**3)
    f2 = mean((2 + w + w.exp() * (w - 2)) / w**3)
    f3 = mean((-4 - 3 * w - w**2 + w.exp() * (4 - w)) / w**3)

    def step(c: Tensor) -> Tensor:
        n1 = N(c)
        a = E2 * c + Q * n1
        n2 = N(a)
        n3 = N(E2 * c + Q * n2)
        n4 = N(E2 * a + Q * (2 * n3 - n1))
        return E * c + f1 * n1 + 2 * f2 * (n2 + n3) + f3 * n4

    return step


def rollout(step: Callable[[Tensor], Tensor], u0: Float[Tensor, "*shape"], n: int) -> Float[Tensor, "t *shape"]:
    """u0, step(u0), step(step(u0)) … : n + 1 states, stacked. `step` may be a solver or a trained net.

    >>> rollout(lambda u: 2 * u, torch.ones(1), 3)[:, 0]
    tensor([1., 2., 4., 8.])
    """
    if n < 0:
        raise Refused(f"n: must not be negative, got {n}")
    path = [u0]
    for _ in range(n):
        path.append(step(path[-1]))
    return torch.stack(path)


def subsample(u: Float[Tensor, "b c *grid"], n: int) -> Float[Tensor, "b c ..."]:
    """Every so many-th point along each axis, n of them: the same function on a coarser grid.

    >>> subsample(torch.arange(8.0)[None, None], 4)
    tensor([[[0., 2., 4., 6.]]])
    """
    if n < 1 or any(size % n for size in u.shape[2:]):
        raise Refused(f"n: must divide the grid {tuple(u.shape[2:])}, got {n}")
    for axis, size in enumerate(u.shape[2:], start=2):
        u = u[(slice(None),) * axis + (slice(None, None, size // n),)]
    return u


def green_interval(x: Float[Tensor, "n"], y: Float[Tensor, "m"]) -> Float[Tensor, "n m"]:
    """Green's function of −u'' = f on [0, 1] with u = 0 at both ends: min(x, y) (1 − max(x, y)).

    >>> green_interval(torch.tensor([0.5]), torch.tensor([0.5]))
    tensor([[0.2500]])
    """
    return torch.minimum(x[:, None], y) * (1 - torch.maximum(x[:, None], y))


def green_circle(x: Float[Tensor, "n"], y: Float[Tensor, "m"]) -> Float[Tensor, "n m"]:
    """Green's function of −u'' = f − mean f on the circle of length 1, without mean: (r² − r + 1/6) / 2 with r = |x − y| mod 1.

    >>> green_circle(torch.tensor([0.0]), torch.tensor([0.0, 1.0])) * 12
    tensor([[1., 1.]])
    """
    r = (x[:, None] - y).abs() % 1
    return (r.square() - r + 1 / 6) / 2


def heat_kernel(x: Float[Tensor, "n"], y: Float[Tensor, "m"], time: float, viscosity: float = 1.0) -> Float[Tensor, "n m"]:
    """The heat of a unit source at y, at x after `time`, on the line: a Gaussian of variance 2νt.

    >>> round(float(heat_kernel(torch.zeros(1), torch.zeros(1), time=0.25)), 4) == round(math.pi**-0.5, 4)
    True
    """
    _positive(time=time, viscosity=viscosity)
    spread = 4 * viscosity * time
    return torch.exp(-(x[:, None] - y).square() / spread) / math.sqrt(math.pi * spread)


def _axes(d: int) -> tuple[int, ...]:
    return tuple(range(-d, 0))


def _wavenumbers(grid: Sequence[int], length: float) -> list[Tensor]:
    """k = 2π (whole number) / length along each axis, shaped to broadcast; the last axis has the half that `rfft` keeps."""
    d = len(grid)
    kinds = [torch.fft.fftfreq] * (d - 1) + [torch.fft.rfftfreq]
    return [
        (2 * math.pi * kind(n, length / n, dtype=torch.float64)).view(-1, *[1] * (d - 1 - i))
        for i, (n, kind) in enumerate(zip(grid, kinds, strict=True))
    ]


def _laplacian(grid: Sequence[int], length: float) -> Tensor:
    """|k|² of each mode."""
    return torch.stack(torch.broadcast_tensors(*(k.square() for k in _wavenumbers(grid, length)))).sum(0)


def _dealias(grid: Sequence[int]) -> Tensor:
    """1 where every |k| is below a third of the points of its axis."""
    below = [(k.abs() < n / 3).double() for k, n in zip(_wavenumbers(grid, 2 * math.pi), grid, strict=True)]
    return math.prod(below[1:], start=below[0])


def _finite(u: Tensor) -> Tensor:
    if not bool(u.isfinite().all()):
        raise Refused("steps: too few, the solution blew up; take more of them")
    return u


def _positive(**numbers: float | int) -> None:
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise Refused(f"{name}: must be positive and finite, got {value}")
