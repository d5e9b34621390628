"""`neuropil tour`: one quick claim of every wing on real data, a table of verdicts, a report."""

from pathlib import Path

import click
from rich.console import Console

from neuropil import catalog
from neuropil.cli.check import verdict_table
from neuropil.cli.run import run_claim, seeds_of
from neuropil.cli.style import progress_bar
from neuropil.lab.claims import select


@click.command("tour")
@click.option("--seeds", default=1, show_default=True, type=int, help="Seeds of every claim.")
@click.option(
    "--report",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Write the HTML report here.",
)
def tour_(seeds: int, folder: Path | None) -> None:
    """One quick claim of every wing that has one, on real data, and (with --report) the gallery."""
    chosen = seeds_of(0, seeds)
    console = Console()
    claims = []
    for wing in catalog.WINGS:
        toured = [s.tour for s in catalog.systems() if s.wing == wing and s.tour]
        claims += [select(toured[0])[0]] if toured else []
    console.print(f"[bold]Neuropil[/bold]: one quick claim from each of {len(claims)} wings that have one, on real data.\n")
    with progress_bar() as progress:
        for claim in claims:
            run_claim(claim, "quick", chosen, "cpu", keep=True, progress=progress)
    console.print(verdict_table(claims, "quick"))
    if folder is not None:
        from neuropil import report

        console.print(f"\nreport: {report.write(folder)}", highlight=False)
    console.print("\nNext: `neuropil list`, `neuropil show hopfield`, `neuropil run hopfield`.", style="dim")
