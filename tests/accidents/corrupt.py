"""Cut, emptied, flipped and swapped files of every kind that we read: `Refused` in one line with the file's name, or right numbers.

What a format can tell is said of each kind: `ALL`, by checksums, every change of a byte; `CUT` every loss of the end; `NONE` (text
without an end mark) only what no longer reads. Where a format cannot tell, other numbers are no fault; another exception always is.
"""

import contextlib
import json
import os
import random
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accidents.kinds import ALL, CUT, Kind, kinds
from accidents.report import Tally
from accidents.writes import forked

PROMISE = "one line that names the file, or the right numbers; a cut file is never taken where its format can tell"
MEMORY = 16 << 30
SAMPLED = ("cut", "a byte changed", "a byte changed at the front")  # the quick form has fewer of these: it proves none gone


def run(rounds: int, quick: bool, seen: Callable[[int, int], None]) -> Tally:
    """Damage every kind of file, each kind in a process of its own: its reader may die of it."""
    tally = Tally("corrupt", PROMISE)
    found = kinds()
    _warm(found)
    with tempfile.TemporaryDirectory() as name:
        for number, kind in enumerate(found):
            seen(number, len(found))
            folder = Path(name) / str(number)
            folder.mkdir()
            log = folder / "log"
            places = 4 if quick else 20 * rounds
            status, words = forked(lambda kind=kind, folder=folder, log=log, n=places: _all(kind, folder, log, n), limit=600)
            lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
            done = [line for line in lines if line[1] != "begins"]
            tally.tries[kind.name] += len(done)
            tally.cases |= {f"{kind.name} {line[0]}" for line in lines if not (quick and line[0] in SAMPLED)}
            for damage, failure, what in done:
                if failure:
                    tally.fault(f"{kind.name} {damage} -> {failure}", what)
            if status:
                last = lines[-1][0] if lines else "as it is"
                tally.fault(f"{kind.name} {last} -> " + ("kills the process" if os.WIFSIGNALED(status) else "does not run"), words)
    return tally


def _warm(found: list[Kind]) -> None:
    """Read a whole file of each kind, so that what readers import is there before anything is forked."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        for number, kind in enumerate(found):
            with contextlib.suppress(Exception):  # told of by the process of this kind
                kind.read(kind.make(Path(name) / str(number) / "x"))


def damages(content: bytes, places: int, name: str) -> Iterator[tuple[str, bytes]]:
    """(kind of damage, damaged content); of more places, those of fewer are a part."""
    yield "emptied", b""
    yield "of zeros", bytes(len(content))
    yield "text instead", b"These are not the bytes that you are looking for.\n" * 20
    yield "JSON instead", b"[1, 2, 3]"
    yield "another's picture", b"\x89PNG\r\n\x1a\n" + random.Random(name).randbytes(200)
    for i in range(places):
        yield "cut", content[: len(content) * i // places]
    for tail in (1, 2, 9):
        yield "cut at the end", content[:-tail]
    rng = random.Random(name)
    for _ in range(places):
        at = rng.randrange(len(content))
        yield "a byte changed", content[:at] + bytes([content[at] ^ rng.randrange(1, 256)]) + content[at + 1 :]
    rng = random.Random(name)
    for _ in range(places):
        at = rng.randrange(min(len(content), 256))
        yield "a byte changed at the front", content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


def _all(kind: Kind, folder: Path, log: Path, places: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr
    with open(log, "w", buffering=1) as out:
        try:
            file = kind.make(folder / "x")
            right = kind.read(file)
        except Exception as error:
            out.write(json.dumps(["as it is", "does not run", f"{type(error).__name__}: {error}"]) + "\n")
            return
        content = file.read_bytes()
        for damage, bad in damages(content, places, kind.name):
            if bad == content:
                continue
            out.write(json.dumps([damage, "begins", ""]) + "\n")
            file.unlink(missing_ok=True)
            file.write_bytes(bad)
            out.write(json.dumps([damage, *_judge(kind, file, right, damage)]) + "\n")


def _judge(kind: Kind, file: Path, right: Any, damage: str) -> tuple[str, str]:
    from neuropil.errors import Refused

    try:
        found = kind.read(file)
    except Refused as error:
        words = str(error)
        if "\n" in words:
            return "refused in several lines", words
        return ("", "") if file.name in words or str(file.parent) in words else ("refused without the file's name", words)
    except Exception as error:
        return f"raises {type(error).__name__}", str(error)
    if found == right:
        return "", ""
    must = kind.tells == ALL or (kind.tells == CUT and not damage.startswith("a byte"))
    return ("taken in silence", f"{kind.name}: {damage}") if must else ("", "")
