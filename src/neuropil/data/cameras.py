"""Cameras and the rays that leave them, in one convention of axes for the whole library: OpenGL's.

A camera's own axes are x right, y up, z backward: it looks along −z. ``c2w = [R | o]`` takes its axes to the world's. Pixel (i, j)
of a picture is the square from (i, j) to (i + 1, j + 1), x right and y down, so that its centre is (i + ½, j + ½):

    direction ∝ R ((u − cx)/fx, −(v − cy)/fy, −1)        for the point (u, v) of the picture, after undoing the lens's distortion

COLMAP and OpenCV have y down and z forward: `flip_yz` goes either way. (Tancik et al. 2023, arXiv:2302.04264, §3.)
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from neuropil.errors import Refused


@dataclass(frozen=True)
class Rays:
    """Points o + t d for t in [near, far]; `directions` are unit vectors, `camera` is the index of a ray's picture."""

    origins: Float[Tensor, "*b 3"]
    directions: Float[Tensor, "*b 3"]
    near: Float[Tensor, "*b"]
    far: Float[Tensor, "*b"]
    camera: Int[Tensor, "*b"]
    times: Float[Tensor, "*b"] | None = None

    @property
    def shape(self) -> torch.Size:
        """The batch's shape."""
        return self.near.shape

    def __getitem__(self, index: object) -> "Rays":
        return self.map(lambda x: x[index])

    def to(self, device: torch.device | str) -> "Rays":
        """The same rays on another device."""
        return self.map(lambda x: x.to(device))

    def map(self, change: object) -> "Rays":
        """`change` applied to every tensor, each with the batch's axes in front."""
        return replace(self, **{k: change(v) for k, v in vars(self).items() if v is not None})  # type: ignore[operator]


@dataclass(frozen=True)
class Cameras:
    """n pinhole cameras, their lenses' distortion and the size of their pictures (one for all).

    Attributes:
        c2w: camera to world, [R | o], the world's unit.
        focal: (fx, fy) in pixels.
        centre: (cx, cy) in pixels, (width/2, height/2) for a picture whose axis is in the middle.
        height, width: in pixels.
        distortion: (k1, k2, p1, p2) as OpenCV has them (k: radial, p: tangential); zeros by default.
        times: a moment for each picture, if the scene moves.

    Raises `Refused` for matrices that are not finite or no rotations, a focal length that is not positive, or sizes below 1.
    """

    c2w: Float[Tensor, "n 3 4"]
    focal: Float[Tensor, "n 2"]
    centre: Float[Tensor, "n 2"]
    height: int
    width: int
    distortion: Float[Tensor, "n 4"] | None = None
    times: Float[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        for name in ("c2w", "focal", "centre", "distortion", "times"):
            value = getattr(self, name)
            if value is not None and not bool(torch.isfinite(value).all()):
                bad = int((~torch.isfinite(value.flatten(1) if value.ndim > 1 else value[:, None])).any(1).nonzero()[0])
                raise Refused(f"cameras: {name} of camera {bad} is not finite")
        if not bool((self.focal > 0).all()):
            bad = int((self.focal <= 0).any(1).nonzero()[0])
            raise Refused(f"cameras: the focal length of camera {bad} must be positive, got {self.focal[bad].tolist()}")
        if min(self.height, self.width) < 1:
            raise Refused(f"cameras: pictures of {self.width}x{self.height} pixels")
        rotation = self.c2w[:, :, :3].double()
        error = (rotation @ rotation.mT - torch.eye(3, dtype=torch.float64, device=rotation.device)).abs().amax((1, 2))
        wrong = (error > 1e-3) | (torch.linalg.det(rotation) < 0)
        if bool(wrong.any()):
            raise Refused(f"cameras: the matrix of camera {int(wrong.nonzero()[0])} is no rotation; scale belongs in the positions")

    def __len__(self) -> int:
        return len(self.c2w)

    def __getitem__(self, index: slice | Tensor | list[int]) -> "Cameras":
        kept = {k: v[index] for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **kept)  # type: ignore[arg-type]

    def resized(self, height: int, width: int) -> "Cameras":
        """The same cameras with pictures of another size: focal lengths and centres scale with them."""
        scale = torch.tensor([width / self.width, height / self.height], dtype=self.focal.dtype, device=self.focal.device)
        return replace(self, focal=self.focal * scale, centre=self.centre * scale, height=height, width=width)

    def to(self, device: torch.device | str) -> "Cameras":
        """The same cameras on another device."""
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)})  # type: ignore[arg-type]

    def rays(self, camera: Int[Tensor, "*b"], pixel: Float[Tensor, "*b 2"], near: float = 0.0, far: float = torch.inf) -> Rays:
        """The rays through points (u, v) of pictures; a pixel's centre is (column + ½, row + ½). O(1) a ray.

        >>> eye = torch.eye(4)[None, :3]
        >>> one = Cameras(eye, torch.tensor([[10.0, 10.0]]), torch.tensor([[8.0, 8.0]]), height=16, width=16)
        >>> one.rays(torch.tensor([0]), torch.tensor([[8.0, 8.0]])).directions
        tensor([[ 0.,  0., -1.]])
        """
        xy = (pixel - self.centre[camera]) / self.focal[camera]
        if self.distortion is not None:
            xy = undistort(xy, self.distortion[camera])
        local = torch.stack([xy[..., 0], -xy[..., 1], -torch.ones_like(xy[..., 0])], -1)
        c2w = self.c2w[camera]
        directions = normalize(torch.einsum("...ij,...j->...i", c2w[..., :3], local), dim=-1)
        ends = [torch.full_like(xy[..., 0], value) for value in (near, far)]
        times = None if self.times is None else self.times[camera]
        return Rays(c2w[..., 3], directions, ends[0], ends[1], camera, times)

    def picture_rays(self, camera: int, near: float = 0.0, far: float = torch.inf) -> Rays:
        """The rays through all pixel centres of one picture, of shape (height, width)."""
        device = self.c2w.device
        v, u = torch.meshgrid(
            *(torch.arange(n, device=device, dtype=self.focal.dtype) + 0.5 for n in (self.height, self.width)), indexing="ij"
        )
        return self.rays(torch.full(u.shape, camera, device=device), torch.stack([u, v], -1), near, far)


def distort(xy: Float[Tensor, "*b 2"], distortion: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 2"]:
    """Where a lens puts a point of the ideal picture (in focal lengths): ``x (1 + k1 r² + k2 r⁴)`` and tangential terms."""
    k1, k2, p1, p2 = distortion.unbind(-1)
    x, y = xy.unbind(-1)
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2 * r2
    return torch.stack(
        [x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], -1
    )


def undistort(xy: Float[Tensor, "*b 2"], distortion: Float[Tensor, "*b 4"], steps: int = 12) -> Float[Tensor, "*b 2"]:
    """The ideal point that `distort` puts at xy, by ``x ← x + (J² + |e|)⁻¹ J e`` with e = xy − distort(x), J = ∂distort/∂x = Jᵀ.

    That is Newton's method near the answer, and Levenberg's (1944) far from it: beyond the fold of a barrel lens, where it puts no
    ideal point at xy, comes the nearest that there is, on the fold. O(steps) a point. Differentiable, exact where it has converged.

    >>> lens = torch.tensor([0.5, 0.0, 0.0, 0.0])
    >>> undistort(distort(torch.tensor([0.9, 0.0]), lens), lens)
    tensor([0.9000, 0.0000])
    """
    k1, k2, p1, p2 = distortion.unbind(-1)
    point = xy
    for _ in range(steps):
        x, y = point.unbind(-1)
        r2 = x * x + y * y
        radial, slope = 1 + k1 * r2 + k2 * r2 * r2, 2 * k1 + 4 * k2 * r2
        a = radial + slope * x * x + 6 * p2 * x + 2 * p1 * y  # J = [[a, b], [b, c]]
        b = slope * x * y + 2 * p1 * x + 2 * p2 * y
        c = radial + slope * y * y + 6 * p1 * y + 2 * p2 * x
        e, f = (xy - distort(point, distortion)).unbind(-1)
        u, v, damping = a * e + b * f, b * e + c * f, torch.hypot(e, f).detach()
        A, B, C = a * a + b * b + damping, b * (a + c), b * b + c * c + damping
        det = A * C - B * B
        point = point + torch.stack([C * u - B * v, A * v - B * u], -1) / det.where(det > 0, 1.0)[..., None]
    return point


def flip_yz(c2w: Float[Tensor, "*b 3 4"]) -> Float[Tensor, "*b 3 4"]:
    """OpenCV's camera axes (y down, z forward) to OpenGL's (y up, z backward), or back."""
    return c2w * torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=c2w.dtype, device=c2w.device)


def look_at(
    origins: Float[Tensor, "n 3"], target: Float[Tensor, "3"], up: Float[Tensor, "3"] | None = None
) -> Float[Tensor, "n 3 4"]:
    """Cameras at `origins` that look at `target` with `up` (default +z) upward in the picture.

    >>> look_at(torch.tensor([[0.0, -2.0, 0.0]]), torch.zeros(3))[0, :, 2]
    tensor([ 0., -1.,  0.])
    """
    up = torch.tensor([0.0, 0.0, 1.0]) if up is None else up
    backward = normalize(origins - target, dim=-1)
    right = torch.linalg.cross(up.to(backward).expand_as(backward), backward)
    if bool((torch.linalg.vector_norm(right, dim=-1) < 1e-6).any()):
        raise Refused("up: must not be parallel to the direction of view")
    right = normalize(right, dim=-1)
    return torch.stack([right, torch.linalg.cross(backward, right), backward, origins], -1)


def orbit(
    count: int, radius: float, elevation: float = 0.5, target: Float[Tensor, "3"] | None = None
) -> Float[Tensor, "count 3 4"]:
    """`count` cameras on a circle round `target` (default 0), `elevation` radians above its plane, all looking at it; +z is up."""
    angle = 2 * torch.pi * torch.arange(count) / count
    flat, height = radius * torch.cos(torch.tensor(elevation)), radius * torch.sin(torch.tensor(elevation))
    target = torch.zeros(3) if target is None else target
    return look_at(target + torch.stack([flat * angle.cos(), flat * angle.sin(), height.expand(count)], -1), target)
