"""Pictures of real meshes with exactly known cameras and depths, rendered by Mitsuba 3: made scenes for radiance fields.

A mesh is turned so that its up axis becomes +z, centred, and scaled until the longest side of its box is 1.6 (`placed`); light
comes from one sun, with shadows, and a sky, without; nothing shines, so that what a camera sees of a point does not depend on
where the camera stands. Cameras lie on a Fibonacci sphere and look at the centre. With `backdrop` the mesh stands on a plain of
gravel that reaches to a sphere of radius 30 on which a photograph is painted: everything out to the horizon has texture.

    picture = γ(e · L),   e = exp(exposure · ξ), ξ ~ N(0, 1) once a picture        γ: the sRGB curve, then 8 bits

Renderer: Jakob et al. 2022, Mitsuba 3 (variant ``scalar_rgb``: it needs no LLVM).
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from neuropil.data.cameras import Cameras, look_at
from neuropil.data.meshes import load_mesh
from neuropil.data.scenes import Mesh, Scene
from neuropil.errors import Refused, choose, optional

LONGEST = 1.6
BOUND = 1.5  # a placed mesh lies in a ball of this radius (half the diagonal of a cube of side 1.6 is 1.386)
HORIZON = 30.0
PLAIN, PAINTED = "gravel", "rocket"  # photographs of the source "photographs"
SKY, GROUND = 0.7, 0.25  # light on a surface that faces it
_SUN = {"type": "directional", "direction": [-0.5, 0.3, -0.8], "irradiance": {"type": "rgb", "value": 1.6}}
GREY = 0.6  # linear colour of a mesh without colours


def placed(mesh: Mesh, up: str = "y") -> Mesh:
    """The mesh as `mesh_scene` shows it: `up` ("x", "y" or "z") is +z, and its box is centred on 0 with a longest side of 1.6.

    The axes change places in a cycle, (x, y, z) to (z, x, y) for "y".

    >>> box = placed(Mesh(torch.tensor([[0.0, 0.0, 0.0], [1.0, 4.0, 0.0], [0.0, 0.0, 2.0]]), torch.tensor([[0, 1, 2]])))
    >>> box.vertices.amax(0) - box.vertices.amin(0)
    tensor([0.8000, 0.4000, 1.6000])
    """
    turn = choose("up", up, "xyz")
    corners = mesh.vertices.roll({"x": 2, "y": 1, "z": 0}[turn], -1)  # a cyclic change of axes is a rotation
    low, high = corners.amin(0), corners.amax(0)
    side = float((high - low).max())
    if not side > 0:
        raise Refused("mesh: all its corners are one point")
    return Mesh((corners - (low + high) / 2) * (LONGEST / side), mesh.faces, mesh.colours)


def mesh_scene(
    mesh: str | Path | Mesh,
    views: int,
    size: int,
    *,
    seed: int = 0,
    samples: int = 32,
    backdrop: bool = False,
    exposure: float = 0.0,
    radius: float = 4.0,
    up: str = "y",
) -> Scene:
    """`views` pictures of `size` x `size` pixels of a mesh, from all round: RGBA with straight alpha, or RGB with `backdrop`.

    Args:
        mesh: what `load_mesh` takes, or a mesh in any unit; `placed` gives it in the scene's.
        seed: of the cameras' places and order (any part of the scene is spread over the sphere), of the renderer's noise and, apart
            from these, of the exposures: the same seed with ``exposure=0`` gives the same pictures under equal light.
        samples: rays a pixel; rounded up to a square.
        backdrop: a plain below the mesh and a painted horizon; the cameras then stay above the plain, 5° to 65° high.
        exposure: standard deviation of the logarithm of a picture's brightness.
        radius: the cameras' distance from the centre, above 1.5. The whole mesh is always in the picture.
        up: the mesh's axis that points up; +z is up in the scene.

    Returns:
        A scene with near and far ends ``radius ∓ 1.5`` (with `backdrop`: 0.1 and beyond the last corner of the plain).

    Needs the extra "scenes"; the same arguments give the same bytes. Time: some 0.4 µs a ray, 0.1 s a view of 64 pixels with 32
    samples.

    >>> scene = mesh_scene("bunny", views=2, size=16, samples=4)
    >>> scene.pictures.shape, scene.near, scene.far
    (torch.Size([2, 16, 16, 4]), 2.5, 5.5)
    """
    for name, value, least in (("views", views, 1), ("size", size, 2), ("samples", samples, 1)):
        if value < least:
            raise Refused(f"{name}: at least {least}, got {value}")
    if not 0 <= exposure < math.inf:
        raise Refused(f"exposure: 0 or more, got {exposure:g}")
    if not BOUND < radius < HORIZON - BOUND:
        raise Refused(f"radius: must lie in ({BOUND:g}, {HORIZON - BOUND:g}), got {radius:g}")
    shown = placed(mesh if isinstance(mesh, Mesh) else load_mesh(mesh), up)
    reach = 1.05 * float(torch.linalg.vector_norm(shown.vertices, dim=-1).max())
    cameras = _cameras(views, size, seed, radius, reach, backdrop)
    light, alpha = _render(shown, cameras, samples, seed, backdrop).split([3, 1], -1)
    if backdrop:
        light = light + (1 - alpha) * _sky(cameras)
    else:
        light = light / alpha.clamp_min(1e-6)
    brightness = (exposure * torch.randn(views, 1, 1, 1, generator=torch.Generator().manual_seed(seed + 1))).exp()
    colour = _gamma(light * brightness)
    if not backdrop:
        colour = torch.cat([colour, alpha.clamp(0, 1)], -1)
    pictures = (colour * 255).round().to(torch.uint8)
    near, far = (0.1, 1.5 * HORIZON + radius) if backdrop else (radius - BOUND, radius + BOUND)
    return Scene(pictures, cameras, near, far, tuple(f"{i:03d}.png" for i in range(views)))


def mesh_depths(mesh: Mesh, cameras: Cameras) -> Float[Tensor, "n h w"]:
    """How far along the ray of each pixel's centre the mesh, in the cameras' world, is met first; infinite where it is not.

    Cameras without distortion. For a scene of `mesh_scene`, give ``placed(load_mesh(name))``. O(pixels · log faces).
    """
    cameras = cameras.to("cpu")
    with _mitsuba() as mi:
        scene = {
            "type": "scene",
            "mesh": _shape(mi, mesh),
            "sun": _SUN,
            "integrator": {"type": "aov", "aovs": "p:position,d:depth"},
        }
        sampler = {"type": "stratified", "sample_count": 1, "jitter": False}  # the only sample is the pixel's centre
        layers = _views(mi, scene, cameras, sampler, seed=0)
    distance = torch.linalg.vector_norm(layers[..., -4:-1] - cameras.c2w[:, None, None, :, 3], dim=-1)
    return torch.where(layers[..., -1] > 0, distance, torch.inf)


def _cameras(views: int, size: int, seed: int, radius: float, reach: float, above: bool) -> Cameras:
    """Points of a Fibonacci lattice, turned about the axis and shuffled; the poles, where "up" is undefined, are left out."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (math.sin(math.radians(5)), math.sin(math.radians(65))) if above else (-0.9, 0.95)
    i = torch.arange(views, dtype=torch.float64) + 0.5
    z = low + (high - low) * i / views
    angle = 2 * math.pi * (i / ((1 + math.sqrt(5)) / 2) + torch.rand((), generator=generator, dtype=torch.float64))
    across = (1 - z * z).sqrt()
    places = radius * torch.stack([across * angle.cos(), across * angle.sin(), z], -1)[torch.randperm(views, generator=generator)]
    c2w = look_at(places.float(), torch.zeros(3))
    focal = size / 2 * math.sqrt(radius**2 - reach**2) / reach  # a ball of radius `reach` just fits in the picture
    return Cameras(c2w, torch.full((views, 2), focal), torch.full((views, 2), size / 2), size, size)


def _render(mesh: Mesh, cameras: Cameras, samples: int, seed: int, plain: bool) -> Float[Tensor, "n h w 4"]:
    """Linear RGBA, colour multiplied by alpha; alpha is 0 where a ray leaves the scene.

    The sun casts shadows. The sky does not: surfaces glow by how far they face up, and are never sampled as lamps. So neither
    makes noise.
    """
    with _mitsuba() as mi:
        scene = {"type": "scene", "mesh": _shape(mi, mesh), "sun": _SUN}
        scene["integrator"] = {"type": "direct", "emitter_samples": 1, "bsdf_samples": 0}
        if plain:
            scene["plain"] = _plain(mi, float(mesh.vertices[:, 2].min()))
        return _views(mi, scene, cameras, {"type": "stratified", "sample_count": math.ceil(math.sqrt(samples)) ** 2}, seed)


def _views(mi: Any, scene: dict[str, Any], cameras: Cameras, sampler: dict[str, Any], seed: int) -> Float[Tensor, "n h w c"]:
    """Every camera's picture of a scene given as Mitsuba's dictionary. Mitsuba's camera looks along +z with x to the left."""
    world = mi.load_dict(scene)
    c2w = cameras.c2w.double().cpu() * torch.tensor([-1.0, 1.0, -1.0, 1.0])
    film = {"type": "hdrfilm", "width": cameras.width, "height": cameras.height, "rfilter": {"type": "box"}, "pixel_format": "rgba"}
    film |= {"component_format": "float32"}
    pictures = []
    for camera, matrix in enumerate(c2w):
        (fx, fy), (cx, cy) = cameras.focal[camera].tolist(), cameras.centre[camera].tolist()
        if abs(fx / fy - 1) > 1e-6 or cameras.distortion is not None:
            raise Refused(f"cameras: only square pixels without distortion can be rendered; camera {camera} has {fx:g} and {fy:g}")
        to_world = mi.ScalarTransform4f(np.vstack([matrix.numpy(), [0, 0, 0, 1]]))
        sensor = {
            "type": "perspective",
            "fov_axis": "x",
            "fov": math.degrees(2 * math.atan(cameras.width / (2 * fx))),
            "principal_point_offset_x": cx / cameras.width - 0.5,
            "principal_point_offset_y": cy / cameras.height - 0.5,
            "near_clip": 0.01,
            "far_clip": 1e4,
            "to_world": to_world,
            "film": film,
            "sampler": sampler,
        }
        picture = mi.render(world, sensor=mi.load_dict(sensor), seed=((seed << 16) + camera) & 0xFFFFFFFF)
        pictures.append(torch.from_numpy(np.array(picture, dtype=np.float32)))
    return torch.stack(pictures)


def _shape(mi: Any, mesh: Mesh) -> Any:
    """A matt mesh in the colours of its corners, which glow by the light of the sky."""
    colours = torch.full_like(mesh.vertices, GREY) if mesh.colours is None else _linear(mesh.colours)
    glow = colours * (GROUND + (SKY - GROUND) * (1 + _normals(mesh)[:, 2:]) / 2)
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict(_matt({"type": "mesh_attribute", "name": "vertex_colour"}))
    properties["emitter"] = mi.load_dict(_glowing({"type": "mesh_attribute", "name": "vertex_glow"}))
    shape = mi.Mesh("mesh", len(mesh.vertices), len(mesh.faces), props=properties)
    for name, value in (("vertex_colour", colours), ("vertex_glow", glow)):
        shape.add_attribute(name, 3, value.flatten().tolist())
    values = mi.traverse(shape)
    values["vertex_positions"] = mesh.vertices.flatten().tolist()
    values["faces"] = mesh.faces.flatten().tolist()
    values.update()
    return shape


def _matt(colour: dict[str, Any]) -> dict[str, Any]:
    return {"type": "twosided", "bsdf": {"type": "diffuse", "reflectance": colour}}


def _glowing(colour: dict[str, Any]) -> dict[str, Any]:
    return {"type": "area", "radiance": colour, "sampling_weight": 0.0}


def _normals(mesh: Mesh) -> Float[Tensor, "v 3"]:
    """Unit normals at corners: the sum of the faces' around each place, weighted by area."""
    places, place = mesh.vertices.unique(dim=0, return_inverse=True)  # a texture's seams double corners
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    across = torch.linalg.cross(b - a, c - a).repeat_interleave(3, 0)
    return normalize(torch.zeros_like(places).index_add(0, place[mesh.faces].flatten(), across), dim=-1)[place]


def _plain(mi: Any, height: float) -> dict[str, Any]:
    """A square out to beyond the horizon at z = `height`, tiled with a photograph in an earthy tint."""
    from neuropil.data.loaders import photographs

    tile = _linear(photographs(PLAIN))[..., None] * torch.tensor([1.0, 0.85, 0.6])

    def tiled(brightness: float) -> dict[str, Any]:
        bitmap = {"type": "bitmap", "bitmap": mi.Bitmap((brightness * tile).numpy()), "raw": True, "wrap_mode": "repeat"}
        return bitmap | {"to_uv": mi.ScalarTransform4f().scale([12.0, 12.0, 1.0])}

    place = mi.ScalarTransform4f().translate([0, 0, height]).scale([HORIZON, HORIZON, 1])
    return {"type": "rectangle", "to_world": place, "bsdf": _matt(tiled(1.0)), "emitter": _glowing(tiled(SKY))}


def _sky(cameras: Cameras) -> Float[Tensor, "n h w 3"]:
    """What the pixels' rays meet on the sphere of radius 30: a photograph, laid round it and mirrored so that it closes."""
    from neuropil.data.loaders import photographs

    picture = _linear(photographs(PAINTED)).movedim(-1, 0)[None]
    return torch.stack([_painted(cameras.picture_rays(i), picture) for i in range(len(cameras))])


def _painted(rays: Any, picture: Tensor) -> Tensor:
    o, d = rays.origins, rays.directions
    b = (o * d).sum(-1, keepdim=True)
    point = normalize(o + d * (-b + (b * b - (o * o).sum(-1, keepdim=True) + HORIZON**2).sqrt()), dim=-1)
    azimuth = torch.atan2(point[..., 1], point[..., 0]) / math.pi  # −1 … 1; the picture goes there and back
    return grid_sample(picture, torch.stack([2 * azimuth.abs() - 1, -point[..., 2]], -1)[None], align_corners=False)[0].movedim(
        0, -1
    )


def _gamma(linear: Tensor) -> Tensor:
    """The sRGB curve of linear light, clipped to [0, 1]."""
    x = linear.clamp(0, 1)
    return torch.where(x <= 0.0031308, 12.92 * x, 1.055 * x.clamp_min(1e-6) ** (1 / 2.4) - 0.055)


def _linear(srgb: Tensor) -> Tensor:
    """Linear light of sRGB values."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


@contextlib.contextmanager
def _mitsuba() -> Iterator[Any]:
    """Mitsuba in its scalar variant, silent below errors; the variant that was set before is set again."""
    mi = optional("mitsuba", "scenes")
    before = mi.variant()
    mi.set_variant("scalar_rgb")
    mi.set_log_level(mi.LogLevel.Error)
    try:
        yield mi
    finally:
        if before is not None and before != "scalar_rgb":
            mi.set_variant(before)
