"""A solid as the signed distance to it: which field of (x, y, z) is nearest to the truth, at one size?

Data: the Stanford bunny (pybullet), moved and scaled so that its longest side is 1.6, and its clipped signed distance
``clip(d/0.1, −1, 1)`` at points of which a third lie anywhere in [−1, 1]³, a third 0.01 and a third 0.05 (normal noise) off
the surface. Of 40,000 points (8 times as many at the full budget) 80 % train, 10 % choose the learning rate out of 5e-4,
2e-3, 1e-2 and 4e-2, and 10 % test; while the best rate is the least or the largest of those tried, up to three others beyond
it are tried. All fields take the same steps of Adam on the same number of points. The metric is the PSNR on the test points,
peak to peak 2. `--data` takes a closed mesh.
"""

from collections.abc import Sequence

import torch

from neuropil.data.solids import distance_samples, into_cube, read_solid
from neuropil.lab.expect import Metric
from neuropil.lab.race import Course, Role, Shown
from neuropil.races.panels import panels
from neuropil.races.spatial import GENERAL, Samples, measure, pixel_centres, split

SIDE = 96  # of the picture, in pixels


def prepare(course: Course) -> Samples:
    """Points and distances, and the slice z = 0 for the picture."""
    trial = course.trial
    vertices, faces = read_solid(course.source or "bunny")
    generator = trial.generator(1)
    count = trial.pick(smoke=600, quick=40_000, full=320_000)
    points, values = distance_samples(into_cube(vertices)[0], faces, count, generator)
    batch, steps = trial.pick(smoke=(256, 5), quick=(2_048, 250), full=(4_096, 2_000))
    plane = pixel_centres(SIDE, SIDE).flip(0).flatten(0, 1)
    shown = torch.cat([plane, torch.zeros(len(plane), 1)], 1)
    return Samples(points[None], values[None], *split(count, generator), batch, steps, peak=2.0, shown=shown[None])


def draw(samples: Samples, found: Sequence[tuple[str, float, Shown]]) -> object:
    """The slice z = 0 of the distance as each field has it; the black line is its surface."""
    figure, cells = panels(len(found), 4, 3.0, 3.2)
    for cell, (name, value, shown) in zip(cells, found, strict=False):
        plane = shown["values"].reshape(SIDE, SIDE).clamp(-1, 1).numpy()
        cell.imshow(plane, cmap="RdBu", vmin=-1, vmax=1)
        if plane.min() < 0 < plane.max():
            cell.contour(plane, levels=[0.0], colors="k", linewidths=1)
        cell.set_title(f"{name}: {value:.1f} dB", fontsize=10)
    figure.suptitle("Signed distance in the plane z = 0 (red inside)")
    return figure


ROLE = Role(
    name="shape-field",
    metric=Metric("PSNR of the distance", better="higher", unit="dB"),
    parameters=20_000,
    wanted="a closed mesh (OBJ, PLY, STL, OFF or glTF)",
    prepare=prepare,
    measure=measure,
    draw=draw,
    baselines=GENERAL,
    named=("duck", "soccerball", "teddy"),
)
