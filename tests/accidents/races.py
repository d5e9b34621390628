"""Several processes write the same thing at the same moment: all is there afterwards, and nobody fails but with one clear line."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from accidents.report import Tally
from accidents.writes import Write, forked, orphans, writes

PROMISE = "each process ends well or is refused in one line, and what lies there is what one process alone would have written"
PROCESSES = 4
MAY_BE_REFUSED = {  # a run folder belongs to one process, and a capture is never written over
    "a fit of a photograph": "is being fitted by another process",
    "a fit of a scene": "is being fitted by another process",
    "a capture": "nothing was written",
}


def run(rounds: int, quick: bool, seen: Callable[[int, int], None]) -> Tally:
    """Every write, by four processes at once."""
    tally = Tally("races", PROMISE)
    found = writes(slow=not quick)
    with tempfile.TemporaryDirectory() as name:
        for number, write in enumerate(found):
            seen(number, len(found))
            folder = Path(name) / str(number)
            folder.mkdir()
            forked(lambda write=write, folder=folder: write.run(folder / "alone", 1))
            for again in range(1 if quick else 3 * rounds):
                _race(write, folder / f"{again}", write.value(folder / "alone"), tally)
    return tally


def _race(write: Write, folder: Path, alone: object, tally: Tally) -> None:
    start = time.time() + 0.1
    results = []
    for _ in range(PROCESSES):
        results.append(os.pipe())
        if not os.fork():

            def together() -> None:
                time.sleep(max(0.0, start - time.time()))
                write.run(folder, 1)

            status, words = forked(together)
            os.write(results[-1][1], f"{status} {words}".encode()[:4000])
            os._exit(0)
        os.close(results[-1][1])
    ends = []
    for receive, _ in results:
        with os.fdopen(receive, errors="replace") as pipe:
            ends.append(pipe.read().partition(" "))
        os.wait()
    tally.tries[f"{write.name}, {PROCESSES} at once"] += 1
    allowed = MAY_BE_REFUSED.get(write.name)
    bad = [words for status, _, words in ends if status != "0" and not (allowed and allowed in words)]
    if bad:
        tally.fault(f"{write.name} -> fails", bad[0])
    if all(status != "0" for status, _, _ in ends):
        tally.fault(f"{write.name} -> nobody ends well", "")
    elif write.value(folder) != alone:
        tally.fault(f"{write.name} -> other than alone", "")
    if orphans(folder):
        tally.fault(f"{write.name} -> leaves orphans", str(orphans(folder)))
