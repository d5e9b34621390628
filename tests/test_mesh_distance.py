"""Signed distance to meshes against trimesh's nearest points, solid angles, and a sphere's and a torus's formulas."""

import math

import numpy
import pytest
import torch
import trimesh

from neuropil.errors import Refused
from neuropil.numerics.mesh_distance import signed_distance

SHAPES = {
    "sphere": (trimesh.creation.icosphere(3), lambda p: p.norm(dim=-1) - 1, 0.01),
    "torus": (
        trimesh.creation.torus(1.0, 0.4, 48, 36),
        lambda p: torch.stack([p[:, :2].norm(dim=-1) - 1, p[:, 2]], -1).norm(dim=-1) - 0.4,
        0.01,
    ),
    "box": (trimesh.creation.box((1.0, 2.0, 0.5)), None, 0.0),
}


def tensors(mesh):
    return torch.from_numpy(numpy.array(mesh.vertices)), torch.from_numpy(numpy.array(mesh.faces)).long()


def points(n, spread=1.7):
    return spread * (2 * torch.rand(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1)


def winding(p, triangles):
    """Σ of the triangles' signed solid angles / 4π (Van Oosterom and Strackee 1983): 1 inside, 0 outside."""
    a, b, c = ((triangles[None, :, k] - p[:, None]) for k in range(3))
    la, lb, lc = (v.norm(dim=-1) for v in (a, b, c))
    volume = (a * torch.linalg.cross(b, c)).sum(-1)
    below = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
    return 2 * torch.atan2(volume, below).sum(-1) / (4 * math.pi)


@pytest.mark.parametrize("shape", SHAPES)
def test_against_trimesh_and_solid_angles(shape):
    mesh = SHAPES[shape][0]
    vertices, faces = tensors(mesh)
    p = torch.cat([points(60), 0.98 * vertices[:20], 1.02 * vertices[:20]])
    found = signed_distance(p, vertices, faces)
    triangles = numpy.asarray(mesh.triangles)
    every = numpy.tile(triangles, (len(p), 1, 1)), numpy.repeat(p.numpy(), len(triangles), 0)
    nearest = trimesh.triangles.closest_point(*every).reshape(len(p), len(triangles), 3)
    distance = torch.from_numpy(numpy.linalg.norm(nearest - p.numpy()[:, None], axis=-1).min(1))
    torch.testing.assert_close(found.abs(), distance, rtol=0, atol=1e-9)
    assert torch.equal(found < 0, winding(p, vertices[faces]) > 0.5)


@pytest.mark.parametrize("shape", ["sphere", "torus"])
def test_against_formulas(shape):
    mesh, formula, sag = SHAPES[shape]
    p = points(4000)
    torch.testing.assert_close(signed_distance(p, *tensors(mesh)), formula(p), rtol=0, atol=sag)


def test_overlapping_parts_are_one_solid():
    """Two balls: a point in both is inside, although the nearest face may look away from it."""
    one, two = trimesh.creation.icosphere(2), trimesh.creation.icosphere(2).apply_translation((0.8, 0, 0))
    both = trimesh.util.concatenate([one, two])
    p = points(500)
    found = signed_distance(p, *tensors(both))
    inside = (signed_distance(p, *tensors(one)) < 0) | (signed_distance(p, *tensors(two)) < 0)
    assert torch.equal(found < 0, inside) and 50 < int(inside.sum()) < 450


def test_points_above_edges_and_corners_of_a_grid_have_their_sign():
    """Rays in special directions would run along the edges here."""
    vertices, faces = tensors(trimesh.creation.box((2.0, 2.0, 2.0)).subdivide())
    p = torch.cartesian_prod(*[torch.tensor([-1.5, -0.5, 0.0, 0.5, 1.5], dtype=torch.float64)] * 3)
    cube = (p.abs() - 1).clamp_min(0).norm(dim=-1) + (p.abs() - 1).amax(-1).clamp_max(0)
    torch.testing.assert_close(signed_distance(p, vertices, faces), cube)


def test_dtype_and_faces_without_area():
    vertices, faces = tensors(trimesh.creation.icosphere(1))
    flat = torch.cat([faces, torch.tensor([[0, 0, 0], [1, 1, 2]])])
    p = points(50).float()
    found = signed_distance(p, vertices, flat)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, signed_distance(p, vertices, faces))


def test_refuses():
    vertices, faces = tensors(trimesh.creation.box())
    with pytest.raises(Refused, match="faces: a mesh needs"):
        signed_distance(points(1), vertices, faces[:0])
    with pytest.raises(Refused, match="faces: indices"):
        signed_distance(points(1), vertices[:4], faces)
    with pytest.raises(Refused, match="points: must be finite"):
        signed_distance(points(1) * torch.nan, vertices, faces)
