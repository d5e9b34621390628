"""Captures: folders of photographs with camera poses, in the three layouts that the field uses.

``blender``     ``transforms_train.json`` (``_val``, ``_test``) or one ``transforms.json`` with ``camera_angle_x``, the angle of the
                width: fx = fy = w / (2 tan(angle/2)), the axis in the middle
``nerfstudio``  ``transforms.json`` with fl_x, fl_y, cx, cy, w, h, k1, k2, p1, p2, perhaps for each frame, and ``ply_file_path``
``colmap``      ``sparse/0`` with cameras, images and points3D in text or binary (`neuropil.data.colmap`), photographs in ``images``

Both kinds of JSON hold camera-to-world matrices in the axes of `Cameras`; COLMAP's are turned. Poses stay in the world of their
file: an applied_transform has been applied already by whoever wrote it. If photographs are smaller than the file says, focal
lengths and centres follow. Masks and depths are not read.

Near and far ends of the rays: those in the JSON if it has ``near`` and ``far``; else, with points, half the 1 % and twice the 99 %
quantile of their distances from the cameras that have them in the picture; else half the least and 1.5 times the greatest distance
of a camera from the point that all of them look at (2 and 6 for Blender's usual 4), and a hundred times this distance if the
pictures are not transparent. If they look at no common point: a hundredth of, and a hundred times, the cameras' spread.
"""

import contextlib
import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from neuropil.data.cameras import Cameras, flip_yz
from neuropil.data.colmap import Lens, Model, Shot, read_model, write_model
from neuropil.data.frames import Capture, Frame, cameras_of, check, ends_of, find, intrinsics_of, pictures_of
from neuropil.data.scenes import Scene
from neuropil.data.sources import path
from neuropil.data.transforms import SPLITS, read_transforms, table_of, write_transforms
from neuropil.errors import Refused, choose
from neuropil.files import appearing

LAYOUTS = ("blender", "nerfstudio", "colmap")
HOLD = 8  # without a given split, every eighth photograph tests


def read_capture(folder: str | Path, layout: str | None = None, split: str | None = None, downscale: int = 1) -> Scene:
    """The photographs and cameras in `folder`.

    Args:
        layout: ``"blender"``, ``"nerfstudio"`` or ``"colmap"``; by default what the folder looks like.
        split: ``"train"``, ``"val"`` or ``"test"``; None is all. Where the capture says nothing of splits, every eighth photograph
            in the order of names, from the first, is in "test" and "val", the others in "train".
        downscale: k gives photographs k times smaller, each pixel the mean of k x k (colours weighted by their opacity; rest rows
            and columns are cut off), or those of the folder ``images_k`` if there is one. The cameras follow.

    Returns:
        A scene in float32, RGBA if any photograph has an alpha channel.

    `Refused`, in one line with file and frame, for what is missing, broken or of mixed sizes, matrices that are no rotations, and
    lenses that `Cameras` does not have. Memory: 3 or 4 bytes a pixel.
    """
    folder = Path(folder)
    if split is not None:
        choose("split", split, SPLITS)
    if downscale < 1:
        raise Refused(f"downscale: at least 1, got {downscale}")
    if not folder.is_dir():
        raise Refused(f"capture: no folder {folder}")
    layout = _layout(folder) if layout is None else choose("layout", layout, LAYOUTS)
    capture = _read_colmap(folder, downscale) if layout == "colmap" else read_transforms(folder, layout, downscale)
    frames = _of_split(capture.frames, split)
    if not frames:
        raise Refused(f"capture: {folder} has no photographs" + (f" in split {split!r}" if split else ""))
    for frame in frames:
        check(frame)
    pictures, sizes = pictures_of(frames, downscale)
    cameras = cameras_of(frames, sizes, pictures.shape[1], pictures.shape[2])
    points = None if capture.points is None or not len(capture.points) else torch.from_numpy(capture.points.astype(np.float32))
    near, far = capture.ends or ends_of(cameras, points, pictures.shape[-1] == 4)
    return Scene(pictures, cameras, near, far, tuple(frame.name for frame in frames), points)


def motorcycle_capture() -> Scene:
    """A real capture: rectified photographs (2, 500, 741, 3) of a motorcycle, 193 mm apart, with 8,174 true points; in metres.

    The world is the left camera's; the depth of a pixel is ``Z = f b / (d + s)`` with the disparity d, the focal length f, the
    baseline b and the cameras' difference in centre s. Source: Scharstein et al. 2014 (scikit-image 0.26.0).

    >>> motorcycle_capture().pictures.shape
    torch.Size([2, 500, 741, 3])
    """
    folder = path("motorcycle")
    with np.load(folder / "motorcycle_disp.npz", allow_pickle=False) as file:
        disparity = file["arr_0"].astype(np.float64)
    # Middlebury counts pixels' centres from 0 at four times the size, so that ½ of its pixels is ⅛ of ours.
    f, cx, cy, s, b = 994.978, 311.193 + 0.125, 254.877 + 0.125, 31.086, 0.193001
    names = ("motorcycle_left.png", "motorcycle_right.png")
    pictures = np.stack([np.asarray(Image.open(folder / name).convert("RGB")) for name in names])
    c2w = torch.eye(3, 4).repeat(2, 1, 1)
    c2w[1, 0, 3] = b
    cameras = Cameras(c2w, torch.full((2, 2), f), torch.tensor([[cx, cy], [cx + s, cy]]), *pictures.shape[1:3])
    row, column = np.nonzero(np.isfinite(disparity))
    depth = f * b / (disparity[row, column] + s)
    cloud = np.stack([(column + 0.5 - cx) * depth / f, -(row + 0.5 - cy) * depth / f, -depth], -1)
    points = torch.from_numpy(cloud[:: len(cloud) // 8000].astype(np.float32))
    return Scene(torch.from_numpy(pictures), cameras, *ends_of(cameras, points, False), names, points)


def _layout(folder: Path) -> str:
    if any((folder / f"transforms_{split}.json").is_file() for split in SPLITS):
        return "blender"
    if (folder / "transforms.json").is_file():
        table = table_of(folder / "transforms.json")
        first = table["frames"][0] if table["frames"] and isinstance(table["frames"][0], dict) else {}
        return "nerfstudio" if "fl_x" in table or "fl_x" in first else "blender"
    if _sparse(folder):
        return "colmap"
    what = "is empty" if not any(folder.iterdir()) else "has no camera poses"
    raise Refused(f"capture: {folder} {what}; needed: transforms_train.json, transforms.json or sparse/0/cameras.bin (or .txt)")


def _sparse(folder: Path) -> Path | None:
    """Where a folder keeps COLMAP's files."""
    for place in ("sparse/0", "sparse", "colmap/sparse/0", "."):
        if any((folder / place / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            return folder / place
    return None


def _read_colmap(folder: Path, downscale: int) -> Capture:
    sparse = _sparse(folder)
    if sparse is None:
        raise Refused(f"capture: no file {folder / 'sparse/0/cameras.bin'} (or .txt)")
    model = read_model(sparse)
    images = sparse / f"images{'.bin' if (sparse / 'cameras.bin').is_file() else '.txt'}"
    frames = []
    for shot in model.shots:
        where, lens = f"{images}: {shot.name}", model.lenses[shot.lens]
        q, t = np.array(shot.q), np.array(shot.t)
        with np.errstate(over="ignore"):  # cameras are float32
            finite = np.isfinite(np.array([*q, *2 * t], np.float32)).all()  # twice: turned, no coordinate grows by more than √3
        if not finite or not np.linalg.norm(q) > 0:
            raise Refused(f"capture: {where}: the pose is not finite, or its quaternion 0")
        rotation = Rotation.from_quat(q, scalar_first=True).as_matrix().T  # camera to world
        c2w = np.concatenate([rotation, -rotation @ t[:, None]], 1) * [1, -1, -1, 1]
        fx, fy, cx, cy, *distortion = lens.values
        file, scaled = find(folder, f"images/{shot.name}", downscale, where)
        frames.append(
            Frame(
                where=where,
                file=file,
                name=shot.name,
                c2w=c2w,
                split=None,
                size=(float(lens.width), float(lens.height)),
                focal=(fx, fy),
                centre=(cx, cy),
                distortion=tuple(distortion),
                scaled=scaled,
            )
        )
    return Capture(frames, model.points)


def _of_split(frames: list[Frame], split: str | None) -> list[Frame]:
    if split is None:
        return frames
    if any(frame.split for frame in frames):
        return [frame for frame in frames if frame.split == split]
    held = {frame.name for frame in sorted(frames, key=lambda frame: frame.name)[::HOLD]}
    return [frame for frame in frames if (frame.name in held) == (split != "train")]


def write_capture(scene: Scene, folder: str | Path, layout: str, test: int = 0) -> None:
    """The scene as a capture in a new folder, photographs as PNG; `read_capture` gives the same pictures and rays back.

    Args:
        folder: must be empty or not exist; it appears whole or not at all.
        layout: ``"blender"`` (only cameras with one focal length, the axis in the middle and no distortion), ``"nerfstudio"``,
            ``"colmap-text"`` or ``"colmap-binary"``. COLMAP's has no place for times, near and far.
        test: every `test`-th picture, from the first, goes to the split "test"; 0 is none. Not for COLMAP's.

    `Refused` for a folder with something in it, or a scene that the layout cannot hold.
    """
    choose("layout", layout, ("blender", "nerfstudio", "colmap-text", "colmap-binary"))
    if test < 0 or (test and layout.startswith("colmap")):
        raise Refused(f"test: {layout} holds no splits" if test > 0 else f"test: 0 or more, got {test}")
    stems = [Path(name).stem for name in scene.names]
    names = [f"{s}.png" for s in stems] if len(set(stems)) == len(scene) else [f"{i:05d}.png" for i in range(len(scene))]
    with _whole(Path(folder)) as temporary:
        if layout.startswith("colmap"):
            write_model(_model(scene, names), temporary / "sparse/0", binary=layout == "colmap-binary")
        else:
            write_transforms(scene, temporary, layout, names, test)
        (temporary / "images").mkdir()
        for name, picture in zip(names, scene.pictures.cpu().numpy(), strict=True):
            Image.fromarray(picture).save(temporary / "images" / name)


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` if all goes well; of two processes with the same files, either's will do."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"capture: {folder} exists and is not empty; nothing was written")
    try:
        with appearing(folder) as temporary:
            yield temporary
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise Refused(f"capture: {folder} was filled by another process meanwhile; nothing was written") from None
        raise Refused(f"capture: cannot write {folder} ({error.strerror or error}); nothing was written") from None


def _model(scene: Scene, names: Sequence[str]) -> Model:
    cameras = scene.cameras
    c2w = flip_yz(cameras.c2w.double().cpu()).numpy()
    turn = Rotation.from_matrix(c2w[..., :3].swapaxes(1, 2))  # world to camera
    q, t = turn.as_quat(canonical=True, scalar_first=True), -turn.apply(c2w[..., 3])
    rows = intrinsics_of(cameras)
    numbers = {row: i for i, row in enumerate(dict.fromkeys(rows), 1)}
    lenses = {number: Lens(cameras.width, cameras.height, row) for row, number in numbers.items()}
    shots = [
        Shot(name, numbers[row], tuple(qi), tuple(ti))
        for name, row, qi, ti in zip(names, rows, q.tolist(), t.tolist(), strict=True)
    ]
    points = np.zeros((0, 3)) if scene.points is None else scene.points.double().cpu().numpy()
    return Model(lenses, shots, points)
