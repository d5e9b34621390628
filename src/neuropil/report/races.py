"""The pages of races: of every role the one at the largest budget that is stored, with its table, its picture and how it was
measured.
"""

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuropil.errors import Refused
from neuropil.files import write_atomic
from neuropil.lab import race
from neuropil.lab.expect import Metric
from neuropil.report.bar import interval, number

BUDGETS = ("full", "quick")  # smoke ranks nothing


@dataclass
class RaceView:
    """One race as its page shows it."""

    role: str
    headline: str
    measured_how: list[str]
    metric: str
    settings: dict[str, Any]
    seeds: int
    places: list[dict[str, Any]]
    measured: str
    machine: str
    versions: str
    stale: bool
    picture: Path | None
    warning: str = ""


def views() -> list[RaceView]:
    """The races that are stored, by role; a damaged one is a warning."""
    return [view for role in race.roles() if (view := _view(role))]


def write_pictures(raced: Iterable[RaceView], folder: Path) -> None:
    """``pictures/races/<role>.png`` of each race that has a picture, for the report and for the site."""
    for one in raced:
        if one.picture:
            write_atomic(folder / "pictures" / "races" / f"{one.role}.png", one.picture.read_bytes())


def _view(role: str) -> RaceView | None:
    warning = ""
    for budget in BUDGETS:
        folder = race.root() / f"{role}.{budget}"
        if not (folder / "race.json").exists():
            continue
        try:
            return _filled(role, folder, race.read(folder), warning)
        except (Refused, KeyError, TypeError, ValueError, AttributeError):
            warning = f"{folder.name}/race.json is damaged and was left out; delete it and race again"
    return RaceView(role, role, [], "", {}, 0, [], "", "", "", False, None, warning) if warning else None


def _filled(role: str, folder: Path, facts: dict[str, Any], warning: str) -> RaceView:
    headline, *details = _docstring(role)
    picture = folder / "race.png"
    return RaceView(
        role=role,
        headline=headline,
        measured_how=details,
        metric=Metric(**facts["metric"]).words,
        settings=facts["settings"],
        seeds=int(facts["seeds"]),
        places=[_place(one) for one in facts["ranking"]],
        measured=facts["measured"][:10],
        machine=facts["machine"],
        versions=", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        stale=facts["code"] != race.fingerprints(role),
        picture=picture if picture.exists() else None,
        warning=warning,
    )


def _place(one: dict[str, Any]) -> dict[str, Any]:
    """One line of the table, in words; "tied" where the interval of the difference from the best holds 0."""
    span = one["behind_interval"]
    return {
        "entry": one["entry"],
        "system": one["system"],
        "about": one["about"],
        "numbers": f"{one['parameters']:,}" if one["parameters"] is not None else "",
        "value": number(one["mean"]),
        "interval": interval(one["interval"]),
        "behind": number(one["behind"]),
        "behind_interval": interval(span),
        "tied": span is not None and span[0] <= 0 <= span[1],
        "seconds": f"{float(one['seconds']):.1f}",
        "errors": [f"seed {seed}: {error}" for seed, error in one["errors"].items()],
        "rate": number(one["notes"]["rate"]) if "rate" in one["notes"] else str(one["notes"].get("setting", "")),
    }


def _docstring(role: str) -> list[str]:
    """The paragraphs of a role's file, read without importing it (and so without torch)."""
    path = race.RACES / f"{role.replace('-', '_')}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or role
    return paragraphs(text)


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a docstring, each in one line."""
    return [" ".join(part.split()) for part in text.split("\n\n")]
