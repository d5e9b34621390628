"""Encodings without grids and sine networks: formulas, quadrature, derivatives, transforms, state."""

import math

import numpy
import pytest
import torch
from scipy.special import sph_harm_y
from torch.autograd import gradcheck, gradgradcheck

from neuropil.errors import Refused
from neuropil.fields.encodings import Fourier, GaussianFourier, SphericalHarmonics
from neuropil.fields.siren import Siren

KINDS = {
    "fourier": lambda: Fourier(3, octaves=3),
    "gaussian": lambda: GaussianFourier(3, features=4, scale=1.0),
    "harmonics": lambda: SphericalHarmonics(4),
    "siren": lambda: Siren([3, 6, 6, 2], omega=3.0, hidden_omega=2.0),
}


@pytest.fixture(params=KINDS)
def encoding(request):
    torch.manual_seed(0)
    return KINDS[request.param]().double()


@pytest.fixture
def x():
    return 2 * torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 1


def test_first_and_second_derivatives(encoding, x):
    assert gradcheck(encoding, x.requires_grad_()) and gradgradcheck(encoding, x)


def test_any_batch_shape_and_vmap(encoding, x):
    y = encoding(x)
    assert encoding(x.reshape(2, 1, 2, 3)).shape == (2, 1, 2, y.shape[-1])
    torch.testing.assert_close(encoding(x.reshape(2, 1, 2, 3)).reshape(y.shape), y)
    torch.testing.assert_close(torch.func.vmap(encoding)(x), y)
    if hasattr(encoding, "width"):
        assert y.shape[-1] == encoding.width


def test_state_goes_round(encoding, x):
    y, state = encoding(x), encoding.state_dict()
    for number in state.values():
        assert number.dtype == torch.float64
    torch.manual_seed(7)
    name = next(name for name, make in KINDS.items() if type(make()) is type(encoding))
    other = KINDS[name]().double()
    other.load_state_dict(state)
    assert torch.equal(other(x), y)


def test_fourier_is_the_formula(x):
    y = Fourier(3, octaves=3)(x)
    parts = [x] + [wave(2**k * math.pi * x) for k in range(3) for wave in (torch.sin, torch.cos)]
    torch.testing.assert_close(y, torch.cat(parts, -1))
    assert torch.equal(Fourier(3, octaves=3, include_input=False)(x), y[:, 3:])


def test_random_features_estimate_a_gaussian_kernel():
    """E[γ(x)·γ(y)]/m = exp(−2 π² s² ‖x − y‖²): Rahimi and Recht's theorem, for 20,000 features."""
    torch.manual_seed(0)
    encode = GaussianFourier(2, features=20_000, scale=0.5)
    x, y = torch.zeros(1, 2), torch.tensor([[0.3, 0.2]])
    kernel = float((encode(x) * encode(y)).sum()) / 20_000
    assert kernel == pytest.approx(math.exp(-2 * math.pi**2 * 0.25 * 0.13), abs=0.02)


def sphere():
    """Gauss–Legendre in z times even angles: exact for polynomials of degree ≤ 14 on the sphere; directions and weights."""
    z, wz = numpy.polynomial.legendre.leggauss(8)
    phi = 2 * math.pi * numpy.arange(16) / 16
    z, phi = (a.ravel() for a in numpy.meshgrid(z, phi, indexing="ij"))
    r = numpy.sqrt(1 - z**2)
    return torch.from_numpy(numpy.stack([r * numpy.cos(phi), r * numpy.sin(phi), z], -1)), torch.from_numpy(
        wz.repeat(16) * 2 * math.pi / 16
    )


def test_harmonics_are_orthonormal():
    directions, weight = sphere()
    y = SphericalHarmonics(4)(directions)
    torch.testing.assert_close(y.T @ (weight[:, None] * y), torch.eye(16, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.equal(SphericalHarmonics(3)(directions), y[:, :9])


def test_harmonics_are_scipys():
    """Y_lm = √2 (−1)^0 Im / Re of the complex ones, whose Condon–Shortley phase stays."""
    directions, _ = sphere()
    x, y, z = directions.numpy().T
    theta, phi = numpy.arccos(z), numpy.arctan2(y, x)
    columns = []
    for l in range(4):
        for m in range(-l, l + 1):
            value = sph_harm_y(l, abs(m), theta, phi)
            columns.append(value.real if m == 0 else math.sqrt(2) * (value.imag if m < 0 else value.real))
    found = SphericalHarmonics(4)(directions)
    torch.testing.assert_close(found, torch.from_numpy(numpy.stack(columns, -1)), atol=1e-12, rtol=0)


def test_siren_starts_with_sines_of_unit_spread():
    """The initialisation's point: what a hidden layer's sine is taken of has variance 1 (and 30²/3n of the bias) at any depth."""
    torch.manual_seed(0)
    siren = Siren([2, 512, 512, 512, 512, 1]).double()
    y = 2 * torch.rand(2000, 2, dtype=torch.float64) - 1
    for layer in list(siren)[:-1]:
        before, y = y, layer(y)
        if type(layer).__name__ == "Linear" and layer.in_features > 2:
            assert float((30 * y).detach().std()) == pytest.approx(math.sqrt(1 + 900 / (3 * 512)), abs=0.05)
    assert float(before.detach().abs().max()) <= 1


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Fourier(0, 3), "d"),
        (lambda: Fourier(2, 0, include_input=False), "d"),
        (lambda: GaussianFourier(2, 4, -1.0), "d"),
        (lambda: SphericalHarmonics(5), "degree"),
    ],
)
def test_refuses(make, name):
    with pytest.raises(Refused, match=f"^{name}"):
        make()
