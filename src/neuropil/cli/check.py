"""`neuropil check [SLUG…|--all]`: many claims × seeds in parallel, into evidence."""

import json
import os
import sys

import click
from rich.console import Console
from rich.table import Table

from neuropil import catalog
from neuropil.cli.run import seeds_of
from neuropil.cli.style import effect_words, progress_bar, verdict_text
from neuropil.errors import Refused, choose
from neuropil.lab import evidence
from neuropil.lab.claims import Claim, select
from neuropil.lab.trial import BUDGETS


def verdict_table(claims: list[Claim], budget: str) -> Table:
    """What the evidence says of `claims` at `budget`."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("claim", "verdict", "effect", "seeds"):
        table.add_column(name, overflow="fold")
    for claim in claims:
        found = evidence.read(evidence.path_of(claim.system, claim.name, budget))
        words = effect_words(found.facts) if found.rows else ""
        one = len(found.rows) == 1 and found.verdict != "unmeasured"
        table.add_row(f"{claim.system}/{claim.name}", verdict_text(found.verdict, one), words, str(len(found.rows)))
    return table


@click.command("check")
@click.argument("slugs", nargs=-1, metavar="[SLUG[/CLAIM]]...")
@click.option("--all", "everything", is_flag=True, help="Every system that has claims.")
@click.option("--budget", default="quick", show_default=True, help=f"One of {', '.join(BUDGETS)}.")
@click.option("--seeds", default=3, show_default=True, type=int, help="Seeds of every claim.")
@click.option("--first-seed", default=0, show_default=True, type=int, help="The first of them.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N or mps.")
@click.option("--workers", type=int, default=None, help="Processes on this machine (default: its cores).")
@click.option("--ray", "address", default=None, help="Address of a Ray cluster instead; 'local' starts one, 'auto' finds one.")
@click.option("--json", "as_json", is_flag=True, help="The evidence as JSON.")
def check_(
    slugs: tuple[str, ...],
    everything: bool,
    budget: str,
    seeds: int,
    first_seed: int,
    device: str,
    workers: int | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Run many claims, in parallel, resumably, and keep the evidence. Exit code 1 if a claim broke (not if it fails)."""
    choose("budget", budget, BUDGETS)
    chosen = seeds_of(first_seed, seeds)
    if everything == bool(slugs):
        raise Refused("SLUG: name at least one system, or give --all (not both)")
    if workers is not None and (address or workers < 1):
        raise Refused("workers: at least 1, and not together with --ray")
    targets = [s.slug for s in catalog.systems() if s.claims] if everything else slugs
    claims = list({(c.system, c.name): c for target in targets for c in select(target)}.values())
    from neuropil.lab.check import Done, check, on_pool, on_ray, plan
    from neuropil.lab.run import check_device

    check_device(device)
    jobs, have = plan(claims, budget, chosen, device)
    console = Console(stderr=True)
    if have:
        console.print(f"{have} results are there already, {len(jobs)} to go", style="dim")
    results = on_ray(jobs, address) if address else on_pool(jobs, workers or os.cpu_count() or 1)
    with progress_bar() as progress:
        task = progress.add_task("claims × seeds", total=len(jobs), note="")

        def finished(done: Done) -> None:
            progress.update(task, advance=1, note=f"{done.job.target} seed {done.job.seed}")

        failures = check(jobs, results, finished) if jobs else []
    if as_json:
        found = [evidence.read(evidence.path_of(c.system, c.name, budget)) for c in claims]
        click.echo(json.dumps([{**e.facts, "rows": list(e.rows)} for e in found if e.rows], indent=1, ensure_ascii=False))
    else:
        Console().print(verdict_table(claims, budget))
    for done in failures:
        console.print(f"broke: {done.job.target} seed {done.job.seed}: {done.error}", style="red", highlight=False)
    if failures:
        sys.exit(1)
