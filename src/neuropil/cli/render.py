"""`neuropil render RUN`: a film of a fitted scene, shape or clip, or a picture of a fitted photograph, at any size."""

import re
from pathlib import Path

import click

from neuropil.cli.style import progress_bar
from neuropil.errors import Refused


@click.command("render")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--path", "path", default=None, help="orbit (scenes and shapes) or time (clips); by default the one that fits the run."
)
@click.option("--frames", type=int, default=60, show_default=True, help="How many frames.")
@click.option("--size", default=None, help="WxH in pixels; by default the source's, or 256x256.")
@click.option("--rate", type=float, default=25.0, show_default=True, help="Frames a second.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="An .mp4, or a .png for a photograph.")
def render_(folder: Path, path: str | None, frames: int, size: str | None, rate: float, out: Path) -> None:
    """Render a run: a scene or a shape from a camera that goes round it, a clip over its time, a photograph at any size."""
    from neuropil.studio import export, runs

    if frames < 2:
        raise Refused(f"frames: at least 2, got {frames}")
    if not 0 < rate <= 240:
        raise Refused(f"rate: must lie in (0, 240], got {rate:g}")
    run = runs.read(folder)
    with progress_bar() as progress:
        task = progress.add_task(f"render {folder.name}", total=frames, note="")
        export.film(run, path, frames, parse_size(size), rate, out, lambda: progress.advance(task))
    click.echo(out)


def parse_size(size: str | None) -> tuple[int, int] | None:
    """(height, width) of ``WxH``; `Refused` if it is not that, or not 16 to 8,192."""
    if size is None:
        return None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if not match or not all(16 <= int(n) <= 8192 for n in match.groups()):
        raise Refused(f"size: must be WxH with 16 to 8192 pixels each (640x480), got {size!r}")
    return int(match[2]), int(match[1])
