"""`neuropil export RUN --mesh FILE / --points FILE`: a fitted shape or scene for other programs."""

from pathlib import Path

import click

from neuropil.errors import Refused


@click.command("export")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--mesh", type=click.Path(path_type=Path), default=None, help="Triangles by marching cubes: .ply, .obj, .stl, .glb or .off."
)
@click.option("--points", type=click.Path(path_type=Path), default=None, help="A point cloud at the median depths: .ply.")
@click.option("--resolution", type=int, default=128, show_default=True, help="Grid points an axis for --mesh.")
def export_(folder: Path, mesh: Path | None, points: Path | None, resolution: int) -> None:
    """Write a run's surface as a mesh, or what its cameras see as a point cloud, in the source's own coordinates."""
    if mesh is None and points is None:
        raise Refused("export: give --mesh FILE or --points FILE (or both)")
    if not 8 <= resolution <= 512:
        raise Refused(f"resolution: must lie in 8 … 512, got {resolution}")
    from neuropil.studio import export, runs

    run = runs.read(folder)
    for file, write in ((mesh, export.mesh), (points, export.points)):
        if file is not None:
            click.echo(f"{file}: {write(run, file, resolution)}")
