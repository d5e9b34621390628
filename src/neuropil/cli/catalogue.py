"""`neuropil list`, `show`, `cite`: what there is. None of these imports torch."""

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from neuropil import catalog
from neuropil.cli.style import effect_words, verdict_text
from neuropil.errors import Refused, choose
from neuropil.lab import evidence


def _row(system: catalog.System) -> dict[str, Any]:
    try:
        verdict, measured = evidence.standing(system)
    except Refused as damaged:  # one file costs its own verdict, not the list
        verdict, measured = "unmeasured", None
        click.echo(f"neuropil: {damaged}", err=True)
    return {
        "number": system.number,
        "slug": system.slug,
        "title": system.title,
        "wing": system.wing,
        "kind": system.kind,
        "parts": list(system.parts),
        "claims": list(system.claims),
        "verdict": verdict,
        "measured": measured,
    }


@click.command("list")
@click.option("--wing", help=f"Only one wing: {', '.join(catalog.WINGS)}.")
@click.option("--existing", is_flag=True, help="Only systems whose parts exist.")
@click.option("--activations", is_flag=True, help="The registry of activation functions instead.")
@click.option("--json", "as_json", is_flag=True, help="Rows as JSON.")
def list_(wing: str | None, existing: bool, activations: bool, as_json: bool) -> None:
    """All systems: which exist, which are planned, and what their claims came to."""
    if activations:
        _list_activations(as_json)
        return
    if wing is not None:
        choose("wing", wing, catalog.WINGS)
    chosen = [s for s in catalog.systems() if wing in (None, s.wing) and (s.exists or not existing)]
    rows = [_row(system) for system in chosen]
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    cells = []
    for system, row in zip(chosen, rows, strict=True):
        state = verdict_text(row["verdict"]) if system.exists else Text("planned", style="dim")
        short = Text(system.short, style="bold" if system.exists else "dim")
        cells.append((f"{system.number:03}", system.slug, system.wing, short, state, (row["measured"] or "")[:10]))
    console = Console()
    console.print(_catalogue_lines(cells, console.width), overflow="ignore", crop=False)
    exist = [row for system, row in zip(chosen, rows, strict=True) if system.exists]
    counts = Counter(row["verdict"] for row in exist)
    words = ", ".join(f"{n} {word}" for word, n in counts.items())
    console.print(f"\n{len(exist)} of {len(chosen)} exist{': ' + words if words else ''}; the rest are planned.", style="dim")


def _catalogue_lines(cells: list[tuple[Any, ...]], width: int) -> Text:
    """One line a system: columns as wide as their longest cell, names of systems cut to what is left. A table of rich's looks at
    each cell several times, which takes longer than all the rest of the command."""
    names = {"no": "dim", "slug": "", "wing": "dim", "system": "", "verdict": "", "measured": "dim"}
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    rest = width - (sum(widths) - widths[3]) - 2 * (len(names) - 1)
    widths[3] = max(len("system"), min(widths[3], rest))
    lines = Text("  ".join(name.ljust(one) for name, one in zip(names, widths, strict=True)).rstrip(), style="bold", no_wrap=True)
    for row in cells:
        for n, (cell, style, one) in enumerate(zip(row, names.values(), widths, strict=True)):
            text = cell.copy() if isinstance(cell, Text) else Text(cell, style=style)
            text.truncate(one, overflow="ellipsis", pad=n < len(names) - 1)
            lines = lines.append("\n" if n == 0 else "  ").append_text(text)
    return lines


def _list_activations(as_json: bool) -> None:
    """Names, sections, formulas and initial values of all activations, and what is missing."""
    from neuropil.nn.activations import entries, gaps

    if as_json:
        rows = [{k: v for k, v in asdict(e).items() if k not in ("test", "domain")} for e in entries().values()]
        click.echo(json.dumps({"activations": rows, "gaps": [asdict(g) for g in gaps()]}, indent=1, ensure_ascii=False))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, style in (("section", "dim"), ("name", "bold"), ("formula", ""), ("initial values", ""), ("flags", "dim")):
        table.add_column(name, style=style, no_wrap=name in ("section", "name"), overflow="fold")
    for e in entries().values():
        values = " ".join(f"{p}{'*' if p in e.train else ''}={e.draw.get(p, v)}".replace(" ", "") for p, v in e.params.items())
        flags = " ".join([*([] if e.kind == "elementwise" else [e.kind]), *e.flags, *(["uncertain"] if e.uncertain else [])])
        table.add_row(e.section, e.name, Text(e.formula), Text(values), flags)
    console = Console()
    console.print(table)
    uncertain = sum(bool(e.uncertain) for e in entries().values())
    aliases = sum(len(e.aliases) for e in entries().values())
    words = f"{len(entries())} activations ({uncertain} uncertain) and {aliases} aliases; * is trained. Not here:"
    console.print(f"\n{words}", style="dim", highlight=False)
    for gap in gaps():
        console.print(f"  {gap.section}  {gap.name}: {gap.why}", style="dim", highlight=False)


@click.command("show")
@click.argument("slug")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def show_(slug: str, as_json: bool) -> None:
    """One system: what it is, its parts, claims and evidence."""
    system = catalog.find(slug)
    found = {name: evidence.best(system.slug, name) for name in system.claims}
    if as_json:
        claims = {name: {**e.facts, "rows": list(e.rows)} if e else None for name, e in found.items()}
        click.echo(json.dumps(_row(system) | {"paper": system.paper, "evidence": claims}, indent=1, ensure_ascii=False))
        return
    console = Console()
    console.print(f"[bold]{system.title}[/bold]")
    console.print(f"{system.number:03} {system.slug}, a {system.kind} of the wing {system.wing}; {system.paper}", style="dim")
    if system.headline:
        console.print(f"\nPaper's headline: {system.headline}")
    if not system.exists:
        console.print("\nPlanned: it has no parts yet.")
        return
    console.print("\n[bold]Parts[/bold]")
    for part in system.parts:
        console.print(f"  {part}", highlight=False)
    console.print("\n[bold]Claims[/bold]")
    for name, e in found.items():
        line = Text(f"  {name}: ").append_text(verdict_text(e.verdict if e else "unmeasured"))
        console.print(line)
        if e:
            console.print(f"    {e.facts['sentence']}", highlight=False)
            stale = (
                "" if len(e.fresh(evidence.fingerprint(system))) == len(e.rows) else " [yellow]stale: the code has changed since[/]"
            )
            console.print(
                f"    {effect_words(e.facts)}; {e.facts['budget']}, {len(e.rows)} seeds, {e.measured}{stale}",
                style="dim",
            )
    console.print(f"\n[bold]Run it[/bold]\n  neuropil run {system.slug}\n\n[bold]Cite it[/bold]\n{system.cite()}", highlight=False)


@click.command("cite")
@click.argument("slug")
def cite_(slug: str) -> None:
    """How to cite a system, as BibTeX."""
    click.echo(catalog.find(slug).cite())
