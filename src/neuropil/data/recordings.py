"""What the readers of laboratories' files give: frozen containers that know where their numbers are.

A `Recording` and a `Volume` hold no samples: `fetch(start, stop)` reads from the file what is asked for, and no more. Times are
seconds from the first sample, float64.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neuropil.data.containers import Trials
from neuropil.errors import Refused, nearest

_NANOSECOND = 1e-9
_BLOCK = 64_000_000  # bytes of a volume that are in memory at once


@dataclass(frozen=True)
class Events:
    """n events: `onset` and `duration` in s (float64; NaN where the duration is not known), a name each, and further `columns`.

    >>> events = Events.of([0.5, 1.5, 3.0], ["face", "house", "face"])
    >>> events.labels()
    (tensor([0, 1, 0]), ('face', 'house'))
    >>> events.named("house").onset
    tensor([1.5000], dtype=torch.float64)
    """

    onset: Float[Tensor, " n"]
    duration: Float[Tensor, " n"]
    names: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, values in (("names", self.names), *self.columns.items()):
            if len(values) != len(self.onset):
                raise Refused(f"{what}: one for each of {len(self.onset)} events, got {len(values)}")

    @staticmethod
    def of(onsets: Sequence[float], names: Sequence[str], durations: Sequence[float] | None = None) -> "Events":
        """Events from plain lists; without durations they last 0 s."""
        onset = torch.tensor(onsets, dtype=torch.float64).reshape(-1)
        duration = torch.zeros_like(onset) if durations is None else torch.tensor(durations, dtype=torch.float64).reshape(-1)
        return Events(onset, duration, tuple(names))

    def __len__(self) -> int:
        return len(self.names)

    def labels(self) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
        """A class for each event, and the classes' names in the order of the alphabet."""
        return classes_of(self.names)

    def pick(self, keep: Bool[Tensor, " n"] | Int[Tensor, " k"]) -> "Events":
        """Those where `keep` is True, or at these places, in this order."""
        rows = torch.arange(len(self))[keep]
        names = tuple(self.names[i] for i in rows.tolist())
        columns = {name: tuple(values[i] for i in rows.tolist()) for name, values in self.columns.items()}
        return Events(self.onset[rows], self.duration[rows], names, columns)

    def named(self, *names: str) -> "Events":
        """Those with one of these names; a name that no event has is `Refused`."""
        for name in names:
            if name not in self.names:
                raise Refused(f"events: none is named {name!r} (there are {', '.join(sorted(set(self.names))) or 'none'})")
        return self.pick(torch.tensor([name in names for name in self.names], dtype=torch.bool))

    def column(self, name: str) -> tuple[str, ...]:
        """A further column by name, one word for each event."""
        if name not in self.columns:
            there = ", ".join(self.columns) or "none"
            raise Refused(f"events: no column {name!r}{nearest(name, self.columns)} (there are {there})")
        return self.columns[name]


def classes_of(words: Sequence[str]) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
    """A number for each word, and the different words in the order of the alphabet, which the numbers count."""
    classes = tuple(sorted(set(words)))
    number = {word: i for i, word in enumerate(classes)}
    return torch.tensor([number[word] for word in words], dtype=torch.int64), classes


def joined(parts: Sequence[Events], starts: Sequence[float]) -> Events:
    """The events of several recordings laid end to end, recording i from `starts[i]` s on; its number is column ``recording``.

    Of the further columns those stay that all parts have.
    """
    shared = [name for name in parts[0].columns if all(name in part.columns for part in parts)]
    columns = {name: tuple(value for part in parts for value in part.columns[name]) for name in shared}
    columns["recording"] = tuple(str(i) for i, part in enumerate(parts) for _ in part.names)
    onset = torch.cat([part.onset + start for part, start in zip(parts, starts, strict=True)])
    return Events(onset, torch.cat([p.duration for p in parts]), tuple(n for p in parts for n in p.names), columns)


@dataclass(frozen=True)
class Recording:
    """Continuous signals of c channels in a file: EEG, MEG, and what was recorded beside them.

    `rate` in Hz, `samples` in all, `kinds` (eeg, mag, eog, stim …) and `units` (V, T, …; empty: not stated) of each channel, `bad`
    channels by name, `notes`: what the reader had to assume. `fetch(start, stop)` reads samples start … stop − 1, float32 (c, t).

    >>> ramp = torch.arange(20.0)
    >>> recording = Recording("ramp", 10.0, 20, ("Cz",), ("eeg",), ("V",), Events.of([1.0], ["tone"]), lambda a, b: ramp[None, a:b])
    >>> recording.read(3, 5)
    tensor([[3., 4.]])
    >>> recording.epochs(recording.events, before=0.2, after=0.3).signals
    tensor([[[ 8.,  9., 10., 11., 12.]]])
    """

    name: str
    rate: float
    samples: int
    channels: tuple[str, ...]
    kinds: tuple[str, ...]
    units: tuple[str, ...]
    events: Events
    fetch: Callable[[int, int], Tensor]
    bad: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return self.samples / self.rate

    def read(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "c t"]:
        """Samples start … stop − 1 (default: to the end) of all channels, from the file. Memory O(c (stop − start))."""
        stop = self.samples if stop is None else stop
        if not 0 <= start < stop <= self.samples:
            raise Refused(f"{self.name}: samples {start} to {stop} are not in the recording of {self.samples}")
        return self.fetch(start, stop)

    def pick(self, channels: Sequence[str]) -> "Recording":
        """The same recording with these channels only, in this order; an unknown one is `Refused`."""
        for channel in channels:
            if channel not in self.channels:
                raise Refused(f"{self.name}: no channel {channel!r}{nearest(channel, self.channels)} (of {len(self.channels)})")
        index = [self.channels.index(channel) for channel in channels]
        kinds, units = tuple(self.kinds[i] for i in index), tuple(self.units[i] for i in index)
        bad = tuple(channel for channel in self.bad if channel in channels)
        fetch = self.fetch
        return dataclasses.replace(
            self, channels=tuple(channels), kinds=kinds, units=units, bad=bad, fetch=lambda a, b: fetch(a, b)[index]
        )

    def windows(self, onsets: Float[Tensor, " n"], before: float, after: float) -> tuple[Int[Tensor, " n"], int]:
        """First sample of the window of each onset, and the windows' length: round(before · rate) + round(after · rate)."""
        lead = round(before * self.rate)
        length = lead + round(after * self.rate)
        if length < 1:
            raise Refused(f"after: the window from {-before:g} to {after:g} s has no sample at {self.rate:g} Hz")
        return (onsets * self.rate).round().long() - lead, length

    def epochs(self, events: Events, before: float, after: float) -> Trials:
        """The stretch [onset − before, onset + after) of each event, its name the class. Reads these stretches only.

        `Refused` if there is no event, a window leaves the recording, or a trial has values that are not finite. Memory O(n c t).
        """
        if not len(events):
            raise Refused(f"{self.name}: no events to cut epochs at")
        first, length = self.windows(events.onset, before, after)
        outside = (first < 0) | (first + length > self.samples)
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            raise Refused(
                f"{self.name}: {int(outside.sum())} of {len(events)} events have a window outside the recording of "
                f"{self.seconds:g} s (the first: row {row + 1}, onset {float(events.onset[row]):g} s, {-before:g} to {after:g} s)"
            )
        signals = torch.empty(len(events), len(self.channels), length)
        for trial, start in enumerate(first.tolist()):
            signals[trial] = self.fetch(start, start + length)
        bad = ~signals.isfinite().flatten(1).all(1)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            channel = self.channels[int((~signals[row].isfinite()).any(1).nonzero()[0])]
            raise Refused(
                f"{self.name}: {int(bad.sum())} of {len(events)} trials have values that are not finite (the first: "
                f"{events.names[row]} at {float(events.onset[row]):g} s, channel {channel})"
            )
        labels, classes = events.labels()
        return Trials(signals, labels, self.rate, classes)


def concatenate(recordings: Sequence[Recording]) -> Recording:
    """Recordings of one set of channels and one rate laid end to end; nothing is read.

    Channels may come in another order: the first recording's is kept. Their number is column ``recording`` of the events. `Refused`
    if a rate, a channel, its kind or its unit is not the first one's.
    """
    if not recordings:
        raise Refused("recordings: at least one is needed, got none")
    first = recordings[0]
    parts = []
    for other in recordings:
        if other.rate != first.rate:
            raise Refused(f"{other.name}: rate is {other.rate:g} Hz, but {first.rate:g} Hz in {first.name}")
        for here, there in ((first, other), (other, first)):
            missing = [channel for channel in here.channels if channel not in there.channels]
            if missing:
                raise Refused(f"{there.name}: lacks {len(missing)} of the channels of {here.name} (the first: {missing[0]})")
        part = other.pick(first.channels)
        for channel, *mine in zip(first.channels, first.kinds, first.units, part.kinds, part.units, strict=True):
            if mine[:2] != mine[2:]:
                raise Refused(
                    f"{other.name}: channel {channel} is {mine[2]} in {mine[3]}, but {mine[0]} in {mine[1]} in {first.name}"
                )
        parts.append(part)
    ends = torch.tensor([part.samples for part in parts]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]

    def fetch(start: int, stop: int) -> Tensor:
        pieces = [
            part.fetch(max(start, at) - at, min(stop, end) - at)
            for part, at, end in zip(parts, starts, ends, strict=True)
            if start < end and stop > at
        ]
        return torch.cat(pieces, dim=1)

    events = joined([part.events for part in parts], [start / first.rate for start in starts])
    bad = tuple(channel for channel in first.channels if any(channel in part.bad for part in parts))
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    name = f"{first.name} and {len(parts) - 1} more" if len(parts) > 1 else first.name
    return dataclasses.replace(first, name=name, samples=ends[-1], events=events, fetch=fetch, bad=bad, notes=notes)


@dataclass(frozen=True)
class Spikes:
    """Spike times of n units in s (float64), unit after unit in one flat array, rising within each; `trials` if the file has them.

    Unit i has ``times[pointers[i]:pointers[i + 1]]``.

    >>> spikes = Spikes("two", torch.tensor([0.1, 0.3, 0.35, 0.2]).double(), torch.tensor([0, 3, 4]), ("a", "b"))
    >>> spikes.counts(0.1, 0.0, 0.4)[0].T
    tensor([[0, 1, 0, 2],
            [0, 0, 1, 0]], dtype=torch.int32)
    """

    name: str
    times: Float[Tensor, " s"]
    pointers: Int[Tensor, " p"]
    units: tuple[str, ...]
    trials: Events | None = None

    def __post_init__(self) -> None:
        n, pointers = len(self.units), self.pointers
        if len(pointers) != n + 1 or int(pointers[0]) or int(pointers[-1]) != len(self.times) or bool((pointers.diff() < 0).any()):
            raise Refused(f"pointers: must rise from 0 to {len(self.times)} in {n} steps, one a unit, got {pointers.tolist()[:6]}")
        if not bool(self.times.isfinite().all()):
            first = int((~self.times.isfinite()).nonzero()[0])
            raise Refused(f"{self.name}: spike {first} (unit {self.units[int(self._unit[first])]}) has no finite time")
        if bool(((self.times.diff() < 0) & (self._unit.diff() == 0)).any()):
            raise Refused(f"{self.name}: times must rise within each unit")

    @property
    def _unit(self) -> Int[Tensor, " s"]:
        return torch.arange(len(self.units)).repeat_interleave(self.pointers.diff())

    def counts(
        self, width: float, start: float, stop: float, onsets: Float[Tensor, " trials"] | None = None
    ) -> Int[Tensor, "trials t n"]:
        """Spikes of each unit in half-open bins [start + k · width, start + (k + 1) · width) s after each onset, int32.

        Args:
            onsets: None for one trial that starts at 0; ``spikes.trials.onset`` for the file's trials. Windows may overlap.

        A spike less than a nanosecond below an edge counts as on it: 0.3 falls into the bin that starts at 3 · 0.1. O(s log s)
        time, memory O(trials · t · n). `Refused` if stop − start is no whole number of bins.
        """
        bins = round((stop - start) / width) if width > 0 else 0
        if bins < 1 or abs(bins * width - (stop - start)) > 1e-6 * width:
            raise Refused(f"width: {start:g} to {stop:g} s must be a whole number of bins, at least one, got bins of {width:g} s")
        onsets = (torch.zeros(1) if onsets is None else onsets).double()
        times, order = self.times.double().sort()
        first = torch.searchsorted(times, onsets + start - _NANOSECOND)
        number = torch.searchsorted(times, onsets + stop) - first
        trial = torch.arange(len(onsets)).repeat_interleave(number)
        spike = torch.arange(len(trial)) + (first - number.cumsum(0) + number)[trial]
        bin_ = ((times[spike] - onsets[trial] - start + _NANOSECOND) / width).floor().long()
        cell = ((trial * bins + bin_) * len(self.units) + self._unit[order[spike]])[(bin_ >= 0) & (bin_ < bins)]
        counts = torch.zeros(len(onsets) * bins * len(self.units), dtype=torch.int32)
        counts.index_add_(0, cell, torch.ones(len(cell), dtype=torch.int32))
        return counts.view(len(onsets), bins, len(self.units))


@dataclass(frozen=True)
class Volume:
    """An image of the brain over time, in a file: `shape` (x, y, z), `times` samples (1 for a still image).

    `affine`: from voxel indices to mm; `voxel`: its size in mm; `tr`: s between two samples, None where the file does not say.
    `fetch(start, stop)` reads samples start … stop − 1, float32 (t, x, y, z).
    """

    name: str
    shape: tuple[int, int, int]
    times: int
    affine: Float[Tensor, "4 4"]
    voxel: tuple[float, float, float]
    tr: float | None
    fetch: Callable[[int, int], Tensor]

    def read(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "t x y z"]:
        """Samples start … stop − 1 (default: to the end), from the file."""
        stop = self.times if stop is None else stop
        if not 0 <= start < stop <= self.times:
            raise Refused(f"{self.name}: samples {start} to {stop} are not in the image of {self.times}")
        return self.fetch(start, stop)

    def blocks(self) -> Iterator[Float[Tensor, "t x y z"]]:
        """All samples in blocks of at most 64 MB (or one sample)."""
        size = max(1, _BLOCK // (4 * max(1, torch.Size(self.shape).numel())))
        for start in range(0, self.times, size):
            yield self.fetch(start, min(start + size, self.times))

    def varying(self) -> Bool[Tensor, "x y z"]:
        """The voxels that are finite and not the same in all samples: a mask where none is at hand. One pass through the file."""
        first, different, finite = None, torch.zeros(self.shape, dtype=torch.bool), torch.ones(self.shape, dtype=torch.bool)
        for block in self.blocks():
            first = block[0] if first is None else first
            different |= (block != first).any(0)
            finite &= block.isfinite().all(0)
        return different & finite

    def voxels(self, mask: Bool[Tensor, "x y z"]) -> Float[Tensor, "t v"]:
        """The voxels of `mask` over time, in the order of ``mask.nonzero()``, read in blocks. Memory O(t v).

        `Refused` if the mask is empty or of another shape, or a voxel is not finite or never varies (how many, and which is first).
        """
        if tuple(mask.shape) != self.shape:
            raise Refused(f"mask: must have the shape {self.shape} of {self.name}, got {tuple(mask.shape)}")
        if not bool(mask.any()):
            raise Refused(f"mask: no voxel of {self.name} is in it")
        found = torch.cat([block[:, mask] for block in self.blocks()])
        faults = (("not finite", ~found.isfinite().all(0)), ("constant", (found == found[:1]).all(0)))
        for what, bad in faults if self.times > 1 else faults[:1]:
            if bool(bad.any()):
                where = tuple(mask.nonzero()[bad][0].tolist())
                raise Refused(f"{self.name}: {int(bad.sum())} of {len(bad)} voxels of the mask are {what} (the first: {where})")
        return found


@dataclass(frozen=True)
class Surface:
    """A surface mesh, or numbers on one: `vertices` in mm, `faces`, k `values` of each vertex; None for what is not there."""

    name: str
    vertices: Float[Tensor, "v 3"] | None
    faces: Int[Tensor, "f 3"] | None
    values: Float[Tensor, "v k"] | None


_READERS = {
    ".edf": ("eeg_files", "read_eeg"),
    ".bdf": ("eeg_files", "read_eeg"),
    ".fif": ("eeg_files", "read_eeg"),
    ".fif.gz": ("eeg_files", "read_eeg"),
    ".nwb": ("spike_files", "read_nwb_units"),
    ".h5": ("spike_files", "read_latents_benchmark"),
    ".nii": ("volumes", "read_nifti"),
    ".nii.gz": ("volumes", "read_nifti"),
    ".gii": ("volumes", "read_gifti"),
}
_STARTS = {b"0       ": ".edf", b"\xffBIOSEMI": ".bdf", b"\x89HDF\r\n\x1a\n": ".nwb or .h5", b"\0\0\0\x64\0\0\0\x1f": ".fif"}


def read_recording(file: str | Path, **options: Any) -> Any:
    """A laboratory's file by its suffix: what it is, with its numbers left on the disk where they can be.

    .edf .bdf .fif .fif.gz (`read_eeg`) give a `Recording`, .nwb (`read_nwb_units`) `Spikes`, .h5 of the Neural Latents Benchmark
    (`read_latents_benchmark`) a `LatentsBenchmark`, .nii .nii.gz (`read_nifti`) a `Volume`, .gii (`read_gifti`) a `Surface`;
    `options` go to that reader. `Refused` for a missing file, another suffix or one that the content belies, or an option that the
    reader has not.

    >>> read_recording("session.docx")
    Traceback (most recent call last):
    neuropil.errors.Refused: recording: no file session.docx
    """
    file = Path(file)
    if not file.is_file():
        raise Refused(f"recording: no file {file}")
    with open(file, "rb") as handle:
        head = handle.read(8)
    looks = _STARTS.get(head, "")
    suffix = next((s for s in sorted(_READERS, key=len, reverse=True) if file.name.lower().endswith(s)), None)
    if suffix is None or (looks and suffix not in looks):
        words = f"it looks like {looks}, " if looks else ""
        raise Refused(f"recording: {file} has the suffix {file.suffix or 'none'!r} ({words}supported: {', '.join(_READERS)})")
    module, name = _READERS[suffix]
    reader = getattr(importlib.import_module(f"neuropil.data.{module}"), name)
    allowed = [option for option in inspect.signature(reader).parameters if option != "file"]
    for option in options:
        if option not in allowed:
            raise Refused(f"{option}: {name} of {file} knows no such option (it has {', '.join(allowed) or 'none'})")
    return reader(file, **options)
