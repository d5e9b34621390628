"""Own pictures and shapes: a race and a fit see the same ones, and refuse the same ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neuropil.data.meshes import load_mesh
from neuropil.data.solids import check_closed, distance_samples, into_cube, on_surface, read_solid
from neuropil.errors import Refused
from neuropil.lab import race
from neuropil.lab.race import Course
from neuropil.lab.trial import Trial
from neuropil.studio import pictures, shapes

trimesh = pytest.importorskip("trimesh")


def prepare(role, source):
    return race.load(role).prepare(Course(Trial(0), 100, None, str(source)))


def transparent(file):
    values = np.random.default_rng(0).integers(0, 256, (12, 16, 4), dtype=np.uint8)
    Image.fromarray(values).save(file.with_suffix(".png"))
    return file.with_suffix(".png")


def turned(file):
    values, exif = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(file.with_suffix(".png"), exif=exif)
    return file.with_suffix(".png")


def floating(file):
    values = np.random.default_rng(0).random((12, 16), dtype=np.float32)
    Image.fromarray(values).save(file.with_suffix(".tiff"))
    return file.with_suffix(".tiff")


@pytest.mark.parametrize("make", [transparent, turned, floating])
def test_a_race_and_a_fit_see_the_same_picture(make, tmp_path):
    file = make(tmp_path / "own")
    fitted, raced = pictures.read_image(file).reshape(-1, 3) / 255, prepare("image-field", file)
    assert raced.values[0].shape == fitted.shape
    assert (raced.values[0] - fitted).abs().max() <= 0.51 / 255  # a fit's are bytes
    height = len(pictures.read_image(file))
    assert len(raced.points[0, :, 1].unique()) == height == (16 if make is turned else 12)


def sphere(file: Path, flipped: int = 0, without: int = 0) -> Path:
    ball = trimesh.creation.icosphere(subdivisions=3)
    faces = np.concatenate([ball.faces[:flipped, ::-1], ball.faces[flipped : len(ball.faces) - without]])
    trimesh.Trimesh(ball.vertices, faces, process=False).export(file)
    return file


@pytest.mark.parametrize(
    ("faults", "words"),
    [({"flipped": 30}, "turned inconsistently"), ({"without": 1}, "holes: 3 edges belong to one face only")],
    ids=["turned", "holed"],
)
def test_a_race_and_a_fit_refuse_the_same_meshes(faults, words, tmp_path):
    file = sphere(tmp_path / "ball.ply", **faults)
    with pytest.raises(Refused, match=words) as raced:
        prepare("shape-field", file)
    with pytest.raises(Refused, match=words) as fitted:
        shapes.shape_fit(file, "dense", 5_000, torch.device("cpu"))
    assert str(raced.value) == str(fitted.value)


def test_a_race_and_a_fit_learn_the_same_function(tmp_path, monkeypatch):
    """d(x) of a ball is known: its radius in the cube is 0.8."""
    file = sphere(tmp_path / "ball.ply")
    monkeypatch.setattr(shapes, "POOL", 1_000)
    monkeypatch.setattr(shapes, "TEST", 100)
    fit, raced = shapes.shape_fit(file, "dense", 5_000, torch.device("cpu")), prepare("shape-field", file)
    for points, values in ((fit.points, fit.target), (raced.points[0], raced.values[0])):
        exact = ((torch.linalg.vector_norm(points, dim=-1, keepdim=True) - 0.8) / 0.1).clamp(-1, 1)
        assert (values - exact).abs().max() < 0.1  # 642 corners are no ball
        near = (values.abs() < 1).float().mean()
        assert 0.6 < near < 0.85  # two thirds are about the surface, and some of the others


def test_a_solid_is_moved_into_the_cube_and_back():
    vertices, faces = read_solid("duck")
    placed, centre, scale = into_cube(vertices)
    size = placed.amax(0) - placed.amin(0)
    assert size.max() == pytest.approx(1.6) and torch.allclose(placed.amax(0), size / 2, atol=1e-6)
    assert torch.allclose(placed.double() / scale + centre, vertices, atol=1e-5)
    assert torch.equal(faces, load_mesh("duck").faces)


def test_points_on_a_surface_are_spread_by_area():
    """A triangle of three quarters of the area gets three quarters of the points, a face without area none, and all lie evenly."""
    vertices = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 2, 0], [0, 0, 1], [1, 0, 1], [0, 2, 1]])
    faces = torch.tensor([[0, 1, 2], [3, 3, 3], [3, 4, 5]])
    points = on_surface(vertices, faces, 20_000, torch.Generator().manual_seed(0))
    low = points[points[:, 2] == 0]
    assert bool(((points[:, 2] == 0) | (points[:, 2] == 1)).all())
    assert len(low) / 20_000 == pytest.approx(0.75, abs=0.01)
    assert low.mean(0).tolist() == pytest.approx([1, 2 / 3, 0], abs=0.03)  # the centroid
    assert bool((low[:, 0] / 3 + low[:, 1] / 2 <= 1 + 1e-6).all())


def test_the_packaged_meshes_are_closed_and_samples_repeat():
    for name in ("bunny", "duck", "soccerball", "teddy"):
        mesh = load_mesh(name)
        check_closed(mesh.vertices, mesh.faces, name)
    vertices, faces = into_cube(read_solid("bunny")[0])[0], read_solid("bunny")[1]
    one, other = (distance_samples(vertices, faces, 300, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert one[0].abs().max() <= 1 and one[1].abs().max() <= 1 and one[1].min() < 0 < one[1].max()
