"""Event tables of BIDS (Gorgolewski et al. 2016): ``*_events.tsv``, columns split by tabs, ``onset`` and ``duration`` in s."""

import csv
import math
from pathlib import Path
from typing import Any

import torch

from neuropil.data.recordings import Events
from neuropil.errors import Refused, nearest
from neuropil.files import read_json


def read_events(file: str | Path, seconds: float | None = None, label: str | None = None) -> Events:
    """The rows of an events.tsv in their order; all further columns are kept as words.

    Args:
        seconds: length of the recording; a row whose onset lies outside is `Refused` by its number (1: below the header).
        label: the column that names the events; None for ``trial_type``, else ``value``, else all are named ``event``.

    ``n/a`` as a duration is NaN, as a name it stays. A sidecar (the same name, .json) is looked at for Units: another than s is
    refused, as is a missing file or column, a row of another length, a word for a number, or no row at all.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "sub-01_events.tsv"
    ...     _ = file.write_text("onset\\tduration\\ttrial_type\\trun\\n0.5\\t1\\tface\\t1\\n2.0\\tn/a\\thouse\\t1\\n")
    ...     events = read_events(file, seconds=10.0)
    >>> events.onset.tolist(), events.names, events.column("run")
    ([0.5, 2.0], ('face', 'house'), ('1', '1'))
    """
    file = Path(file)
    try:
        with open(file, newline="", encoding="utf-8-sig") as handle:
            rows = [row for row in csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE) if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"events: cannot read {file} ({error})") from None
    if len(rows) < 2:
        raise Refused(f"events: {file} has no rows below a header")
    header = [word.strip() for word in rows[0]]
    if repeated := {word for word in header if header.count(word) > 1}:
        raise Refused(f"events: {file} has two columns named {min(repeated)!r}")
    short = next((number for number, row in enumerate(rows) if len(row) != len(header)), None)
    if short is not None:
        raise Refused(f"events: {file}: row {short} has {len(rows[short])} columns, the header has {len(header)}")
    table = {name: tuple(word.strip() for word in column) for name, column in zip(header, zip(*rows[1:], strict=True), strict=True)}
    for name in ("onset", "duration"):
        if name not in table:
            raise Refused(
                f"events: {file} has no column {name!r}{nearest(name, table)} (columns split by tabs: {', '.join(table)[:80]})"
            )
    if label is not None and label not in table:
        raise Refused(f"label: {file} has no column {label!r}{nearest(label, table)} (there are {', '.join(table)})")
    _check_units(file.with_suffix(".json"))
    onset = torch.tensor(_numbers(file, "onset", table["onset"]), dtype=torch.float64)
    duration = torch.tensor(_numbers(file, "duration", table["duration"], missing=math.nan), dtype=torch.float64)
    if seconds is not None:
        outside = (onset < 0) | (onset >= seconds)
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            raise Refused(
                f"events: {file}: {int(outside.sum())} of {len(onset)} rows lie outside the recording of {seconds:g} s "
                f"(the first: row {row + 1}, onset {float(onset[row]):g} s)"
            )
    named = label or next((name for name in ("trial_type", "value") if name in table), None)
    names = table[named] if named else ("event",) * len(onset)
    return Events(onset, duration, names, {name: words for name, words in table.items() if name not in ("onset", "duration")})


def _numbers(file: Path, column: str, words: tuple[str, ...], missing: float | None = None) -> list[float]:
    """The words as finite numbers; ``n/a`` as `missing`, if that is allowed."""
    values = []
    for number, word in enumerate(words, 1):
        if word == "n/a" and missing is not None:
            values.append(missing)
            continue
        try:
            values.append(float(word))
        except ValueError:
            raise Refused(f"events: {file}: row {number}: {column} is {word!r}, not a number") from None
        if not math.isfinite(values[-1]):
            raise Refused(f"events: {file}: row {number}: {column} is {word!r}, not a finite number")
    return values


def _check_units(sidecar: Path) -> None:
    if not sidecar.is_file():
        return
    about: Any = read_json(sidecar, "events")
    for column in ("onset", "duration"):
        described = about.get(column) if isinstance(about, dict) else None
        unit = described.get("Units", "s") if isinstance(described, dict) else "s"
        if unit not in ("s", "sec", "second", "seconds"):
            raise Refused(f"events: {sidecar}: Units of {column} must be s, got {unit!r}")
