"""Triangle meshes: four that a package carries, and the user's own files.

A texture is baked into the corners: each gets the colour of the texture at its own place, so that detail finer than the faces is
lost.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuropil.data.scenes import Mesh
from neuropil.data.sources import path
from neuropil.errors import Refused, nearest, optional

_PACKAGED = {"bunny": "bunny.obj", "duck": "duck.obj", "soccerball": "soccerball.obj", "teddy": "teddy2_VHACD_CHs.obj"}
SUFFIXES = (".glb", ".gltf", ".obj", ".off", ".ply", ".stl")


def load_mesh(source: str | Path) -> Mesh:
    """A mesh with corners in the file's own unit and axes, float32, faces int64, and colours in [0, 1] (sRGB) if it has any.

    Args:
        source: ``"bunny"``, ``"duck"``, ``"soccerball"`` or ``"teddy"`` (pybullet 3.2.7; all closed, y up), or an OBJ, PLY, STL,
            OFF or glTF file; the parts of a file are joined. Polygons become triangles.

    `Refused` if the file is missing or unreadable, has no faces, faces without corners, or corners that are not finite. O(v + f).

    >>> load_mesh("bunny").faces.shape
    torch.Size([902, 3])
    """
    file = path("meshes") / _PACKAGED[str(source)] if str(source) in _PACKAGED else Path(source)
    if file.suffix.lower() not in SUFFIXES:
        allowed = f"{', '.join(_PACKAGED)}, or a file that ends in {', '.join(SUFFIXES)}"
        raise Refused(f"mesh: unknown {str(source)!r}{nearest(str(source), _PACKAGED)} (allowed: {allowed})")
    if not file.is_file():
        raise Refused(f"mesh: no file {file}")
    trimesh = optional("trimesh", "fields")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a missing texture is no reason to stop
            mesh = trimesh.load_mesh(file, process=False)
            vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
            colours = _colours(mesh.visual, len(vertices))
    except Exception as error:  # each format fails in its own way
        raise Refused(f"mesh: cannot read {file} ({' '.join(str(error).split())[:160] or type(error).__name__})") from None
    if not faces.size:
        raise Refused(f"mesh: {file} has no faces")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise Refused(f"mesh: {file} has faces with corners that do not exist ({len(vertices)} corners)")
    if not np.isfinite(vertices).all():
        raise Refused(f"mesh: corner {int(np.flatnonzero(~np.isfinite(vertices).all(1))[0])} of {file} is not finite")
    return Mesh(torch.from_numpy(vertices.astype(np.float32)), torch.from_numpy(faces), colours)


def _colours(visual: Any, corners: int) -> torch.Tensor | None:
    """RGB in [0, 1] of each corner, from vertex colours or a texture; None if there are neither."""
    if visual.kind == "texture" and visual.uv is not None and _picture(visual.material) is not None:
        visual = visual.to_color()
    if visual.kind != "vertex" or len(visual.vertex_colors) != corners:
        return None
    return torch.from_numpy(np.asarray(visual.vertex_colors)[:, :3].astype(np.float32) / 255)


def _picture(material: Any) -> Any:
    return getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
