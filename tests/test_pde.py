"""The simulators against exact solutions: Poisson, Cole–Hopf, a decaying shear and vortex, Green's functions, their orders."""

import math

import pytest
import torch

from neuropil.data import pde
from neuropil.errors import Refused

DOUBLE = torch.float64


def places(n):
    return torch.arange(n, dtype=DOUBLE) / n


@pytest.mark.parametrize("d", [1, 2, 3])
def test_poisson_of_a_plane_wave(d):
    x = torch.stack(torch.meshgrid(*[places(12)] * d, indexing="ij"))
    k = torch.tensor([1.0, 2.0, -1.0], dtype=DOUBLE)[:d]
    wave = torch.cos(2 * math.pi * torch.tensordot(k, x, 1))[None, None]
    u = pde.poisson(wave + 3, length=2.0)
    assert torch.allclose(u, wave / (math.pi**2 * k.square().sum()), atol=1e-14)


def test_burgers_meets_cole_and_hopf_at_fourth_order():
    u0 = 5 * pde.gaussian_field(3, (128,), torch.Generator().manual_seed(0), smoothness=2.0, tau=5.0, dtype=DOUBLE)
    exact = pde.cole_hopf(u0, 1.0, 0.05)
    errors = [(pde.burgers(u0, 1.0, steps, 0.05) - exact).abs().max() for steps in (40, 80)]
    assert errors[0] / errors[1] > 12
    assert errors[1] < 1e-5
    assert (exact - u0).abs().max() > 0.5


@pytest.mark.parametrize("n", [15, 16])
def test_cole_hopf_begins_at_u0_even_in_its_highest_mode(n):
    u0 = torch.cos(2 * math.pi * (n // 2) * places(n))[None, None]  # 1, −1, 1, … on the even grid
    assert torch.allclose(pde.cole_hopf(u0, 1e-9, 0.1), u0, atol=1e-5)


def test_the_potential_solves_its_equation():
    x = places(64)
    U0 = (0.1 * torch.sin(2 * math.pi * (x[:, None] + x)) + 0.05 * torch.cos(2 * math.pi * x)[:, None])[None, None]
    nu, t, dt = 0.05, 0.3, 1e-4
    before, now, after = (pde.burgers_potential(U0, s, nu) for s in (t - dt, t, t + dt))
    k = 2j * math.pi * torch.fft.fftfreq(64, 1 / 64, dtype=DOUBLE)
    c = torch.fft.fft2(now)
    ux, uy, laplacian = (torch.fft.ifft2(f * c).real for f in (k[:, None], k, k[:, None] ** 2 + k**2))
    assert torch.allclose((after - before) / (2 * dt), nu * laplacian - (ux**2 + uy**2) / 2, atol=1e-6)


def test_decaying_vortex_is_exact():
    """sin kx sin ky is a steady solution of Euler's equations: ω decays like e^{−2νk²t}."""
    x = 2 * math.pi * places(32)
    w = (torch.sin(2 * x)[:, None] * torch.sin(2 * x))[None, None]
    found = pde.navier_stokes(torch.zeros_like(w), 1.0, 10, 0.1, vorticity=w)
    assert torch.allclose(found, w * math.exp(-2 * 0.1 * 4), atol=1e-12)


def test_navier_stokes_converges_at_fourth_order():
    f = pde.gaussian_field(2, (32, 32), torch.Generator().manual_seed(0), smoothness=4.0, tau=5.0, dtype=DOUBLE)
    f = 3 * f / f.std()
    finest, *rest = (pde.navier_stokes(f, 1.0, steps, 0.1) for steps in (320, 20, 40))
    errors = [(w - finest).abs().max() for w in rest]
    assert errors[0] / errors[1] > 10
    assert errors[1] < 1e-4


def test_gaussian_fields_have_the_spectrum_asked_for():
    alpha, tau = 2.0, 5.0
    u = pde.gaussian_field(20_000, (16,), torch.Generator().manual_seed(0), smoothness=alpha, tau=tau, dtype=DOUBLE)
    power = torch.fft.rfft(u, norm="forward").abs().square().mean(0)[0]
    k = torch.arange(1, 7, dtype=DOUBLE)
    expected = tau ** (2 * alpha - 1) * (4 * math.pi**2 * k**2 + tau**2) ** -alpha
    assert torch.allclose(power[1:7] / expected, torch.ones(6, dtype=DOUBLE), atol=0.05)
    assert u.mean(-1).abs().max() < 1e-12


def test_greens_functions_solve_their_equations():
    n = 400
    x, y = places(8), (torch.arange(n, dtype=DOUBLE) + 0.5) / n
    f = torch.sin(2 * math.pi * y)
    for green in (pde.green_interval, pde.green_circle):
        assert torch.allclose(green(x, y) @ f / n, torch.sin(2 * math.pi * x) / (4 * math.pi**2), atol=1e-5)
    line = torch.linspace(-8, 8, 801, dtype=DOUBLE)
    heat = pde.heat_kernel(torch.zeros(1, dtype=DOUBLE), line, 0.5) @ torch.cos(line) * 0.02
    assert heat.item() == pytest.approx(math.exp(-0.5), abs=1e-6)


def test_rollout_and_subsample():
    u = pde.rollout(lambda v: v + 1, torch.zeros(2), 3)
    assert u[:, 0].tolist() == [0, 1, 2, 3]
    assert pde.subsample(torch.arange(16.0).view(1, 1, 4, 4), 2).flatten().tolist() == [0, 2, 8, 10]


def test_bad_input_is_refused():
    u = torch.sin(2 * math.pi * places(64))[None, None]
    with pytest.raises(Refused, match="n: must divide"):
        pde.subsample(u, 24)
    with pytest.raises(Refused, match="steps: too few"):
        pde.burgers(1000 * u, 1.0, 10, 1e-4)
    with pytest.raises(Refused, match="viscosity"):
        pde.burgers(u, 1.0, 10, -0.1)
    with pytest.raises(Refused, match="mean zero"):
        pde.cole_hopf(u + 1, 1.0, 0.1)
    with pytest.raises(Refused, match="too small for the Cole"):
        pde.cole_hopf(u, 1.0, 1e-4)
    with pytest.raises(Refused, match="smoothness"):
        pde.gaussian_field(1, (8, 8), torch.Generator(), smoothness=1.0)
    with pytest.raises(Refused, match="n: must not"):
        pde.rollout(lambda v: v, u, -1)
