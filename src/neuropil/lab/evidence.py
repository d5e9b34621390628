"""Evidence: what was measured, one JSON a claim and budget, kept in the repository beside the code.

``evidence/<slug>/<claim>.<budget>.json`` holds a row for every seed and the verdict over them; ``….png`` beside it is the
picture of its first seed. Rows are merged under a lock and files replaced atomically, so that several processes may record
at once and a kill at any moment loses no finished row. A row made by other code than today's (see `fingerprint`) is stale:
it is shown as such and measured again by `neuropil check`.
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuropil import files
from neuropil.catalog import System
from neuropil.errors import Refused
from neuropil.files import locked, read_json, write_atomic, write_json

FORMAT = 1
NEEDED = {"system", "claim", "budget", "metric", "expect", "rows", "verdict"}


def root() -> Path:
    """``$NEUROPIL_EVIDENCE``, else the checkout's ``evidence/``, else ``./evidence``."""
    return files.kept("evidence", "NEUROPIL_EVIDENCE")


@dataclass(frozen=True)
class Evidence:
    """One evidence file, opened. `rows` are its seeds in order; `facts` the rest of it."""

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    rows: tuple[dict[str, Any], ...] = ()

    @property
    def verdict(self) -> str:
        """The verdict kept in the file."""
        return str(self.facts.get("verdict", "unmeasured"))

    @property
    def measured(self) -> str | None:
        """The date of its latest row."""
        return max((row["date"] for row in self.rows), default=None)

    def fresh(self, fingerprint: str) -> dict[int, dict[str, Any]]:
        """The rows that today's code made, by seed."""
        return {row["seed"]: row for row in self.rows if row["fingerprint"] == fingerprint}

    @property
    def pictures(self) -> list[Path]:
        """The PNGs of its first seed."""
        stem = self.path.name.removesuffix(".json")
        return sorted(self.path.parent.glob(f"{stem}.*.png"))


def path_of(slug: str, claim: str, budget: str) -> Path:
    """Where the evidence of a claim at a budget lies."""
    return root() / slug / f"{claim}.{budget}.json"


def read(path: Path) -> Evidence:
    """Open an evidence file; none gives empty evidence, a corrupt or truncated one is `Refused`."""
    if not path.exists():
        return Evidence(path)
    facts = read_json(path, "evidence")
    if not isinstance(facts, dict) or not facts.keys() >= NEEDED or facts.get("format") != FORMAT:
        raise Refused(f"evidence: {path} is not an evidence file of format {FORMAT}; delete it to measure again")
    try:
        rows = tuple(sorted(facts.pop("rows"), key=lambda row: row["seed"]))
        if not all(row.keys() >= {"seed", "method", "baseline", "fingerprint", "date"} for row in rows):
            raise KeyError("row")
    except (KeyError, TypeError, AttributeError):
        raise Refused(f"evidence: {path} has a damaged row; delete it to measure again") from None
    return Evidence(path, facts, rows)


def best(slug: str, claim: str) -> Evidence | None:
    """The evidence at the largest budget that there is, or none."""
    for budget in ("full", "quick"):
        if (found := read(path_of(slug, claim, budget))).rows:
            return found
    return None


def record(path: Path, row: dict[str, Any], pictures: dict[str, bytes], summarise: Any) -> None:
    """Merge one row into `path`: rows of the same seed are replaced, stale rows dropped, the verdict taken again.

    `summarise` maps the rows to the facts that stand beside them. Only pictures of the lowest seed are kept; they are written
    first, and those that they replace are deleted.
    """
    with locked(path):
        files.sweep(path.parent, _temporaries(path))
        before = read(path)
        rows = before.fresh(row["fingerprint"]) | {row["seed"]: row}
        if pictures and row["seed"] == min(rows):
            drawn = [path.with_name(f"{path.name.removesuffix('.json')}.{name}.png") for name in pictures]
            for picture, content in zip(drawn, pictures.values(), strict=True):
                write_atomic(picture, content)
            for old in set(before.pictures).difference(drawn):
                old.unlink(missing_ok=True)
        ordered = [rows[seed] for seed in sorted(rows)]
        write_json(path, {"format": FORMAT, **summarise(ordered), "rows": ordered})


def sweep(path: Path) -> None:
    """Delete the temporary files that a killed process left of `path` and its pictures."""
    if any(path.parent.glob(_temporaries(path))):  # looking needs no lock
        with locked(path):
            files.sweep(path.parent, _temporaries(path))


def _temporaries(path: Path) -> str:
    """What the temporary files of an evidence file and its pictures are called."""
    return f".{path.name.removesuffix('.json')}.*.tmp"


def standing(system: System) -> tuple[str, str | None]:
    """Verdict and date of a whole system: the worst of its claims (fails, undecided, unmeasured, holds)."""
    found = [best(system.slug, claim) for claim in system.claims]
    words = [e.verdict if e else "unmeasured" for e in found]
    date = max((e.measured for e in found if e and e.measured), default=None)
    for word in ("fails", "undecided", "unmeasured"):
        if word in words or not words:
            return (word if words else "unmeasured"), date
    return "holds", date


@functools.cache
def fingerprint(system: System) -> str:
    """Hash of the code that a system's evidence rests on: its claim file and its parts' files, without comments and docstrings."""
    return files.code_hash(sorted({source(system.module), *map(source, system.parts)}))


def source(dotted: str) -> Path:
    """The source file of a dotted path, found without importing it."""
    package = Path(__file__).resolve().parents[1]
    names = dotted.split(".")[1:]
    for end in range(len(names), 0, -1):
        path = package.joinpath(*names[:end])
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    raise Refused(f"catalogue: {dotted} names no file of this package")
