"""SIREN: its formula, first weights and the scale of its activations, and that its derivatives are those of the formula."""

import copy
import math

import pytest
import torch

from neuropil.errors import Refused
from neuropil.fields.siren import Siren


def test_the_formula():
    """x ← sin(ω_l (W_l x + b_l)), the last layer linear."""
    net, x = Siren([2, 5, 6, 3], omega=7.0, hidden_omega=11.0).double(), torch.randn(4, 2, dtype=torch.float64)
    first, _, second, _, last = net
    h = torch.sin(7.0 * (x @ first.weight.T + first.bias))
    h = torch.sin(11.0 * (h @ second.weight.T + second.bias))
    torch.testing.assert_close(net(x), h @ last.weight.T + last.bias, rtol=0, atol=1e-14)


def test_first_weights_are_uniform_on_the_papers_intervals():
    torch.manual_seed(0)
    net = Siren([3, 256, 256, 256], omega=[30.0, 15.0], hidden_omega=20.0)
    for layer, bound in zip(list(net)[::2], (1 / 3, math.sqrt(6 / 256) / 15, math.sqrt(6 / 256) / 20), strict=True):
        w = layer.weight.detach()
        assert 0.98 * bound < w.abs().max() <= bound
        assert w.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert layer.bias.abs().max() <= 1 / math.sqrt(layer.in_features)


def test_activations_keep_their_spread_through_depth():
    """Hidden angles ω W x have variance 1 and sines the arcsine law's, 1/2, in every layer: the point of the weights' scale."""
    torch.manual_seed(0)
    net, x = Siren([2, *[512] * 5, 1]), 2 * torch.rand(2_000, 2) - 1
    net.requires_grad_(False)
    for linear, sine in zip(list(net)[:-1:2], list(net)[1::2], strict=True):
        angle = sine.omega * (x @ linear.weight.T)
        x = sine(linear(x))
        assert x.var() == pytest.approx(0.5, abs=0.03)
        if linear.in_features > 2:
            assert angle.std() == pytest.approx(1.0, abs=0.05)


def test_the_derivative_of_a_sine_layer_is_a_sine_layer():
    """d/dx of sin(ω(wx + b)) is ω w sin(ω(wx + b) + π/2): exact to second order by autograd."""
    net = Siren([1, 8, 8, 1], omega=5.0, hidden_omega=2.0).double()
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None].requires_grad_()
    assert torch.autograd.gradcheck(net, (x,))
    assert torch.autograd.gradgradcheck(net, (x,))
    single = Siren([1, 8, 1], omega=5.0).double()
    (slope,) = torch.autograd.grad(single(x).sum(), x)
    shifted = copy.deepcopy(single)
    with torch.no_grad():
        shifted[0].bias.add_(math.pi / 2 / 5.0)
        shifted[2].weight.mul_(5.0 * single[0].weight.T)
        shifted[2].bias.zero_()
    torch.testing.assert_close(slope, shifted(x).detach())


def test_state_moves_and_autocast():
    net, x = Siren([2, 16, 1]), torch.randn(3, 2)
    again = Siren([2, 16, 1])
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(x).dtype == torch.bfloat16
    assert Siren([2, 1])(x).shape == (3, 1)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Siren([2]), "sizes"),
        (lambda: Siren([2, 0, 1]), "sizes"),
        (lambda: Siren([2, 8, 1], omega=0.0), "omega"),
        (lambda: Siren([2, 8, 1], omega=math.nan), "omega"),
        (lambda: Siren([2, 8, 1], omega=[30.0, 30.0]), "omega"),
        (lambda: Siren([2, 8, 1], hidden_omega=-1.0), "omega"),
    ],
)
def test_bad_input_names_the_argument(make, name):
    with pytest.raises(Refused, match=name):
        make()
