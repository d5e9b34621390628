"""Images of the brain: NIfTI volumes, left on the disk, and GIFTI surfaces, through nibabel (Brett et al.)."""

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from neuropil.data.recordings import Surface, Volume
from neuropil.errors import Refused, optional

_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}  # many tools write s and do not say so
_MILLIMETRES = {"meter": 1e3, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}


def read_nifti(file: str | Path) -> Volume:
    """A NIfTI image of 3 or 4 axes (.nii, .nii.gz), samples left on the disk; numbers as scaled by the header, float32.

    Uncompressed files are memory-mapped; a .nii.gz is unpacked anew up to the block that is asked for, so read it in large blocks.
    `tr` is None where the header has 0. `Refused` if the file is missing, is no NIfTI, is cut short, has no or more than 4 axes, or
    has an affine or voxel size that cannot be.
    """
    file = Path(file)
    nibabel = optional("nibabel", "brain")
    if not file.name.lower().endswith((".nii", ".nii.gz")):
        raise Refused(f"volume: {file} does not end in .nii or .nii.gz")
    if not file.is_file():
        raise Refused(f"volume: no file {file}")
    with _clear(file):
        image = nibabel.load(file)
        shape, affine, header = image.shape, image.affine, image.header
        zooms, (space, time) = header.get_zooms(), header.get_xyzt_units()
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise Refused(f"volume: {file}: field dim must give 3 or 4 axes, none empty, got {shape}")
    if affine is None or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise Refused(f"volume: {file}: field affine (sform or qform) has no inverse or is not finite")
    if not all(math.isfinite(z) and z > 0 for z in zooms[:3]):
        raise Refused(f"volume: {file}: field pixdim must be above 0, got {tuple(float(z) for z in zooms[:3])}")
    kind, proxy = header.get_data_dtype(), image.dataobj
    if kind.kind not in "iuf":
        raise Refused(f"volume: {file}: field datatype must be of real numbers, got {kind}")
    expected = proxy.offset + math.prod(shape) * kind.itemsize
    if file.suffix.lower() == ".nii" and file.stat().st_size < expected:  # a packed file shows its end only when it is read
        raise Refused(f"volume: {file} is truncated: {file.stat().st_size} bytes, {expected} expected for its field dim")
    times = shape[3] if len(shape) == 4 else 1
    tr = float(zooms[3]) * _SECONDS.get(time, 0.0) if len(shape) == 4 else 0.0

    def fetch(start: int, stop: int) -> Tensor:
        with _clear(file):
            block = np.asarray(proxy[..., start:stop] if len(shape) == 4 else proxy, np.float32)
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(block.reshape(*shape[:3], -1), -1, 0)))

    mm = _MILLIMETRES[space]
    return Volume(
        str(file),
        tuple(shape[:3]),
        times,
        torch.from_numpy(np.asarray(affine, np.float64)),
        (float(zooms[0]) * mm, float(zooms[1]) * mm, float(zooms[2]) * mm),
        tr if math.isfinite(tr) and tr > 0 else None,
        fetch,
    )


def read_mask(file: str | Path, like: Volume | None = None) -> Bool[Tensor, "x y z"]:
    """The voxels of a still NIfTI image that are above 0; `like`: the volume it must lie on, voxel by voxel."""
    image = read_nifti(file)
    if image.times != 1:
        raise Refused(f"mask: {file} must be one image, got {image.times}")
    if like is not None and image.shape != like.shape:
        raise Refused(f"mask: {file} has {image.shape} voxels, but {like.name} has {like.shape}")
    if like is not None and not torch.allclose(image.affine, like.affine, atol=1e-3):
        raise Refused(f"mask: the affine of {file} is not that of {like.name}: resample it first")
    return image.read()[0] > 0


def read_gifti(file: str | Path) -> Surface:
    """A GIFTI file (.gii): a mesh (vertices in mm, faces), numbers on one (functional, shape, labels: one column each), or both.

    `Refused` if the file is missing or unreadable, has neither, has faces without corners, or columns of different lengths.
    """
    file = Path(file)
    nibabel = optional("nibabel", "brain")
    if file.suffix.lower() != ".gii":
        raise Refused(f"surface: {file} does not end in .gii")
    if not file.is_file():
        raise Refused(f"surface: no file {file}")
    with _clear(file, "surface"):
        arrays = nibabel.load(file).darrays
        codes = nibabel.nifti1.intent_codes
        found = [(codes.label[array.intent], np.asarray(array.data)) for array in arrays]
    points = [data for intent, data in found if intent == "pointset"]
    triangles = [data for intent, data in found if intent == "triangle"]
    columns = [data.reshape(len(data), -1) for intent, data in found if intent not in ("pointset", "triangle")]
    if max(len(points), len(triangles)) > 1 or not found:
        raise Refused(f"surface: {file} must have one mesh or numbers on one, got {len(points)} meshes and {len(found)} arrays")
    lengths = {len(data) for data in (*points, *columns)}
    if len(lengths) > 1:
        raise Refused(f"surface: {file}: arrays are of {sorted(lengths)} vertices, must be of one number")
    if triangles and points and not 0 <= triangles[0].min() <= triangles[0].max() < len(points[0]):
        raise Refused(f"surface: {file} has faces with corners that do not exist ({len(points[0])} vertices)")
    return Surface(
        str(file),
        torch.from_numpy(points[0].astype(np.float32)) if points else None,
        torch.from_numpy(triangles[0].astype(np.int64)) if triangles else None,
        torch.from_numpy(np.concatenate(columns, axis=1).astype(np.float32)) if columns else None,
    )


@contextlib.contextmanager
def _clear(file: Path, what: str = "volume") -> Iterator[None]:
    """nibabel's errors in one line with the file's name, and nothing on its log."""
    log = logging.getLogger("nibabel.global")
    disabled, log.disabled = log.disabled, True
    try:
        yield
    except Exception as error:  # each format fails in its own way
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise Refused(f"{what}: cannot read {file} ({words})") from None
    finally:
        log.disabled = disabled
