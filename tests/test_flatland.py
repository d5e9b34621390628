"""The flatland simulator against a brute march along its rays, and its test bed against closed forms."""

import math

import pytest
import torch

from neuropil.data.flatland import Discs, discs, flatland, pictures
from neuropil.errors import Refused
from neuropil.fields.flatland import FlatField, Head, fit, score


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def one_disc(colour=0.4):
    return Discs(
        centres=torch.tensor([[0.3, 0.0]]),
        radii=torch.tensor([0.2]),
        base=torch.full((1, 3), colour),
        swing=torch.zeros(1, 3),
        frequency=torch.ones(1, 2),
        phase=torch.zeros(1, 3),
        background=torch.tensor([1.0, 0.8, 0.6]),
    )


def test_rays_see_what_a_march_of_small_steps_meets_first():
    world, g = discs(10, seeded(1)), seeded(2)
    angle, to = 2 * math.pi * torch.rand(2, 300, generator=g)
    origins = 2.5 * torch.stack([angle.cos(), angle.sin()], -1)
    aim = 0.8 * torch.rand(300, 1, generator=g) * torch.stack([to.cos(), to.sin()], -1)
    directions = torch.nn.functional.normalize(aim - origins, dim=-1)
    t = torch.linspace(1.4, 3.6, 20_001)
    expected = []
    for o, d in zip(origins, directions, strict=True):
        points = o + t[:, None] * d
        inside = (points[:, None] - world.centres).norm(dim=-1) < world.radii
        if not inside.any():
            expected.append(world.background)
            continue
        first = int(inside.any(1).float().argmax())
        expected.append(world.texture(points[first])[int(inside[first].float().argmax())])
    error = (world.look(origins, directions) - torch.stack(expected)).abs().amax(1)
    assert (error < 0.02).float().mean() > 0.98  # but for rays that graze a disc
    hit = (torch.stack(expected) != world.background).any(1).float().mean()
    assert 0.2 < hit < 0.95


def test_a_disc_behind_the_camera_is_not_seen():
    world, back = one_disc(), torch.tensor([1.0, 0.0])
    assert world.look(torch.tensor([2.0, 0.0]), back).tolist() == world.background.tolist()
    torch.testing.assert_close(world.look(torch.tensor([2.0, 0.0]), -back), torch.full((3,), 0.4))


def test_pixels_are_in_the_order_of_the_formula_and_average_their_width():
    """From +x, the disc at x = 0.3 fills the middle; the share of light at its rim is that of its width."""
    seen = pictures(one_disc(), torch.tensor([0.0]), rays=64)
    s = math.tan(0.4) * (2 * (torch.arange(64) + 0.5) / 64 - 1)
    torch.testing.assert_close(seen.directions[0, :, 1] / -seen.directions[0, :, 0], s)
    share = 1 - (seen.colours[0, :, 0] - 0.4) / 0.6
    half = math.tan(math.asin(0.2 / 2.2))  # half the width of its shadow on the picture, where tan(0.4) is half the picture
    assert float(share.sum()) == pytest.approx(64 * half / math.tan(0.4), abs=0.1)
    assert share[:20].abs().max() < 0.01
    assert share[31].item() == pytest.approx(1, abs=0.01)


def test_texture_is_a_colour_and_worlds_follow_the_seed():
    world = discs(50, seeded())
    texture = world.texture(2 * torch.rand(500, 2, generator=seeded(1)) - 1)
    assert texture.min() >= 0
    assert texture.max() <= 1
    assert (world.centres.norm(dim=1) + world.radii <= 0.95 + 1e-6).all()
    assert (flatland(seeded(), views=4).test.pixels == flatland(seeded(), views=4).test.pixels).all()
    assert (flatland(seeded(), views=4).test.pixels != flatland(seeded(1), views=4).test.pixels).any()


def test_noise_is_in_the_training_pictures_alone():
    """Its standard deviation is what was asked, where clipping cannot reach."""
    world = one_disc(0.5)
    clean, noisy = (pictures(world, torch.zeros(400), 64, noise=noise, generator=seeded()) for noise in (0.0, 0.1))
    middle = (noisy.colours - clean.colours)[:, 28:36]
    assert float(middle.std()) == pytest.approx(0.1, rel=0.05)
    both = [flatland(seeded(), views=4, noise=noise) for noise in (0.0, 0.15)]
    assert (both[0].train.pixels != both[1].train.pixels).any()
    assert (both[0].test.pixels == both[1].test.pixels).all()


@torch.no_grad()
def test_a_field_of_fog_renders_by_the_law_of_beer():
    field = FlatField(channels=2).eval()
    field.s.table.fill_(2.5)
    field.k.table.zero_()
    origins, y = torch.tensor([[2.5, 0.0], [2.5, 0.6], [2.5, 1.2]]), torch.tensor([0.0, 0.6, 1.2])
    out = field(origins, torch.tensor([[-1.0, 0.0]]).expand(3, 2), torch.tensor([1.0, 0.0]))
    chord = 2 * (1 - y.square()).clamp_min(0).sqrt()
    through = torch.exp(-field.density(torch.zeros(1, 2)) * chord)
    assert 0.2 < float(through[0]) < 0.5
    torch.testing.assert_close(out, torch.stack([0.5 * (1 - through) + through, 0.5 * (1 - through)], -1), atol=1e-3, rtol=0)


def test_skipping_dim_samples_changes_almost_nothing():
    torch.manual_seed(0)
    world = flatland(seeded(), views=8, count=4)
    field = FlatField()
    fit(field, world.train, Head(), steps=40, lr=0.2)
    rough = score(field, world.test, Head())
    field.least = -1.0
    assert rough == pytest.approx(score(field, world.test, Head()), abs=0.05)


def test_a_fit_learns_the_world_and_its_state_goes_round():
    torch.manual_seed(0)
    world = flatland(seeded(), views=24, count=5)
    field = FlatField()
    before = score(field, world.test, Head())
    losses = fit(field, world.train, Head(), steps=60, lr=0.2)
    after = score(field, world.test, Head())
    assert after > before + 3
    assert losses.shape == (60,)
    again = FlatField()
    again.load_state_dict(field.state_dict())
    assert score(again, world.test, Head()) == after


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: discs(0, seeded()), "count"),
        (lambda: pictures(one_disc(), torch.zeros(1), rays=0), "rays"),
        (lambda: pictures(one_disc(), torch.zeros(1), radius=0.5), "radius"),
        (lambda: flatland(seeded(), views=0), "views"),
        (lambda: FlatField(channels=0), "channels"),
        (lambda: fit(FlatField(), flatland(seeded(), views=2).train, Head(), steps=0), "steps"),
    ],
)
def test_bad_input_is_refused(call, name):
    with pytest.raises(Refused, match=name):
        call()
