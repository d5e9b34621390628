"""Every comparison of this folder, each in a process of its own, and one table of what came out.

FOLDER gets results/NAME.json as soon as NAME is done, and from all that lie there results.json and RESULTS.md. What is there for
the same threads and machine is kept, so an interrupted run goes on where it stopped. A quick run has a folder of its own.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rounds import THREADS, Ratio, default_threads, machine, version

from neuropil.errors import Refused, choose
from neuropil.files import read_json, write_atomic, write_json

HERE = Path(__file__).resolve().parent
Record = dict[str, Any]


def names(programs: Path = HERE) -> list[str]:
    """The comparisons of a folder."""
    return sorted(path.stem for path in programs.glob("*.py") if path.name not in ("bench.py", "rounds.py"))


def rows(record: Record) -> list[Ratio]:
    return [Ratio(**row) for row in record["rows"]]


def finished(path: Path, quick: bool, threads: int) -> bool:
    """Whether the record there is of this kind and machine, unbroken, and skips no peer that is installed by now."""
    if not path.exists():
        return False
    record = read_json(path, "benchmark")
    if (record["quick"], record["threads"], record.get("machine")) != (quick, threads, machine()):
        return False
    return not any(row.error or (row.skipped and version(row.package)) for row in rows(record))


def measured(program: Path, quick: bool, threads: int) -> Record:
    """The record of a run; of a program that breaks, one row with its error."""
    command = [sys.executable, str(program), "--json", "--threads", str(threads), *(["--quick"] if quick else [])]
    done = subprocess.run(command, env=os.environ | dict.fromkeys(THREADS, str(threads)), capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout)
    print(done.stderr, file=sys.stderr)
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    row = {"what": program.stem, "against": "", "error": f"{last} (exit code {done.returncode})"}
    return {"quick": quick, "threads": threads, "rows": [row]}


# ---------------------------------------------------------------------------------------------------------------- the table


def cells(*texts: object) -> str:
    return "| " + " | ".join(str(text).replace("|", "\\|").replace("\n", " ") for text in texts) + " |"


def line(row: Ratio, versions: dict[str, str]) -> str:
    against = row.against.replace(row.package, f"{row.package} {versions[row.package]}") if row.package in versions else row.against
    return cells(row.what, against, row.wanted(), row.seen(), row.verdict(), row.amounts(), row.note)


def table(records: dict[str, Record]) -> str:
    """Markdown: a row for each ratio, and where and when each comparison was measured."""
    quick = any(record["quick"] for record in records.values())
    text = [
        "# What the comparisons came to",
        "",
        "Written by `bench.py`: do not edit; [README.md](README.md) says how to read it.",
        "",
    ]
    if quick:
        text += ["**A quick run**: few pairs and small sizes, only to see that everything runs.", ""]
    text += [
        cells("what", "against", "wanted", "ratio: median (least–most)", "ours is", "ours / theirs", "note"),
        cells(*["---"] * 7),
    ]
    for record in records.values():
        text += [line(row, record.get("versions", {})) for row in rows(record)]
    text += ["", "## Where and when", ""]
    columns = ("comparison", "date", "threads", "load before", "seconds", "machine", "versions")
    text += [cells(*columns), cells(*["---"] * 7)]
    for name, record in records.items():
        versions = ", ".join(f"{package} {found}" for package, found in record.get("versions", {}).items())
        text.append(cells(f"`{name}.py`", *(record.get(column, "") for column in columns[1:-1]), versions))
    return "\n".join(text) + "\n"


def write(out: Path) -> dict[str, Record]:
    """RESULTS.md and results.json from what is finished."""
    records = {path.stem: read_json(path, "benchmark") for path in sorted((out / "results").glob("*.json"))}
    write_json(out / "results.json", records)
    write_atomic(out / "RESULTS.md", table(records))
    return records


# ------------------------------------------------------------------------------------------------------------- command line


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="comparisons (default: all)")
    parser.add_argument("--quick", action="store_true", help="few pairs, smaller sizes: to see that everything runs")
    parser.add_argument("--threads", type=int, default=default_threads(), help="of every library (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the records as JSON when all is done")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: this folder; of a quick run build/bench")
    parser.add_argument("--again", action="store_true", help="measure again what is there")
    return parser.parse_args(arguments)


def run(given: argparse.Namespace, programs: Path = HERE) -> int:
    """0, or 1 if a comparison broke, or 130 if interrupted."""
    if given.threads < 1:
        raise Refused(f"threads: {given.threads} (allowed: 1 or more)")
    chosen = [choose("NAME", name, names(programs)) for name in given.names] or names(programs)
    out, broke = given.out or (HERE.parent / "build" / "bench" if given.quick else HERE), False
    for name in chosen:
        path = out / "results" / f"{name}.json"
        if not given.again and finished(path, given.quick, given.threads):
            print(f"{name}: kept (--again measures again)", file=sys.stderr)
            continue
        print(f"{name} ...", file=sys.stderr)
        try:
            record = measured(programs / f"{name}.py", given.quick, given.threads)
        except KeyboardInterrupt:
            print("interrupted: what is finished is kept, the same command goes on", file=sys.stderr)
            return 130
        write_json(path, record)
        write(out)
        for row in rows(record):
            print(f"  {row.what}, against {row.against}: {row.seen()} {row.verdict()}", file=sys.stderr)
            broke |= bool(row.error)
    records = write(out)
    print(json.dumps(records, indent=1, ensure_ascii=False) if given.json else f"{out / 'RESULTS.md'}")
    return int(broke)


def main(arguments: Sequence[str] | None = None, programs: Path = HERE) -> int:
    try:
        return run(options(arguments), programs)
    except Refused as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
