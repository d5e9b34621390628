"""What leaves a run: meshes, point clouds and films, all in the source's own coordinates and unit.

    shape   mesh: f = 0 by marching cubes          points: spread over that surface by area
    scene   mesh: σ = level by marching cubes      points: where half of the light of the training pictures' rays is stopped

A scene's level is the density at which a ray loses half of its light on a sixteenth of the region: 8 ln 2/radius. Hollows that are
closed at that level are filled, for no picture tells what is in there.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from scipy import ndimage
from torch import Tensor, nn

from neuropil.data.solids import on_surface
from neuropil.data.video import write_video
from neuropil.errors import Refused, choose, optional
from neuropil.fields.radiance import render_picture
from neuropil.files import write_atomic
from neuropil.studio import pictures, scenes, shapes
from neuropil.studio.runs import Run, png, to_bytes

MESHES = (".ply", ".obj", ".stl", ".glb", ".off")
CLOUD = 100_000  # points of an exported cloud, at most


def restore(run: Run) -> nn.Module:
    """The fitted field of a run of any kind."""
    makers = {"image": pictures.restore, "video": pictures.restore, "shape": shapes.restore, "scene": scenes.restore}
    if run.recipe.kind not in makers:
        raise Refused(f"run: {run.folder} is of the unknown kind {run.recipe.kind!r}; use the version of neuropil that wrote it")
    return makers[run.recipe.kind](run)


def mesh(run: Run, file: Path, resolution: int = 128) -> str:
    """Write the surface as a mesh, sampled on `resolution`³ points; says what was written. `Refused` for pictures and clips."""
    _solid(run, "a mesh")
    _ending(file, MESHES)
    vertices, faces = surface_of(run, resolution)
    _write(optional("trimesh", "fields").Trimesh(vertices.numpy(), faces, process=False), file)
    return f"{len(vertices):,} corners, {len(faces):,} faces"


def points(run: Run, file: Path, resolution: int = 128) -> str:
    """Write a cloud of at most 100,000 points, a scene's in colour; says what was written. `Refused` for pictures and clips."""
    _solid(run, "points")
    _ending(file, (".ply",))
    places, colours = cloud_of(run, resolution)
    _write(optional("trimesh", "fields").PointCloud(places.numpy(), None if colours is None else colours.numpy()), file)
    return f"{len(places):,} points"


def surface_of(run: Run, resolution: int) -> tuple[Float[Tensor, "v 3"], Any]:
    """Corners in the source's unit and faces (numpy, wound outward) of a shape or a scene."""
    field = restore(run)
    if isinstance(field, scenes.Placed):
        level = 8 * math.log(2) / field.radius
        grid = nn.functional.pad(_filled(bake_density(field, resolution), level), [1] * 6)
        corners, faces = shapes.surface(-grid, -level)
        wider = (resolution + 1) / (resolution - 1)  # by the padding, which closes what the region cuts
        return torch.from_numpy(corners) * wider * field.radius + field.centre, faces
    corners, faces = shapes.surface(shapes.bake(field, resolution))
    given = run.recipe.arguments
    return torch.from_numpy(corners) / given["scale"] + torch.tensor(given["centre"]), faces


def cloud_of(run: Run, resolution: int) -> tuple[Float[Tensor, "n 3"], UInt8[Tensor, "n 3"] | None]:
    """Points in the source's unit, and their colours if the source has any."""
    field = restore(run)
    if isinstance(field, scenes.Placed):
        return _seen(field, scenes.background(run))
    vertices, faces = surface_of(run, resolution)
    places = on_surface(vertices, torch.from_numpy(faces).long(), CLOUD, torch.Generator().manual_seed(0))
    return places, None


def _filled(grid: Float[Tensor, "r r r"], level: float) -> Float[Tensor, "r r r"]:
    """The grid with twice the level wherever air cannot come from outside."""
    outside = nn.functional.pad(grid < level, [1] * 6, value=True)
    pockets, _ = ndimage.label(outside.numpy())
    closed = torch.from_numpy((pockets > 0) & (pockets != pockets[0, 0, 0]))[1:-1, 1:-1, 1:-1]
    return torch.where(closed, 2 * level, grid)


@torch.no_grad()
def _seen(field: scenes.Placed, background: Tensor | None) -> tuple[Float[Tensor, "n 3"], UInt8[Tensor, "n 3"]]:
    """Where rays of the training pictures, as many of each, end within the region."""
    cameras = field.cameras
    index = torch.randperm(len(cameras) * cameras.height * cameras.width, generator=torch.Generator().manual_seed(0))[:CLOUD]
    camera, row, column = torch.unravel_index(index.sort().values, (len(cameras), cameras.height, cameras.width))
    rays = cameras.rays(camera, torch.stack([column, row], -1) + 0.5, field.near, field.far)
    seen = [field(rays[i : i + pictures.TEST], background) for i in range(0, len(index), pictures.TEST)]
    depth, stopped, colour = (torch.cat([getattr(s, name) for s in seen]) for name in ("depth", "accumulation", "colour"))
    places = rays.origins + depth[:, None] * rays.directions
    kept = (stopped > 0.5) & ((places - field.centre).abs().amax(-1) <= field.radius)
    if not bool(kept.any()):
        raise Refused("points: the field stops no light yet; fit it for longer")
    return places[kept], to_bytes(colour[kept])


def bake_density(field: scenes.Placed, resolution: int) -> Float[Tensor, "r r r"]:
    """σ on a grid over the region, corners included, indexed [z, y, x]. r³ evaluations."""
    axis = torch.linspace(-1, 1, resolution)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    places = torch.stack([x, y, z], -1).reshape(-1, 3) * field.radius + field.centre.cpu()
    with torch.no_grad():
        parts = [field.density(part.to(field.centre.device)).cpu() for part in places.split(1 << 16)]
    return torch.cat(parts).reshape(resolution, resolution, resolution)


def film(
    run: Run,
    path: str | None,
    frames: int,
    size: tuple[int, int] | None,
    rate: float,
    out: Path,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Render a run to `out`: a film along `path` ("orbit" or "time"), or for a photograph a picture of (h, w) `size`.

    `tick` is called after each frame. `Refused` for a path that the kind of run does not have, or another ending than .mp4 (.png).
    """
    kind = run.recipe.kind
    if kind == "image":
        if path is not None:
            raise Refused(f"path: a photograph has none, got {path!r}")
        _ending(out, (".png",))
        field = restore(run)
        height, width = size or run.recipe.arguments["sizes"]
        write_atomic(out, png(pictures.draw(field, height, width)))
        return
    choose("path", path or ("time" if kind == "video" else "orbit"), ("time",) if kind == "video" else ("orbit",))
    _ending(out, (".mp4",))
    shown = []
    for picture in _frames(run, frames, size):
        shown.append(to_bytes(picture))
        tick()
    write_video(out, torch.stack(shown), rate)


def _frames(run: Run, frames: int, size: tuple[int, int] | None) -> Any:
    """The pictures of a film, one after the other."""
    field = restore(run)
    if isinstance(field, scenes.Placed):
        height, width = size or pictures.fit_within((field.height, field.width), 256)
        cameras, background = scenes.orbit(field, frames, height, width), scenes.background(run)
        for i in range(frames):
            yield render_picture(field, cameras, i, field.near, field.far, background).colour
    elif run.recipe.kind == "shape":
        grid = shapes.bake(field, 128)
        for i in range(frames):
            yield shapes.trace(grid, *shapes.eye(2 * math.pi * i / frames, 0.4), *(size or (256, 256)))
    else:
        height, width = size or run.recipe.arguments["sizes"][1:]
        for i in range(frames):
            yield pictures.draw(field, height, width, (2 * i + 1) / frames - 1)


def _solid(run: Run, what: str) -> None:
    if run.recipe.kind not in ("shape", "scene"):
        raise Refused(f"run: {run.folder} is a fitted {run.recipe.kind}; only shapes and scenes have {what}")


def _ending(file: Path, allowed: tuple[str, ...]) -> None:
    if file.suffix.lower() not in allowed:
        raise Refused(f"out: {file} must end in {' or '.join(allowed)}")


def _write(geometry: Any, file: Path) -> None:
    content = geometry.export(file_type=file.suffix[1:].lower())
    write_atomic(file, content)
