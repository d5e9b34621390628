"""Readers of the user's own files: idx files (MNIST's format) and folders of images, one sub-folder per class."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from neuropil.data.containers import Images
from neuropil.data.loaders import picture
from neuropil.errors import Refused

# The third byte of the magic number, by LeCun's description of the format; values are big-endian.
_IDX = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


def idx(file: str | Path) -> Shaped[Tensor, "..."]:
    """The array of an idx file, gzipped or not, with its own shape and type (uint8 images: (n, 28, 28) for MNIST).

    `Refused` if there is no such file, or it is not idx, or it is truncated or too long.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "labels.idx"
    ...     _ = file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     idx(file).tolist()
    [7, 2, 1]
    """
    file = Path(file)
    try:
        content = file.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(f"idx: cannot read {file} ({error})") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX or not content[3]:
        raise Refused(f"idx: {file} is not an idx file (it starts with {content[:4].hex() or 'nothing'})")
    kind, start = np.dtype(_IDX[content[2]]), 4 + 4 * content[3]
    if len(content) < start:
        raise Refused(f"idx: {file} is truncated in its header ({len(content)} bytes of {start})")
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").tolist())
    expected = start + math.prod(shape) * kind.itemsize
    if len(content) != expected:
        fault = "is truncated" if len(content) < expected else "has bytes left over"
        raise Refused(f"idx: {file} {fault}: {len(content)} bytes, {expected} expected for shape {shape}")
    return torch.from_numpy(np.frombuffer(content[start:], dtype=kind).reshape(shape).astype(kind.newbyteorder("=")))


def image_folder(folder: str | Path, size: tuple[int, int] | None = None) -> Images:
    """The images below `folder`, labelled by sub-folder: 0, 1, ... in the order of the sub-folders' names.

    Args:
        folder: ``folder/<class>/<image>``; all grey gives (n, h, w), any colour gives (n, h, w, 3), in [0, 1].
        size: (height, width) to resize to; None keeps the images as they are, which must then be of one size.

    `Refused` if there is no image, one cannot be read, or sizes differ and no `size` is given.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise Refused(f"image folder: no folder {folder}")
    if size is not None and min(size) < 1:
        raise Refused(f"size: {size} must be (height, width) of at least 1")
    classes = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    pictures, labels, first = [], [], None
    for label, child in enumerate(classes):
        for file in sorted(f for f in child.iterdir() if f.suffix.lower() in _SUFFIXES and not f.name.startswith(".")):
            pixels = picture(file) if size is None else _resized(picture(file), size)
            first = first or (file, pixels.shape[:2])
            if pixels.shape[:2] != first[1]:
                raise Refused(
                    f"image folder: {file} is {_by(pixels.shape)} but {first[0]} is {_by(first[1])}; give a size=(height, width)"
                )
            pictures.append(pixels)
            labels.append(label)
    if not pictures:
        raise Refused(f"image folder: no images in sub-folders of {folder} ({', '.join(sorted(_SUFFIXES))})")
    if any(pixels.ndim == 3 for pixels in pictures):
        pictures = [p if p.ndim == 3 else p[..., None].expand(*p.shape, 3) for p in pictures]
    return Images(torch.stack(pictures), torch.tensor(labels))


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (h, w) or (h, w, 3) with Pillow's antialiased bilinear filter, one float channel at a time."""
    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width = size
    planes = [
        np.array(Image.fromarray(plane.contiguous().numpy()).resize((width, height), Image.Resampling.BILINEAR))
        for plane in channels.unbind(-1)
    ]
    resized = torch.from_numpy(np.stack(planes, axis=-1))
    return resized[..., 0] if pixels.ndim == 2 else resized


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
