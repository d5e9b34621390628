"""Cameras: rays go where the formula says, lenses are undone, sizes scale, and what is no camera is refused."""

import math

import pytest
import torch

from neuropil.data.cameras import Cameras, distort, flip_yz, look_at, orbit, undistort
from neuropil.data.scenes import Scene
from neuropil.errors import Refused


def cameras(n=3, height=6, width=8, **more):
    c2w = orbit(n, 4.0)
    return Cameras(c2w, torch.tensor([[10.0, 12.0]]).repeat(n, 1), torch.tensor([[3.5, 2.5]]).repeat(n, 1), height, width, **more)


def project(one, i, points):
    """(u, v) of points by the formula in the docstring, forward."""
    local = (points - one.c2w[i, :, 3]) @ one.c2w[i, :, :3]
    xy = torch.stack([local[:, 0], -local[:, 1]], -1) / -local[:, 2:]
    if one.distortion is not None:
        xy = distort(xy, one.distortion[i].expand(len(xy), 4))
    return xy * one.focal[i] + one.centre[i]


@pytest.mark.parametrize("distortion", [None, [0.1, -0.05, 0.01, -0.02]])
def test_the_ray_through_the_projection_of_a_point_meets_the_point(distortion):
    one = cameras(distortion=None if distortion is None else torch.tensor([distortion]).repeat(3, 1))
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 0.5
    rays = one.rays(torch.full((50,), 1), project(one, 1, points), 0.5, 9.0)
    along = torch.linalg.vector_norm(points - rays.origins, dim=-1, keepdim=True)
    torch.testing.assert_close(rays.origins + along * rays.directions, points, atol=2e-5, rtol=0)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(50))
    assert rays.near.unique().tolist() == [0.5] and rays.far.unique().tolist() == [9.0]


def test_the_first_pixels_centre_is_half_a_pixel_in_and_axes_are_opengls():
    one = Cameras(torch.eye(3, 4)[None], torch.tensor([[10.0, 10.0]]), torch.tensor([[4.0, 3.0]]), 6, 8)
    directions = one.picture_rays(0).directions
    expected = torch.tensor([(0.5 - 4) / 10, -(0.5 - 3) / 10, -1.0])
    torch.testing.assert_close(directions[0, 0], expected / expected.norm())
    assert directions.shape == (6, 8, 3)
    assert directions[0, -1, 0] > 0 and directions[0, 0, 1] > 0 and bool((directions[..., 2] < 0).all())


def test_resized_cameras_see_the_same():
    one = cameras()
    big = one.resized(12, 16)
    there, here = big.rays(torch.tensor([2]), torch.tensor([[5.0, 3.0]])), one.rays(torch.tensor([2]), torch.tensor([[2.5, 1.5]]))
    torch.testing.assert_close(there.directions, here.directions)


def test_undistort_inverts_distort():
    xy = torch.rand(200, 2, generator=torch.Generator().manual_seed(1)) - 0.5
    lens = torch.tensor([0.15, -0.1, 0.01, 0.005]).expand(200, 4)
    torch.testing.assert_close(distort(undistort(xy, lens), lens), xy, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "lens", [(0.5, 0, 0, 0), (1.5, 0.5, 0, 0), (-0.3, 0.1, 0.001, 0.001), (-0.4, 0.2, 0, 0), (-0.5, 0.3, 0.01, -0.01)]
)
def test_undistort_inverts_strong_lenses(lens, dtype):
    side = torch.linspace(-0.9, 0.9, 31, dtype=dtype)
    ideal = torch.cartesian_prod(side, side)
    lenses = torch.tensor(lens, dtype=dtype).expand(len(ideal), 4)
    assert (undistort(distort(ideal, lenses), lenses) - ideal).abs().max() < 10 * torch.finfo(dtype).eps


def test_undistort_has_the_inverses_derivative():
    xy, lens = torch.tensor([0.5, -0.3], dtype=torch.float64), torch.tensor([0.5, 0.1, 0.01, 0.02], dtype=torch.float64)
    ideal = undistort(xy, lens)
    there, back = (torch.autograd.functional.jacobian(lambda p, f=f: f(p, lens), x) for f, x in ((distort, ideal), (undistort, xy)))
    torch.testing.assert_close(there @ back, torch.eye(2, dtype=torch.float64))


def test_beyond_the_fold_of_a_lens_comes_a_point_near_it():
    lens = torch.tensor([-0.25, 0.0, 0.0, 0.0])  # r − r³/4 is at most 0.77, at r = √(4/3)
    xy = torch.tensor([[0.9, 0.0], [1.2, 0.3], [2.0, 2.0], [-0.9, 1.5]])
    found = undistort(xy, lens.expand(4, 4))
    assert torch.cosine_similarity(found, xy).min() > 0.999
    torch.testing.assert_close(found.norm(dim=1), torch.full((4,), (4 / 3) ** 0.5), rtol=0, atol=1e-2)


def test_look_at_looks_there_with_up_upward():
    c2w = look_at(torch.tensor([[3.0, 1.0, 2.0], [0.0, -2.0, 0.5]]), torch.tensor([0.0, 0.0, 0.5]))
    towards = torch.tensor([0.0, 0.0, 0.5]) - c2w[..., 3]
    torch.testing.assert_close(-c2w[..., 2], towards / towards.norm(dim=-1, keepdim=True))
    assert bool((c2w[:, 2, 1] > 0).all()) and c2w[:, 2, 0].abs().max() < 1e-6  # "right" is level
    torch.testing.assert_close(torch.linalg.det(c2w[..., :3]), torch.ones(2))
    torch.testing.assert_close(flip_yz(flip_yz(c2w)), c2w)
    with pytest.raises(Refused, match="up"):
        look_at(torch.tensor([[0.0, 0.0, 2.0]]), torch.zeros(3))


def test_an_orbit_keeps_its_distance():
    c2w = orbit(7, 2.5, 0.4, target=torch.tensor([1.0, 2.0, 3.0]))
    away = c2w[..., 3] - torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(away.norm(dim=-1), torch.full((7,), 2.5))
    torch.testing.assert_close(away[:, 2], torch.full((7,), 2.5 * math.sin(0.4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c2w": torch.full((1, 3, 4), torch.nan)}, "c2w of camera 0 is not finite"),
        ({"focal": torch.zeros(1, 2)}, "focal length of camera 0"),
        ({"c2w": 2 * torch.eye(3, 4)[None]}, "no rotation"),
        ({"c2w": torch.diag(torch.tensor([1.0, 1.0, -1.0, 0.0]))[None, :3]}, "no rotation"),
        ({"height": 0}, "8x0"),
    ],
)
def test_impossible_cameras_are_refused(change, message):
    good = {"c2w": torch.eye(3, 4)[None], "focal": torch.ones(1, 2), "centre": torch.ones(1, 2), "height": 6, "width": 8}
    with pytest.raises(Refused, match=message):
        Cameras(**good | change)


def scene(channels=4):
    pictures = torch.randint(256, (3, 6, 8, channels), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    return Scene(pictures, cameras(times=torch.tensor([0.0, 0.5, 1.0])), 1.0, 7.0, ("a.png", "b.png", "c.png"))


def test_a_batch_has_the_colours_and_rays_of_its_pixels():
    made, white = scene(), torch.ones(3)
    rays, colours = made.batch(500, torch.Generator().manual_seed(3), white)
    whole = torch.stack([made.cameras.picture_rays(i).directions for i in range(3)])
    alike = (rays.directions[:, None] == whole.reshape(1, -1, 3)).all(-1)
    assert bool(alike.any(1).all())
    torch.testing.assert_close(colours, made.colours(torch.arange(3), white).reshape(-1, 3)[alike.int().argmax(1)])
    assert set(rays.times.tolist()) == {0.0, 0.5, 1.0} and rays.near[0] == 1.0
    assert len(set(alike.int().argmax(1).tolist())) > 100  # of 144 pixels


def test_transparent_pixels_show_the_background():
    made = scene()
    made.pictures[0, 0, 0] = torch.tensor([255, 0, 0, 0], dtype=torch.uint8)
    assert made.colours(0, torch.tensor([0.25, 0.5, 0.75]))[0, 0].tolist() == [0.25, 0.5, 0.75]
    assert made.colours(0)[0, 0].tolist() == [0, 0, 0]


def test_parts_of_a_scene_keep_their_cameras():
    made = scene()
    mask = torch.tensor([False, True, True])
    for part in (made[1:], made[[1, 2]], made[torch.tensor([1, 2])], made[[-2, -1]], made[mask]):
        assert part.names == ("b.png", "c.png") and torch.equal(part.pictures, made.pictures[1:])
        assert torch.equal(part.cameras.c2w, made.cameras.c2w[1:]) and part.cameras.times.tolist() == [0.5, 1.0]
    rays = made.cameras.picture_rays(2)
    assert rays[2:4].directions.shape == (2, 8, 3) and rays[0, 0].times == 1.0


def test_pictures_that_do_not_fit_are_refused():
    with pytest.raises(Refused, match="do not fit"):
        Scene(torch.zeros(2, 6, 8, 3, dtype=torch.uint8), cameras())
    with pytest.raises(Refused, match="near < far"):
        Scene(torch.zeros(3, 6, 8, 3, dtype=torch.uint8), cameras(), 2.0, 1.0)
