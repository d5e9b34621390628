"""Poses in JSON: the layouts "blender" and "nerfstudio" of `neuropil.data.captures`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuropil.data.frames import Capture, Frame, find, intrinsics_of
from neuropil.data.scenes import Scene
from neuropil.errors import Refused, optional
from neuropil.files import read_json, write_json

SPLITS = ("train", "val", "test")
_LENS = ("k1", "k2", "p1", "p2")


def table_of(file: Path) -> dict[str, Any]:
    """The JSON of a file that has a list of frames; `Refused` if it is broken or has none."""
    table = read_json(file, "capture")
    if not isinstance(table, dict) or not isinstance(table.get("frames"), list):
        raise Refused(f'capture: {file} has no list "frames"')
    return table


def read_transforms(folder: Path, layout: str, downscale: int) -> Capture:
    """The frames of ``transforms_train.json`` and its like (layout "blender"), or of ``transforms.json``."""
    files = [folder / f"transforms_{split}.json" for split in SPLITS] if layout == "blender" else []
    files = [file for file in files if file.is_file()] or [folder / "transforms.json"]
    tables = [(file, table_of(file)) for file in files]
    frames = [
        _json_frame(folder, file, table, i, frame, downscale) for file, table in tables for i, frame in enumerate(table["frames"])
    ]
    first_file, first = tables[0]
    given = [_number(first, key, f"{first_file}") for key in ("near", "far")]
    ends = None if given[0] is None or given[1] is None else (given[0], given[1])
    return Capture(frames, _ply(folder, first), ends)


def _json_frame(folder: Path, file: Path, table: dict[str, Any], index: int, frame: Any, downscale: int) -> Frame:
    where = f"{file}: frame {index}"
    if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
        raise Refused(f'capture: {where} has no "file_path"')
    path, both = frame["file_path"], table | frame
    where = f"{where} ({path})"
    if "transform_matrix" not in frame:
        raise Refused(f'capture: {where} has no "transform_matrix"')
    try:
        matrix = np.array(frame["transform_matrix"], dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape not in ((3, 4), (4, 4)):
        raise Refused(f"capture: {where}: transform_matrix must be 4x4 or 3x4 numbers")
    model = both.get("camera_model", "OPENCV")
    if model not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"):
        raise Refused(f"capture: {where}: unknown camera model {model} (allowed: OPENCV, PINHOLE); undistort the photographs first")
    w, h, fx, fy, cx, cy, angle, time = (
        _number(both, key, where) for key in ("w", "h", "fl_x", "fl_y", "cx", "cy", "camera_angle_x", "time")
    )
    for key in ("k3", "k4"):
        if _number(both, key, where):
            raise Refused(f"capture: {where}: {key} is not 0; only k1, k2, p1 and p2 are known: undistort the photographs first")
    picture, scaled = find(folder, path, downscale, where)
    if fx is None and angle is None:
        raise Refused(f'capture: {where} has neither "fl_x" nor "camera_angle_x"')
    return Frame(
        where=where,
        file=picture,
        name=path.removeprefix("./") + ("" if path.endswith(picture.suffix) else picture.suffix),
        c2w=matrix[:3],
        split=_split_of(file, table, path),
        size=None if w is None or h is None else (w, h),
        focal=None if fx is None else (fx, fx if fy is None else fy),
        centre=None if cx is None or cy is None else (cx, cy),
        angle=angle,
        distortion=tuple(_number(both, key, where) or 0.0 for key in _LENS),
        time=time,
        scaled=scaled,
    )


def _number(table: dict[str, Any], key: str, where: str) -> float | None:
    value = table.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Refused(f"capture: {where}: {key} must be a number, got {str(value)[:40]!r}")
    return float(value)


def _split_of(file: Path, table: dict[str, Any], path: str) -> str | None:
    """The split by the file's name (Blender), or by the lists of names that nerfstudio allows."""
    if (named := file.stem.removeprefix("transforms_")) in SPLITS:
        return named
    return next((split for split in SPLITS if path in (table.get(f"{split}_filenames") or ())), None)


def _ply(folder: Path, table: dict[str, Any]) -> np.ndarray | None:
    if not (name := table.get("ply_file_path")):
        return None
    file = folder / str(name)
    if not file.is_file():
        raise Refused(f"capture: no file {file} (the points that transforms.json names)")
    trimesh = optional("trimesh", "fields")
    try:
        return np.asarray(trimesh.load(file, process=False).vertices, dtype=np.float64)
    except Exception as error:  # the reader of PLY files fails in many ways
        raise Refused(f"capture: cannot read {file} ({' '.join(str(error).split())[:120]})") from None


def write_transforms(scene: Scene, folder: Path, layout: str, names: Sequence[str], test: int) -> None:
    """The poses of a scene; frames have the photographs `names` in ``images``, and every `test`-th is in the split "test"."""
    cameras = scene.cameras
    frames: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        matrix = [*cameras.c2w[i].tolist(), [0.0, 0.0, 0.0, 1.0]]
        frames.append(
            {"file_path": f"./images/{Path(name).stem}" if layout == "blender" else f"images/{name}", "transform_matrix": matrix}
        )
        if cameras.times is not None:
            frames[-1]["time"] = float(cameras.times[i])
    ends = {"near": scene.near, "far": scene.far}
    held = [bool(test) and i % test == 0 for i in range(len(names))]
    if layout == "blender":
        half = cameras.width / 2
        middle = torch.tensor([half, cameras.height / 2]).to(cameras.centre)
        plain = cameras.distortion is None and torch.equal(cameras.centre, middle.expand_as(cameras.centre))
        if not plain or len(cameras.focal.unique()) != 1:
            raise Refused("layout: blender holds one focal length, an axis in the middle and no distortion; use nerfstudio")
        angle = {"camera_angle_x": 2 * math.atan(half / float(cameras.focal[0, 0]))}
        for split, wanted in (("train", False), ("test", True)):
            some = [frame for frame, is_test in zip(frames, held, strict=True) if is_test == wanted]
            if some:
                write_json(folder / f"transforms_{split}.json", angle | ends | {"frames": some})
        return
    rows = intrinsics_of(cameras)
    keys = ("fl_x", "fl_y", "cx", "cy", *_LENS)
    common = len(set(rows)) == 1
    for frame, row in zip(frames, rows, strict=True):
        frame |= {} if common else dict(zip(keys, row, strict=True))
    table: dict[str, Any] = {"camera_model": "OPENCV", "w": cameras.width, "h": cameras.height, **ends}
    table |= dict(zip(keys, rows[0], strict=True)) if common else {}
    if test:
        for split, wanted in (("train", False), ("test", True)):
            table[f"{split}_filenames"] = [f["file_path"] for f, is_test in zip(frames, held, strict=True) if is_test == wanted]
    if scene.points is not None:
        trimesh = optional("trimesh", "fields")
        (folder / "points.ply").write_bytes(trimesh.PointCloud(scene.points.cpu().numpy()).export(file_type="ply"))
        table["ply_file_path"] = "points.ply"
    write_json(folder / "transforms.json", table | {"frames": frames})
