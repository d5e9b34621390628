"""EEG and MEG files (EDF, BDF, FIF) as a lazily read `Recording`, through MNE-Python (Gramfort et al. 2013).

MNE fills gaps silently: it resamples slow EDF channels, counts the records of a cut file itself, calls any EDF unit volts, and
takes a FIF file without its end. The EDF header (Kemp et al. 1992; BDF is the same with 3 bytes a sample) and the chain of a FIF
file's tags are therefore read here as well, and such files are refused.
"""

import contextlib
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuropil.data.recordings import Events, Recording
from neuropil.errors import Refused, nearest, optional

SUFFIXES = (".edf", ".bdf", ".fif", ".fif.gz")
_UNITS = {107: "V", 112: "T", 201: "T/m", 6: "mol", 108: "Ohm", 101: "Hz", 114: "S"}  # codes of the FIFF standard
_VOLTS = ("uV", "µV", "μV", "mV", "V", "nV")
# Warnings of MNE that say nothing about the samples.
_HARMLESS = ("naming conventions", "measurement date", "patient information", "filter", "ighpass", "owpass")


def read_eeg(file: str | Path, channels: Sequence[str] | None = None, stim: str | None = None) -> Recording:
    """An EDF, BDF or FIF file, its samples left on the disk; signals in V, T or T/m, float32.

    Args:
        channels: only these; None for all. An EDF file with channels of different rates needs a choice of one rate.
        stim: the channel whose steps are events; None for those of kind stim (``STI 014``, ``Status``), if there are any. A step
            to the code 7 is an event named ``7``; of BioSemi's Status the lower 16 bits count. Annotations are events as well.

    EDF has no kinds: a channel in another unit than volts is misc, one whose label begins with EOG, ECG, EKG or EMG (the EDF+ rule)
    is that, the others are eeg. `notes` repeats MNE's warnings. `Refused` if the file is missing, cut short, of no such format, or
    mixes rates.
    """
    file = Path(file)
    mne = optional("mne", "brain")
    kind = ".fif" if file.name.lower().endswith(".fif.gz") else file.suffix.lower()
    if kind not in SUFFIXES:
        raise Refused(f"recording: {file} does not end in {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise Refused(f"recording: no file {file}")
    header = None if kind == ".fif" else edf_header(file)
    if file.suffix.lower() == ".fif":  # a packed one is noticed by gzip, which ends with its size and checksum
        _check_tags(file)
    with quiet(file) as notes:
        if header is None:
            raw = mne.io.read_raw_fif(file, preload=False, verbose="WARNING")
        else:
            include = None if channels is None else [header.known(channel) for channel in channels]
            _one_rate(header, include)
            read = mne.io.read_raw_bdf if kind == ".bdf" else mne.io.read_raw_edf
            raw = read(file, include=include, preload=False, verbose="WARNING")
        events = _events(mne, raw, stim)
    names, info = tuple(raw.ch_names), raw.info
    kinds = tuple(raw.get_channel_types())
    units = tuple(_UNITS.get(int(channel["unit"]), "") for channel in info["chs"])
    if header is not None:  # MNE scales volts to V, leaves other numbers as they are, and calls all of them EEG in V
        written = [header.units.get(name, "") for name in names]
        units = tuple("V" if unit in _VOLTS else unit for unit in written)
        kinds = tuple(_kind(name, unit, kind) for name, unit, kind in zip(names, written, kinds, strict=True))

    def fetch(start: int, stop: int) -> Tensor:
        with quiet(file):
            return torch.from_numpy(raw[:, start:stop][0]).float()

    recording = Recording(
        str(file), float(info["sfreq"]), len(raw.times), names, kinds, units, events, fetch, tuple(info["bads"]), tuple(notes)
    )
    return recording if channels is None else recording.pick(channels)


@contextlib.contextmanager
def quiet(file: Path) -> Iterator[list[str]]:
    """MNE without its voice: its warnings as a list of notes, its errors as `Refused` with the file's name."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield notes
        except Refused:
            raise
        except Exception as error:  # each format fails in its own way
            words = " ".join(str(error).split())[:200] or type(error).__name__
            raise Refused(f"recording: cannot read {file} ({words})") from None
    said = (" ".join(str(w.message).split()) for w in caught if issubclass(w.category, RuntimeWarning))
    notes += dict.fromkeys(words for words in said if not any(part in words for part in _HARMLESS))


def _kind(label: str, unit: str, by_mne: str) -> str:
    if by_mne != "eeg":
        return by_mne
    if unit and unit not in _VOLTS:
        return "misc"
    return {"EOG": "eog", "ECG": "ecg", "EKG": "ecg", "EMG": "emg"}.get(label[:3].upper(), "eeg")


def _events(mne: Any, raw: Any, stim: str | None) -> Events:
    """Annotations and the steps of the stimulus channels, in order of time."""
    if stim is not None and stim not in raw.ch_names:
        raise Refused(f"stim: no channel {stim!r}{nearest(stim, raw.ch_names)}")
    found = []
    zero = raw.first_time if raw.annotations.orig_time is not None else 0.0
    for annotation in raw.annotations:
        found.append((float(annotation["onset"]) - zero, float(annotation["duration"]), str(annotation["description"])))
    kinds = raw.get_channel_types()
    channels = [stim] if stim is not None else [name for name, kind in zip(raw.ch_names, kinds, strict=True) if kind == "stim"]
    if channels:
        status = [name for name in channels if name.lower() == "status"]
        mask = {"mask": 0xFFFF, "mask_type": "and"} if status else {}
        steps = mne.find_events(raw, channels, shortest_event=1, uint_cast=bool(status), verbose="ERROR", **mask)
        found += [((int(at) - raw.first_samp) / raw.info["sfreq"], 0.0, str(int(code))) for at, _, code in steps]
    found.sort()
    return Events.of([f[0] for f in found], [f[2] for f in found], [f[1] for f in found])


@dataclass(frozen=True)
class EdfHeader:
    """What an EDF or BDF header says of each channel: Hz and physical unit."""

    file: Path
    rates: dict[str, float]
    units: dict[str, str]

    def known(self, channel: str) -> str:
        """`channel` if the file has it."""
        if channel not in self.rates:
            raise Refused(f"channels: {self.file} has no {channel!r}{nearest(channel, self.rates)} (of {len(self.rates)})")
        return channel


def edf_header(file: Path) -> EdfHeader:
    """The header of an EDF or BDF file; `Refused`, by field, if it is none, contradicts itself, or the file ends too early."""
    head = _head(file, 0, 256)
    if head[:8] not in (b"0       ", b"\xffBIOSEMI"):
        raise Refused(f"recording: {file} is not an EDF or BDF file (field version: {head[:8]!r})")
    width = 3 if head[0] == 0xFF else 2
    count = int(_number(file, "number of signals", head[252:256]))
    records, seconds = int(_number(file, "number of records", head[236:244])), _number(file, "record duration", head[244:252])
    if count < 1 or int(_number(file, "header size", head[184:192])) != 256 * (count + 1):
        raise Refused(
            f"recording: {file}: field header size {head[184:192].decode('ascii', 'replace').strip()} for {count} signals"
        )
    table = _head(file, 256, 256 * count)

    def column(start: int, size: int) -> list[bytes]:
        return [table[count * start + i * size : count * start + (i + 1) * size] for i in range(count)]

    labels = [label.decode("latin-1").strip() for label in column(0, 16)]
    samples = [int(_number(file, f"samples per record of {n}", s)) for n, s in zip(labels, column(216, 8), strict=True)]
    size = 256 * (count + 1) + width * sum(samples) * records
    if records >= 0 and file.stat().st_size < size:  # −1: still recording
        raise Refused(f"recording: {file} is truncated: {file.stat().st_size} bytes, {size} expected for {records} records")
    signals = [
        (n, s, u.decode("latin-1").strip())
        for n, s, u in zip(labels, samples, column(96, 8), strict=True)
        if n not in ("EDF Annotations", "BDF Annotations")
    ]
    if signals and not seconds > 0:
        raise Refused(f"recording: {file}: field record duration {seconds:g} s")
    return EdfHeader(file, {n: s / seconds for n, s, _ in signals}, {n: u for n, _, u in signals})


def _head(file: Path, start: int, size: int) -> bytes:
    with open(file, "rb") as handle:
        handle.seek(start)
        content = handle.read(size)
    if len(content) < size:
        raise Refused(f"recording: {file} is truncated in its header ({file.stat().st_size} bytes)")
    return content


def _check_tags(file: Path) -> None:
    """`Refused` unless the chain of a FIF file's tags ends, and each lies in the file.

    A tag is four big-endian int32 (kind, type, size, next), then `size` bytes. Next is where the next tag begins: 0 right behind
    this one, −1 nowhere. O(tags), a few bytes of each.
    """
    length, at, seen = file.stat().st_size, 0, set[int]()
    with open(file, "rb") as handle:
        while at >= 0:
            handle.seek(at)
            head = handle.read(16)
            size, following = struct.unpack(">8xii", head) if len(head) == 16 else (0, 0)
            end = at + 16 + max(size, 0)
            if end > length:
                raise Refused(f"recording: cannot read {file} (truncated or no FIF file: {length} bytes, a tag ends at {end})")
            if at in seen:
                raise Refused(f"recording: cannot read {file} (damaged or no FIF file: its tags go in a circle at byte {at})")
            seen.add(at)
            at = following or end


def _number(file: Path, field: str, text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        raise Refused(f"recording: {file}: field {field} is {text!r}, not a number") from None


def _one_rate(header: EdfHeader, channels: Sequence[str] | None) -> None:
    chosen = header.rates if channels is None else {channel: header.rates[channel] for channel in channels}
    by_rate: dict[float, str] = {rate: name for name, rate in reversed(chosen.items())}
    if len(by_rate) > 1:
        words = ", ".join(f"{name} {rate:g} Hz" for rate, name in sorted(by_rate.items(), reverse=True))
        raise Refused(f"recording: {header.file}: sampling rates disagree ({words}); choose channels of one rate")
