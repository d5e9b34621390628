"""Rendered scenes: the same seed gives the same bytes, alpha is the mesh, depths lie on it, options do what they say."""

import subprocess
import sys

import pytest
import torch

from neuropil import data
from neuropil.data.scenes import Mesh
from neuropil.errors import Refused

pytest.importorskip("mitsuba")


@pytest.fixture(scope="module")
def duck():
    return data.load_mesh("duck")


@pytest.fixture(scope="module")
def scene(duck):
    return data.mesh_scene(duck, 6, 32, samples=16)


def test_the_same_seed_gives_the_same_bytes_and_another_others(duck, scene):
    again = data.mesh_scene("duck", 6, 32, samples=16)
    assert torch.equal(again.pictures, scene.pictures) and torch.equal(again.cameras.c2w, scene.cameras.c2w)
    other = data.mesh_scene(duck, 6, 32, samples=16, seed=1)
    assert not torch.equal(other.cameras.c2w, scene.cameras.c2w) and not torch.equal(other.pictures, scene.pictures)


def test_another_process_gives_the_same_bytes(scene):
    code = "import sys; from neuropil import data; scene = data.mesh_scene('duck', 6, 32, samples=16);"
    code += "sys.stdout.buffer.write(scene.pictures.numpy())"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True)
    assert done.stderr == b"" and done.stdout == bytes(scene.pictures.numpy())


def test_depths_put_pixels_on_the_mesh(duck, scene):
    from neuropil.numerics.mesh_distance import signed_distance

    placed = data.placed(duck)
    depths = data.mesh_depths(placed, scene.cameras)
    points = []
    for i, depth in enumerate(depths):
        rays, hit = scene.cameras.picture_rays(i), depth.isfinite()
        points.append((rays.origins + depth[..., None] * rays.directions)[hit])
    found = torch.cat(points)
    assert len(found) > 1500
    assert signed_distance(found, placed.vertices, placed.faces).abs().max() < 1e-5
    assert bool(((depths > scene.near) & (depths < scene.far))[depths.isfinite()].all())


def test_alpha_is_where_the_mesh_is(duck, scene):
    hit = data.mesh_depths(data.placed(duck), scene.cameras).isfinite()
    alpha = scene.pictures[..., 3]
    assert bool((alpha[hit] > 0).all()) and bool((alpha[~hit] < 255).all())
    assert ((alpha > 127) == hit).float().mean() > 0.98
    assert bool((alpha[:, [0, -1]] == 0).all()) and bool((alpha[:, :, [0, -1]] == 0).all())  # all of it is in the picture
    assert bool((scene.pictures[alpha == 255][:, 0] > scene.pictures[alpha == 255][:, 2]).float().mean() > 0.8)  # it is yellow


def test_a_level_square_is_as_bright_as_computed():
    """Linear colour ¼ under the sky, 0.7, and the sun, 1.6 cos / π; then the sRGB curve."""
    corners = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    quarter = torch.full((4, 3), 0.5371)  # sRGB of 0.25
    flat = Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]), quarter)
    scene = data.mesh_scene(flat, 8, 16, samples=4, up="z")
    linear = 0.25 * (0.7 + 1.6 / torch.pi * 0.8 / (0.25 + 0.09 + 0.64) ** 0.5)
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    above = scene.cameras.c2w[:, 2, 3] > 1
    middle = scene.pictures[above, 8, 8].float()
    assert len(middle) >= 2 and (middle[:, :3] - expected).abs().max() < 1 and bool((middle[:, 3] == 255).all())


def test_cameras_lie_on_the_sphere_look_at_the_centre_and_any_part_is_spread():
    scene = data.mesh_scene("bunny", 40, 4, samples=1, radius=3.0)
    place = scene.cameras.c2w[..., 3]
    torch.testing.assert_close(place.norm(dim=-1), torch.full((40,), 3.0))
    torch.testing.assert_close(place / 3, scene.cameras.c2w[..., 2], atol=1e-6, rtol=0)
    nearest = torch.cdist(place, place).fill_diagonal_(9).amin(1)
    assert nearest.min() > 0.6  # 40 even places on a sphere of radius 3 are some 1.5 apart
    assert place[:8].mean(0).norm() < 1.2 and (scene.near, scene.far) == (1.5, 4.5)


def test_exposure_scales_whole_pictures_and_nothing_else(duck):
    plain = data.mesh_scene(duck, 8, 16, samples=4)
    varied = data.mesh_scene(duck, 8, 16, samples=4, exposure=0.3)
    assert torch.equal(plain.cameras.c2w, varied.cameras.c2w) and torch.equal(plain.pictures[..., 3], varied.pictures[..., 3])

    def linear(scene, i):
        x = scene.pictures[i][..., :3][scene.pictures[i][..., 3] == 255].double() / 255
        return ((x + 0.055) / 1.055) ** 2.4

    factors = []
    for i in range(8):
        a, b = linear(plain, i), linear(varied, i)
        use = (a > 0.1) & (b < 0.9) & (a < 0.9)
        ratio = (b / a)[use]
        assert ratio.std() < 0.03 * ratio.mean()
        factors.append(float(ratio.median()))
    assert 0.15 < torch.tensor(factors).log().std() < 0.5


def test_with_a_backdrop_everything_has_colour_and_cameras_stay_above(duck):
    scene = data.mesh_scene(duck, 6, 24, samples=4, backdrop=True)
    assert scene.pictures.shape == (6, 24, 24, 3) and (scene.near, scene.far) == (0.1, 49.0)
    assert bool((scene.cameras.c2w[:, 2, 3] > 0.3).all())
    high, low = scene.cameras.c2w[:, 2, 3].argmax(), scene.cameras.c2w[:, 2, 3].argmin()
    assert scene.pictures[high].float().std() > 20 and bool((scene.pictures[high].float().mean(-1) > 5).float().mean() > 0.95)
    sky = scene.pictures[low, 0].float().mean(0)
    assert sky[2] > sky[0] + 20  # blue at the top of the lowest camera's picture


def test_placed_meshes_stand_on_z_and_stay_the_same_shape(duck):
    from neuropil.numerics.mesh_distance import signed_distance

    mesh = data.placed(duck)
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    assert float((high - low).max()) == pytest.approx(1.6) and (low + high).abs().max() < 1e-6
    torch.testing.assert_close((high - low)[2] / (high - low).max(), torch.tensor((1.6397 - 0.099294) / (0.692985 + 0.961799)))
    inside = signed_distance(torch.zeros(1, 3), mesh.vertices, mesh.faces)
    assert float(inside) < 0  # a mirrored mesh would be inside out
    with pytest.raises(Refused, match="up"):
        data.placed(duck, "w")
    with pytest.raises(Refused, match="one point"):
        data.placed(Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])))


@pytest.mark.parametrize(
    "bad",
    [{"views": 0}, {"size": 1}, {"samples": 0}, {"exposure": -1.0}, {"radius": 1.0}, {"exposure": float("nan")}, {"mesh": "dukc"}],
)
def test_bad_arguments_are_refused(bad):
    with pytest.raises(Refused, match=next(iter(bad))):
        data.mesh_scene(**{"mesh": "bunny", "views": 1, "size": 4} | bad)


def test_lenses_that_cannot_be_rendered_are_refused(duck, scene):
    from dataclasses import replace

    with pytest.raises(Refused, match="square pixels"):
        data.mesh_depths(duck, replace(scene.cameras, focal=scene.cameras.focal * torch.tensor([1.0, 1.1])))


def test_the_variant_that_was_set_is_set_again(duck):
    import mitsuba

    mitsuba.set_variant("scalar_spectral")
    data.mesh_scene(duck, 1, 4, samples=1)
    assert mitsuba.variant() == "scalar_spectral"
    mitsuba.set_variant("scalar_rgb")
