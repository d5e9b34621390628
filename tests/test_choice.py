"""The straight-through one-hot and the Gumbel-softmax law: density, frequencies, gradients."""

import math

import pytest
import torch

from neuropil.errors import Refused
from neuropil.nn.choice import gumbel_simplex, gumbel_simplex_log_prob, straight_through

LOGITS = torch.tensor([0.5, -0.7, 0.1], dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_density_integrates_to_one(tau):
    # a = softmax(u) with u_3 = 0 maps the plane to the triangle; its Jacobian determinant is a_1 a_2 a_3
    u = torch.linspace(-40, 40, 801, dtype=torch.float64)
    u1, u2 = torch.meshgrid(u, u, indexing="ij")
    log_a = torch.stack([u1, u2, torch.zeros_like(u1)], -1).log_softmax(-1)
    log_p = gumbel_simplex_log_prob(log_a.exp(), LOGITS, tau) + log_a.sum(-1)
    assert float(log_p.exp().sum() * (u[1] - u[0]) ** 2) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("tau", [0.3, 1.7])
def test_density_is_that_of_torch(tau):
    a = torch.rand(5, 3, dtype=torch.float64, generator=generator()).softmax(-1)
    theirs = torch.distributions.RelaxedOneHotCategorical(torch.tensor(tau, dtype=torch.float64), logits=LOGITS).log_prob(a)
    assert torch.allclose(gumbel_simplex_log_prob(a, LOGITS, tau), theirs)
    assert torch.allclose(gumbel_simplex_log_prob(a, LOGITS + 3.0, torch.tensor(tau).double()), theirs)


def test_samples_follow_the_density():
    # n = 2: P(a_1 < x) in closed form, from a_1 < x  ⇔  logistic noise < τ logit(x) − (l_1 − l_2)
    tau, logits = 0.7, torch.tensor([0.4, -0.3], dtype=torch.float64)
    a = gumbel_simplex(logits.expand(20_000, 2), tau, generator=generator(1))
    assert torch.allclose(a.sum(-1), torch.ones(20_000, dtype=torch.float64))
    x = torch.tensor([0.1, 0.3, 0.5, 0.8, 0.95], dtype=torch.float64)
    expected = torch.sigmoid(tau * x.logit() - 0.7)
    assert ((a[:, :1] < x).double().mean(0) - expected).abs().max() < 4 * 0.5 / math.sqrt(20_000)
    grid = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    below = gumbel_simplex_log_prob(torch.stack([grid, 1 - grid], -1), logits, tau).exp()
    assert torch.allclose(torch.stack([below[grid < y].mean() * (grid < y).double().mean() for y in x]), expected, atol=3e-3)


@pytest.mark.parametrize("tau", [0.1, 1.0, 10.0])
def test_the_largest_follows_softmax(tau):
    hard = gumbel_simplex(LOGITS.expand(20_000, 3), tau, hard=True, generator=generator(2))
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert (hard.mean(0) - LOGITS.softmax(-1)).abs().max() < 4 * 0.5 / math.sqrt(20_000)


def test_hard_choices_have_the_soft_gradient():
    def gradients(hard):
        logits, tau = LOGITS.clone().requires_grad_(), torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
        out = gumbel_simplex(logits, tau, hard=hard, generator=generator(3))
        return torch.autograd.grad(out @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), (logits, tau))

    for soft, hard in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(soft, hard) and soft.abs().min() > 1e-4


def test_straight_through():
    soft = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]], requires_grad=True)
    hard = straight_through(soft)
    assert torch.equal(hard, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    hard.backward(torch.arange(6.0).view(2, 3))
    assert torch.equal(soft.grad, torch.arange(6.0).view(2, 3))


def test_density_has_right_gradients_and_survives_underflow():
    a = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    inputs = (a, LOGITS.clone().requires_grad_(), torch.tensor(0.8, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(gumbel_simplex_log_prob, inputs)
    assert torch.isfinite(gumbel_simplex_log_prob(torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3), 0.1))


def test_forbidden_half_precision_and_bad_temperatures():
    forbidden = gumbel_simplex(torch.tensor([0.0, -math.inf, 0.0]).expand(100, 3), 0.5, generator=generator(4))
    assert torch.equal(forbidden[:, 1], torch.zeros(100)) and torch.isfinite(forbidden).all()
    half = gumbel_simplex(torch.zeros(10_000, 3, dtype=torch.bfloat16), 0.5, generator=generator(5))
    assert half.dtype == torch.bfloat16 and torch.isfinite(half).all()
    for tau in (0.0, -1.0, math.inf, math.nan, torch.tensor(0.0)):
        with pytest.raises(Refused, match="tau: must be positive"):
            gumbel_simplex(torch.zeros(3), tau)
        with pytest.raises(Refused, match="tau: must be positive"):
            gumbel_simplex_log_prob(torch.ones(3) / 3, torch.zeros(3), tau)
