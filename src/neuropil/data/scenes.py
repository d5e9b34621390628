"""Containers of pictures with poses, meshes and clips. Readers: `captures`, `meshes`, `video`; made ones: `render`, `flatland`."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from neuropil.data.cameras import Cameras, Rays
from neuropil.errors import Refused


@dataclass(frozen=True)
class Scene:
    """n pictures of one place and the cameras that took them.

    Attributes:
        pictures: RGB, or RGBA whose alpha is straight (not multiplied into the colour), as bytes in the pictures' own gamma.
        cameras: one a picture.
        near, far: the ends of every ray, in the world's unit.
        names: the pictures' file names.
        points: a sparse cloud, if the capture had one.
    """

    pictures: UInt8[Tensor, "n h w c"]
    cameras: Cameras
    near: float = 0.05
    far: float = 1e3
    names: tuple[str, ...] = ()
    points: Float[Tensor, "p 3"] | None = None

    def __post_init__(self) -> None:
        n, h, w, c = self.pictures.shape
        if (n, h, w) != (len(self.cameras), self.cameras.height, self.cameras.width) or c not in (3, 4):
            size = f"{len(self.cameras)} cameras of {self.cameras.width}x{self.cameras.height}"
            raise Refused(f"scene: {n} pictures of {w}x{h} with {c} channels do not fit {size}")
        if not 0 <= self.near < self.far:
            raise Refused(f"scene: 0 ≤ near < far is needed, got {self.near:g} and {self.far:g}")

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: slice | Tensor | list[int]) -> "Scene":
        at = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index].tolist()  # a boolean mask, too
        names = tuple(self.names[i] for i in at) if self.names else ()
        return replace(self, pictures=self.pictures[at], cameras=self.cameras[at], names=names)

    def colours(self, index: int | Tensor, background: Float[Tensor, "3"] | None = None) -> Float[Tensor, "*b h w 3"]:
        """Whole pictures in [0, 1]; transparent ones lie on `background` (black by default)."""
        return _over(self.pictures[index], background)

    def batch(
        self, count: int, generator: torch.Generator, background: Float[Tensor, "*b 3"] | None = None
    ) -> tuple[Rays, Float[Tensor, "count 3"]]:
        """`count` rays through centres of pixels drawn at random from all pictures, and their colours over `background`."""
        n, h, w, _ = self.pictures.shape
        index = torch.randint(n * h * w, (count,), generator=generator)
        camera, row, column = torch.unravel_index(index, (n, h, w))
        pixel = torch.stack([column, row], -1).to(self.cameras.focal.dtype) + 0.5
        rays = self.cameras.rays(camera, pixel, self.near, self.far)
        return rays, _over(self.pictures[camera, row, column], background)


def _over(pixels: Tensor, background: Tensor | None) -> Tensor:
    values = pixels.float() / 255
    if pixels.shape[-1] == 3:
        return values
    alpha = values[..., 3:]
    return values[..., :3] * alpha + (0 if background is None else (1 - alpha) * background)


@dataclass(frozen=True)
class Mesh:
    """Triangles: corners, three indices a face (counter-clockwise seen from outside), perhaps an sRGB colour a corner."""

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    colours: Float[Tensor, "v 3"] | None = None


@dataclass(frozen=True)
class Clip:
    """Frames of a film as RGB bytes, `rate` a second."""

    frames: UInt8[Tensor, "t h w 3"]
    rate: float

    def __len__(self) -> int:
        return len(self.frames)
