"""`neuropil report`: the gallery of systems, claims and verdicts as static HTML."""

import json
from pathlib import Path

import click

from neuropil import catalog


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("report"))
@click.option("--json", "as_json", is_flag=True, help="The path and the number of systems shown, as JSON.")
def report_(folder: Path, as_json: bool) -> None:
    """Write the HTML gallery of systems, claims and verdicts into FOLDER (default: report)."""
    from neuropil import report

    index = report.write(folder)
    if as_json:
        click.echo(json.dumps({"index": str(index), "systems": sum(s.exists for s in catalog.systems())}))
    else:
        click.echo(str(index))
