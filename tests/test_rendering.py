"""The quadrature of volume rendering, its renderers, densities of distances and the contraction of space."""

import pytest
import torch
from torch.nn.functional import normalize

from neuropil.errors import Refused
from neuropil.fields.rendering import (
    accumulation,
    alpha_weights,
    composite,
    contract,
    expected_depth,
    median_depth,
    neus_alpha,
    render_normals,
    volsdf_density,
    weights,
)

G = torch.Generator().manual_seed(0)


def ray(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return 3 * torch.rand(shape, generator=G, dtype=torch.float64), torch.rand(shape, generator=G, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (2, 1, 3, 7)])
def test_weights_and_what_is_left_make_one_for_any_batch_axes(shape):
    sigma, delta = ray(*shape)
    w = weights(sigma, delta)
    torch.testing.assert_close(w.sum(-1) + torch.exp(-(sigma * delta).sum(-1)), torch.ones(shape[:-1], dtype=torch.float64))
    torch.testing.assert_close(w, alpha_weights(1 - torch.exp(-sigma * delta)))
    rows = [weights(s, d) for s, d in zip(sigma.reshape(-1, 7), delta.reshape(-1, 7), strict=True)]
    torch.testing.assert_close(w.reshape(-1, 7), torch.stack(rows))


def test_a_split_interval_of_equal_density_has_the_same_weight():
    sigma, delta = ray(4, 6)
    cut = 0.3 * delta[:, 2:3]
    split = torch.cat([delta[:, :2], cut, delta[:, 2:3] - cut, delta[:, 3:]], -1)
    w = weights(torch.cat([sigma[:, :3], sigma[:, 2:]], -1), split)
    merged = torch.cat([w[:, :2], w[:, 2:4].sum(-1, keepdim=True), w[:, 4:]], -1)
    torch.testing.assert_close(merged, weights(sigma, delta))


def test_an_opaque_sample_leaves_what_is_before_it_alone():
    w = weights(torch.tensor([1e-3, 1e9, 1.0]), torch.ones(3))
    torch.testing.assert_close(w, torch.tensor([9.995e-4, 1 - 9.995e-4, 0.0]), atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(weights(torch.tensor([0.5, torch.inf, 1.0]), torch.ones(3)).sum(), torch.tensor(1.0))


def test_constant_density_is_the_exponential_law():
    w = weights(torch.full((100,), 2.0, dtype=torch.float64), torch.full((100,), 0.01, dtype=torch.float64))
    torch.testing.assert_close(accumulation(w), 1 - torch.exp(torch.tensor(-2.0, dtype=torch.float64)))


def test_equals_nerfstudio():
    """Their `RaySamples.get_weights`, renderers and `SceneContraction` on fixed inputs, as numbers."""
    sigma = (torch.sin(torch.arange(1.0, 16).reshape(3, 5)) + 1) * 1.7
    borders = torch.tensor(
        [
            [0.05, 0.3733333, 0.6966667, 1.0204082, 1.5228428, 3.0],
            [0.2, 0.55, 0.9, 1.3333335, 2.5, 20.0],
            [0.5, 0.798, 1.1061946, 1.6501652, 3.2467537, 100.0],
        ]
    )
    theirs = [0.6365797, 0.2361794, 0.0593396, 0.0127362, 0.0054065, 0.3486758, 0.4083147, 0.1868831, 0.0527157, 0.0034107]
    theirs += [4.9e-06, 0.2155735, 0.5734661, 0.2100054, 0.00095]
    torch.testing.assert_close(weights(sigma, borders.diff()).flatten(), torch.tensor(theirs), atol=2e-6, rtol=1e-5)
    w = torch.tensor(
        [
            [0.2652143, 0.08101, 0.0018767, 0.117802],
            [0.4090934, 0.301158, 0.1333083, 0.0751502],
            [0.0408518, 0.0493949, 0.3233022, 0.5503247],
        ]
    )
    colour = torch.sin(torch.arange(1.0, 37)).reshape(3, 4, 3).sigmoid()
    seen = composite(w, colour, torch.tensor([0.2, 0.4, 0.9]))
    theirs = [0.3625133, 0.4581959, 0.7021146, 0.5012553, 0.5318212, 0.5531728, 0.5300579, 0.481359, 0.4606694]
    torch.testing.assert_close(seen.flatten(), torch.tensor(theirs), atol=2e-6, rtol=1e-5)
    points = torch.sin(torch.arange(1.0, 13)).reshape(4, 3) * torch.tensor([[0.5], [1.0], [3.0], [50.0]])
    cube = [0.4207355, 0.4546487, 0.07056, -0.7568025, -0.9589243, -0.2794155, 1.1043745, 1.6630813, 0.6927587]
    cube += [-1.0771723, -1.9799998, -1.0624247]
    ball = [0.4207355, 0.4546487, 0.07056, -0.7259206, -0.9197946, -0.2680137, 0.9066627, 1.3653462, 0.5687368]
    ball += [-0.8576776, -1.5765367, -0.8459352]
    torch.testing.assert_close(contract(points).flatten(), torch.tensor(cube), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(contract(points, norm=2.0).flatten(), torch.tensor(ball), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 24])
def test_composite_takes_any_channels_and_backgrounds(channels):
    sigma, delta = ray(2, 5, 7)
    w, values = weights(sigma, delta), torch.rand(2, 5, 7, channels, generator=G, dtype=torch.float64)
    for ground in (torch.ones(channels).double(), torch.rand(5, channels).double(), torch.rand(2, 5, channels).double()):
        expected = (w[..., None] * values).sum(-2) + (1 - w.sum(-1))[..., None] * ground
        torch.testing.assert_close(composite(w, values, ground), expected)
    torch.testing.assert_close(composite(w, values), (w[..., None] * values).sum(-2))


def test_depths():
    middle = torch.tensor([[1.0, 2.0, 3.0]] * 3)
    w = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.2, 0.3], [0.1, 0.1, 0.1]])
    assert median_depth(w, middle).tolist() == [2.0, 1.0, 3.0]
    torch.testing.assert_close(expected_depth(w, middle), torch.tensor([2.0, 1.8, 2.0]))
    assert expected_depth(torch.zeros(3), middle[0]) == 0


def test_normals_have_length_one_or_zero():
    n = normalize(torch.randn(4, 5, 3, generator=G), dim=-1)
    w = torch.rand(4, 5, generator=G) * torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    torch.testing.assert_close(render_normals(w, n).norm(dim=-1), torch.tensor([1.0, 1.0, 1.0, 0.0]))


def test_contraction_is_the_identity_inside_and_lands_in_the_cube():
    inside = 2 * torch.rand(100, 3, generator=G) - 1
    assert torch.equal(contract(inside), inside)
    far = torch.randn(1000, 3, generator=G) * 10.0 ** (8 * torch.rand(1000, 1, generator=G) - 2)
    assert contract(far).abs().max() <= 2
    assert contract(far, norm=2.0).norm(dim=-1).max() <= 2 + 1e-6
    edge = torch.tensor([[1.0, 0.5, -1.0]])
    torch.testing.assert_close(contract(edge * (1 + 1e-6)), edge, atol=1e-5, rtol=0)  # continuous at the border
    assert torch.autograd.gradcheck(contract, torch.tensor([[3.0, 1.0, -7.0]], dtype=torch.float64, requires_grad=True))


def test_densities_of_distances():
    f = torch.tensor([-100.0, -0.1, 0.0, 0.1, 100.0], dtype=torch.float64)
    sigma = volsdf_density(f, beta=0.1)
    law = torch.distributions.Laplace(torch.zeros((), dtype=torch.float64), 0.1).cdf(-f)
    torch.testing.assert_close(sigma, law / 0.1)
    torch.testing.assert_close(volsdf_density(f, beta=0.1, alpha=3.0), 3 * law)
    alpha = neus_alpha(torch.tensor([1.0, 0.1, -0.1, -1.0, 1.0]), sharpness=100.0)
    torch.testing.assert_close(alpha, torch.tensor([0.0, 1.0, 1.0, 0.0]), atol=1e-4, rtol=0)
    with pytest.raises(Refused, match="beta"):
        volsdf_density(f, beta=0.0)


def test_gradients_are_finite_and_right():
    sigma, delta = ray(2, 5)
    assert torch.autograd.gradcheck(weights, (sigma.requires_grad_(), delta.requires_grad_()))
