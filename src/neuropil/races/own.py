"""The user's own files for a race: arrays by name, checked, or one clear `Refused`."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from neuropil.errors import Refused


def arrays(source: str, wanted: dict[str, int], optional: dict[str, int] | None = None) -> dict[str, Tensor]:
    """The named arrays of an ``.npz``, each of so many axes (0: any number); floats as float32, integers as int64, all finite.

    An ``.npy`` stands for the only wanted array. `Refused` for another kind of file, a missing array, wrong axes, an empty array,
    or numbers that are not finite.
    """
    path = Path(source)
    if path.suffix not in (".npy", ".npz") or not path.is_file():
        raise Refused(f"data: an .npz file with {_listed(wanted)} is needed, got {source}")
    try:
        loaded = np.load(path, allow_pickle=False)
        named = dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {next(iter(wanted)): loaded}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise Refused(f"data: cannot read {source} ({' '.join(str(error).split())[:160]})") from None
    missing = wanted.keys() - named.keys()
    if missing:
        raise Refused(f"data: {source} has no array {', '.join(sorted(missing))} ({_listed(wanted)} are needed, got {_got(named)})")
    return {
        name: _checked(source, name, named[name], axes)
        for name, axes in (wanted | (optional or {})).items()
        if name in named  # optional ones may be absent
    }


def _checked(source: str, name: str, value: np.ndarray, axes: int) -> Tensor:
    if value.dtype.kind not in "fiub":
        raise Refused(f"data: {name} of {source} must hold numbers, got {value.dtype}")
    if (axes and value.ndim != axes) or not value.size:
        raise Refused(f"data: {name} of {source} must have {axes or 'some'} axes and not be empty, got shape {value.shape}")
    if not np.isfinite(value).all():
        raise Refused(f"data: {name} of {source} must be finite")
    if value.dtype.kind == "b":
        return torch.from_numpy(value.copy())
    return torch.from_numpy(value.astype(np.float32 if value.dtype.kind == "f" else np.int64))


def rows(source: str, *tensors: Tensor, least: int) -> int:
    """The common length of tensors, at least `least`; else `Refused`."""
    sizes = {len(x) for x in tensors}
    if len(sizes) > 1 or min(sizes) < least:
        raise Refused(f"data: {source} needs arrays of one length of at least {least}, got {', '.join(map(str, sorted(sizes)))}")
    return sizes.pop()


def fifths(n: int) -> list[int]:
    """How many of n examples train, choose and test: three fifths or a few more, a fifth, a fifth.

    >>> fifths(12)
    [8, 2, 2]
    """
    return [n - 2 * (n // 5), n // 5, n // 5]


def _listed(wanted: dict[str, int]) -> str:
    return ", ".join(f"{name} ({axes} axes)" if axes else name for name, axes in wanted.items())


def _got(named: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {value.shape}" for name, value in named.items()) or "nothing"
