"""Solids: closed meshes moved into [−1, 1]³, points about their surface, and the clipped signed distance there.

    f(x) = clip(d(x)/τ, −1, 1),    τ = 0.1,    d < 0 inside

What `neuropil fit shape` fits, and what the race of shape fields ranks by. Clipping: Park et al. 2019, DeepSDF, arXiv:1901.05103,
§3.
"""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.data.meshes import load_mesh
from neuropil.errors import Refused, optional

CLIP = 0.1  # τ, in units of the cube
LONGEST = 1.6  # the longest side of a mesh in [−1, 1]³


def read_solid(source: str | Path) -> tuple[Float[Tensor, "v 3"], Int[Tensor, "f 3"]]:
    """Corners (float64, the file's unit) and faces of a closed mesh, by file or by name (see `load_mesh`).

    `Refused` if it cannot be read, has no faces, holes or turned faces, or is a single point.
    """
    mesh = load_mesh(source)
    check_closed(mesh.vertices, mesh.faces, source)
    if not float((mesh.vertices.amax(0) - mesh.vertices.amin(0)).max()):
        raise Refused(f"mesh: all corners of {source} are one point")
    return mesh.vertices.double(), mesh.faces


def check_closed(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], source: str | Path) -> None:
    """`Refused` unless the faces bound a solid: every edge is used as often in one direction as in the other."""
    trimesh = optional("trimesh", "fields")
    welded = trimesh.Trimesh(vertices.numpy(), faces.numpy(), process=True)  # equal corners become one
    edges = torch.from_numpy(welded.edges.copy()).long()
    count = int(edges.max()) + 1
    there, back = (torch.unique(e[:, 0] * count + e[:, 1], return_counts=True) for e in (edges, edges.flip(1)))
    if len(there[0]) == len(back[0]) and torch.equal(there[0], back[0]) and torch.equal(there[1], back[1]):
        return
    both = torch.cat([edges, edges.flip(1)])
    sides = torch.unique(both[:, 0] * count + both[:, 1], return_counts=True)[1]
    open_edges = int((sides == 1).sum()) // 2
    what = f"holes: {open_edges} edges belong to one face only" if open_edges else "faces that are turned inconsistently"
    raise Refused(f"mesh: {source} has {what}; close it first (say, trimesh.repair, MeshLab): inside and outside are not defined")


def into_cube(vertices: Float[Tensor, "v 3"]) -> tuple[Float[Tensor, "v 3"], Float[Tensor, "3"], float]:
    """Corners X about 0 with a longest side of 1.6 (float32): ``(X − centre) · scale``; and that centre and scale."""
    low, high = vertices.amin(0), vertices.amax(0)
    centre, scale = (low + high) / 2, LONGEST / float((high - low).max())
    return ((vertices - centre) * scale).float(), centre, scale


def on_surface(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], count: int, generator: torch.Generator
) -> Float[Tensor, "count 3"]:
    """Points of a mesh of any number of faces, spread by area."""
    a, b, c = vertices[faces].unbind(1)
    area = torch.linalg.vector_norm(torch.linalg.cross(b - a, c - a), dim=-1).double()
    # not torch.multinomial, which takes at most 2^24 faces
    which = torch.searchsorted(area.cumsum(0) / area.sum(), torch.rand(count, generator=generator).double()).clamp_max(
        len(faces) - 1
    )
    u, v = torch.rand(2, count, 1, generator=generator)
    u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)
    return a[which] + u * (b - a)[which] + v * (c - a)[which]


def sample_points(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], count: int, generator: torch.Generator
) -> Float[Tensor, "count 3"]:
    """Shuffled points in [−1, 1]³: a third uniform, a third 0.01 and a third 0.05 (normal noise) off the surface."""
    group = torch.randint(3, (count, 1), generator=generator)
    noise = torch.where(group == 0, 0.01, 0.05) * torch.randn(count, 3, generator=generator)
    near = on_surface(vertices, faces, count, generator) + noise
    return torch.where(group == 2, 2 * torch.rand(count, 3, generator=generator) - 1, near).clamp(-1, 1)


def distance_samples(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "count 3"], Float[Tensor, "count 1"]]:
    """Points as of `sample_points` and the clipped signed distance f there; about 5 µs a point on 6,000 faces."""
    from neuropil.numerics.mesh_distance import signed_distance  # late: it needs numba, which meshes alone do not

    points = sample_points(vertices, faces, count, generator)
    return points, (signed_distance(points, vertices, faces) / CLIP).clamp(-1, 1)[:, None]
