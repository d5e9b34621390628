"""From evidence to HTML: what each page shows (`SystemView`, `ClaimView`) and the files that `write` makes."""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuropil import catalog
from neuropil.catalog import System
from neuropil.cli.style import SIGNS
from neuropil.errors import Refused, optional
from neuropil.files import write_atomic
from neuropil.lab import evidence, expect
from neuropil.report import races
from neuropil.report.bar import Bar, bar, interval, number

PNG = b"\x89PNG\r\n\x1a\n"
TEMPLATES = Path(__file__).parent / "templates"


@dataclass
class ClaimView:
    """One claim as its page shows it; without evidence only its name and words are known."""

    name: str
    sentence: str
    details: list[str]
    verdict: str = "unmeasured"
    warning: str = ""
    stale: bool = False
    one_seed: bool = False
    budget: str = ""
    measured: str = ""
    expected: str = ""
    metric: str = ""
    method: str = ""
    baseline: str = ""
    compared: str = ""
    effect: str = ""
    interval: str = ""
    paper: str = ""
    small: Bar | None = None
    big: Bar | None = None
    seeds: list[dict[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    versions: str = ""
    machines: str = ""
    pictures: list[Path] = field(default_factory=list)


@dataclass
class SystemView:
    """One system with its claims and the worst of their verdicts."""

    system: System
    claims: list[ClaimView]

    @property
    def verdict(self) -> str:
        """As `neuropil list` gives it: fails before undecided before unmeasured before holds."""
        words = [claim.verdict for claim in self.claims] or ["unmeasured"]
        return next(word for word in ("fails", "undecided", "unmeasured", "holds") if word in words)

    @property
    def thumbnail(self) -> Path | None:
        """The first picture of its first claim that has one."""
        return next((picture for claim in self.claims for picture in claim.pictures), None)

    @property
    def warnings(self) -> list[str]:
        """What could not be read."""
        return [claim.warning for claim in self.claims if claim.warning]


def write(folder: Path | str, slugs: Iterable[str] | None = None) -> Path:
    """Write the gallery of all systems, or of those named by `slugs`, into `folder`; gives the path of its ``index.html``.

    Missing evidence reads *unmeasured*; a damaged evidence file becomes a warning on its system and stops nothing.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise Refused(f"folder: {folder} is a file; name a folder for the report")
    chosen = catalog.systems() if slugs is None else tuple({(s := catalog.find(name)).number: s for name in slugs}.values())
    jinja2 = optional("jinja2", "report")
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    markup = optional("markupsafe", "report").Markup
    pages.filters |= {"prose": lambda text: _prose(text, markup)}
    pages.globals |= {"signs": SIGNS}
    views = [view(system) for system in chosen if system.exists]
    for shown in views:
        for claim in shown.claims:
            for picture in claim.pictures:
                write_atomic(folder / "pictures" / shown.system.slug / picture.name, picture.read_bytes())
        page = pages.get_template("system.html").render(view=shown, system=shown.system, root="../")
        write_atomic(folder / "systems" / f"{shown.system.slug}.html", page)
    raced = races.views() if slugs is None else []
    races.write_pictures(raced, folder)
    for race in raced:
        write_atomic(folder / "races" / f"{race.role}.html", pages.get_template("race.html").render(view=race, root="../"))
    write_atomic(folder / "style.css", (TEMPLATES / "style.css").read_bytes())
    index = folder / "index.html"
    write_atomic(index, pages.get_template("index.html").render(root="", races=raced, **_overview(chosen, views)))
    return index


def _overview(chosen: tuple[System, ...], views: list[SystemView]) -> dict[str, Any]:
    wings = []
    for wing in catalog.WINGS:
        inside = [system for system in chosen if system.wing == wing]
        here = [shown for shown in views if shown.system.wing == wing]
        counts = Counter(shown.verdict for shown in here)
        wings.append(
            {
                "name": wing,
                "systems": len(inside),
                "views": here,
                "planned": [system for system in inside if not system.exists],
                "counts": [(word, counts[word]) for word in SIGNS if counts[word]],
            }
        )
    claims = Counter(claim.verdict for shown in views for claim in shown.claims)
    dates = [claim.measured for shown in views for claim in shown.claims if claim.measured]
    return {
        "wings": [wing for wing in wings if wing["systems"]],
        "systems": len(chosen),
        "existing": len(views),
        "claims": [(word, claims[word]) for word in SIGNS if claims[word]],
        "latest": max(dates, default=""),
    }


def view(system: System) -> SystemView:
    """What the report says of an existing system."""
    words = _docstrings(system)
    return SystemView(system, [_claim(system, name, words.get(name, "")) for name in system.claims])


def _claim(system: System, name: str, docstring: str) -> ClaimView:
    sentence, *details = races.paragraphs(docstring)
    warnings: list[str] = []
    for budget in ("full", "quick"):
        path = evidence.path_of(system.slug, name, budget)
        blank = ClaimView(name, sentence, details)
        try:
            found = evidence.read(path)
            if found.rows:
                _fill(blank, found, evidence.fingerprint(system))
                blank.warning = "; ".join(warnings)
                return blank
        except (ValueError, KeyError, TypeError, AttributeError, OSError, OverflowError):
            warnings.append(f"{path.name} is damaged and was left out; delete it and measure again")
    return ClaimView(name, sentence or name.replace("-", " "), details, warning="; ".join(warnings))


def _fill(claim: ClaimView, found: evidence.Evidence, fingerprint: str) -> None:
    """Put the evidence into a claim's view; whatever does not fit raises."""
    facts, rows = found.facts, found.rows
    if found.verdict not in SIGNS:
        raise Refused(f"verdict: unknown {found.verdict!r}")
    method, baseline = ([float(row[side]) for row in rows] for side in ("method", "baseline"))
    kind, given = facts["expect"]["kind"], {k: v for k, v in facts["expect"].items() if k not in ("kind", "words")}
    ratio = kind == "Ratio"
    metric = expect.Metric(**facts["metric"])
    expectation = getattr(expect, kind)(**{key: float(value) for key, value in given.items()})
    effects = [expectation.back(e) for e in expectation.effects(method, baseline, metric)]
    plain = given.get("than") is not None  # the effect is the method's own value
    no_effect = None if plain else 1.0 if ratio else 0.0
    claim.sentence = claim.sentence or facts["sentence"]
    claim.verdict, claim.one_seed = found.verdict, len(rows) == 1
    claim.stale = len(found.fresh(fingerprint)) < len(rows)
    claim.budget, claim.measured = facts["budget"], (found.measured or "")[:10]
    claim.expected, claim.paper = facts["expect"]["words"], facts.get("paper") or ""
    claim.metric = metric.words
    claim.method, claim.baseline = facts["method"]["name"], facts["baseline"]["name"]
    claim.compared = claim.method if plain else f"{claim.method} {'÷' if ratio else '−'} {claim.baseline}"
    if facts.get("effect") is not None:
        effect = float(facts["effect"])
        span = (float(facts["interval"][0]), float(facts["interval"][1])) if facts.get("interval") else None
        band = tuple(expectation.back(edge) if abs(edge) < float("inf") else edge for edge in expectation.band)
        claim.effect = number(effect)
        claim.interval = interval(span)
        claim.small = bar(effect, span, (band[0], band[1]), (), ratio, no_effect)
        claim.big = bar(effect, span, (band[0], band[1]), effects, ratio, no_effect, width=640.0)
    for row, m, b, e in zip(rows, method, baseline, effects, strict=True):
        numbers = {"method": number(m), "baseline": number(b), "effect": number(e)}
        seconds = f"{float(row['seconds']):.1f}" if "seconds" in row else ""
        claim.seeds.append({"seed": str(row["seed"]), **numbers, "seconds": seconds, "date": str(row["date"])[:10]})
    claim.notes = [(str(key), _short(value)) for key, value in (rows[0].get("notes") or {}).items()]
    claim.versions = ", ".join(f"{name} {version}" for name, version in (facts.get("versions") or {}).items())
    places = [", ".join(filter(None, (row.get("machine"), row.get("device")))) for row in rows]
    claim.machines = "; ".join(dict.fromkeys(filter(None, places)))
    claim.pictures = [path for path in found.pictures if path.read_bytes()[:8] == PNG]


def _short(value: Any, most: int = 12) -> str:
    """A note in one line: numbers of four digits, long lists cut."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int | float):
        return str(value) if isinstance(value, int) else number(value)
    if isinstance(value, list) and not any(isinstance(v, list | dict) for v in value):
        more = f", … ({len(value)} values)" if len(value) > most else ""
        return ", ".join(_short(v) for v in value[:most]) + more
    if isinstance(value, dict) and not any(isinstance(v, list | dict) for v in value.values()):
        return "; ".join(f"{key}: {_short(v)}" for key, v in value.items())
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 240 else text[:239] + "…"


def _docstrings(system: System) -> dict[str, str]:
    """The docstrings of a system's claims by name, read without importing them (and so without torch)."""
    path = Path(__file__).parents[1].joinpath(*system.module.split(".")[1:]).with_suffix(".py")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return {}
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {f.name.replace("_", "-"): ast.get_docstring(f) or "" for f in functions}


def _prose(text: str, markup: Any) -> Any:
    """Escaped text in which ``code`` between backticks is set as code."""
    pieces = re.split(r"(``.+?``|`[^`]+`)", text)
    return markup("").join(markup("<code>{}</code>").format(p.strip("`")) if p.startswith("`") else p for p in pieces)
