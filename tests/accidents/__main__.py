"""Make accidents happen, count what they do, and write docs/reliability.md: ``python -m accidents [--write] [NAME …]``."""

import argparse
import importlib
import sys

from rich.console import Console
from rich.progress import Progress

from accidents import report

NAMES = ("inputs", "kills", "disk", "corrupt", "races")  # in this order: `inputs` imports the library in its own way


def main() -> int:
    """0 if every fault is known and every known one still there."""
    parser = argparse.ArgumentParser(prog="python -m accidents", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--rounds", type=int, default=3, help="how many times as much as the quick form (default 3)")
    parser.add_argument("--quick", action="store_true", help="the form that the tests use")
    parser.add_argument("--json", action="store_true", help="one line of JSON a kind")
    parser.add_argument("--write", action="store_true", help="write these kinds' sections of docs/reliability.md")
    parser.add_argument("--known", action="store_true", help="take what was found as the known faults")
    parser.add_argument("--only", default="", metavar="TEXT", help="inputs: only modules with this in their name")
    given = parser.parse_args()
    unknown = set(given.names) - set(NAMES)
    if unknown or given.rounds < 1:
        parser.error(f"unknown {min(unknown)!r}" if unknown else "rounds: at least 1")
    if given.known and (given.quick or given.only):
        parser.error("--known: only from the long form of all modules")
    tallies = []
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        for name in sorted(given.names or NAMES, key=NAMES.index):
            task = bar.add_task(name, total=None)
            module = importlib.import_module(f"accidents.{name}")
            if name == "inputs":
                module.ONLY = given.only
            tallies.append(
                module.run(given.rounds, given.quick, lambda done, of, task=task: bar.update(task, completed=done, total=of))
            )
            bar.update(task, completed=1, total=1)
    if given.known:
        report.write_known(tallies)
    if given.write:
        report.write_page(tallies, "quick form" if given.quick else f"{given.rounds} round{'s' * (given.rounds > 1)}")
    bad = 0
    for tally in tallies:
        new, gone = report.new_and_gone(tally)
        bad += len(new) + len(gone)
        if given.json:
            print(report.as_json(tally))
            continue
        print(f"{tally.name}: {tally.tries.total():,} accidents, {len(tally.faults)} faults, {len(new)} new, {len(gone)} gone")
        for what, keys in (("new", new), ("gone", gone)):
            for key in sorted(keys):
                print(f"  {what}: {key}  {tally.faults.get(key, '')}")
        for what, why in tally.skipped.items():
            print(f"  left out: {what} ({why})")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
