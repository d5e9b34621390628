"""A full disk during every kind of write: one clear line, the old files whole, nothing left over.

Full in two ways: no file may grow over so many bytes (RLIMIT_FSIZE), and a small file system (tmpfs), where we may mount one.
"""

import contextlib
import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from accidents.report import Tally
from accidents.writes import Write, bound, forked, orphans, snapshot, writes

PROMISE = "one line that says what could not be written, the old files whole, nothing left over"
ROOM = 1 << 20


def run(rounds: int, quick: bool, seen: Callable[[int, int], None]) -> Tally:
    """Fill the disk under every write that has something to replace or to add to."""
    tally = Tally("disk", PROMISE)
    found = writes(slow=not quick)
    tally.cases |= set() if quick else {write.name for write in found}  # fewer sizes prove nothing gone
    with tempfile.TemporaryDirectory() as name:
        for number, write in enumerate(found):
            seen(number, len(found))
            _limited(write, Path(name) / str(number), [0.5] if quick else [k / (4 * rounds) for k in range(4 * rounds)], tally)
        with _small(Path(name) / "small") as small:
            if small is None:
                tally.skipped["a small file system"] = "no permission to mount one"
                return tally
            for write in found:
                _filled(write, small, tally)
    return tally


def _limited(write: Write, folder: Path, parts: list[float], tally: Tally) -> None:
    folder.mkdir()
    there = folder / "there"
    status, words = forked(bound(write, there, 1))
    if status:
        tally.fault(f"{write.name} -> does not run", words)
        return
    largest = max(len(content) for content in snapshot(there).values())
    for part in parts:

        def limited(size: int = int(largest * part)) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            write.run(there, 2)

        _judge(write, there, limited, "files of limited size", tally)


def _filled(write: Write, small: Path, tally: Tally) -> None:
    there = small / "there"
    status, words = forked(bound(write, there, 1))
    if status:
        tally.skipped[f"{write.name} on a small file system"] = "does not fit at all"
    else:
        ballast = small / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        _judge(write, there, bound(write, there, 2), "a full file system", tally)
        ballast.unlink()
        status, words = forked(bound(write, there, 2))
        if status:
            tally.fault(f"{write.name} -> does not go on when there is room again", words)
    subprocess.run(["rm", "-rf", *map(str, small.iterdir())], check=True)


def _judge(write: Write, there: Path, action: Callable[[], None], what: str, tally: Tally) -> None:
    kept = write.kept(there)
    status, words = forked(action)
    tally.tries[f"{write.name}, {what}"] += 1
    kind, _, line = words.partition(": ")
    if os.WIFSIGNALED(status):
        tally.fault(f"{write.name} -> dies", f"signal {os.WTERMSIG(status)}")
    elif status and (kind not in ("Refused", "OSError") or "\n" in line or str(there.parent) not in line):
        tally.fault(f"{write.name} -> no clear line", words)
    try:
        write.value(there)
        if not kept <= write.kept(there):
            tally.fault(f"{write.name} -> loses finished work", words)
    except Exception as error:
        tally.fault(f"{write.name} -> half-written files", f"{type(error).__name__}: {error}")
    if orphans(there):
        tally.fault(f"{write.name} -> leaves orphans", str(orphans(there)))


@contextlib.contextmanager
def _small(folder: Path) -> Iterator[Path | None]:
    """A file system of one megabyte, or None."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
