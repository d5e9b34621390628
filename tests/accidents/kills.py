"""SIGKILL just before a file operation, at seeded places: nothing finished is lost, and going on ends with the same bits.

The long form also kills `neuropil check` and `neuropil fit image` from outside, at seeded moments.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable
from pathlib import Path

from accidents.report import Tally
from accidents.writes import CLAIM, Write, bound, forked, orphans, writes
from neuropil.errors import Refused

PROMISE = "nothing finished is lost, nothing half-written is read, and going on gives the same bits as never having been stopped"
PLACES = 3


def run(rounds: int, quick: bool, seen: Callable[[int, int], None]) -> Tally:
    """Kill every write at seeded places, the long form at up to `rounds` times twenty."""
    tally = Tally("kills", PROMISE)
    found = writes(slow=not quick)
    with tempfile.TemporaryDirectory() as name:
        for number, write in enumerate(found):
            seen(number, len(found) + 1)
            _kill_inside(write, Path(name) / str(number), PLACES if quick else 20 * rounds, tally)
        tally.cases |= set() if quick else {write.name for write in found}  # fewer places prove nothing gone
        if quick:
            tally.skipped["kills from outside"] = "the quick form stops only at file operations"
        else:
            seen(len(found), len(found) + 1)
            _kill_outside(Path(name), rounds, tally)
    return tally


def _kill_inside(write: Write, folder: Path, places: int, tally: Tally) -> None:
    folder.mkdir()
    status, words = forked(bound(write, folder / "whole", 1), near=folder / "whole")
    if status:
        tally.fault(f"{write.name} -> does not run", words)
        return
    whole, count, rng = write.value(folder / "whole"), int(words), random.Random(write.name)
    for place in sorted(rng.sample(range(1, count + 1), min(places, count))):
        there = folder / f"at {place}"
        status, _ = forked(bound(write, there, 1), kill_at=place, near=there)
        tally.tries[write.name] += 1
        if not os.WIFSIGNALED(status):
            tally.fault(f"{write.name} -> another number of file operations", f"place {place} of {count}")
            continue
        try:
            write.value(there)
        except (Refused, FileNotFoundError) as error:  # not there yet is fine, broken is not
            if any(word in str(error) for word in ("corrupt", "truncated", "damaged")):
                tally.fault(f"{write.name} -> half-written file read", f"place {place}: {error}")
        kept = write.kept(there) if there.exists() else set()
        status, words = forked(bound(write, there, 1))
        if status:
            tally.fault(f"{write.name} -> does not go on", f"place {place}: {words}")
            continue
        if not kept <= write.kept(there):
            tally.fault(f"{write.name} -> loses finished work", f"place {place}")
        if write.value(there) != whole:
            tally.fault(f"{write.name} -> other bits after going on", f"place {place} of {count}")
        if orphans(there):
            tally.fault(f"{write.name} -> leaves orphans", f"place {place}: {orphans(there)}")


def _kill_outside(folder: Path, rounds: int, tally: Tally) -> None:
    """The two commands that people run longest: each is killed up to two seconds after it has written something new."""
    rng, by_name = random.Random(0), {write.name: write for write in writes(slow=False)}
    fits, claims = folder / "fits", folder / "claims"
    fit = [
        "fit",
        "image",
        str(next(folder.rglob("photo.png"))),
        "--parameters",
        "5000",
        "--seconds",
        "600",
        "--out",
        str(fits / "run"),
    ]
    check = ["check", CLAIM, "--budget", "smoke", "--seeds", "3000"]
    for name, command, where in (("a fit of a photograph", fit, fits), ("neuropil check", check, claims)):
        kept = by_name[name].kept
        before: set[Hashable] = set()
        for _ in range(rounds):
            process = subprocess.Popen(
                [sys.executable, "-m", "neuropil", *command],
                env=os.environ | {"NEUROPIL_EVIDENCE": str(claims)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            while process.poll() is None and not kept(where) > before:
                time.sleep(0.2)
            time.sleep(rng.uniform(0, 2))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            tally.tries[f"{name}, from outside"] += 1
            after = kept(where)
            if not before < after:
                tally.fault(f"{name}, from outside -> loses finished work", f"{len(before)} before, {len(after)} after")
            before = after
