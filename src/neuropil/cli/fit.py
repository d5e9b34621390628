"""`neuropil fit image|video|shape|scene SOURCE`: a field on your own data, kept in a run folder that can be gone on with."""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from neuropil.cli.style import progress_bar
from neuropil.errors import Refused


@click.group("fit")
def fit_() -> None:
    """Fit a field to your own photograph, clip, mesh or capture, for so many seconds.

    The same command with the same --out goes on where it stopped; Ctrl-C saves first.
    """


def options(default: str, about: str) -> Callable[[Any], Any]:
    """The options that all four kinds share."""

    def add(command: Any) -> Any:
        for option in (
            click.option("--json", "as_json", is_flag=True, help="The run's facts as JSON on stdout."),
            click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N or mps."),
            click.option(
                "--parameters", type=int, default=None, help="Budget of numbers; by default it follows the source's size."
            ),
            click.option("--out", type=click.Path(path_type=Path), required=True, help="The run folder."),
            click.option("--seconds", type=float, default=10.0, show_default=True, help="Seconds of fitting in all."),
            click.option("--field", "name", default=default, show_default=True, help=about),
        ):
            command = option(command)
        return command

    return add


FIELDS = "siren, fourier, gaussian, dense, planes or hash."
SOURCE = click.Path(path_type=Path)


@fit_.command("image")
@click.argument("source", metavar="PHOTO", type=SOURCE)
@options("hash", FIELDS)
def image_(source: Path, **given: Any) -> None:
    """A photograph as a field of (x, y)."""
    from neuropil.studio.pictures import image_fit

    _fit(image_fit, source, **given)


@fit_.command("video")
@click.argument("source", metavar="CLIP", type=SOURCE)
@options("hash", FIELDS)
def video_(source: Path, **given: Any) -> None:
    """A clip as a field of (x, y, t)."""
    from neuropil.studio.pictures import video_fit

    _fit(video_fit, source, **given)


@fit_.command("shape")
@click.argument("source", metavar="MESH", type=SOURCE)
@options("hash", FIELDS)
def shape_(source: Path, **given: Any) -> None:
    """A closed mesh as the signed distance to it."""
    from neuropil.studio.shapes import shape_fit

    _fit(shape_fit, source, **given)


@fit_.command("scene")
@click.argument("source", metavar="CAPTURE", type=SOURCE)
@options("voxels", "voxels, hash or nerfacto.")
@click.option(
    "--downscale", type=int, default=None, help="Read photographs this many times smaller; by default to at most 1,000 pixels."
)
def scene_(source: Path, downscale: int | None, **given: Any) -> None:
    """A capture (photographs with camera poses: Blender, nerfstudio or COLMAP) as a radiance field."""
    from neuropil.studio.scenes import scene_fit

    if downscale is not None and downscale < 1:
        raise Refused(f"downscale: at least 1, got {downscale}")
    _fit(functools.partial(scene_fit, downscale=downscale), source, **given)


def _fit(
    prepare: Callable[..., Any],
    source: Path,
    name: str,
    seconds: float,
    out: Path,
    parameters: int | None,
    device: str,
    as_json: bool,
) -> None:
    import torch

    from neuropil.lab.run import check_device
    from neuropil.studio import runs

    runs.check_seconds(seconds)
    if parameters is not None and parameters < 1:
        raise Refused(f"parameters: at least 1, got {parameters}")
    where = torch.device(check_device(device))
    with progress_bar() as progress:
        task = progress.add_task(f"{name} on {source.name}, seconds", total=seconds, note="reading")
        job = prepare(source, name, parameters, where)

        def report(done: float, step: int, psnr: float) -> None:
            progress.update(task, completed=done, note=f"step {step}  {psnr:.2f} dB")

        run = runs.fit(job, out, seconds, report)
    if as_json:
        click.echo(json.dumps({"out": str(out), **vars(run.recipe), **vars(run.progress), "psnr": run.progress.psnr}, indent=1))
        return
    done = run.progress
    click.echo(f"{out}: {name}, {done.step} steps in {done.seconds:.1f} s, {done.psnr:.2f} dB; see {out / runs.PREVIEW}")
    if not sys.stdout.isatty():
        return
    click.echo(f"next: neuropil view {out}", err=True)
