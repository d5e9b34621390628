"""What a round of accidents came to: counts, faults by stable keys, the list of known faults, and the page made of them."""

import datetime
import importlib.metadata
import json
import os
import platform
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from neuropil.files import write_atomic

HERE = Path(__file__).resolve().parent
KNOWN = HERE / "known.toml"
PAGE = HERE.parents[1] / "docs" / "reliability.md"


@dataclass
class Tally:
    """One kind of accident: how often it was made to happen, to what, and where it did harm."""

    name: str
    promise: str  # what must hold, in one sentence
    tries: Counter[str] = field(default_factory=Counter)  # by what it happened to
    faults: dict[str, str] = field(default_factory=dict)  # key -> what was seen
    skipped: dict[str, str] = field(default_factory=dict)  # what -> why
    cases: set[str] = field(default_factory=set)  # the keys' beginnings that were tried, where a key can be known

    def fault(self, key: str, seen: str) -> None:
        """Note a fault; the first sight of it is kept."""
        self.faults.setdefault(f"{self.name}: {key}", " ".join(seen.split())[:200])


def known() -> set[str]:
    """The keys of all known faults."""
    return set(tomllib.loads(KNOWN.read_text(encoding="utf-8"))["known"])


def new_and_gone(tally: Tally) -> tuple[set[str], set[str]]:
    """Faults that nobody knew, and known ones that were tried and no longer happen."""
    mine = {key for key in known() if key.startswith(f"{tally.name}: ")}
    tried = {key for key in mine if key.removeprefix(f"{tally.name}: ").rpartition(" -> ")[0] in tally.cases}
    return set(tally.faults) - mine, tried - set(tally.faults)


def write_known(tallies: list[Tally]) -> None:
    """The known faults of these kinds as they are now; the other kinds' stay."""
    names = tuple(f"{tally.name}: " for tally in tallies)
    keys = sorted({key for key in known() if not key.startswith(names)} | {key for tally in tallies for key in tally.faults})
    lines = [f"    {json.dumps(key, ensure_ascii=False)}," for key in keys]
    head = "# Faults that are known and not yet mended. The list only shrinks: a new one, or one that is gone, fails the test.\n"
    KNOWN.write_text(head + "\n".join(["known = [", *lines, "]"]) + "\n", encoding="utf-8")


HEAD = """# What accidents do

Each section is written by `cd tests && python -m accidents --write NAME` from its own counts. The keys of all known faults are in
`tests/accidents/known.toml`, and tests keep that list from growing.
"""


def write_page(tallies: list[Tally], form: str) -> None:
    """Put the sections of these kinds into docs/reliability.md; those of other kinds stay as they are."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    parts = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    parts |= {tally.name: _section(tally, form) for tally in tallies}
    write_atomic(PAGE, "\n".join([HEAD, *(f"## {parts[name].strip()}\n" for name in sorted(parts))]))


def _section(tally: Tally, form: str) -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy", "safetensors", "jaxtyping"))
    safe = "; nothing finished was lost" if tally.name in ("kills", "disk", "races") and not tally.faults else ""
    lines = [
        tally.name,
        "",
        f"What must hold: {tally.promise}.",
        f"{tally.tries.total():,} accidents ({form}), {len(tally.faults):,} faults{safe}; {datetime.date.today().isoformat()},",
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}.",
        "",
        "| happened to | times |",
        "| --- | ---: |",
        *(f"| {what} | {count:,} |" for what, count in sorted(tally.tries.items())),
    ]
    lines += [f"\nLeft out: {what} ({why})." for what, why in sorted(tally.skipped.items())]
    kinds = Counter(key.rpartition(" -> ")[2] for key in tally.faults)
    if kinds:
        lines += ["", "| known fault | keys |", "| --- | ---: |", *(f"| {kind} | {n} |" for kind, n in kinds.most_common())]
    return "\n".join(lines)


def as_json(tally: Tally) -> str:
    """For the test that runs a kind of accident in a process of its own."""
    new, gone = new_and_gone(tally)
    return json.dumps(
        {
            "tries": tally.tries.total(),
            "new": {key: tally.faults[key] for key in sorted(new)},
            "gone": sorted(gone),
            "skipped": tally.skipped,
        }
    )
