import pytest
import torch

from neuropil.data.charges import charged_tracks, coulomb
from neuropil.errors import Refused
from neuropil.numerics.radius_graph import radius_pairs


def run(**options):
    return charged_tracks(3, torch.Generator().manual_seed(1), **{"frames": 5, "every": 50, "softening": 0.5, **options})


def energy(tracks, softening):
    p, u = tracks.positions.double(), tracks.velocities.double()
    bodies = torch.cat([p, tracks.sources[:, None].expand(-1, p.shape[1], -1, -1)], 2)
    q = torch.cat([tracks.charges, tracks.source_charges], 1).double()
    r = (torch.cdist(bodies, bodies).square() + softening**2).sqrt()
    mutual = (q[:, None, :, None] * q[:, None, None, :] / r).triu(1)
    n = p.shape[2]
    return 0.5 * u.square().sum((-1, -2)) + mutual[:, :, :n].sum((-1, -2))


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("charges", ["same", "random"])
def test_energy_is_kept(d, charges):
    e = energy(run(d=d, charges=charges), 0.5)
    assert (e - e[:, :1]).abs().max() < 2e-5
    coarse = energy(run(d=d, charges=charges, dt=2e-2, every=10), 0.5)
    assert (coarse - coarse[:, :1]).abs().max() > 2e-5


def test_leapfrog_is_of_second_order():
    fine, half, whole = (run(dt=dt, every=round(0.4 / dt), softening=2.0).positions.double() for dt in (2e-3, 2e-2, 4e-2))
    assert 3 < float((whole - fine).norm() / (half - fine).norm()) < 5


def test_momentum_is_kept_without_sources():
    u = run(sources=0).velocities.sum(2)
    assert torch.allclose(u, u[:, :1].expand_as(u), atol=1e-5)


def test_a_magnetic_field_turns_a_free_charge_in_a_circle():
    tracks = run(movers=1, sources=0, magnetic=2.0, frames=9, every=200)
    p, u = tracks.positions[:, :, 0], tracks.velocities[:, :, 0]
    assert torch.allclose(u.norm(dim=-1), torch.full((3, 9), 0.5), atol=1e-6)
    angle = torch.atan2(u[..., 1], u[..., 0])
    turned = (angle[:, 1:] - angle[:, :-1]).sin()
    assert torch.allclose(turned, torch.full_like(turned, -0.4).sin(), atol=1e-5)  # −q B t
    centre = p + torch.stack([u[..., 1], -u[..., 0]], -1) / 2.0
    assert torch.allclose(centre, centre[:, :1].expand_as(centre), atol=1e-5)


def test_shared_sources_and_their_seed():
    a, b = (charged_tracks(2, torch.Generator().manual_seed(s), frames=2, every=1, field_seed=7) for s in (0, 1))
    assert torch.equal(a.sources, b.sources)
    assert torch.equal(a.sources[0], a.sources[1])
    assert not torch.equal(a.positions, b.positions)
    own = run(shared=False, drift=0.3)
    assert not torch.equal(own.sources[0], own.sources[1])
    assert torch.allclose(own.drift.norm(dim=-1), torch.tensor(0.3))


def test_a_drifting_source_pulls_along():
    still, moving = (run(movers=1, sources=1, drift=v, speed=1e-9, frames=9, every=400, shared=False) for v in (0.0, 1.0))
    assert torch.equal(still.sources, moving.sources)
    assert not torch.allclose(still.positions[:, -1], moving.positions[:, -1], atol=1e-3)


def test_coulomb_is_the_gradient_of_its_potential():
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    s, q = torch.randn(4, 3, dtype=torch.float64), torch.tensor([1.0, -1, 1, 1], dtype=torch.float64)
    potential = (q / (torch.cdist(x, s).square() + 0.01).sqrt()).sum()
    (gradient,) = torch.autograd.grad(potential, x)
    assert torch.allclose(coulomb(x, s, q, 0.1), -gradient)


@pytest.mark.parametrize(
    "options", [{"movers": 0}, {"d": 4}, {"dt": 0.0}, {"charges": "none"}, {"d": 3, "magnetic": 1.0}, {"sources": -1}]
)
def test_bad_input_is_refused(options):
    with pytest.raises(Refused, match=next(iter(options))):
        run(**options)


def test_radius_pairs_by_brute_force():
    x = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    source, target = radius_pairs(x, 0.3)
    near = (torch.cdist(x, x) <= 0.3).fill_diagonal_(False)
    expected_target, expected_source = near.nonzero(as_tuple=True)
    assert torch.equal(source, expected_source)
    assert torch.equal(target, expected_target)
    assert [len(i) for i in radius_pairs(x[:1], 1.0)] == [0, 0]
    with pytest.raises(Refused, match="radius"):
        radius_pairs(x, 0.0)
    with pytest.raises(Refused, match="finite"):
        radius_pairs(x / 0, 1.0)
