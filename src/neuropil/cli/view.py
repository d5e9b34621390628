"""`neuropil view RUN`: a live viewer in the browser, reachable from this machine only."""

from pathlib import Path

import click

from neuropil.errors import Refused


@click.command("view")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--port", type=int, default=8080, show_default=True, help="The port on 127.0.0.1.")
@click.option("--seconds", type=float, default=None, hidden=True, help="Stop by itself; for tests.")
def view_(folder: Path, port: int, seconds: float | None) -> None:
    """Look at a run in the browser: fly through a scene, turn a shape, zoom into a photograph. Ctrl-C ends it."""
    if not 1 <= port <= 65535:
        raise Refused(f"port: must lie in 1 … 65535, got {port}")
    from neuropil.studio import runs, viewer

    run = runs.read(folder)
    with viewer.serve(run, port) as address:
        click.echo(f"{folder} at {address} (Ctrl-C ends)")
        viewer.wait(seconds)
