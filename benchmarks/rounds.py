"""What every comparison shares: `Ratio`, a row of the table; `in_turns`, the clock; `peer`, a package that may be missing; `main`.

A comparison is a program with a function ``compare(quick) -> Iterator[Ratio]``: set up ours, set up the peer, check that both give
the same numbers, time them in turns. Alone it prints its rows; `bench.py` runs it in a process of its own and keeps them.
"""

import argparse
import contextlib
import datetime
import importlib
import importlib.metadata
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from neuropil.lab import run
from neuropil.lab.check import THREAD_VARIABLES

THREADS = (*THREAD_VARIABLES, "NUMBA_NUM_THREADS")


class Missing(Exception):
    """A peer that is not there, and how to get it: its row is skipped by name."""

    def __init__(self, package: str, how: str) -> None:
        super().__init__(how)
        self.package = package


@dataclass(frozen=True)
class Ratio:
    """What we need and what the other side needs, pair by pair; the ratio of a pair is theirs over ours: above 1 we need less.

    Where `at_most` is set, the row is an overhead and the ratio is ours over theirs. `package` is the peer's name on PyPI, if it
    has one; `against` holds it, and the table puts the version behind. A row with `skipped` or `error`, a reason, was not measured.
    """

    what: str
    against: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "s"
    note: str = ""
    package: str = ""
    skipped: str = ""
    error: str = ""

    def ratios(self) -> list[float]:
        over = [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]
        return over if self.at_most is None else [1 / ratio for ratio in over]

    def wanted(self) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return "" if self.at_least is None else f"≥ {self.at_least:g}"

    def seen(self) -> str:
        """Median, least and most of the pairs' ratios, or why there are none."""
        if not self.ours:
            return self.skipped or f"**broke**: {self.error}"
        ratios = self.ratios()
        pairs = "1 pair" if len(ratios) == 1 else f"{len(ratios)} pairs"
        return f"{number(statistics.median(ratios))} ({number(min(ratios))}–{number(max(ratios))}), {pairs}"

    def amounts(self) -> str:
        """The medians of both sides."""
        return " / ".join(amount(statistics.median(side), self.unit) for side in (self.ours, self.theirs)) if self.ours else ""

    def verdict(self) -> str:
        if not self.ours:
            return ""
        ratio, (better, worse) = statistics.median(self.ratios()), ("faster", "slower") if self.unit == "s" else ("less", "more")
        if self.at_most is not None:
            return "within" if ratio <= self.at_most else f"**{worse} than wanted**"
        if ratio < 1:
            return f"**{worse}**"
        return better if ratio >= (self.at_least or 1) else f"**{better}, but less than wanted**"


def number(ratio: float) -> str:
    """
    >>> number(0.0312), number(1.0084), number(13.71), number(9412.0)
    ('0.031', '1.008', '13.7', '9,412')
    """
    return f"{ratio:.2g}" if ratio < 0.1 else f"{ratio:.3f}" if ratio < 2 else f"{ratio:.3g}" if ratio < 1000 else f"{ratio:,.0f}"


def amount(value: float, unit: str) -> str:
    """
    >>> amount(0.00804, "s"), amount(252, "MiB")
    ('8.04 ms', '252 MiB')
    """
    if unit == "s" and abs(value) < 1:
        value, unit = (1e3 * value, "ms") if abs(value) >= 1e-3 else (1e6 * value, "µs")
    return f"{value:.3g} {unit}" if abs(value) < 1000 else f"{value:,.0f} {unit}"


def peer(module: str, package: str, how: str = "") -> Any:
    """The module, quietly; `Missing` if it, or something that it needs, is not installed. `how` is for what pip alone cannot do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(module)
        except ImportError as error:
            needs = "" if error.name in (None, module.partition(".")[0]) else f" ({error.name} is missing)"
            raise Missing(package, f"not installed: {how or f'pip install {package}'}{needs}") from None


def in_turns(
    ways: dict[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    before: Callable[[str], object] = lambda name: None,
) -> dict[str, list[float]]:
    """Seconds that each way takes in each round: a round runs them all, every other one backwards; a first one is not counted.

    `before` is called with the way's name before its clock starts.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for n in range(rounds + 1):
        for name in list(ways) if n % 2 else reversed(ways):
            before(name)
            start = clock()
            ways[name]()
            seconds = clock() - start
            if n:
                taken[name].append(seconds)
    return taken


def collected(compare: Callable[[bool], Iterable[Ratio]], quick: bool) -> list[Ratio]:
    """All rows; where the peer of all is missing, one that says so."""
    found: list[Ratio] = []
    try:
        for row in compare(quick):
            found.append(row)
    except Missing as why:
        title = (sys.modules[compare.__module__].__doc__ or "").partition("\n")[0].partition(":")[0].rstrip(".")
        found.append(Ratio(title, why.package, package=why.package, skipped=str(why)))
    return found


def machine() -> str:
    """As in the evidence, with the processor's name where the system tells it."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return f"{run.machine()}, {next(line.partition(': ')[2] for line in lines if line.startswith('model name'))}"
    return run.machine()


def version(package: str) -> str:
    """The version of an installed package, or ``""``."""
    try:
        return importlib.metadata.version(package) if package else ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def record(compare: Callable[[bool], Iterable[Ratio]], quick: bool, threads: int) -> dict[str, Any]:
    """The rows and where they come from: date, load before, seconds, machine, threads, versions."""
    facts: dict[str, Any] = {"quick": quick, "threads": threads, "machine": machine()}
    facts["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    facts["load before"] = round(os.getloadavg()[0], 2)
    start = time.perf_counter()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():  # peers chat
        warnings.simplefilter("ignore")
        rows = collected(compare, quick)
    facts["seconds"] = round(time.perf_counter() - start, 1)
    packages = ["numba", *sorted({row.package for row in rows})]
    facts["versions"] = run.versions() | {name: found for name in packages if (found := version(name))}
    return facts | {"rows": [asdict(row) for row in rows]}


def default_threads() -> int:
    return min(2, os.cpu_count() or 1)


def main(compare: Callable[[bool], Iterable[Ratio]]) -> None:
    """The command line of a comparison that is run alone."""
    shape, about = argparse.RawDescriptionHelpFormatter, sys.modules["__main__"].__doc__
    parser = argparse.ArgumentParser(description=about, formatter_class=shape)
    parser.add_argument("--quick", action="store_true", help="few pairs, smaller sizes: to see that it runs")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    given = parser.parse_args()
    threads = {name: str(given.threads) for name in THREADS}
    if any(os.environ.get(name) != value for name, value in threads.items()):  # libraries read it once, when they are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | threads)
    found = record(compare, given.quick, given.threads)
    if given.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for row in (Ratio(**row) for row in found["rows"]):
        print(f"{row.what} against {row.against}: {row.seen()} {row.wanted()}  {row.amounts()}  {row.verdict()}  {row.note}")
