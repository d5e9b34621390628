"""Neural field classifiers: the codes, the loss and the wrapper by their own rules."""

import pytest
import torch
from torch import nn

from neuropil.data.cameras import Rays
from neuropil.errors import Refused
from neuropil.fields.neural_field_classifier import (
    NeuralFieldClassifier,
    bit_loss,
    colour_loss,
    decode,
    encode,
    places,
    widened,
)
from neuropil.fields.radiance import RadianceModel, Rendered
from neuropil.fields.rendering import composite, weights


def test_all_256_values_survive():
    bytes_ = torch.arange(256.0)[:, None]
    bits = encode(bytes_ / 255)
    assert bits.shape == (256, 8)
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(decode(bits) * 255, bytes_, atol=1e-4, rtol=0)
    assert ["".join(str(int(b)) for b in row) for row in bits] == [f"{v:08b}" for v in range(256)]


def test_colours_between_bytes_are_rounded_and_outside_are_clamped():
    torch.testing.assert_close(decode(encode(torch.tensor([0.4999, -1.0, 2.0]))) * 255, torch.tensor([127.0, 0.0, 255.0]))


def test_hard_bits_give_an_integer():
    bits = torch.randint(2, (500, 24), generator=torch.Generator().manual_seed(0)).double()
    value = decode(bits) * 255
    torch.testing.assert_close(value, value.round(), atol=1e-10, rtol=0)


def test_soft_bits_are_not_rounded():
    assert float(decode(torch.full((8,), 0.25)) * 255) == pytest.approx(63.75)


def test_composited_probabilities_stay_in_the_unit_interval():
    g = torch.Generator().manual_seed(1)
    w = weights(10 * torch.rand(100, 32, generator=g).double(), torch.rand(100, 32, generator=g).double())
    p = torch.sigmoid(5 * torch.randn(100, 32, 24, generator=g).double())
    out = composite(w, p, encode(torch.rand(3, generator=g).double()))
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-12


def test_equally_weighted_loss_is_least_at_the_mean_label():
    labels = torch.tensor([1.0, 1.0, 1.0, 0.0]).double()[:, None].expand(4, 8)
    p = torch.full((8,), 0.4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([p], 0.01)
    for _ in range(400):
        optimizer.zero_grad()
        bit_loss(p.expand(4, 8), labels, torch.ones(8)).backward()
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((8,), 0.75, dtype=torch.float64), atol=1e-4, rtol=0)


def test_loss_is_the_weighted_cross_entropy():
    g = torch.Generator().manual_seed(0)
    p, bits = 0.01 + 0.98 * torch.rand(50, 24, generator=g), torch.randint(2, (50, 24), generator=g).float()
    each = torch.nn.functional.binary_cross_entropy(p, bits, reduction="none").reshape(50, 3, 8)
    weight = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1]) / 255
    torch.testing.assert_close(bit_loss(p, bits), (each * weight).sum(-1).mean(), atol=1e-4, rtol=0)
    assert float(places(p).sum()) == pytest.approx(1)


def test_a_surely_wrong_bit_keeps_a_finite_gradient():
    p = torch.tensor([0.0] * 8, requires_grad=True)
    bit_loss(p, torch.ones(8)).backward()
    assert torch.isfinite(p.grad).all()
    assert (p.grad < 0).all()


def test_swapping_channels_commutes():
    g = torch.Generator().manual_seed(2)
    colour, probability, order = torch.rand(10, 3, generator=g), torch.rand(10, 3, 8, generator=g), [2, 0, 1]
    swapped = probability[:, order].flatten(1)
    torch.testing.assert_close(encode(colour[:, order]), encode(colour).unflatten(-1, (3, 8))[:, order].flatten(1))
    torch.testing.assert_close(decode(swapped), decode(probability.flatten(1))[:, order])
    torch.testing.assert_close(colour_loss(swapped, colour[:, order]), colour_loss(probability.flatten(1), colour))


def test_runs_under_autocast_and_in_half_precision():
    p, colour = torch.rand(20, 24), torch.rand(20, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(colour_loss(p, colour))
    ones = torch.ones(1, 8, dtype=torch.bfloat16, requires_grad=True)
    loss = bit_loss(ones, torch.zeros(1, 8, dtype=torch.bfloat16))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(ones.grad).all()


class Fog(RadianceModel):
    """Any field of the contract: 24 channels by one layer, light of one half."""

    def __init__(self, head):
        super().__init__()
        self.head = head
        self.seen = []

    def forward(self, rays, background=None):
        p = torch.sigmoid(self.head(rays.directions))
        w = torch.full((*rays.shape, 1), 0.5)
        return Rendered(composite(w, p[..., None, :], background), rays.near, w[..., 0])

    def density(self, positions):
        return positions.square().sum(-1)

    def update(self, step):
        self.seen.append(step)

    def parameter_groups(self):
        return [{"params": list(self.parameters()), "lr": 0.3}]


def fog():
    torch.manual_seed(0)
    classifier = NeuralFieldClassifier(Fog(widened(nn.Linear(3, 3))))
    rays = Rays(torch.zeros(6, 3), torch.randn(6, 3), torch.zeros(6), torch.ones(6), torch.zeros(6, dtype=torch.int64))
    return classifier, rays


def test_the_wrapper_is_a_radiance_model_of_three_channels():
    classifier, rays = fog()
    out = classifier(rays, torch.tensor([0.2, 0.5, 0.9]))
    assert out.colour.shape == (6, 3)
    classifier.update(7)
    assert classifier.field.seen == [7]
    assert classifier.parameter_groups()[0]["lr"] == 0.3
    torch.testing.assert_close(classifier.density(torch.ones(2, 3)), torch.full((2,), 3.0))


def test_background_is_composited_as_bits():
    """Half of the light passes: the colour is half of the field's and half of the background's."""
    classifier, rays = fog()
    black, wall = classifier(rays).colour, torch.tensor([51.0, 128.0, 255.0]) / 255
    torch.testing.assert_close(classifier(rays, wall).colour, black + 0.5 * wall)
    torch.testing.assert_close(
        classifier.probabilities(rays, wall).colour - classifier.probabilities(rays).colour, 0.5 * encode(wall).expand(6, 24)
    )


def test_the_wrapped_loss_trains_and_the_state_goes_round():
    classifier, rays = fog()
    target = (torch.rand(6, 3) * 127).round() / 255  # over a black background of half the light
    optimizer = torch.optim.Adam(classifier.parameters(), 0.1)
    first = classifier.loss(rays, target).item()
    for _ in range(200):
        optimizer.zero_grad()
        loss = classifier.loss(rays, target)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * first
    other, _ = fog()
    other.load_state_dict(classifier.state_dict())
    torch.testing.assert_close(other(rays).colour, classifier(rays).colour)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: decode(torch.zeros(2, 7)), "bits"),
        (lambda: bit_loss(torch.zeros(2, 7), torch.zeros(2, 7)), "probability"),
    ],
)
def test_bad_input_is_refused(call, name):
    with pytest.raises(Refused, match=name):
        call()
