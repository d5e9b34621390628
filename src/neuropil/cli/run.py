"""`neuropil run SLUG[/CLAIM]`: a claim over several seeds, here and now."""

import json
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from neuropil.cli.style import effect_words, number, progress_bar, verdict_text
from neuropil.errors import Refused, choose
from neuropil.lab.claims import Claim, select
from neuropil.lab.trial import BUDGETS


def seeds_of(first: int, count: int) -> range:
    """`count` seeds from `first`; none or negative ones are `Refused`."""
    if count < 1:
        raise Refused(f"seeds: at least 1, got {count}")
    if first < 0:
        raise Refused(f"first-seed: at least 0, got {first}")
    return range(first, first + count)


def run_claim(claim: Claim, budget: str, seeds: range, device: str, keep: bool, progress: Progress) -> dict[str, Any]:
    """All seeds of one claim, with progress; the summary. With `keep` every row is recorded as soon as it is there."""
    from neuropil.lab.run import measure, record, summary

    task = progress.add_task(f"{claim.system}/{claim.name}", total=len(seeds), note="")
    rows = []
    for done, seed in enumerate(seeds):

        def report(what: str, fraction: float, done: int = done) -> None:
            progress.update(task, completed=done + min(fraction, 0.99), note=what)

        row, pictures = measure(claim, seed, budget, device, draw=keep and done == 0, report=report)
        if keep:
            record(claim, budget, row, pictures)
        rows.append(row)
        progress.update(task, completed=done + 1, note="")
    return summary(claim, budget, rows)


def print_summary(facts: dict[str, Any], console: Console) -> None:
    """A claim in words, its numbers, its verdict."""
    console.print(f"\n[bold]{facts['system']}/{facts['claim']}[/bold]  {facts['sentence']}", highlight=False)
    for side in ("method", "baseline"):
        values = "  ".join(number(v) for v in facts[side]["values"])
        console.print(f"  {facts['metric']['name']} of {facts[side]['name']}: {values}", highlight=False, style="dim")
    line = verdict_text(facts["verdict"], facts["one_seed"] and facts["verdict"] != "unmeasured")
    console.print("  ", line, f"  {effect_words(facts)}; {facts['seconds']:.1f} s", sep="", highlight=False)


@click.command("run")
@click.argument("target", metavar="SLUG[/CLAIM]")
@click.option("--budget", default="quick", show_default=True, help=f"One of {', '.join(BUDGETS)}; smoke gives no verdict.")
@click.option("--seeds", default=3, show_default=True, type=int, help="How many seeds.")
@click.option("--first-seed", default=0, show_default=True, type=int, help="The first of them.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N or mps.")
@click.option("--record", "keep", is_flag=True, help="Keep the result as evidence.")
@click.option("--json", "as_json", is_flag=True, help="JSON: one object for one claim, a list for several.")
def run_(target: str, budget: str, seeds: int, first_seed: int, device: str, keep: bool, as_json: bool) -> None:
    """Run the claims of a system (or one of them) over several seeds and give the verdict."""
    choose("budget", budget, BUDGETS)
    chosen = seeds_of(first_seed, seeds)
    claims = select(target)
    from neuropil.lab.run import check_device

    check_device(device)
    with progress_bar() as progress:
        found = [run_claim(claim, budget, chosen, device, keep, progress) for claim in claims]
    if as_json:
        click.echo(json.dumps(found[0] if len(found) == 1 else found, indent=1, ensure_ascii=False))
        return
    console = Console()
    for facts in found:
        print_summary(facts, console)
