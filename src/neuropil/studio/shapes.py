"""Solid shapes as fields: (x, y, z) in [−1, 1]³ to the clipped signed distance of a closed mesh, negative inside.

    f(x) ≈ clip(d(x)/τ, −1, 1),    τ = 0.1

The mesh is moved and scaled so that its box's longest side is 1.6; `run.json` keeps how, so that exports have the mesh's own
unit. Two thirds of the training points lie near the surface (normal noise of 0.01 and 0.05), the rest anywhere. The score is the
PSNR of f on fresh points drawn the same way (peak to peak 2). The surface f = 0 comes out by marching cubes, pictures by sphere
tracing on a grid. Clipping: Park et al. 2019, DeepSDF, arXiv:1901.05103, §3.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import grid_sample, normalize

from neuropil.data.solids import CLIP, distance_samples, into_cube, read_solid
from neuropil.errors import Refused, choose, optional
from neuropil.fields.field import NAMES, build
from neuropil.fields.metrics import psnr
from neuropil.studio.pictures import budget, evaluate, rate_of
from neuropil.studio.runs import Fit, Recipe, Run, fingerprint, load_into, seeded

BATCH, POOL, TEST = 1 << 12, 1 << 17, 1 << 13


class ShapeFit(Fit):
    """A field fitted to the clipped signed distance of a mesh that is already inside [−1, 1]³."""

    def __init__(self, recipe: Recipe, vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], device: torch.device) -> None:
        with seeded(0):
            model = build_field(recipe).to(device)
        super().__init__(recipe, model, torch.optim.Adam(model.parameters(), rate_of(recipe.field), eps=1e-12), device)
        points, target = distance_samples(vertices, faces, POOL + TEST, torch.Generator().manual_seed(1))
        self.points, self.target = points.to(device), target.to(device)

    def loss(self, step: int) -> Float[Tensor, ""]:
        index = torch.randint(TEST, len(self.points), (BATCH,)).to(self.device)
        return (self.model(self.points[index]) - self.target[index]).square().mean()

    def score(self) -> float:
        predicted = self.model(self.points[:TEST]).clamp(-1, 1)
        return float(psnr(predicted / 2, self.target[:TEST] / 2))

    def preview(self) -> Float[Tensor, "h w 3"]:
        return trace(bake(self.model, 64), *eye(0.6, 0.4), 256, 256)


def shape_fit(source: Path, name: str, parameters: int | None, device: torch.device) -> ShapeFit:
    """A mesh ready to be fitted by field `name` with a budget of `parameters` (default 131,072)."""
    choose("field", name, NAMES)
    vertices, faces = read_solid(source)
    placed, centre, scale = into_cube(vertices)
    arguments = {"parameters": parameters or budget(1 << 17), "centre": centre.tolist(), "scale": scale}
    recipe = Recipe("shape", name, arguments, str(source), fingerprint(vertices, faces))
    return ShapeFit(recipe, placed, faces, device)


def build_field(recipe: Recipe) -> nn.Module:
    """The untrained field of a recipe."""
    try:
        return build(recipe.field, 3, 1, recipe.arguments["parameters"])
    except (LookupError, TypeError) as error:
        raise Refused(f"run: run.json lacks or garbles the field's arguments ({error})") from None


def restore(run: Run) -> nn.Module:
    """The fitted field of a shape run."""
    return load_into(build_field(run.recipe), run)


def bake(field: nn.Module, resolution: int) -> Float[Tensor, "r r r"]:
    """The field (clipped to ±1, in units of τ) on a grid over [−1, 1]³, corners included, indexed [z, y, x]. r³ evaluations."""
    axis = torch.linspace(-1, 1, resolution)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    device = next(field.parameters()).device
    points = torch.stack([x, y, z], -1).reshape(-1, 3).to(device)
    return evaluate(field, points).clamp(-1, 1).reshape(resolution, resolution, resolution).cpu()


def surface(grid: Float[Tensor, "r r r"], level: float = 0.0) -> tuple[Any, Any]:
    """Vertices (numpy, in [−1, 1]³) and outward-wound faces of ``grid = level`` by marching cubes; `Refused` if there is none."""
    if not float(grid.min()) < level < float(grid.max()):
        raise Refused("mesh: the field has no surface yet; fit it for longer")
    measure = optional("skimage.measure", "fields")
    corners, faces, _, _ = measure.marching_cubes(grid.numpy(), level)
    # skimage winds for [z, y, x]; reading the axes backwards mirrors, so that the faces have to be turned, too
    return (corners[:, ::-1] * (2 / (len(grid) - 1)) - 1).astype("float32"), faces[:, ::-1].copy()


def eye(azimuth: float, elevation: float, distance: float = 3.6) -> tuple[Float[Tensor, "3"], Float[Tensor, "3 3"]]:
    """A camera's place and its axes (columns right, up, backward) on a sphere, y up, looking at 0; angles in radians."""
    a, e = torch.tensor(azimuth), torch.tensor(elevation)
    backward = torch.stack([e.cos() * a.sin(), e.sin(), e.cos() * a.cos()])
    right = torch.stack([a.cos(), torch.zeros(()), -a.sin()])
    return distance * backward, torch.stack([right, torch.linalg.cross(backward, right), backward], -1)


@torch.no_grad()
def trace(
    grid: Float[Tensor, "r r r"], origin: Float[Tensor, "3"], axes: Float[Tensor, "3 3"], height: int, width: int, fov: float = 0.7
) -> Float[Tensor, "height width 3"]:
    """A shaded picture of a baked shape by sphere tracing; `fov` is the angle of the picture's height. White where no ray ends."""
    half = torch.tan(torch.tensor(fov / 2))
    ys, xs = (torch.linspace(1 - 1 / n, 1 / n - 1, n) for n in (height, width))
    y, x = torch.meshgrid(ys * half, -xs * half * width / height, indexing="ij")
    direction = normalize(torch.stack([x, y, -torch.ones_like(x)], -1).reshape(-1, 3) @ axes.T, dim=-1)

    def distance(points: Tensor) -> Tensor:
        return CLIP * grid_sample(grid[None, None], points[None, None, None], align_corners=True, padding_mode="border")[0, 0, 0, 0]

    slabs = (torch.tensor([[-1.0], [1.0]])[:, None] - origin) / direction  # where a ray passes the faces of the cube
    enter, leave = slabs.amin(0).amax(-1).clamp_min(0), slabs.amax(0).amin(-1)
    depth = enter.clone()
    for _ in range(96):
        depth = depth + 0.9 * distance(origin + depth[:, None] * direction)
    points = origin + depth[:, None] * direction
    hit = (distance(points) < 0.01) & (depth < leave) & (enter < leave)
    step = 2.0 / len(grid) * torch.eye(3)
    normal = normalize(torch.stack([distance(points + s) - distance(points - s) for s in step], -1), dim=-1)
    light = normalize(axes @ torch.tensor([-0.4, 0.7, 0.6]), dim=-1)
    shade = 0.25 + 0.75 * (normal @ light).clamp_min(0)
    colour = shade[:, None] * torch.tensor([0.85, 0.62, 0.35])
    return torch.where(hit[:, None], colour, torch.ones(3)).reshape(height, width, 3)
