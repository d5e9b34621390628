"""Differential geometry on exact space-times: vacuum, invariants, identities, free fall, and numbers of the authors' code."""

import math

import pytest
import torch
from torch.testing import assert_close

from neuropil.data import spacetimes as st
from neuropil.errors import Refused
from neuropil.numerics.curvature import covariant_derivative, geometry, jet, lie_derivative
from neuropil.numerics.geodesic import geodesic

SPIN = 0.7
CARTESIAN = st.shell(20, 3.0, 10.0, torch.Generator().manual_seed(0))
POLAR = torch.stack(
    [
        torch.zeros(20),
        torch.linspace(3, 10, 20),
        torch.linspace(0.3, 2.8, 20),
        torch.linspace(0, 6, 20),
    ],
    -1,
).double()


def spinning(x):
    return st.kerr_schild(x, 1.0, SPIN)


def boyer_lindquist(x):
    return st.kerr(x, 1.0, SPIN)


def areal_radius_isotropic(x):
    rho = x[:, 1:].norm(dim=-1)
    return rho * (1 + 1 / (2 * rho)) ** 2


def radius(x):
    return x[:, 1:].norm(dim=-1)


VACUA = {  # metric, points, r, cos θ, a
    "schwarzschild": (st.schwarzschild, POLAR, POLAR[:, 1], POLAR[:, 2], 0.0),
    "null": (st.schwarzschild_null, POLAR, POLAR[:, 1], POLAR[:, 2], 0.0),
    "isotropic": (st.schwarzschild_isotropic, CARTESIAN, areal_radius_isotropic(CARTESIAN), radius(CARTESIAN), 0.0),
    "kerr-schild": (st.schwarzschild_kerr_schild, CARTESIAN, radius(CARTESIAN), radius(CARTESIAN), 0.0),
    "boyer-lindquist": (boyer_lindquist, POLAR, POLAR[:, 1], POLAR[:, 2], SPIN),
    "spinning": (
        spinning,
        CARTESIAN,
        st.kerr_radius(CARTESIAN, SPIN),
        torch.acos(CARTESIAN[:, 3] / st.kerr_radius(CARTESIAN, SPIN)),
        SPIN,
    ),
}


@pytest.mark.parametrize("name", VACUA)
def test_a_black_hole_is_a_vacuum_with_the_known_invariant(name):
    metric, x, r, theta, a = VACUA[name]
    space = geometry(metric, x)
    assert space.ricci.abs().max() < 1e-8
    assert space.einstein.abs().max() < 1e-8
    truth = 48 / r**6 if a == 0 else st.kerr_kretschmann(r, theta, 1.0, a)
    assert_close(space.kretschmann, truth, rtol=1e-8, atol=0)
    assert_close(space.weyl, space.riemann_lower, atol=1e-9, rtol=0)  # no matter: all curvature is Weyl's


@pytest.mark.parametrize("name", VACUA)
def test_identities(name):
    metric, x, *_ = VACUA[name]
    R = geometry(metric, x).riemann_lower
    assert R.abs().max() > 1e-4
    tight = {"atol": 1e-10, "rtol": 1e-9}
    assert_close(R, -R.transpose(-1, -2), **tight)
    assert_close(R, -R.transpose(-3, -4), **tight)
    assert_close(R, R.permute(0, 3, 4, 1, 2), **tight)
    cyclic = R + R.permute(0, 1, 3, 4, 2) + R.permute(0, 1, 4, 2, 3)
    assert cyclic.abs().max() < 1e-10


def test_second_bianchi_identity_and_the_metric_is_covariantly_constant():
    x = CARTESIAN[:2]
    assert covariant_derivative(spinning, spinning, x, "__").abs().max() < 1e-12
    assert jet(spinning, x, 1)[1].abs().max() > 1e-2
    D = covariant_derivative(lambda p: geometry(spinning, p).riemann, spinning, x, "^___")  # [m, i, j, k, l]
    cyclic = D + torch.einsum("bkijlm->bmijkl", D) + torch.einsum("blijmk->bmijkl", D)
    assert D.abs().max() > 1e-4
    assert cyclic.abs().max() < 1e-12


def test_kerr_without_spin_is_schwarzschild():
    assert_close(st.kerr(POLAR), st.schwarzschild(POLAR))
    assert_close(st.kerr_schild(CARTESIAN), st.schwarzschild_kerr_schild(CARTESIAN))
    assert_close(geometry(st.kerr_schild, CARTESIAN).riemann, geometry(st.schwarzschild_kerr_schild, CARTESIAN).riemann)


@pytest.mark.parametrize("flat", [st.minkowski_spherical, st.minkowski_null, lambda x: st.minkowski_spheroidal(x, SPIN)])
def test_flat_space_in_curved_coordinates_has_a_connection_but_no_curvature(flat):
    space = geometry(flat, POLAR)
    assert space.christoffel.abs().max() > 0.1
    assert space.riemann.abs().max() < 1e-10
    assert geometry(st.minkowski, CARTESIAN).christoffel.abs().max() == 0


def test_charts_of_one_space_agree():
    """g' = Jᵀ g J for the map from spherical to Cartesian Kerr–Schild coordinates."""

    def cartesian(p):
        t, r, theta, phi = p
        flat = r * torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()])
        return torch.cat([(t + 2 * torch.log(r / 2 - 1))[None], flat])

    x, J = jet(cartesian, POLAR, 1)  # J[b, new, old]
    pulled = torch.einsum("bia,bac,bjc->bij", J, st.schwarzschild_kerr_schild(x), J)
    assert_close(pulled, st.schwarzschild(POLAR))


def test_a_weak_wave_is_a_vacuum_to_first_order():
    for amplitude in (1e-3, 1e-4):
        space = geometry(lambda x, a=amplitude: st.plane_wave(x, a, a / 2), CARTESIAN)
        assert space.riemann.abs().max() > amplitude
        assert space.ricci.abs().max() < 10 * amplitude**2


def made_up(x):
    t, p, q, r = x
    o = torch.zeros_like(t)
    rows = [-1 - 0.1 * p * p, 0.2 * q.sin(), o, 0.1 * t, 0.2 * q.sin(), 2 + r * r, 0.3 * p, o]
    rows += [o, 0.3 * p, 1 + t * t, 0.1 * q * r, 0.1 * t, o, 0.1 * q * r, 3 + p.cos()]
    return torch.stack(rows).view(4, 4)


def at(tensor, *places):
    return torch.stack([tensor[place] for place in places])


FOUR = [(0, 1, 0, 1), (1, 2, 3, 2), (2, 0, 1, 3), (3, 1, 2, 0)]
THREE = [(0, 0, 1), (1, 2, 3), (2, 1, 1), (3, 3, 0)]


def frozen(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_numbers_of_the_authors_code():
    """Computed with AndreiB137/EinFields (JAX, float64) at these points."""
    x = frozen(0.3, 4.1, -2.2, 3.7)
    space = geometry(spinning, x)
    gamma = frozen(0.025161446377989206, 0.016485735607922627, -0.009782614968747166, -0.003685541879543359)
    R = frozen(0.0031150886184045374, -0.00590516254003616, -0.0005010190923828218, -0.0004821276250983759)
    assert_close(at(space.christoffel, *THREE), gamma, atol=1e-14, rtol=1e-11)
    assert_close(at(space.riemann, *FOUR), R, atol=1e-14, rtol=1e-11)
    assert float(space.kretschmann) == pytest.approx(0.0009916967157156376, rel=1e-11)
    space = geometry(boyer_lindquist, frozen(0.0, 5.0, 1.1, 0.4))
    gamma = frozen(0.0650321014662738, -2.4431668133831757, 0.19919670164231212, 0.0017858952933068528)
    assert_close(at(space.christoffel, (0, 0, 1), (1, 3, 3), (2, 1, 2), (3, 0, 1)), gamma)


def test_numbers_of_the_authors_code_where_there_is_matter():
    x = frozen(0.2, 0.5, -0.4, 0.7)
    space = geometry(made_up, x)
    assert_close(at(space.christoffel, *THREE), frozen(0.048238308204605757, 0.0, 0.28615323332934334, 0.0))
    R = frozen(-0.12141681795547092, -0.00010734271267345873, -0.00025774805535726166, -0.00011848916274338371)
    assert_close(at(space.riemann, *FOUR), R)
    pairs = [(0, 0), (0, 1), (2, 3)]
    assert_close(at(space.ricci, *pairs), frozen(-0.8821215217155619, -0.02879725064053396, -0.0020915494496103956))
    assert_close(at(space.einstein, *pairs), frozen(-0.009242379378786802, 0.037527656412067734, 0.021752953950808833))
    assert_close(torch.stack([space.scalar, space.kretschmann]), frozen(1.703178814315659, 3.3072758659248214))
    weyl = frozen(0.3943914650912135, -0.0005004630432776981, -0.610017849379801)
    assert_close(at(space.weyl, (0, 1, 0, 1), (0, 2, 1, 3), (2, 3, 2, 3)), weyl)
    trace = torch.einsum("ik,ijkl->jl", space.inverse, space.weyl)
    assert trace.abs().max() < 1e-12

    def T(p):
        return torch.outer(p.sin(), p) + torch.outer(p, p.flip(0))

    def V(p):
        return torch.stack([p[1] * p[2], p[0].cos(), p[3] ** 2, p[0] - p[1]])

    D = covariant_derivative(T, made_up, x, "^_")
    assert_close(at(D, (0, 1, 2), (2, 0, 3), (3, 3, 1)), frozen(-0.012058599270077458, -0.1081398991309501, 0.022649790208865914))
    L = lie_derivative(T, V, x, "^_")
    assert_close(at(L, (1, 2), (0, 3), (3, 1)), frozen(1.0979710422157858, 0.10247062523567799, 0.16153820388234186))


def test_lie_derivatives():
    def turn(x):
        return torch.stack([0 * x[0], -x[2], x[1], 0 * x[0]])

    def boost(x):
        return torch.stack([x[1], x[0], 0 * x[0], 0 * x[0]])

    assert lie_derivative(spinning, turn, CARTESIAN, "__").abs().max() < 1e-14  # a symmetry of the hole
    assert lie_derivative(spinning, boost, CARTESIAN, "__").abs().max() > 1e-2
    bracket = lie_derivative(boost, turn, CARTESIAN, "^")
    assert_close(bracket, -lie_derivative(turn, boost, CARTESIAN, "^"))
    assert bracket.abs().max() > 1
    flow = lie_derivative(lambda x: x[1], turn, CARTESIAN, "")
    assert_close(flow, -CARTESIAN[:, 2])


def fall(metric):
    return lambda x: geometry(metric, x, order=1).christoffel


def test_a_circular_orbit_takes_its_period():
    """Kepler's third law in coordinate time: t = 2π √(r³/M)."""
    M, r = 2.0, 16.0
    x, u = st.bound_orbit(r / M, 0.0, M)
    period = 2 * math.pi * math.sqrt(r**3 / M)
    times = frozen(0.0, period / 4, period) / u[0]
    path, _ = geodesic(fall(lambda x: st.schwarzschild_kerr_schild(x, M)), x, u, times, tolerance=1e-7)
    assert_close(path[2, 1:], x[1:], atol=1e-4, rtol=0)
    assert_close(path[1, 1:], frozen(0.0, r, 0.0), atol=1e-4, rtol=0)
    assert float(path[2, 0]) == pytest.approx(period, rel=1e-6)


def test_an_eccentric_orbit_turns_its_periapsis_and_keeps_its_speed():
    p, e = 7.5, 0.2
    angles = torch.linspace(0, st.angle_between_periapses(p, e), 9, dtype=torch.float64)
    times, r = st.orbit_path(p, e, angles)
    assert_close(r[[0, 4, 8]], frozen(6.25, 9.375, 6.25))
    x, u = st.bound_orbit(p, e)
    path, velocity = geodesic(fall(st.schwarzschild_kerr_schild), x, u, times, tolerance=1e-7)
    truth = r[:, None] * torch.stack([angles.cos(), angles.sin(), 0 * angles], -1)
    assert_close(path[:, 1:], truth, atol=1e-4, rtol=0)
    speed = torch.einsum("ti,tij,tj->t", velocity, st.schwarzschild_kerr_schild(path), velocity)
    assert_close(speed, -torch.ones_like(speed), atol=1e-6, rtol=0)
    assert st.angle_between_periapses(1e6, 0.2) - 2 * math.pi == pytest.approx(6 * math.pi / 1e6, rel=1e-4)


def test_batches_of_paths_and_where_they_end():
    x, v = torch.zeros(2, 3, 2), torch.ones(2, 3, 2, dtype=torch.float64)
    v[0] = 0.1
    path, _ = geodesic(
        lambda x: x.new_zeros(*x.shape, 2, 2), x.double(), v, frozen(0.0, 1.0, 4.0), inside=lambda x: x[..., 0] < 2.0
    )
    assert_close(path[-1, 0], torch.full((3, 2), 0.4, dtype=torch.float64))
    assert_close(path[-1, 1], torch.full((3, 2), 2.0, dtype=torch.float64), atol=0.05, rtol=0)
    assert_close(path[1, 1], torch.ones(3, 2, dtype=torch.float64))


def test_float32_under_autocast_stays_exact():
    x = CARTESIAN.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        space = geometry(st.schwarzschild, POLAR.float())
        ricci = geometry(st.schwarzschild_kerr_schild, x).ricci
    assert space.riemann.dtype == torch.float32
    assert ricci.abs().max() < 1e-6


def test_shapes_and_derivatives_of_derivatives():
    assert geometry(spinning, CARTESIAN.view(4, 5, 4)).weyl.shape == (4, 5, 4, 4, 4, 4)
    value, first, second, third = jet(lambda x: x[0] ** 3 * x[1], frozen(2.0, 5.0), order=3)
    assert (float(value), float(first[0]), float(second[0, 1]), float(third[0, 0, 1])) == (40.0, 60.0, 12.0, 12.0)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: geometry(st.minkowski, torch.zeros(3, 4, dtype=torch.bfloat16)), "x: float64"),
        (lambda: geometry(st.minkowski, CARTESIAN, order=3), "order"),
        (lambda: geometry(lambda x: x, CARTESIAN), "metric"),
        (lambda: geometry(st.minkowski, CARTESIAN, order=1).riemann, "ddg"),
        (lambda: geometry(lambda x: torch.eye(2).double(), CARTESIAN[:, :2]).weyl, "at least 3"),
        (lambda: jet(st.minkowski, CARTESIAN, -1), "order"),
        (lambda: covariant_derivative(st.minkowski, st.minkowski, CARTESIAN, "_"), "indices"),
        (lambda: lie_derivative(st.minkowski, lambda x: x, CARTESIAN, "ud"), "indices"),
        (lambda: geodesic(fall(st.minkowski), CARTESIAN, CARTESIAN, frozen(1.0, 0.0)), "times"),
        (lambda: geodesic(fall(st.minkowski), CARTESIAN, CARTESIAN, frozen(0.0, 1.0), tolerance=0.0), "tolerance"),
        (lambda: st.shell(3, 5.0, 4.0, torch.Generator()), "low"),
        (lambda: st.bound_orbit(6.0, 0.2), "p > 6"),
        (lambda: st.orbit_path(8.0, 0.2, frozen(1.0, 0.5)), "angles"),
    ],
)
def test_bad_input_names_the_argument(make, name):
    with pytest.raises(Refused, match=name):
        make()
