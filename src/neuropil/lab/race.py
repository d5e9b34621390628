"""Races: every part of one role on the same data at the same budget, ranked by one metric.

A role is a file of `neuropil.races` with a `ROLE` in it; a part enters by a line of the catalogue,
``roles = ["<role>:<builder>"]``, a baseline by standing in the role's own file. Each finished (entry, seed) is written at once
and atomically:

    OUT/results/<entry>.<seed>.json          its value, its true size, its cost, or the error in one line
        results/<entry>.<seed>.safetensors   what the picture shows of it (seed 0)
        race.json, race.png                  the ranking over all that is there, and the picture

so that a race may be stopped at any moment and the same call goes on. A result made by other code than today's (the role's file
and what it takes from the wings, the system's claim and parts) is measured again, and so is an error. One entry that breaks never
stops the others.
"""

import ast
import datetime
import functools
import hashlib
import importlib
import io
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuropil import catalog
from neuropil.errors import Refused, choose, optional
from neuropil.files import code_hash, kept, read_json, sha256, write_atomic, write_json
from neuropil.lab import evidence
from neuropil.lab.expect import Metric
from neuropil.lab.trial import Trial

if TYPE_CHECKING:
    import torch

FORMAT = 1
RACES = Path(__file__).resolve().parents[1] / "races"
Row = dict[str, Any]
Report = Callable[[str, float, int], None]  # what runs, how many results are there (and what part of this one), of how many
Shown = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class Course:
    """What every entry of one seed is given: seed and budget (`trial`), numbers, seconds (none: the role's steps), the source."""

    trial: Trial
    parameters: int
    seconds: float | None = None
    source: str | None = None


@dataclass(frozen=True)
class Score:
    """The metric of an entry on test data, how many numbers it has, what it chose on validation data, and what a picture shows."""

    value: float
    parameters: int
    notes: dict[str, Any] = field(default_factory=dict)
    shown: Shown = field(default_factory=dict)


@dataclass(frozen=True)
class Role:
    """What a race is about.

    Args:
        name: as `neuropil race` knows it.
        metric: what ranks.
        parameters: the default budget of numbers.
        wanted: what `--data` takes, in one sentence; `named` are data sets that it knows by name.
        prepare: a course to data, once a seed. Bad data is `Refused` and ends the race.
        measure: a builder, the data and the course to a score.
        draw: the data of seed 0 and (name, score, shown) of the entries, best first, to a matplotlib figure.
        baselines: builders that belong to no system.
        timed: whether its entries can be given the same seconds; else `--seconds` is `Refused`.
    """

    name: str
    metric: Metric
    parameters: int
    wanted: str
    prepare: Callable[[Course], Any]
    measure: Callable[[Callable[..., Any], Any, Course], Score]
    draw: Callable[[Any, Sequence[tuple[str, float, Shown]]], Any]
    baselines: tuple[Callable[..., Any], ...] = ()
    named: tuple[str, ...] = ()
    timed: bool = True


@dataclass(frozen=True)
class Entry:
    """A builder in a race; `system` is the slug of whose part it is, "" for a baseline."""

    name: str
    system: str
    build: Callable[..., Any]

    @property
    def about(self) -> str:
        """The first paragraph of the builder's docstring."""
        return " ".join((self.build.__doc__ or "").strip().split("\n\n")[0].split())


@dataclass(frozen=True)
class Settings:
    """What two races must share to be one: see `settings`."""

    budget: str
    parameters: int
    seconds: float | None
    data: str
    fingerprint: str

    @property
    def own(self) -> bool:
        """Whether the data are the user's."""
        return self.fingerprint != ""


@dataclass(frozen=True)
class Place:
    """One entry in the ranking. `behind` is its paired difference from the best; 95 % t-intervals, none for one seed."""

    entry: str
    system: str
    about: str
    values: dict[int, float]
    errors: dict[int, str]
    parameters: int | None
    seconds: float
    mean: float | None
    interval: tuple[float, float] | None
    behind: float | None
    behind_interval: tuple[float, float] | None
    notes: dict[str, Any]


def root() -> Path:
    """``$NEUROPIL_RACES``, else the checkout's ``races/``, else ``./races``."""
    return kept("races", "NEUROPIL_RACES")


def roles() -> dict[str, list[tuple[str, str]]]:
    """All roles, and the (slug, builder's dotted path) of the parts that the catalogue enters. Imports no torch.

    >>> "image-field" in roles()
    True
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for system in catalog.systems():
        for line in system.roles:
            role, _, builder = line.partition(":")
            found.setdefault(role, []).append((system.slug, builder))
    return dict(sorted(found.items()))


def load(name: str) -> Role:
    """The role of a name; an unknown one is `Refused` with the nearest."""
    choose("ROLE", name, roles())
    role: Role = importlib.import_module(f"neuropil.races.{name.replace('-', '_')}").ROLE
    return role


def entries(role: Role) -> list[Entry]:
    """The parts that the catalogue enters, by system, then the role's baselines."""
    found = []
    for slug, dotted in roles().get(role.name, []):
        module, _, name = dotted.rpartition(".")
        found.append((slug, getattr(importlib.import_module(module), name)))
    found += [("", build) for build in role.baselines]
    return [Entry(build.__name__.replace("_", " "), slug, build) for slug, build in found]


def settings(
    role: Role, budget: str, parameters: int | None = None, seconds: float | None = None, data: str | None = None
) -> Settings:
    """Checked settings; `Refused` for numbers below 1, seconds that are no time, or data that are not there."""
    if parameters is not None and parameters < 1:
        raise Refused(f"parameters: at least 1, got {parameters}")
    if seconds is not None and not 0 < seconds < math.inf:
        raise Refused(f"seconds: must be positive and finite, got {seconds:g}")
    if seconds is not None and not role.timed:
        raise Refused(f"seconds: {role.name} has entries that are not trained step by step; leave it out")
    mark = ""
    if data is not None and data not in role.named:
        path = Path(data)
        if not path.exists():
            named = f"; known by name: {', '.join(role.named)}" if role.named else ""
            raise Refused(f"data: no file or folder {data} ({role.name} takes {role.wanted}{named})")
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        mark = sha256("".join(sha256(file) for file in files).encode())[:16]
    return Settings(budget, parameters or role.parameters, seconds, data or "", mark)


def default_folder(role: Role, asked: Settings) -> Path:
    """``<root>/<role>.<budget>``, with a hash of the settings where they are not the role's own."""
    plain = asked == Settings(asked.budget, role.parameters, None, "", "")
    key = hashlib.sha256(json.dumps(vars(asked)).encode()).hexdigest()[:8]
    return root() / f"{role.name}.{asked.budget}{'' if plain else '.' + key}"


def run(role: Role, asked: Settings, seeds: int, out: Path, report: Report = lambda what, done, total: None) -> dict[str, Any]:
    """Measure what `out` lacks, seed after seed, and give the race as `race.json` has it."""
    if seeds < 1:
        raise Refused(f"seeds: at least 1, got {seeds}")
    _check_out(role, asked, out)
    runners, code = entries(role), fingerprints(role.name)
    rows = stored(out, code)
    total, have = len(runners) * seeds, sum((e.name, s) in rows for e in runners for s in range(seeds))
    facts = functools.partial(summary, role, asked, runners, rows, seeds, code)
    write_json(out / "race.json", facts())
    fresh, data = False, {}
    for seed in range(seeds):
        missing = [entry for entry in runners if (entry.name, seed) not in rows]
        if missing:
            report("data", have, total)
            data = {seed: role.prepare(_course(asked, seed))}
        for entry in missing:
            name = f"{entry.name}, seed {seed}"
            report(name, have, total)

            def inside(what: str, part: float, name: str = name, have: int = have) -> None:
                report(f"{name}: {what}", have + part, total)

            course = _course(asked, seed, inside)
            row, shown = _measure(role, entry, data[seed], course)
            row["fingerprint"] = code[entry.system]
            if seed == 0 and shown:
                _keep(out, entry, shown)
            write_json(_file(out, entry.name, seed), row)
            rows[entry.name, seed] = row
            have, fresh = have + 1, fresh or seed == 0
            write_json(out / "race.json", facts())
    unseen = ""
    if fresh or not (out / "race.png").exists():
        try:
            _draw(role, runners, rows, out, data.get(0) or role.prepare(_course(asked, 0)))
        except Exception as error:  # a ranking without a picture is still a ranking
            unseen = " ".join(f"no picture: {error}".split())[:300]
    return facts() | {"unseen": unseen}


def _course(asked: Settings, seed: int, report: Callable[[str, float], None] | None = None) -> Course:
    return Course(Trial(seed, asked.budget, report=report), asked.parameters, asked.seconds, asked.data or None)


def _measure(role: Role, entry: Entry, data: Any, course: Course) -> tuple[Row, Shown]:
    """One entry on one seed; whatever goes wrong is a row with its error."""
    from neuropil.lab.run import machine, plain, seed_everything, versions

    seed_everything(course.trial.seed)
    start = time.perf_counter()
    row: Row = {"entry": entry.name, "seed": course.trial.seed}
    shown: Shown = {}
    try:
        score = role.measure(entry.build, data, course)
        if not math.isfinite(score.value):
            raise ArithmeticError(f"{role.metric.name} is {score.value}, no finite number")
        row |= {"value": float(score.value), "parameters": int(score.parameters), "notes": plain(score.notes)}
        shown = score.shown
    except Exception as error:
        words = " ".join(str(error).split()) or "no word said"
        row["error"] = f"{type(error).__name__}: {words[:300]}"
    row["seconds"] = round(time.perf_counter() - start, 3)
    row["date"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
    return row | {"machine": machine(), "versions": versions()}, shown


def rank(rows: Sequence[Row], metric: Metric, runners: Sequence[Entry] = ()) -> list[Place]:
    """The places, best first: entries without an error by their mean, then those with some, then those that never finished.

    >>> rows = [{"entry": n, "seed": s, "value": v + s, "seconds": 1.0} for n, v in (("a", 1.0), ("b", 3.0)) for s in (0, 1)]
    >>> [(p.entry, p.mean, p.behind) for p in rank(rows, Metric("score", "higher"))]
    [('b', 3.5, None), ('a', 1.5, -2.0)]
    """
    from neuropil.numerics.statistics import t_interval  # late: the report needs no scipy

    known = {entry.name: entry for entry in runners}
    by_entry: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        by_entry.setdefault(row["entry"], []).append(row)
    sign = -1 if metric.better == "higher" else 1

    def key(item: tuple[str, list[Row]]) -> tuple[int, float, str]:
        values = [row["value"] for row in item[1] if "value" in row]
        failed = any("error" in row for row in item[1])
        return (2, 0.0, item[0]) if not values else (int(failed), sign * sum(values) / len(values), item[0])

    def spread(values: list[float]) -> tuple[float | None, tuple[float, float] | None]:
        if not values:
            return None, None
        mean, low, high = t_interval(values)
        return mean, (low, high) if len(values) > 1 else None

    places, best = [], None
    for name, own in sorted(by_entry.items(), key=key):
        values = {row["seed"]: row["value"] for row in own if "value" in row}
        best = values if best is None else best
        behind = [value - best[seed] for seed, value in values.items() if seed in best] if best is not values else []
        entry, done = known.get(name), [row for row in own if "value" in row]
        place = Place(
            name,
            entry.system if entry else "",
            entry.about if entry else "",
            values,
            {row["seed"]: row["error"] for row in own if "error" in row},
            done[0].get("parameters") if done else None,
            round(sum(row["seconds"] for row in own) / len(own), 3),
            *spread(list(values.values())),
            *spread(behind),
            done[0].get("notes", {}) if done else {},
        )
        places.append(place)
    return places


def summary(
    role: Role, asked: Settings, runners: Sequence[Entry], rows: dict[tuple[str, int], Row], seeds: int, code: dict[str, str]
) -> dict[str, Any]:
    """The race as plain data: what `--json` prints and `race.json` keeps. Entries without a result yet are `waiting`."""
    names = {entry.name for entry in runners}
    here = [row for (name, seed), row in rows.items() if name in names and seed < seeds]
    return {
        "format": FORMAT,
        "role": role.name,
        "metric": role.metric.as_json(),
        "settings": vars(asked),
        "seeds": seeds,
        "ranking": [vars(place) for place in rank(here, role.metric, runners)],
        "waiting": [e.name for e in runners if not any((e.name, s) in rows for s in range(seeds))],
        "measured": max((row["date"] for row in here), default=""),
        "machine": next((row["machine"] for row in here), ""),
        "versions": next((row["versions"] for row in here), {}),
        "code": code,
    }


def read(folder: Path) -> dict[str, Any]:
    """The race in a folder; `Refused` if there is none or it is damaged."""
    facts = read_json(folder / "race.json", "race")
    if (
        not isinstance(facts, dict)
        or facts.get("format") != FORMAT
        or not facts.keys() >= {"role", "metric", "ranking", "settings"}
    ):
        raise Refused(f"race: {folder / 'race.json'} is no race of format {FORMAT}; delete it to measure again")
    return facts


@functools.cache
def role_code(name: str) -> str:
    """Hash of the code of a role's file, of what all roles share, and of the wings' files that these import, found by reading.

    As for evidence, the ground that all stand on (`nn`, `numerics`, `data`, `training`) does not count.
    """
    others = {other.replace("-", "_") for other in roles() if other != name}
    files = [file for file in sorted(RACES.glob("*.py")) if file.stem not in others]
    return code_hash([*files, *sorted({used for file in files for used in _wing_files(file)})])


@functools.cache
def _wing_files(file: Path) -> set[Path]:
    """The files of wings that a file imports names from."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {evidence.source(module) for module in modules if module.split(".")[1:2] and module.split(".")[1] in catalog.WINGS}


def fingerprints(name: str) -> dict[str, str]:
    """What the results of each system's entries in a role rest on, by slug; "" for baselines."""
    own = role_code(name)
    slugs = {slug for slug, _ in roles().get(name, [])}
    return {"": own} | {slug: f"{own}.{evidence.fingerprint(catalog.find(slug))}" for slug in slugs}


def stored(out: Path, code: dict[str, str]) -> dict[tuple[str, int], Row]:
    """The results in a folder that today's code made and that are no errors; a damaged one counts as missing."""
    found = {}
    for file in sorted((out / "results").glob("*.json")):
        try:
            row = json.loads(file.read_bytes())
            if "value" in row and row["fingerprint"] in code.values():
                found[row["entry"], row["seed"]] = row
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _check_out(role: Role, asked: Settings, out: Path) -> None:
    """`Refused` if `out` is a file or holds another race."""
    if out.exists() and not out.is_dir():
        raise Refused(f"out: {out} is a file; give a folder")
    if not (out / "race.json").exists():
        return
    there = read(out)
    if there["role"] != role.name:
        raise Refused(f"out: {out} holds a race of {there['role']}; give another --out")
    for name, value in vars(asked).items():
        if there["settings"].get(name) != value and not (name == "data" and asked.own):  # own data are what is in them
            raise Refused(f"out: {out} holds a race with {_other(name, there['settings'].get(name))}; give another --out")


def _other(name: str, value: Any) -> str:
    return "other data" if name == "fingerprint" else f"{name} {value}"


def _file(out: Path, name: str, seed: int, suffix: str = "json") -> Path:
    return out / "results" / f"{name.replace(' ', '-')}.{seed}.{suffix}"


def _keep(out: Path, entry: Entry, shown: Shown) -> None:
    from safetensors.torch import save

    write_atomic(_file(out, entry.name, 0, "safetensors"), save({k: v.detach().contiguous().clone() for k, v in shown.items()}))


def _draw(role: Role, runners: Sequence[Entry], rows: dict[tuple[str, int], Row], out: Path, data: Any) -> None:
    """The picture of seed 0: what each entry kept, best first. Without anything to show there is none."""
    from safetensors.torch import load as unpack

    first = [row for (_, seed), row in rows.items() if seed == 0]
    kept = [(p.entry, p.values[0], _file(out, p.entry, 0, "safetensors")) for p in rank(first, role.metric, runners) if p.values]
    shown = [(name, value, unpack(file.read_bytes())) for name, value, file in kept if file.exists()]
    if not shown:
        return
    optional("matplotlib", "report").use("Agg")
    figure, buffer = role.draw(data, shown), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    optional("matplotlib.pyplot", "report").close(figure)
    write_atomic(out / "race.png", buffer.getvalue())
