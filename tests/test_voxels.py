"""Voxel radiance fields and their occupancy grid: the rendering sum, skipping, levels, learning a ball, state, refusals."""

import pytest
import torch
from torch.autograd import gradcheck

from neuropil.data.cameras import Cameras, Rays, orbit
from neuropil.errors import Refused
from neuropil.fields.metrics import psnr
from neuropil.fields.occupancy import OccupancyGrid
from neuropil.fields.radiance import render_picture
from neuropil.fields.rendering import composite, weights
from neuropil.fields.voxels import VoxelField

CAMERAS = Cameras(orbit(9, 4.0), torch.full((9, 2), 40.0), torch.full((9, 2), 12.0), 24, 24)


def filled(**given) -> VoxelField:
    torch.manual_seed(0)
    field = VoxelField(resolution=8, levels=2, **given)
    with torch.no_grad():
        for D, C in zip(field.D, field.C, strict=True):
            D.normal_(std=2.0)
            C.normal_()
    return field.eval()


def ball(rays: Rays, radius: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    """Colour (its own place, on black) and depth of a ball round 0."""
    b = (rays.origins * rays.directions).sum(-1)
    root = b * b - (rays.origins**2).sum(-1) + radius**2
    depth = -b - root.clamp_min(0).sqrt()
    place = rays.origins + depth[..., None] * rays.directions
    return torch.where(root[..., None] > 0, 0.5 + place / 2 / radius, torch.zeros(3)), torch.where(root > 0, depth, torch.inf)


def test_rendering_is_the_sum_over_all_steps():
    field, rays = filled(degree=2, least=0.0, radius=1.2), CAMERAS.picture_rays(0)[10]
    found = field(rays, torch.tensor([0.2, 0.4, 0.6]))
    for i in range(0, 24, 5):
        one = rays[i]
        slabs = (torch.tensor([[-1.2], [1.2]]) - one.origins) / one.directions
        near, far = slabs.amin(0).max(), slabs.amax(0).min()
        t = near + (torch.arange(200) + 0.5) * field.deltas[-1]
        t = t[t < far]
        x = one.origins + t[:, None] * one.directions
        w = weights(field.density(x), torch.full_like(t, field.deltas[-1]))
        expected = composite(w, field.colour(x, one.directions.expand_as(x)), torch.tensor([0.2, 0.4, 0.6]))
        torch.testing.assert_close(found.colour[i], expected)
        torch.testing.assert_close(found.accumulation[i], w.sum())


def test_skipping_empty_cells_changes_nothing():
    field, rays = filled(), CAMERAS.picture_rays(2)
    with torch.no_grad():
        x = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 9)] * 3, indexing="ij"), -1).flip(-1).reshape(-1, 3)
        field.D[1][:, 0] = torch.where(x.norm(dim=-1) < 0.5, 10.0, -60.0)
        field.D[0].zero_()
        everything = field(rays)
        share = field.occupancy.update(field.density)
        skipped = field(rays)
    assert 0.05 < share < 0.9
    torch.testing.assert_close(skipped.colour, everything.colour, atol=2e-3, rtol=0)
    assert float(everything.accumulation.amax()) > 0.9


def test_rays_that_miss_see_the_background():
    field = filled().requires_grad_(False)
    rays = Rays(
        torch.tensor([[0.0, 5, 0]]), torch.tensor([[1.0, 0, 0]]), torch.zeros(1), torch.full((1,), torch.inf), torch.zeros(1).long()
    )
    seen = field(rays, torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(seen.colour, torch.tensor([[0.1, 0.2, 0.3]])) and float(seen.accumulation) == 0
    assert float(field.density(torch.tensor([0.0, 0.0, 1.01]))) == 0


def test_gradients_are_those_of_the_sum():
    field = filled(least=0.0).double()
    rays = CAMERAS.picture_rays(0)[12, 8:16:3].map(lambda x: x.double() if x.is_floating_point() else x)

    parameters = dict(field.named_parameters())

    def colours(*tables):
        return torch.func.functional_call(field, dict(zip(parameters, tables, strict=True)), (rays,)).colour

    assert gradcheck(colours, tuple(parameters.values()), fast_mode=True)


def test_levels_come_one_after_the_other():
    field = filled(every=10)
    x = torch.rand(50, 3) - 0.5
    whole = field.density(x)
    field.update(0)
    field.density(x).sum().backward()
    assert field.D[0].grad.any() and field.D[1].grad is None
    field.update(10)
    assert torch.equal(field.density(x), whole)


@pytest.mark.parametrize("degree", [1, 2])
def test_learns_a_ball_from_few_views(degree):
    torch.manual_seed(0)
    field = VoxelField(radius=0.8, resolution=24, levels=2, degree=degree, every=8)
    optimizer = torch.optim.Adam(field.parameter_groups())
    rays = [CAMERAS.picture_rays(i) for i in range(8)]
    flat = Rays(
        *(torch.stack([getattr(r, n) for r in rays]).flatten(0, 2) for n in ("origins", "directions", "near", "far", "camera"))
    )
    target = ball(flat)[0]
    for step in range(60):
        field.update(step)
        index = torch.randint(len(target), (512,))
        loss = field.loss(flat[index], target[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seen = render_picture(field.eval(), CAMERAS, 8)
    colour, depth = ball(CAMERAS.picture_rays(8))
    assert float(psnr(seen.colour, colour)) > 22
    sure = depth.isfinite() & (seen.accumulation > 0.9)
    assert float(sure.float().mean()) > 0.1 and float((seen.depth - depth)[sure].abs().median()) < 0.1
    assert float(field.occupancy.occupied.float().mean()) < 0.8


def test_any_number_of_channels_and_head():
    field, rays = filled(channels=24, head=torch.tanh), CAMERAS.picture_rays(1)
    seen = field(rays, torch.zeros(24))
    assert seen.colour.shape == (24, 24, 24) and float(seen.colour.detach().amin()) < 0


def test_state_goes_round():
    field, rays = filled(), CAMERAS.picture_rays(1)
    field.update(16)
    torch.manual_seed(9)
    other = VoxelField(resolution=8, levels=2).eval()
    other.load_state_dict(field.state_dict())
    assert torch.equal(other(rays).colour, field(rays).colour) and int(other.active) == int(field.active) == 2
    assert torch.equal(other.occupancy.occupied, field.occupancy.occupied)


def test_training_jitters_and_evaluation_does_not():
    field, rays = filled(), CAMERAS.picture_rays(1)
    assert torch.equal(field(rays).colour, field(rays).colour)
    field.train()
    assert not torch.equal(field(rays).colour, field(rays).colour)


def test_occupancy_forgets_and_keeps_a_margin():
    grid = OccupancyGrid(8, radius=1.0, threshold=1.0, decay=0.5, margin=1)
    inside = lambda x: 3.0 * ((x - 0.125).abs().amax(-1) < 0.125).float()  # noqa: E731  # one cell
    assert grid(torch.zeros(1, 3)).all() and grid.update(inside) == 27 / 512
    assert grid(torch.tensor([[0.3, 0.1, -0.1], [0.6, 0.1, 0.1]])).tolist() == [True, False]
    for _ in range(9):
        grid.update(lambda x: torch.zeros(x.shape[:-1]))
    assert float(grid.value.max()) == pytest.approx(3 * 0.5**9, rel=1e-3)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: VoxelField(levels=0), "levels"),
        (lambda: VoxelField(radius=-1.0), "radius"),
        (lambda: VoxelField(degree=5), "degree"),
        (lambda: OccupancyGrid(0), "resolution"),
        (lambda: OccupancyGrid(decay=1.0), "radius"),
    ],
)
def test_refuses(make, name):
    with pytest.raises(Refused, match=f"^{name}"):
        make()
