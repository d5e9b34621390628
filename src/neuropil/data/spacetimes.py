"""Space-times with known truth: exact metrics as plain functions of the coordinates. Analytic, nothing is measured.

Signature (−, +, +, +), units in which c = G = 1, M the mass and a = J/M the spin. Each function takes coordinates (… 4) in its own
chart and gives g_ij (… 4 4), for single points, batches, and under `torch.func`; none is defined on a singularity of its chart.

    (t, x, y, z)    Cartesian           minkowski, plane_wave, schwarzschild_isotropic, schwarzschild_kerr_schild, kerr_schild
    (t, r, θ, φ)    spherical           minkowski_spherical, schwarzschild
    (v, r, θ, φ)    ingoing null        minkowski_null, schwarzschild_null
    (t, r, θ, φ)    oblate spheroidal   minkowski_spheroidal, kerr  (Boyer–Lindquist)

Schwarzschild 1916; Eddington 1924, Finkelstein 1958; Kerr 1963, Kerr & Schild 1965; Boyer & Lindquist 1967. Closed forms as in
Misner, Thorne & Wheeler 1973 and Visser 2007 (arXiv:0706.0622).
"""

import math
from typing import Any

import numpy
import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused

Points = Float[Tensor, "*b 4"]
Metrics = Float[Tensor, "*b 4 4"]


def _symmetric(entries: dict[tuple[int, int], Tensor], like: Tensor) -> Tensor:
    """The symmetric 4 × 4 matrices with these entries of the upper triangle, else zero."""
    zero = torch.zeros_like(like)
    rows = [[entries.get((min(i, j), max(i, j)), zero) for j in range(4)] for i in range(4)]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _diagonal(tt: Tensor, rr: Tensor, hh: Tensor, pp: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack(torch.broadcast_tensors(tt, rr, hh, pp), -1))


def minkowski(x: Points) -> Metrics:
    """No gravity, Cartesian: η = diag(−1, 1, 1, 1).

    >>> minkowski(torch.zeros(4)).diagonal()
    tensor([-1.,  1.,  1.,  1.])
    """
    one = torch.ones_like(x[..., 0])
    return _diagonal(-one, one, one, one)


def minkowski_spherical(x: Points) -> Metrics:
    """No gravity, spherical: −dt² + dr² + r²(dθ² + sin²θ dφ²)."""
    return schwarzschild(x, M=0.0)


def minkowski_null(x: Points) -> Metrics:
    """No gravity, along ingoing light v = t + r: −dv² + 2 dv dr + r²(dθ² + sin²θ dφ²)."""
    return schwarzschild_null(x, M=0.0)


def minkowski_spheroidal(x: Points, a: float) -> Metrics:
    """No gravity, oblate spheroidal: Kerr's chart with M = 0."""
    return kerr(x, M=0.0, a=a)


def schwarzschild(x: Points, M: float = 1.0) -> Metrics:
    """A black hole at rest, spherical: −(1 − 2M/r) dt² + dr²/(1 − 2M/r) + r²(dθ² + sin²θ dφ²).

    >>> schwarzschild(torch.tensor([0.0, 4.0, math.pi / 2, 0.0])).diagonal()
    tensor([-0.5000,  2.0000, 16.0000, 16.0000])
    """
    _, r, theta, _ = x.unbind(-1)
    f = 1 - 2 * M / r
    return _diagonal(-f, 1 / f, r**2, (r * theta.sin()) ** 2)


def schwarzschild_null(x: Points, M: float = 1.0) -> Metrics:
    """A black hole at rest, Eddington–Finkelstein: −(1 − 2M/r) dv² + 2 dv dr + r²(dθ² + sin²θ dφ²); smooth at r = 2M."""
    _, r, theta, _ = x.unbind(-1)
    entries = {(0, 0): 2 * M / r - 1, (0, 1): torch.ones_like(r), (2, 2): r**2, (3, 3): (r * theta.sin()) ** 2}
    return _symmetric(entries, r)


def schwarzschild_isotropic(x: Points, M: float = 1.0) -> Metrics:
    """A black hole at rest, isotropic: −((1 − m)/(1 + m))² dt² + (1 + m)⁴ (dx² + dy² + dz²), m = M/2ρ, r = ρ(1 + m)²."""
    m = M / (2 * x[..., 1:].norm(dim=-1))
    space = (1 + m) ** 4
    return _diagonal(-(((1 - m) / (1 + m)) ** 2), space, space, space)


def schwarzschild_kerr_schild(x: Points, M: float = 1.0) -> Metrics:
    """A black hole at rest, Cartesian Kerr–Schild: η + (2M/r) l l with l = (1, x/r, y/r, z/r); smooth at r = 2M.

    >>> schwarzschild_kerr_schild(torch.tensor([0.0, 4.0, 0.0, 0.0]))[:2, :2]
    tensor([[-0.5000,  0.5000],
            [ 0.5000,  1.5000]])
    """
    r = x[..., 1:].norm(dim=-1, keepdim=True)
    ray = torch.cat([torch.ones_like(r), x[..., 1:] / r], -1)
    return minkowski(x) + (2 * M / r)[..., None] * ray[..., :, None] * ray[..., None, :]


def kerr(x: Points, M: float = 1.0, a: float = 0.0) -> Metrics:
    """A rotating black hole in Boyer–Lindquist coordinates, Σ = r² + a² cos²θ, Δ = r² − 2Mr + a²:

    −(1 − 2Mr/Σ) dt² − (4Mar sin²θ/Σ) dt dφ + (Σ/Δ) dr² + Σ dθ² + (r² + a² + 2Ma²r sin²θ/Σ) sin²θ dφ².
    """
    _, r, theta, _ = x.unbind(-1)
    ss = theta.sin() ** 2
    sigma, delta = r**2 + a**2 * theta.cos() ** 2, r**2 - 2 * M * r + a**2
    entries = {
        (0, 0): 2 * M * r / sigma - 1,
        (0, 3): -2 * M * a * r * ss / sigma,
        (1, 1): sigma / delta,
        (2, 2): sigma,
        (3, 3): (r**2 + a**2 + 2 * M * a**2 * r * ss / sigma) * ss,
    }
    return _symmetric(entries, r)


def kerr_radius(x: Points, a: float) -> Float[Tensor, "*b"]:
    """Boyer–Lindquist r of a Cartesian Kerr–Schild point: (x² + y²)/(r² + a²) + z²/r² = 1.

    >>> kerr_radius(torch.tensor([0.0, 0.0, 0.0, 3.0]), a=0.7)
    tensor(3.)
    """
    z = x[..., 3]
    w = x[..., 1:].square().sum(-1) - a**2
    return ((w + (w**2 + 4 * a**2 * z**2).sqrt()) / 2).sqrt()


def kerr_schild(x: Points, M: float = 1.0, a: float = 0.0) -> Metrics:
    """A rotating black hole, Cartesian Kerr–Schild: η + (2Mr³/(r⁴ + a²z²)) l l, r as in `kerr_radius`,

    l = (1, (rx + ay)/(r² + a²), (ry − ax)/(r² + a²), z/r).
    """
    _, p, q, z = x.unbind(-1)
    r = kerr_radius(x, a)
    s = r**2 + a**2
    ray = torch.stack([torch.ones_like(r), (r * p + a * q) / s, (r * q - a * p) / s, z / r], -1)
    strength = 2 * M * r**3 / (r**4 + a**2 * z**2)
    return minkowski(x) + strength[..., None, None] * ray[..., :, None] * ray[..., None, :]


def plane_wave(x: Points, plus: float = 1e-6, cross: float = 1e-6, omega: float = 2.0) -> Metrics:
    """A weak gravitational wave along z, transverse and traceless: η + cos ω(t − z) [plus (dx² − dy²) + 2 cross dx dy].

    Solves Einstein's equations to first order in the amplitudes only.
    """
    t, _, _, z = x.unbind(-1)
    wave = (omega * (t - z)).cos()
    return minkowski(x) + _symmetric({(1, 1): plus * wave, (1, 2): cross * wave, (2, 2): -plus * wave}, t)


def kerr_kretschmann(r: Float[Tensor, "*b"], theta: Float[Tensor, "*b"], M: float = 1.0, a: float = 0.0) -> Float[Tensor, "*b"]:
    """K = 48 M² (r² − c²)((r² + c²)² − 16 r²c²)/(r² + c²)⁶ with c = a cos θ; 48 M²/r⁶ without spin.

    >>> kerr_kretschmann(torch.tensor(2.0), torch.tensor(1.0))
    tensor(0.7500)
    """
    rr, cc = r**2, (a * theta.cos()) ** 2
    return 48 * M**2 * (rr - cc) * ((rr + cc) ** 2 - 16 * rr * cc) / (rr + cc) ** 6


def shell(count: int, low: float, high: float, generator: torch.Generator) -> Float[Tensor, "count 4"]:
    """`count` Cartesian points (0, x, y, z) in float64: direction uniform on the sphere, radius uniform in [low, high].

    >>> shell(5, 3.0, 10.0, torch.Generator().manual_seed(0)).shape
    torch.Size([5, 4])
    """
    if count < 1 or not 0 < low < high:
        raise Refused(f"count, low, high: count ≥ 1 and 0 < low < high are needed, got {count}, {low} and {high}")
    direction = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    radius = low + (high - low) * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    space = radius * direction / direction.norm(dim=1, keepdim=True)
    return torch.cat([torch.zeros_like(radius), space], 1)


def bound_orbit(p: float, e: float, M: float = 1.0) -> tuple[Float[Tensor, "4"], Float[Tensor, "4"]]:
    """Where a bound orbit about a resting hole is nearest to it, and its velocity dx/dτ there, Cartesian Kerr–Schild, float64.

    The radius runs between pM/(1 + e) and pM/(1 − e); e = 0 is a circle. The orbit lies in z = 0 and starts on the x axis.
    Raises `Refused` where there is none: it takes 0 ≤ e < 1 and p > 6 + 2e.

    >>> x, u = bound_orbit(8.0, 0.0)
    >>> round(float(u @ schwarzschild_kerr_schild(x) @ u), 6)
    -1.0
    """
    if not (0 <= e < 1 and p > 6 + 2 * e):
        raise Refused(f"p, e: stable bound orbits have 0 ≤ e < 1 and p > 6 + 2e, got {p} and {e}")
    r = p * M / (1 + e)
    energy = math.sqrt(((p - 2) ** 2 - 4 * e**2) / (p * (p - 3 - e**2)))
    momentum = p * M / math.sqrt(p - 3 - e**2)
    position = torch.tensor([0.0, r, 0.0, 0.0], dtype=torch.float64)
    return position, torch.tensor([energy / (1 - 2 * M / r), 0.0, momentum / r, 0.0], dtype=torch.float64)


def orbit_path(p: float, e: float, angles: Float[Tensor, "s"], M: float = 1.0) -> tuple[Float[Tensor, "s"], Float[Tensor, "s"]]:
    """Proper time and radius, float64, of the orbit that `bound_orbit` starts, when it has turned by `angles` (rising, from 0 on).

    The truth to hold geodesics against: r = pM/(1 + e cos χ), (dχ/dφ)² = 1 − (6 + 2e cos χ)/p, dτ/dφ = r²/L (Darwin 1959).

    >>> proper_time, radius = orbit_path(8.0, 0.0, torch.tensor([0.0, 1.0], dtype=torch.float64))
    >>> radius.tolist()
    [8.0, 8.0]
    """
    from scipy.integrate import solve_ivp

    bound_orbit(p, e, M)  # refuses what is none
    if angles.ndim != 1 or not bool((angles >= 0).all() & (angles.diff() > 0).all()):
        raise Refused(f"angles: must rise from 0 on, got {angles.tolist()[:6]}")
    momentum = p * M / math.sqrt(p - 3 - e**2)

    def radius(chi: Any) -> Any:
        return p * M / (1 + e * numpy.cos(chi))

    def rates(_: float, state: Any) -> list[float]:
        chi = state[0]
        return [math.sqrt(1 - (6 + 2 * e * math.cos(chi)) / p), radius(chi) ** 2 / momentum]

    at = angles.double().numpy()
    chi, proper_time = solve_ivp(rates, (0.0, float(at[-1])), [0.0, 0.0], "DOP853", at, rtol=1e-12, atol=1e-12).y
    return torch.from_numpy(proper_time.copy()), torch.from_numpy(radius(chi))


def angle_between_periapses(p: float, e: float) -> float:
    """How far φ turns from one nearest point to the next: 4 K(k) √(p/(p − 6 + 2e)), k² = 4e/(p − 6 + 2e); 2π for Newton.

    >>> round(angle_between_periapses(1e6, 0.2) - 2 * math.pi, 9), round(6 * math.pi / 1e6, 9)  # Einstein's 6π/p
    (1.885e-05, 1.885e-05)
    """
    from scipy.special import ellipk

    return float(4 * math.sqrt(p / (p - 6 + 2 * e)) * ellipk(4 * e / (p - 6 + 2 * e)))
