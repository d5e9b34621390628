"""`neuropil data`: which data sets there are, fetching them, and where their files lie. None of it imports torch."""

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from neuropil import data
from neuropil.cli.style import progress_bar
from neuropil.errors import Refused


@click.group("data")
def data_() -> None:
    """The real data that claims run on: list, get, path."""


@data_.command("list")
@click.option("--json", "as_json", is_flag=True, help="Rows as JSON.")
def list_(as_json: bool) -> None:
    """All data sets: what they are, where they come from, and whether they are on this machine."""
    rows: list[dict[str, Any]] = [
        {
            "name": source.name,
            "about": source.about,
            "package": source.requirement,
            "files": len(source.members),
            "here": all((source.folder / member).is_file() for member in source.members),
            "licence": source.licence,
            "citation": source.citation,
        }
        for source in data.sources().values()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column, style in (("name", "bold"), ("here", ""), ("from", "dim"), ("about", "")):
        table.add_column(column, style=style, no_wrap=column != "about")
    for row in rows:
        table.add_row(row["name"], "yes" if row["here"] else "no", row["package"], row["about"])
    Console().print(table)


@data_.command("get")
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="Every data set.")
def get_(names: tuple[str, ...], everything: bool) -> None:
    """Fetch data sets and check them; what is already here and intact is left alone."""
    if bool(names) == everything:
        raise Refused("data get: give names or --all (see `neuropil data list`)")
    # All names are checked before the first download.
    wanted = [data.source(name) for name in (data.sources() if everything else names)]
    with progress_bar() as progress:
        task = progress.add_task("data", total=len(wanted), note="")
        for source in wanted:
            progress.update(task, note=f"{source.name} from {source.requirement}")
            data.path(source.name)
            progress.advance(task)
    for source in wanted:
        click.echo(f"{source.name}: {len(source.members)} files in {source.folder}", err=True)


@data_.command("path")
@click.argument("name")
def path_(name: str) -> None:
    """Where a data set's file, or the folder of its files, lies; it is fetched if needed."""
    click.echo(data.path(name))
