import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import root

from neuropil.data.brain_simulators import FRISTON_2003, Balloon, WilsonCowan, haemodynamic_response, simulate_bold
from neuropil.errors import Refused
from neuropil.numerics.integrate import odeint

ALONE = torch.zeros(1, 1, dtype=torch.float64)


def test_no_activity_is_rest():
    assert haemodynamic_response(torch.zeros(100, 2, 3), 10.0, 1.0).abs().max() < 1e-7
    rest = torch.tensor([0.0, 1, 1, 1]).double()[:, None]
    assert Balloon().drift(rest, torch.zeros(1).double()).abs().max() < 1e-15


def test_a_pulse_peaks_late_and_undershoots():
    pulse = torch.zeros(400, 1)
    pulse[:10] = 1.0  # 1 s
    bold = haemodynamic_response(pulse, 10.0, 0.1, step=0.05)[:, 0]
    assert 4 <= 0.1 * int(bold.argmax()) <= 6
    assert bold[0] == 0 and bold.min() < -0.05 * bold.max() and 8 < 0.1 * int(bold.argmin()) < 16
    assert bold[-1].abs() < 0.02 * bold.max()


def test_constant_activity_settles_where_the_equations_say():
    b, z = Balloon(), 0.2
    f = 1 + z / b.gamma
    v, q = f**b.alpha, f ** (b.alpha) * (1 - (1 - b.rho) ** (1 / f)) / b.rho  # f = v^(1/α), f E(f)/ρ = q v^(1/α) / v
    expected = b.V0 * (7 * b.rho * (1 - q) + 2 * (1 - q / v) + (2 * b.rho - 0.2) * (1 - v))
    bold = haemodynamic_response(torch.full((600, 1), z).double(), 5.0, 10.0, step=0.1)
    assert float(bold[-1]) == pytest.approx(expected, rel=1e-6)


def test_haemodynamics_are_neurolibs():
    # neurolib 0.6.2, models.bold.simulateBOLD from rest (X = 0, F = Q = V = 1), Euler at 1 ms; at 2, 4, 6, 10, 15, 19 s.
    expected = [
        [0.008549945947, 0.036224340110, 0.035638256593, -0.006601772852, -0.000598149598, 0.000890166476],
        [0.009990049926, 0.030523363347, 0.027868937732, 0.028281073546, 0.020885487194, 0.023643107955],
    ]
    t = torch.arange(2000).double() / 100
    activity = torch.stack([torch.exp(-((t - 2) ** 2) / 2), 0.3 * (1 + t.sin())], dim=1)
    bold = haemodynamic_response(activity, 100.0, 1.0, FRISTON_2003)
    assert np.allclose(bold[[2, 4, 6, 10, 15, 19]].T, expected, atol=5e-5)


def test_halving_the_step_divides_the_error_by_sixteen():
    t = torch.arange(20001).double() / 1000
    activity = torch.exp(-((t - 4) ** 2) / 4)[:, None]  # so finely sampled that lines between samples do not matter
    fine, *coarse = (haemodynamic_response(activity, 1000.0, 1.0, step=step) for step in (0.03125, 0.125, 0.25))
    errors = [float((bold - fine).abs().max()) for bold in coarse]
    assert 10 < errors[1] / errors[0] < 26


def test_a_deep_undershoot_stays_finite():
    pulse = torch.zeros(200, 1)
    pulse[:20] = 50.0
    assert haemodynamic_response(pulse, 10.0, 0.5, step=0.05).isfinite().all()


def masses_by_hand(m, C):
    """The equations once more, node by node, for SciPy."""

    def S(x):
        return 1 / (1 + np.exp(-m.a * (x - m.mu)))

    def f(t, y):
        E, I = np.split(np.asarray(y), 2)
        dE, dI = np.zeros_like(E), np.zeros_like(I)
        for k in range(len(E)):
            others = m.coupling * sum(C[k][other] * E[other] for other in range(len(E)))
            dE[k] = (-E[k] + (1 - E[k]) * S(m.c_EE * E[k] - m.c_EI * I[k] + others + m.P_E)) / m.tau_E
            dI[k] = (-I[k] + (1 - I[k]) * S(m.c_IE * E[k] - m.c_II * I[k] + m.P_I)) / m.tau_I
        return np.concatenate([dE, dI])

    return f


def test_masses_are_scipys():
    m, C = WilsonCowan(P_E=0.9, P_I=0.1, coupling=0.8), torch.tensor([[0.0, 1.0, 0.2], [0.5, 0.0, 0.0], [0.1, 0.7, 0.0]]).double()
    start, times = torch.rand(2, 3).double() * 0.1, torch.linspace(0, 0.04, 5).double()
    path = odeint(lambda t, y: m.drift(y, C), start, times, substeps=80)
    options = {"rtol": 1e-9, "atol": 1e-11, "t_eval": times.numpy()}
    expected = solve_ivp(masses_by_hand(m, C.tolist()), (0, float(times[-1])), start.flatten().numpy(), **options)
    assert np.allclose(path.flatten(1).T, expected.y, atol=1e-6)


def test_masses_rest_and_oscillate():
    m = WilsonCowan()
    found = root(lambda y: masses_by_hand(m, [[0.0]])(0, y), [0.01, 0.01], tol=1e-12)
    fixed = torch.from_numpy(found.x)[:, None]
    assert found.success and m.drift(fixed, ALONE).abs().max() < 1e-8
    times = torch.linspace(0, 0.5, 501).double()
    path = odeint(lambda t, y: m.drift(y, ALONE), fixed + 0.02, times, substeps=2)
    assert torch.allclose(path[-1], fixed, atol=1e-7)  # and it is stable
    driven = WilsonCowan(P_E=1.5)
    late = odeint(lambda t, y: driven.drift(y, ALONE), fixed, times, substeps=2)[250:, 0, 0]
    assert late.max() - late.min() > 0.3 and late[-100:].max() - late[-100:].min() > 0.3


def test_coupled_regions_fluctuate_together():
    blocks = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3))
    generator = torch.Generator().manual_seed(0)
    masses = WilsonCowan(P_E=0.5, coupling=2.0)  # on the edge of oscillation
    simulated = simulate_bold(blocks, seconds=4.0, tr=1.0, masses=masses, generator=generator, step=0.002)
    assert simulated.connectivity.diagonal().abs().max() == 0 and simulated.connectivity.max() == 1
    assert simulated.activity.shape == (401, 6) and simulated.bold.shape == (5, 6)
    r = torch.corrcoef(simulated.activity[100:].T)
    inside = (blocks == 1) & ~torch.eye(6, dtype=torch.bool)
    assert r[inside].min() > 0.9 and r[blocks == 0].max() < 0.5


def test_a_batch_is_its_members():
    C = torch.rand(2, 4, 4)
    both = simulate_bold(C, seconds=0.5, tr=0.25, noise=0.0, step=0.001)
    for k in range(2):
        one = simulate_bold(C[k], seconds=0.5, tr=0.25, noise=0.0, step=0.001)
        assert torch.allclose(both.activity[:, k], one.activity, atol=1e-6)
        assert torch.allclose(both.bold[:, k], one.bold, atol=1e-6)


def test_the_generator_decides():
    runs = [simulate_bold(torch.ones(2, 2), 0.2, 0.1, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert runs[0].activity.equal(runs[1].activity) and not runs[0].activity.equal(runs[2].activity)


def test_refusals():
    for refused, words in (
        (lambda: haemodynamic_response(torch.zeros(10, 1), 0.0, 1.0), "rate: must be above 0"),
        (lambda: haemodynamic_response(torch.zeros(10, 1), 10.0, 1.0), "0.9 s are shorter than one tr of 1 s"),
        (lambda: simulate_bold(-torch.ones(2, 2), 1.0), "weights must be finite and at least 0"),
        (lambda: simulate_bold(torch.ones(2, 2), 1.0, step=0.1), "step: must lie in"),
        (lambda: simulate_bold(torch.ones(2, 2), 0.5), "seconds: at least one tr"),
    ):
        with pytest.raises(Refused, match=words):
            refused()
