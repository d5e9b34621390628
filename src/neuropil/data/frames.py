"""From the frames of a capture, as its layout describes them, to the pictures, cameras and ends of the rays of a `Scene`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from neuropil.data.cameras import Cameras
from neuropil.errors import Refused

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".PNG", ".JPG", ".JPEG")
LARGEST = 1e30  # of intrinsics and poses: with more, float32 overflows on the way


@dataclass(frozen=True)
class Frame:
    """One photograph as its layout describes it; sizes and intrinsics are None where only the photograph tells."""

    where: str  # "file: frame", for messages
    file: Path
    name: str
    c2w: np.ndarray
    split: str | None
    size: tuple[float, float] | None = None  # (w, h)
    focal: tuple[float, float] | None = None
    centre: tuple[float, float] | None = None
    angle: float | None = None
    distortion: tuple[float, ...] = (0.0,) * 4
    time: float | None = None
    scaled: bool = False  # `file` is from a folder of copies made as small as was asked for


@dataclass(frozen=True)
class Capture:
    """What a layout's files say: frames, points in the world's unit, near and far ends."""

    frames: list[Frame]
    points: np.ndarray | None = None
    ends: tuple[float, float] | None = None


def find(folder: Path, path: str, downscale: int, where: str) -> tuple[Path, bool]:
    """The photograph that a frame names, perhaps without its suffix, and whether it is a copy from ``images_k`` (preferred)."""
    head, slash, tail = path.removeprefix("./").partition("/")
    if slash and downscale > 1 and (folder / f"{head}_{downscale}" / tail).is_file():
        return folder / f"{head}_{downscale}" / tail, True
    for name in (path, *(path + suffix for suffix in SUFFIXES)):
        if (folder / name).is_file():
            return folder / name, False
    raise Refused(f"capture: {where}: no file {folder / path}")


def check(frame: Frame) -> None:
    """`Refused` unless the pose and the lens are possible."""
    given = {"matrix": frame.c2w, "focal length": frame.focal, "centre": frame.centre, "distortion": frame.distortion}
    for name, values in given.items():
        if values is not None and not (np.abs(values) <= LARGEST).all():
            raise Refused(f"capture: {frame.where}: the {name} is not finite in float32")
    rotation = frame.c2w[:, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        raise Refused(
            f"capture: {frame.where}: the matrix is no rotation (det {np.linalg.det(rotation):.3g}); scale belongs in positions"
        )
    if frame.focal is not None and not min(frame.focal) > 0:
        raise Refused(f"capture: {frame.where}: the focal length must be positive, got {frame.focal[0]:g} and {frame.focal[1]:g}")
    if frame.focal is None and not 0 < (frame.angle or 0) < math.pi:
        raise Refused(f"capture: {frame.where}: camera_angle_x must lie in (0, π), got {frame.angle:g}")
    if frame.size is not None and not min(frame.size) >= 1:
        raise Refused(f"capture: {frame.where}: pictures of {frame.size[0]:g}x{frame.size[1]:g} pixels")


def pictures_of(frames: Sequence[Frame], downscale: int) -> tuple[Tensor, list[tuple[float, float]]]:
    """The pictures (n, h, w, c) as bytes, and for each the size (w, h) that its intrinsics have to be scaled to."""
    pictures, sizes = [], []
    for frame in frames:
        picture = _open(frame)
        h, w = picture.shape[:2]
        if frame.size is not None and abs(w * frame.size[1] - h * frame.size[0]) > max(frame.size):
            raise Refused(f"capture: {frame.where}: {w}x{h} pixels, but its camera takes {frame.size[0]:g}x{frame.size[1]:g}")
        k = 1 if frame.scaled else downscale
        pictures.append(_smaller(picture, k, frame.where))
        sizes.append((w / k, h / k))  # not the smaller picture's: rest rows and columns are cut off, not squeezed
        (h0, w0), (h1, w1) = pictures[0].shape[:2], pictures[-1].shape[:2]
        if (h0, w0) != (h1, w1):
            raise Refused(f"capture: {frame.where}: {w1}x{h1} pixels, but the first photograph has {w0}x{h0}; all need one size")
    channels = max(picture.shape[2] for picture in pictures)
    opaque = [np.concatenate([p, np.full_like(p[..., :1], 255)], -1) if p.shape[2] < channels else p for p in pictures]
    return torch.from_numpy(np.stack(opaque)), sizes


def _open(frame: Frame) -> np.ndarray:
    try:
        with Image.open(frame.file) as image:
            if image.mode.startswith(("I", "F")):
                raise Refused(f"capture: {frame.where}: {frame.file} has {image.mode} pixels; 8 bits a colour are needed")
            return np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    except Refused:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Refused(f"capture: {frame.where}: cannot read {frame.file} ({' '.join(str(error).split())[:120]})") from None


def _smaller(picture: np.ndarray, k: int, where: str) -> np.ndarray:
    """Means of k x k pixels; colours count by their opacity."""
    if k == 1:
        return picture
    h, w, c = (picture.shape[0] // k, picture.shape[1] // k, picture.shape[2])
    if min(h, w) < 1:
        raise Refused(f"capture: {where}: {picture.shape[1]}x{picture.shape[0]} pixels cannot be made {k} times smaller")
    blocks = picture[: h * k, : w * k].reshape(h, k, w, k, c).astype(np.float32)
    if c == 4:
        opacity = blocks[..., 3:].mean((1, 3))
        colour = (blocks[..., :3] * blocks[..., 3:]).mean((1, 3)) / np.maximum(opacity, 1e-6)
        means = np.concatenate([colour, opacity], -1)
    else:
        means = blocks.mean((1, 3))
    return means.round().astype(np.uint8)


def cameras_of(frames: Sequence[Frame], sizes: Sequence[tuple[float, float]], height: int, width: int) -> Cameras:
    """Cameras whose intrinsics are scaled from the size that the layout states, by default the photograph's own, to `sizes`."""
    focal, centre = [], []
    for frame, (w, h) in zip(frames, sizes, strict=True):
        stated_w, stated_h = frame.size or (w, h)
        fx, fy = frame.focal or (stated_w / (2 * math.tan((frame.angle or 0) / 2)),) * 2
        cx, cy = frame.centre or (stated_w / 2, stated_h / 2)
        focal.append((fx * w / stated_w, fy * h / stated_h))
        centre.append((cx * w / stated_w, cy * h / stated_h))
    distortion = torch.tensor([frame.distortion for frame in frames])
    times = [frame.time for frame in frames]
    return Cameras(
        torch.from_numpy(np.stack([frame.c2w for frame in frames]).astype(np.float32)),
        torch.tensor(focal),
        torch.tensor(centre),
        height,
        width,
        distortion if bool(distortion.any()) else None,
        None if None in times else torch.tensor(times, dtype=torch.float32),
    )


def ends_of(cameras: Cameras, points: Tensor | None, transparent: bool) -> tuple[float, float]:
    """Near and far ends by the rule of `neuropil.data.captures`."""
    c2w = cameras.c2w.double()
    position, forward = c2w[..., 3], -c2w[..., 2]
    if points is not None:
        distances = _seen(cameras, points[:: max(1, len(points) // 4096)].double())
        if len(distances):
            low, high = torch.quantile(distances[:: max(1, len(distances) // (1 << 20))], torch.tensor([0.01, 0.99]).double())
            if low > 0:
                return 0.5 * float(low), 2 * float(high)
    # The point nearest to all axes: sum of (I − d dᵀ)(x − o) = 0
    across = torch.eye(3).double() - forward[:, :, None] * forward[:, None]
    normal = across.mean(0)
    if float(torch.linalg.eigvalsh(normal)[0]) > 1e-3:
        focus = torch.linalg.solve(normal, (across @ position[..., None]).mean(0)[:, 0])
        distances = torch.linalg.vector_norm(focus - position, dim=-1)
        if bool((((focus - position) * forward).sum(-1) > 0).all()):
            return 0.5 * float(distances.min()), (1.5 if transparent else 100) * float(distances.max())
    spread = float(torch.linalg.vector_norm(position - position.mean(0), dim=-1).max()) or 1.0
    return 0.01 * spread, 100 * spread


def _seen(cameras: Cameras, points: Tensor) -> Tensor:
    """Distances from each camera of the points inside its picture (without its lens's distortion)."""
    c2w = cameras.c2w.double()
    local = torch.einsum("nij,npi->npj", c2w[..., :3], points - c2w[:, None, :, 3])
    ahead = local[..., 2] < 0
    xy = local[..., :2] / local[..., 2:].abs().clamp_min(1e-12) * torch.tensor([1.0, -1.0])
    uv = xy * cameras.focal[:, None] + cameras.centre[:, None]
    inside = ((uv >= 0) & (uv <= torch.tensor([cameras.width, cameras.height]))).all(-1)
    return torch.linalg.vector_norm(local, dim=-1)[ahead & inside]


def intrinsics_of(cameras: Cameras) -> list[tuple[float, ...]]:
    """(fx, fy, cx, cy, k1, k2, p1, p2) of each camera."""
    distortion = torch.zeros(len(cameras), 4) if cameras.distortion is None else cameras.distortion
    return [tuple(row) for row in torch.cat([cameras.focal, cameras.centre, distortion], 1).tolist()]
