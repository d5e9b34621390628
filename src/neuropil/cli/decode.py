"""`neuropil decode FILE`: from your own EEG, spike or fMRI file to a decoding score with its control, in one command."""

import json
from pathlib import Path

import click

from neuropil.cli.style import progress_bar
from neuropil.errors import Refused

FILE = click.Path(path_type=Path)


@click.command("decode")
@click.argument("file", type=FILE)
@click.option("--events", type=FILE, default=None, help="A BIDS events.tsv; by default the file's own annotations or trials.")
@click.option("--label", default=None, help="The events' column to decode; by default trial_type.")
@click.option("--classes", default=None, metavar="A,B", help="Only these of its words; by default all.")
@click.option(
    "--window", type=float, nargs=2, default=None, help="Seconds after the onset: by default -0.2 0.8, spikes 0 0.5, fMRI 4 8."
)
@click.option("--features", default="power", show_default=True, help="Of EEG and MEG: power (log, by band) or covariance (log).")
@click.option("--channels", default=None, metavar="A,B", help="Of EEG and MEG: only these channels.")
@click.option("--mask", type=FILE, default=None, help="Of fMRI: a NIfTI mask; by default all voxels that vary.")
@click.option("--groups", default=None, help="The events' column, say run, of which no group is both trained on and tested.")
@click.option("--folds", type=int, default=None, help="Parts of the cross-validation; by default 5, or the groups if fewer.")
@click.option("--permutations", type=int, default=200, show_default=True, help="Shuffles of the labels for the control.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the shuffles.")
@click.option("--picture", type=FILE, default=None, help="Draw score and control as this .png, .svg or .pdf.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout.")
def decode_(
    file: Path,
    events: Path | None,
    label: str | None,
    classes: str | None,
    window: tuple[float, float] | None,
    features: str,
    channels: str | None,
    mask: Path | None,
    groups: str | None,
    folds: int | None,
    permutations: int,
    seed: int,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Can a linear decoder tell the kinds of events in FILE apart, beyond chance?

    FILE is EDF, BDF, FIF (features: log band power), NWB (spike counts) or NIfTI (each voxel's mean, 4 to 8 s after the onset, for
    the haemodynamic delay). Cross-validated logistic regression is set against the same with shuffled labels.
    """
    import torch

    from neuropil.brain import decoding
    from neuropil.files import replacing

    if picture is not None and picture.suffix not in (".png", ".svg", ".pdf"):
        raise Refused(f"picture: must end in .png, .svg or .pdf, got {str(picture)!r}")
    with progress_bar() as progress:
        task = progress.add_task(f"decode {file.name}", total=permutations + 1, note="")
        result = decoding.decode_file(
            file,
            events,
            label=label,
            classes=_words(classes),
            window=window,
            features=features,
            channels=_words(channels),
            mask=mask,
            groups=groups,
            folds=folds,
            times=permutations,
            generator=torch.Generator().manual_seed(seed),
            advance=lambda: progress.advance(task),
        )
    if picture is not None:
        with replacing(picture) as temporary:
            decoding.picture(result).savefig(temporary, format=picture.suffix[1:], dpi=120)
    control = result.control
    if as_json:
        facts = {name: value for name, value in vars(result).items() if name != "control"}
        click.echo(
            json.dumps(
                {
                    **facts,
                    "score": control.score,
                    "chance": result.chance,
                    "p": control.p,
                    "permutations": permutations,
                    "null": {"mean": float(control.null.mean()), "max": float(control.null.max())},
                    "seed": seed,
                    "picture": None if picture is None else str(picture),
                },
                indent=1,
                ensure_ascii=False,
            )
        )
        return
    counts = ", ".join(f"{count} {name}" for name, count in result.classes.items())
    click.echo(
        f"{result.file}: balanced accuracy {control.score:.3f}, chance {result.chance:.3f}, p = {control.p:.3g} "
        f"({permutations} shuffles reach {float(control.null.max()):.3f} at most)"
    )
    click.echo(
        f"{counts}; {result.width} features: {result.features}, {result.window[0]:g} to {result.window[1]:g} s after the onset; "
        f"{result.folds} folds{f' by {groups}' if groups else ''}"
    )
    for note in result.notes:
        click.echo(f"note: {note}")
    if picture is not None:
        click.echo(picture)


def _words(given: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in given.split(",") if word.strip()) if given else ()
