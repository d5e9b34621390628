"""Spikes from files: the Units table of an NWB file (Rübel et al. 2022), and the tensors of the Neural Latents Benchmark.

The benchmark's HDF5 files (Pei et al. 2021, arXiv:2109.04463; written by nlb_tools) hold counts (trials, bins, neurons) under keys
``train_spikes_heldin``, ``train_spikes_heldout``, ``eval_spikes_heldin`` … with ``_forward`` after those of the time to predict.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from neuropil.data.recordings import Events, Spikes
from neuropil.errors import Refused, choose, optional

BROKEN = (OSError, KeyError, RuntimeError, TypeError, ValueError)  # what h5py raises for a damaged file, by the place of the damage
HDF5 = b"\x89HDF\r\n\x1a\n"


def read_nwb_units(file: str | Path, label: str | None = None) -> Spikes:
    """Spike times of all units of an NWB file, and its trials: onset ``start_time``, duration to ``stop_time``.

    `label`: the trials' column that names them; None: all are named ``trial``. Columns with one value a trial are kept as words.
    Times are read whole (8 bytes a spike); signals and images beside them stay on the disk. `Refused` if the file is missing or
    broken, has no Units with spike times, or a time is not finite.
    """
    file = Path(file)
    with _opened(file) as nwb:
        units = nwb.units
        if units is None or "spike_times" not in units.colnames:
            there = ", ".join([*nwb.acquisition, *nwb.processing]) or "nothing else"
            raise Refused(f"spikes: {file} has no Units table with spike_times (there are {there})")
        index = units["spike_times"]
        times = np.asarray(index.target.data[:], np.float64).reshape(-1)
        ends = np.asarray(index.data[:], np.int64)
        names = tuple(str(i) for i in units.id[:])
        trials = None if nwb.trials is None else _trials(nwb.trials, label, file)
    if label is not None and trials is None:
        raise Refused(f"label: {file} has no trials table with a column {label!r}")
    unit = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    if len(unit) != len(times):
        raise Refused(f"spikes: {file}: field spike_times_index ends at {len(unit)}, but there are {len(times)} spike times")
    if not np.isfinite(times).all():
        bad = np.flatnonzero(~np.isfinite(times))
        raise Refused(f"spikes: {file}: {len(bad)} spike times are not finite (the first: of unit {names[unit[bad[0]]]})")
    order = np.lexsort((times, unit))  # by unit, then time: files need not keep to it
    pointers = torch.from_numpy(np.concatenate([[0], ends]))
    return Spikes(str(file), torch.from_numpy(times[order]), pointers, names, trials)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The NWB file, open for reading; whatever pynwb says of a broken one as `Refused`."""
    pynwb = optional("pynwb", "brain")
    check_hdf5(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on versions of extensions
        try:
            with pynwb.NWBHDF5IO(str(file), "r") as handle:
                yield handle.read()
        except Refused:
            raise
        except Exception as error:  # not NWB, or cut short
            words = " ".join(str(error).split())[:200] or type(error).__name__
            raise Refused(f"spikes: cannot read {file} as NWB ({words})") from None


def check_hdf5(file: Path) -> None:
    """`Refused` if there is no such file or it does not begin as HDF5 does."""
    if not file.is_file():
        raise Refused(f"spikes: no file {file}")
    with open(file, "rb") as handle:
        head = handle.read(8)
    if head != HDF5:
        raise Refused(f"spikes: {file} is not an HDF5 file (it starts with {head.hex() or 'nothing'})")


def _trials(table: Any, label: str | None, file: Path) -> Events:
    columns = {}
    for name in table.colnames:
        column = table[name]
        values = np.asarray(column[:]) if getattr(column, "ndim", 1) == 1 else None
        if values is not None and values.ndim == 1 and len(values) == len(table):
            columns[name] = values
    for name in ("start_time", "stop_time"):
        bad = np.flatnonzero(~np.isfinite(columns[name].astype(np.float64)))
        if len(bad):
            raise Refused(f"spikes: {file}: {name} of {len(bad)} trials is not finite (the first: row {bad[0] + 1})")
    start, stop = (torch.from_numpy(columns.pop(name).astype(np.float64)) for name in ("start_time", "stop_time"))
    words = {name: tuple(map(str, values.tolist())) for name, values in columns.items()}
    if label is not None:
        choose("label", label, words)
    return Events(start, stop - start, words[label] if label else ("trial",) * len(start), words)


@dataclass(frozen=True)
class LatentsBenchmark:
    """Spike counts of a Neural Latents Benchmark file, left on the disk: `shapes` (trials, bins, neurons) of each key."""

    name: str
    shapes: dict[str, tuple[int, ...]]

    def read(self, key: str, start: int = 0, stop: int | None = None, padding: int | None = None) -> Int[Tensor, "trials t n"]:
        """Counts of trials start … stop − 1 (default: to the end), int32; only these are read.

        Some files pad short trials with NaN: these become `padding` (say −1), or with None are `Refused`. A count below 0 or not
        whole is refused in any case.
        """
        choose("key", key, self.shapes)
        trials = self.shapes[key][0]
        stop = trials if stop is None else stop
        if not 0 <= start < stop <= trials:
            raise Refused(f"{self.name}: trials {start} to {stop} are not in {key} of {trials}")
        h5py = optional("h5py", "brain")
        try:
            with h5py.File(self.name, "r") as file:
                values = np.asarray(file[key][start:stop], np.float64)
        except BROKEN as error:
            raise Refused(f"spikes: cannot read {key} of {self.name} ({' '.join(str(error).split())[:160]})") from None
        missing = np.isnan(values)
        if missing.any() and padding is None:
            bad = np.flatnonzero(missing.any((1, 2)))
            raise Refused(
                f"{self.name}: {key}: {len(bad)} of {len(values)} trials have NaN (the first: {start + bad[0]}); "
                "padding=-1 keeps them, if they are padded"
            )
        wrong = ~missing & ((values < 0) | (values != np.round(values)))
        if wrong.any():
            raise Refused(f"{self.name}: {key}: trial {start + np.argwhere(wrong)[0][0]} has a count of {values[wrong][0]:g}")
        return torch.from_numpy(np.where(missing, 0 if padding is None else padding, values).astype(np.int32))

    def batches(self, key: str, size: int, padding: int | None = None) -> Iterator[Int[Tensor, "trials t n"]]:
        """All trials of `key`, `size` at a time."""
        if size < 1:
            raise Refused(f"size: at least 1 trial, got {size}")
        for start in range(0, self.shapes[choose("key", key, self.shapes)][0], size):
            yield self.read(key, start, min(start + size, self.shapes[key][0]), padding)


def read_latents_benchmark(file: str | Path) -> LatentsBenchmark:
    """What a Neural Latents Benchmark HDF5 file has; counts are read when asked for.

    `Refused` if the file is missing or broken, has no key with ``_spikes_``, one is not (trials, bins, neurons), or held-in and
    held-out neurons disagree in trials or bins.
    """
    file = Path(file)
    h5py = optional("h5py", "brain")
    check_hdf5(file)
    try:
        with h5py.File(file, "r") as handle:
            keys = list(handle)
            shapes = {key: tuple(handle[key].shape) for key in keys if "_spikes_" in key and isinstance(handle[key], h5py.Dataset)}
    except BROKEN as error:
        raise Refused(f"spikes: cannot read {file} ({' '.join(str(error).split())[:160]})") from None
    if not shapes:
        raise Refused(f"spikes: {file} has no key like train_spikes_heldin (there are {', '.join(keys)[:160] or 'none'})")
    for key, shape in shapes.items():
        if len(shape) != 3 or not math.prod(shape):
            raise Refused(f"spikes: {file}: {key} must be (trials, bins, neurons), got {shape}")
        heldin = shapes.get(key.replace("heldout", "heldin"), shape)
        if heldin[:2] != shape[:2]:
            raise Refused(f"spikes: {file}: {key} has (trials, bins) {shape[:2]}, but its held-in neurons {heldin[:2]}")
    return LatentsBenchmark(str(file), shapes)
