"""`neuropil race ROLE`: all parts of one role on the same data at the same budget, ranked."""

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from neuropil.cli.style import interval, number, progress_bar
from neuropil.errors import choose
from neuropil.lab import race
from neuropil.lab.expect import Metric
from neuropil.lab.trial import BUDGETS


def ranking_table(facts: dict[str, Any]) -> Table:
    """The ranking in a terminal; an entry that broke says why."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.title, table.title_justify = f"{facts['role']}: {Metric(**facts['metric']).words}", "left"
    for name in ("", "entry", "numbers", "mean", "from the best", "seconds", "system"):
        right = name in ("", "numbers", "seconds")
        table.add_column(name, overflow="fold", justify="right" if right else "left", no_wrap=right)
    for place, one in enumerate(facts["ranking"], 1):
        size = f"{one['parameters']:,}" if one["parameters"] is not None else ""
        value = number(one["mean"]) + interval(one["interval"])
        behind = number(one["behind"]) + interval(one["behind_interval"])
        broke = "; ".join(f"seed {seed}: {error}" for seed, error in one["errors"].items())
        words = "  ".join(filter(None, (value, f"[red]broke[/red] {_plain(broke)}" if broke else "")))
        table.add_row(str(place), one["entry"], size, words, behind, f"{one['seconds']:.1f}", one["system"] or "baseline")
    return table


def _plain(text: str) -> str:
    """Without rich's markup."""
    return text.replace("[", r"\[")


def roles_table() -> Table:
    """The roles, and the systems that are in them."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("role", "systems (baselines join them)"):
        table.add_column(name, overflow="fold")
    for role, lines in race.roles().items():
        table.add_row(role, ", ".join(dict.fromkeys(slug for slug, _ in lines)))
    return table


@click.command("race")
@click.argument("role", required=False, metavar="[ROLE]")
@click.option(
    "--data",
    default=None,
    help="Your own data instead of the role's. image-field: a photograph; video-field: a clip; shape-field: a closed mesh, "
    "or 'duck', 'soccerball', 'teddy'; "
    "associative-memory: a folder of pictures, or .npy/.npz `patterns` (m, d); sequence-cell: .npz `x` (n, t, d), "
    "`y` (n) or (n, t): classes, or numbers that are right within a quarter of their deviation, or 'copy', 'adding'; "
    "learning-rule: .npz `x` (n, …), `y` (n); "
    "set-and-graph-layer: .npz `node`, `edge` (p), `labels` (n), perhaps `x` (n, d); "
    "voxel-encoder: .npz `tokens` (n, h, w, c), `responses` (n, v), perhaps `rois` (r, v); operator: .npz `x`, `y` (n, c, h, h).",
)
@click.option(
    "--parameters",
    type=int,
    default=None,
    help="Numbers that each entry may have at most; the role has a default. Memories' sizes follow from the patterns.",
)
@click.option("--seconds", type=float, default=None, help="Seconds of training for each entry and seed, instead of equal steps.")
@click.option("--seeds", default=3, show_default=True, type=int, help="How many seeds, from 0.")
@click.option("--budget", default="quick", show_default=True, help=f"One of {', '.join(BUDGETS)}.")
@click.option("--json", "as_json", is_flag=True, help="The race as JSON.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="The race's folder; by default below $NEUROPIL_RACES.")
def race_(
    role: str | None,
    data: str | None,
    parameters: int | None,
    seconds: float | None,
    seeds: int,
    budget: str,
    as_json: bool,
    out: Path | None,
) -> None:
    """Build every part of a ROLE to one budget, train all on the same data, and rank them; without a ROLE, list the roles.

    Stop it at any moment: the same command goes on. Exit code 1 if an entry broke.
    """
    if role is None:
        if as_json:
            click.echo(json.dumps(race.roles(), indent=1))
        else:
            Console().print(roles_table())
        return
    choose("budget", budget, BUDGETS)
    choose("ROLE", role, race.roles())
    chosen = race.load(role)
    asked = race.settings(chosen, budget, parameters, seconds, data)
    folder = out or race.default_folder(chosen, asked)
    with progress_bar() as progress:
        task = progress.add_task(role, total=1, note="")

        def report(what: str, done: float | int, total: int) -> None:
            progress.update(task, completed=done, total=total, note=what)

        facts = race.run(chosen, asked, seeds, folder, report)
    if as_json:
        click.echo(json.dumps({**facts, "out": str(folder)}, indent=1, ensure_ascii=False))
    else:
        console = Console()
        console.print(ranking_table(facts))
        picture = folder / "race.png"
        seen = facts["unseen"] or (f"see {picture}" if picture.exists() else "")
        console.print("; ".join(filter(None, (str(folder), seen))), style="dim", highlight=False, markup=False)
    if any(place["errors"] for place in facts["ranking"]):
        sys.exit(1)
