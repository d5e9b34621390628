"""Captures as radiance fields: photographs with the cameras that took them, fitted ray by ray, seen from anywhere.

A field lives in the cube [−1, 1]³; `region` says which cube ``centre ± radius`` of the capture's world that is, `run.json` keeps
it, and `Placed` takes rays there and depths back, so that everything a run gives is in the capture's own coordinates:

    o' = (o − centre)/radius        near, far, depth: divided by radius        σ = σ'/radius

The pictures of the capture's split "test", or every eighth, are held out, and the score is the PSNR on 4,096 fixed pixels of
these (on fitted ones, if there are fewer than four pictures). Pictures with transparency are trained over a random colour a ray,
so that what is transparent cannot pass for any, and are shown over white.
"""

import bisect
import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from neuropil.data.cameras import Cameras, Rays, look_at
from neuropil.data.captures import read_capture
from neuropil.data.scenes import Scene
from neuropil.errors import Refused, choose
from neuropil.fields.field import parameters_of
from neuropil.fields.metrics import psnr
from neuropil.fields.nerfacto import Nerfacto
from neuropil.fields.radiance import RadianceModel, Rendered, render_picture
from neuropil.fields.voxels import VoxelField
from neuropil.studio.pictures import fit_within
from neuropil.studio.runs import Fit, Recipe, Run, fingerprint, load_into, seeded

TEST, HELD, PREVIEW, LONGEST = 1 << 12, 8, 256, 1000
BATCH = 512  # rays a step on a CPU; eight times as many elsewhere

# the size by default, all sizes, and the field of a size for so many training pictures
Maker = Callable[[int, int], RadianceModel]
FIELDS: dict[str, tuple[int, range, Maker]] = {
    "voxels": (64, range(8, 513), lambda size, pictures: VoxelField(resolution=size)),
    "hash": (
        15,
        range(8, 23),
        lambda size, pictures: Nerfacto.small(pictures, table=2**size, contraction=False, code=0, poses=False),
    ),
    "nerfacto": (15, range(8, 23), lambda size, pictures: Nerfacto.small(pictures, table=2**size)),
}


class Placed(RadianceModel):
    """A field of the cube [−1, 1]³ at its place in a capture's world, and the cameras of the training pictures."""

    centre: Tensor

    def __init__(self, field: RadianceModel, centre: list[float], radius: float, near: float, far: float, cameras: Cameras) -> None:
        super().__init__()
        self.field, self.radius, self.near, self.far = field, radius, near, far
        self.height, self.width = cameras.height, cameras.width
        self.register_buffer("centre", torch.tensor(centre))
        lens = torch.zeros(len(cameras), 4) if cameras.distortion is None else cameras.distortion
        for name, value in (("c2w", cameras.c2w), ("focal", cameras.focal), ("axis", cameras.centre), ("lens", lens)):
            self.register_buffer(name, value.float().clone())

    @property
    def cameras(self) -> Cameras:
        """The cameras of the training pictures."""
        lens = self.lens if bool(self.lens.any()) else None  # type: ignore[operator]
        return Cameras(self.c2w, self.focal, self.axis, self.height, self.width, lens)  # type: ignore[arg-type]

    def forward(self, rays: Rays, background: Float[Tensor, "#*b c"] | None = None) -> Rendered:
        """What rays of the capture's world see; depth in its unit."""
        seen = self.field(self._inward(rays), background)
        return replace(seen, depth=seen.depth * self.radius)

    def density(self, positions: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
        """σ in 1/length of the capture's world."""
        return self.field.density((positions - self.centre) / self.radius) / self.radius

    def loss(
        self, rays: Rays, target: Float[Tensor, "*b c"], background: Float[Tensor, "#*b c"] | None = None
    ) -> Float[Tensor, ""]:
        """The field's own."""
        return self.field.loss(self._inward(rays), target, background)

    def _inward(self, rays: Rays) -> Rays:
        origins = (rays.origins - self.centre) / self.radius
        return replace(rays, origins=origins, near=rays.near / self.radius, far=rays.far / self.radius)


class SceneFit(Fit):
    """A radiance field fitted to the pictures of `train`, and scored on those of `held`."""

    def __init__(self, recipe: Recipe, train: Scene, held: Scene, device: torch.device) -> None:
        given = recipe.arguments
        with seeded(0):
            field = _make(recipe)
        model = Placed(field, given["centre"], given["radius"], train.near, train.far, train.cameras).to(device)
        super().__init__(recipe, model, torch.optim.Adam(field.parameter_groups(), eps=1e-15), device)
        self.field, self.placed, self.train, self.held = field, model, train, held
        self.batch = BATCH * (1 if device.type == "cpu" else 8)
        self.white = torch.ones(3) if given["transparent"] else None
        rays, colours = held.batch(TEST, torch.Generator().manual_seed(2**40), self.white)
        self.test = rays.to(device), colours.to(device)

    def loss(self, step: int) -> Float[Tensor, ""]:
        self.field.update(step)
        background = None if self.white is None else torch.rand(self.batch, 3)
        rays, colours = self.train.batch(self.batch, torch.default_generator, background)
        if background is not None:
            background = background.to(self.device)
        return self.placed.loss(rays.to(self.device), colours.to(self.device), background)

    def score(self) -> float:
        rays, colours = self.test
        return float(psnr(self.placed(rays, self._background()).colour.clamp(0, 1), colours))

    def preview(self) -> Float[Tensor, "h w 3"]:
        """The first held-out picture and, beside it, what the field shows there."""
        height, width = fit_within((self.held.cameras.height, self.held.cameras.width), PREVIEW)
        small = self.held.cameras[[0]].resized(height, width).to(self.device)
        seen = render_picture(self.placed, small, 0, self.placed.near, self.placed.far, self._background())
        truth = self.held.colours(0, self.white).movedim(-1, 0)[None]
        truth = nn.functional.interpolate(truth, (height, width), mode="bilinear", antialias=True)[0].movedim(0, -1)
        return torch.cat([truth, seen.colour.cpu()], 1)

    def _background(self) -> Tensor | None:
        return None if self.white is None else self.white.to(self.device)


def scene_fit(source: Path, name: str, parameters: int | None, device: torch.device, downscale: int | None = None) -> SceneFit:
    """A capture ready to be fitted by field `name` of at most `parameters` numbers (its default size, if None).

    Photographs are read `downscale` times smaller; by default so that the longer side has at most 1,000 pixels.
    """
    choose("field", name, FIELDS)
    train, held = _parts(source, downscale or _shrinking(source))
    centre, radius = region(train)
    arguments = {
        "size": _size(name, len(train), parameters),
        "pictures": len(train),
        "held_out": len(held) if held is not train else 0,
        "height": train.cameras.height,
        "width": train.cameras.width,
        "centre": centre.tolist(),
        "radius": radius,
        "near": train.near,
        "far": train.far,
        "transparent": train.pictures.shape[-1] == 4,
    }
    data = [x for part in (train, held) for x in (part.pictures, part.cameras.c2w, part.cameras.focal)]
    return SceneFit(Recipe("scene", name, arguments, str(source), fingerprint(*data)), train, held, device)


def _parts(source: Path, downscale: int) -> tuple[Scene, Scene]:
    """What is fitted and what is held out; the same scene twice, if there are too few pictures for that."""
    try:
        train, held = (read_capture(source, split=split, downscale=downscale) for split in ("train", "test"))
    except Refused:
        whole = read_capture(source, downscale=downscale)  # one split is empty; or this refuses what is wrong with all of it
        train, held = whole[[i for i in range(len(whole)) if i % HELD or len(whole) == 1]], whole[::HELD]
    if len(train) < 3:
        train = held = read_capture(source, downscale=downscale)
    return train, held if held is train else replace(held, near=train.near, far=train.far)


def _shrinking(source: Path) -> int:
    """By how much the largest photograph has to be made smaller; unreadable ones are `read_capture`'s to refuse."""
    longest = 1
    for file in source.rglob("*"):
        if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"):
            with contextlib.suppress(OSError, ValueError), Image.open(file) as picture:
                longest = max(longest, *picture.size)
    return -(-longest // LONGEST)


def _size(name: str, pictures: int, parameters: int | None) -> int:
    default, sizes, make = FIELDS[name]
    if parameters is None:
        return default

    def count(size: int) -> int:
        with torch.device("meta"):
            return parameters_of(make(size, pictures))

    if count(sizes[0]) > parameters:
        raise Refused(f"parameters: the smallest {name!r} scene has {count(sizes[0])}, got {parameters}")
    return sizes[bisect.bisect_right(sizes, parameters, key=count) - 1]


def _make(recipe: Recipe) -> RadianceModel:
    try:
        return FIELDS[recipe.field][2](recipe.arguments["size"], recipe.arguments["pictures"])
    except (LookupError, TypeError) as error:
        raise Refused(f"run: run.json lacks or garbles the field's arguments ({error})") from None


def restore(run: Run) -> Placed:
    """The fitted field of a scene run, in the capture's coordinates."""
    field = _make(run.recipe)
    try:
        given = run.recipe.arguments
        count, eye = given["pictures"], torch.eye(3, 4)
        blank = Cameras(eye.expand(count, 3, 4), torch.ones(count, 2), torch.ones(count, 2), given["height"], given["width"])
        model = Placed(field, given["centre"], given["radius"], given["near"], given["far"], blank)
    except (LookupError, TypeError) as error:
        raise Refused(f"run: run.json lacks or garbles the scene's arguments ({error})") from None
    load_into(model, run)
    return model


def background(run: Run) -> Tensor | None:
    """White for a capture with transparency, else None (black)."""
    return torch.ones(3) if run.recipe.arguments["transparent"] else None


def region(scene: Scene) -> tuple[Float[Tensor, "3"], float]:
    """Centre and half side of the cube that the cameras look at, by the first rule that applies:

    1. The capture has a cloud of at least 32 points: their median, and 1.1 times the distance that 90 % of them keep on every
       axis.
    2. The cameras' axes meet (the point nearest to all of them lies before three quarters of the cameras, and they are not
       parallel): that point, and half of what a camera at the median distance sees of the plane through it.
    3. The capture knows how far its pictures reach (far < 100 near): the middle of their depths, and half of them, or of what a
       picture shows there, whichever is more.
    4. Else, as for cameras that look around in a room: the cameras' mean, and three times the distance of the farthest from it
       (or 1).
    """
    c2w = scene.cameras.c2w.double()
    o, axis = c2w[:, :, 3], -c2w[:, :, 2]
    half = float((torch.tensor([scene.cameras.width, scene.cameras.height]) / 2 / scene.cameras.focal.double()).amax(1).median())
    if scene.points is not None and len(scene.points) >= 32:
        centre = scene.points.double().median(0).values
        return centre.float(), 1.1 * float((scene.points - centre).abs().amax(1).quantile(0.9))
    across = torch.eye(3, dtype=torch.float64) - axis[:, :, None] * axis[:, None, :]
    if float(torch.linalg.eigvalsh(across.mean(0))[0]) > 0.01:
        centre = torch.linalg.solve(across.sum(0), (across @ o[:, :, None]).sum(0))[:, 0]
        if float((((centre - o) * axis).sum(-1) > 0).double().mean()) >= 0.75:
            return centre.float(), half * float(torch.linalg.vector_norm(centre - o, dim=-1).median())
    if scene.far < 100 * scene.near:
        middle = (scene.near + scene.far) / 2
        return (o + middle * axis).mean(0).float(), max((scene.far - scene.near) / 2, half * middle)
    spread = float(torch.linalg.vector_norm(o - o.mean(0), dim=-1).max())
    return o.mean(0).float(), 3 * spread or 1.0


def orbit(model: Placed, frames: int, height: int, width: int) -> Cameras:
    """A closed path round the region: a whole circle if the cameras stood all round, else a small one within what they saw."""
    cameras = model.cameras
    o, centre = cameras.c2w[:, :, 3].cpu(), model.centre.cpu()
    up = up_of(model)
    distance = float(torch.linalg.vector_norm(o - centre, dim=-1).median())
    towards = nn.functional.normalize(o - centre, dim=-1)
    middle = nn.functional.normalize(towards.mean(0), dim=0)
    cosine = float((towards @ middle).min())
    angle = 2 * math.pi * torch.arange(frames)[:, None] / frames
    if cosine < 0.5:  # more than 60° apart
        height_over = min(max(float((towards @ up).mean()), 0.25), 0.9)
        side = nn.functional.normalize(torch.linalg.cross(up, _across(up)), dim=0)
        front = torch.linalg.cross(side, up)
        flat = math.sqrt(1 - height_over**2)
        places = flat * (angle.cos() * front + angle.sin() * side) + height_over * up
    else:
        side = nn.functional.normalize(torch.linalg.cross(up, middle), dim=0)
        swing = 0.7 * math.sqrt(max(1 - cosine**2, 0.0)) + 0.02
        places = middle + swing * (angle.cos() * side + 0.5 * angle.sin() * torch.linalg.cross(middle, side))
    c2w = look_at(centre + distance * nn.functional.normalize(places, dim=-1), centre, up)
    focal = (cameras.focal.cpu().median(0).values * min(height / cameras.height, width / cameras.width)).expand(frames, 2)
    return Cameras(c2w, focal, torch.tensor([width / 2, height / 2]).expand(frames, 2), height, width)


def up_of(model: Placed) -> Float[Tensor, "3"]:
    """The mean of the cameras' upward axes; +z where they cancel."""
    up = model.c2w[:, :, 1].mean(0).cpu()  # type: ignore[index, operator]
    return nn.functional.normalize(up, dim=0) if float(up.norm()) > 0.05 else torch.tensor([0.0, 0.0, 1.0])


def _across(v: Float[Tensor, "3"]) -> Float[Tensor, "3"]:
    """A vector that is not parallel to v: the axis on which v is smallest."""
    return torch.eye(3)[int(v.abs().argmin())]
