"""COLMAP's sparse models, text and binary: cameras, images and points3D of https://colmap.github.io/format.html.

An image's pose is world to camera, ``x_cam = R(q) x + t`` with q = (w, x, y, z), in OpenCV's axes (y down, z forward); the centre
of the first pixel is (½, ½), as in `Cameras`. Lenses: ``SIMPLE_PINHOLE``, ``PINHOLE``, ``SIMPLE_RADIAL``, ``RADIAL`` and
``OPENCV``. Points that images have in common, colours and errors are skipped on reading, and empty or neutral on writing.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuropil.errors import Refused

# Number in binary files, and where fx, fy, cx, cy, k1, k2, p1, p2 stand among the parameters; None is 0.
MODELS: dict[str, tuple[int, tuple[int | None, ...]]] = {
    "SIMPLE_PINHOLE": (0, (0, 0, 1, 2, None, None, None, None)),
    "PINHOLE": (1, (0, 1, 2, 3, None, None, None, None)),
    "SIMPLE_RADIAL": (2, (0, 0, 1, 2, 3, None, None, None)),
    "RADIAL": (3, (0, 0, 1, 2, 3, 4, None, None)),
    "OPENCV": (4, (0, 1, 2, 3, 4, 5, 6, 7)),
}


@dataclass(frozen=True)
class Lens:
    """A camera: its pictures' size in pixels and (fx, fy, cx, cy, k1, k2, p1, p2)."""

    width: int
    height: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class Shot:
    """An image: its name, its camera's number, q = (w, x, y, z) and t."""

    name: str
    lens: int
    q: tuple[float, ...]
    t: tuple[float, ...]


@dataclass(frozen=True)
class Model:
    """A sparse model: lenses by number, shots in the order of their numbers, points (p, 3) float64."""

    lenses: dict[int, Lens]
    shots: list[Shot]
    points: np.ndarray


def read_model(folder: Path) -> Model:
    """The model in `folder`, from ``.bin`` files if there are any, else ``.txt``; a missing or broken file is `Refused`."""
    suffix = ".bin" if (folder / "cameras.bin").is_file() else ".txt"
    parts: list[Any] = []
    for name in ("cameras", "images", "points3D"):
        file = folder / f"{name}{suffix}"
        if not file.is_file():
            if name != "points3D":
                raise Refused(f"capture: no file {file}")
            parts.append(np.zeros((0, 3)))
            continue
        read: Callable[[Path], Any] = globals()[f"_{name}_{suffix[1:]}"]
        try:
            parts.append(read(file))
        except Refused:
            raise
        except (struct.error, ValueError, IndexError, OverflowError) as error:
            raise Refused(f"capture: {file} is truncated or no COLMAP file ({' '.join(str(error).split())[:120]})") from None
    lenses, shots, points = parts
    for shot in shots:
        if shot.lens not in lenses:
            raise Refused(f"capture: {folder / f'images{suffix}'}: {shot.name} has camera {shot.lens}, which does not exist")
    return Model(lenses, shots, points)


def _lens(file: Path, model: str, width: int, height: int, parameters: tuple[float, ...]) -> Lens:
    places = MODELS[model][1]
    wanted = 1 + max(place for place in places if place is not None)
    if len(parameters) != wanted:
        raise Refused(f"capture: {file}: a {model} camera has {wanted} parameters, got {len(parameters)}")
    return Lens(width, height, tuple(0.0 if place is None else parameters[place] for place in places))


def _unknown(file: Path, model: object) -> Refused:
    return Refused(f"capture: {file}: unknown camera model {model} (allowed: {', '.join(MODELS)}); undistort the pictures first")


class _Bytes:
    """A file of little-endian numbers, read from the front."""

    def __init__(self, file: Path) -> None:
        self.data, self.at = file.read_bytes(), 0

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def word(self) -> str:
        end = self.data.index(b"\0", self.at)
        start, self.at = self.at, end + 1
        return self.data[start:end].decode()

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise ValueError("it ends too early")

    def each(self) -> Iterator[int]:
        """Counts through the records that the file says it has; nothing may follow the last."""
        yield from range(self.take("Q")[0])
        if self.at != len(self.data):
            raise ValueError(f"{len(self.data) - self.at} bytes too many")


def _cameras_bin(file: Path) -> dict[int, Lens]:
    lenses, data = {}, _Bytes(file)
    names = {number: name for name, (number, _) in MODELS.items()}
    for _ in data.each():
        key, model, width, height = data.take("iiQQ")
        if model not in names:
            raise _unknown(file, model)
        count = 1 + max(place for place in MODELS[names[model]][1] if place is not None)
        lenses[key] = _lens(file, names[model], width, height, data.take(f"{count}d"))
    return lenses


def _images_bin(file: Path) -> list[Shot]:
    shots, data = {}, _Bytes(file)
    for _ in data.each():
        key, *pose, lens = data.take("I7dI")
        name = data.word()
        data.skip(24 * data.take("Q")[0])
        shots[key] = Shot(name, lens, tuple(pose[:4]), tuple(pose[4:]))
    return [shots[key] for key in sorted(shots)]


def _points3D_bin(file: Path) -> np.ndarray:
    points, data = [], _Bytes(file)
    for _ in data.each():
        points.append(data.take("Q3d3Bd")[1:4])
        data.skip(8 * data.take("Q")[0])
    return np.array(points, dtype=np.float64).reshape(-1, 3)


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").split("\n") if not line.startswith("#")]


def _cameras_txt(file: Path) -> dict[int, Lens]:
    lenses = {}
    for key, model, width, height, *parameters in map(str.split, filter(str.strip, _lines(file))):
        if model not in MODELS:
            raise _unknown(file, model)
        lenses[int(key)] = _lens(file, model, int(width), int(height), tuple(map(float, parameters)))
    return lenses


def _images_txt(file: Path) -> list[Shot]:
    shots = {}
    for line in "\n".join(_lines(file)).strip("\n").split("\n")[::2]:  # every second line, perhaps empty, has the image's points
        if not line.strip():
            raise ValueError("an empty line where an image should stand")
        key, *pose, lens, name = line.split(maxsplit=9)
        numbers = tuple(map(float, pose))
        shots[int(key)] = Shot(name.strip(), int(lens), numbers[:4], numbers[4:])
    return [shots[key] for key in sorted(shots)]


def _points3D_txt(file: Path) -> np.ndarray:
    rows = [tuple(map(float, line.split()[1:4])) for line in _lines(file) if line.strip()]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def write_model(model: Model, folder: Path, binary: bool) -> None:
    """The three files of a model, numbers to the last bit; lenses are ``PINHOLE`` or, if they distort, ``OPENCV``."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {key: "OPENCV" if any(lens.values[4:]) else "PINHOLE" for key, lens in model.lenses.items()}
    values = {key: lens.values[: 8 if kinds[key] == "OPENCV" else 4] for key, lens in model.lenses.items()}
    shots = list(enumerate(model.shots, 1))
    points = list(enumerate(model.points.tolist(), 1))
    if binary:
        count = struct.Struct("<Q").pack
        cameras = b"".join(
            struct.pack(f"<iiQQ{len(values[key])}d", key, MODELS[kinds[key]][0], lens.width, lens.height, *values[key])
            for key, lens in model.lenses.items()
        )
        images = b"".join(
            struct.pack("<I7dI", key, *shot.q, *shot.t, shot.lens) + shot.name.encode() + b"\0" + count(0) for key, shot in shots
        )
        cloud = b"".join(struct.pack("<Q3d3BdQ", key, *xyz, 128, 128, 128, 0.0, 0) for key, xyz in points)
        for name, total, content in (
            ("cameras", len(values), cameras),
            ("images", len(shots), images),
            ("points3D", len(points), cloud),
        ):
            (folder / f"{name}.bin").write_bytes(count(total) + content)
        return
    rows = {
        "cameras": [(key, kinds[key], lens.width, lens.height, *values[key]) for key, lens in model.lenses.items()],
        "images": [(key, *shot.q, *shot.t, shot.lens, f"{shot.name}\n") for key, shot in shots],
        "points3D": [(key, *xyz, 128, 128, 128, 0.0) for key, xyz in points],
    }
    heads = {
        "cameras": "# CAMERA_ID MODEL WIDTH HEIGHT PARAMS",
        "images": "# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line of X Y POINT3D_ID",
        "points3D": "# POINT3D_ID X Y Z R G B ERROR TRACK",
    }
    for name, table in rows.items():
        lines = [heads[name], *(" ".join(map(str, row)) for row in table)]  # str(float) loses no bit
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
