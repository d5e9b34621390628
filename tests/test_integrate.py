"""Integrators: convergence order, variance of an Ornstein–Uhlenbeck process, Itô against Stratonovich, refusals."""

import math

import pytest
import torch

from neuropil.errors import Refused
from neuropil.numerics.integrate import TABLES, odeint, sdeint

TURN = torch.tensor([[0.0, 1.0], [-1.0, -0.5]], dtype=torch.float64)


def error(method: str, steps: int) -> float:
    y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
    y = odeint(lambda t, y: TURN @ y, y0, torch.linspace(0, 2, steps + 1, dtype=torch.float64), method)
    return float((y[-1] - torch.linalg.matrix_exp(2 * TURN) @ y0).norm())


@pytest.mark.parametrize("method", TABLES)
def test_order_on_a_linear_problem(method):
    order = math.log2(error(method, 40) / error(method, 80))
    assert order == pytest.approx(TABLES[method].order, abs=0.15)


@pytest.mark.parametrize("method", TABLES)
def test_order_where_only_time_counts(method):
    """y' = cos t: wrong nodes c go unseen on an autonomous problem."""

    def miss(steps: int) -> float:
        times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        return abs(
            float(odeint(lambda t, y: t.cos().expand_as(y), torch.zeros(1, dtype=torch.float64), times, method)[-1]) - math.sin(1)
        )

    assert math.log2(miss(10) / miss(20)) == pytest.approx(TABLES[method].order, abs=0.15)


def test_substeps_backwards_and_gradient():
    times = torch.linspace(0, 1, 11, dtype=torch.float64)
    y0 = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    fine = odeint(lambda t, y: -y, y0, times)
    coarse = odeint(lambda t, y: -y, y0, times[[0, 5, 10]], substeps=5)
    assert fine.shape == (11, 2, 3)
    torch.testing.assert_close(fine[[0, 5, 10]], coarse)
    torch.testing.assert_close(odeint(lambda t, y: -y, fine[-1], times.flip(0))[-1], y0, rtol=1e-5, atol=1e-5)
    fine[-1].sum().backward()
    torch.testing.assert_close(y0.grad, torch.full_like(y0, math.exp(-1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["euler_maruyama", "heun_stratonovich"])
def test_ornstein_uhlenbeck_variance(method):
    """dy = -θ y dt + σ dW has the variance σ²/2θ (1 - e^{-2θT}); 40 000 paths give it to about 0.7 % (one sigma)."""
    theta, sigma, T = 1.5, 0.8, 1.0
    y = sdeint(
        lambda t, y: -theta * y,
        lambda t, y: torch.full_like(y, sigma),
        torch.full((40_000,), 2.0),
        torch.linspace(0, T, 201),
        torch.Generator().manual_seed(0),
        method,
    )[-1]
    assert float(y.var()) == pytest.approx(sigma**2 / (2 * theta) * (1 - math.exp(-2 * theta * T)), rel=0.03)
    assert float(y.mean()) == pytest.approx(2 * math.exp(-theta * T), rel=0.03)


def test_ito_and_stratonovich_differ_where_noise_depends_on_y():
    """dy = σ y dW from 1: the mean stays 1 (Itô), or grows as e^{σ²T/2} (Stratonovich)."""
    sigma = 0.7
    mean = {}
    for method in ("euler_maruyama", "heun_stratonovich"):
        y = sdeint(
            lambda t, y: 0 * y,
            lambda t, y: sigma * y,
            torch.ones(40_000, dtype=torch.float64),
            torch.linspace(0, 1, 101),
            torch.Generator().manual_seed(1),
            method,
        )
        mean[method] = float(y[-1].mean())
    assert mean["euler_maruyama"] == pytest.approx(1, abs=0.025)
    assert mean["heun_stratonovich"] == pytest.approx(math.exp(sigma**2 / 2), abs=0.03)


@pytest.mark.parametrize("times", [(1e8, 1e8 + 1, 1e8 + 2), (1e8 + 2, 1e8 + 1, 1e8)])
def test_steps_are_those_of_the_times_whatever_holds_y(times):
    times = torch.tensor(times, dtype=torch.float64)  # in float32 all three are one
    y = odeint(lambda t, y: torch.ones_like(y), torch.zeros(1), times)
    assert y.dtype == torch.float32 and y[:, 0].tolist() == (times - times[0]).tolist()
    if times[0] < times[1]:
        path = sdeint(lambda t, y: torch.ones_like(y), lambda t, y: 0 * y, torch.zeros(1), times, substeps=4)
        assert path[:, 0].tolist() == [0, 1, 2]


def test_generator_makes_a_path_reproducible():
    def path(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return sdeint(lambda t, y: -y, lambda t, y: torch.ones_like(y), torch.zeros(4), torch.linspace(0, 1, 5), generator)

    assert torch.equal(path(0), path(0))
    assert not torch.equal(path(0), path(1))


def test_refusals():
    y0, times = torch.ones(2), torch.linspace(0, 1, 3)
    with pytest.raises(Refused, match="method: unknown 'rk5'; did you mean 'rk4'"):
        odeint(lambda t, y: y, y0, times, "rk5")
    with pytest.raises(Refused, match="times: must rise or fall strictly"):
        odeint(lambda t, y: y, y0, torch.tensor([0.0, 1.0, 1.0]))
    with pytest.raises(Refused, match="times: must rise strictly"):
        sdeint(lambda t, y: y, lambda t, y: y, y0, times.flip(0))
    with pytest.raises(Refused, match="f: must return the shape of y"):
        odeint(lambda t, y: y.sum(), y0, times)
    with pytest.raises(Refused, match="diffusion: must return the shape of y"):
        sdeint(lambda t, y: y, lambda t, y: y.sum(), y0, times)
    with pytest.raises(Refused, match="substeps"):
        odeint(lambda t, y: y, y0, times, substeps=0)
