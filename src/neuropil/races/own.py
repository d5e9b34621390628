"""The user's own files for a race: arrays by name, checked, or one clear `Refused`."""

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from neuropil.errors import Refused

# what numpy and zipfile raise for damaged files; the last two for what is too large, and for what zipfile cannot unpack
BROKEN = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, tokenize.TokenError, MemoryError, RuntimeError)


def arrays(source: str, wanted: dict[str, int], optional: dict[str, int] | None = None) -> dict[str, Tensor]:
    """The named arrays of an ``.npz``, each of so many axes (0: any number), all finite.

    Floats come as float32, integers and booleans as int64. An ``.npy`` stands for the only wanted array; others in the file are
    not read. `Refused` for another kind of file, a damaged one, a missing array, wrong axes, an empty array, or numbers that are
    not finite as float32.
    """
    path = Path(source)
    if path.suffix not in (".npy", ".npz") or not path.is_file():
        raise Refused(f"data: an .npz file with {_listed(wanted)} is needed, got {source}")
    axes = wanted | (optional or {})
    try:
        named, there = _read(path, list(axes))
    except BROKEN as error:
        raise Refused(f"data: cannot read {source} ({' '.join(str(error).split())[:160] or type(error).__name__})") from None
    missing = wanted.keys() - named.keys()
    if missing:
        got = " ".join(", ".join(there).split()) or "nothing"
        raise Refused(f"data: {source} has no array {', '.join(sorted(missing))} ({_listed(wanted)} are needed, got {got})")
    return {name: _checked(source, name, value, axes[name]) for name, value in named.items()}


def _read(path: Path, names: list[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those of the named arrays that are in a file, and the names of all that are."""
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {names[0]: loaded}, names[:1]
        return {name: loaded[name] for name in names if name in loaded.files}, list(loaded.files)


def _checked(source: str, name: str, value: np.ndarray, axes: int) -> Tensor:
    if value.dtype.kind not in "fiub":
        raise Refused(f"data: {name} of {source} must hold numbers, got {value.dtype}")
    if (axes and value.ndim != axes) or not value.size:
        raise Refused(f"data: {name} of {source} must have {axes or 'some'} axes and not be empty, got shape {value.shape}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf
        value = value.astype(np.float32 if value.dtype.kind == "f" else np.int64)
    if not np.isfinite(value).all():
        raise Refused(f"data: {name} of {source} must be finite as {value.dtype}")
    return torch.from_numpy(value)


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
