"""A photograph as a function of (x, y): which field predicts pixels that it was not shown best, at one size?

Data: the astronaut of scikit-image, averaged down to 128² pixels (256² at the full budget). A random 80 % of the pixels
train, 10 % choose the learning rate out of 5e-4, 2e-3, 1e-2 and 4e-2, and 10 % test; while the best rate is the least or the
largest of those tried, up to three others beyond it are tried. Seeds draw other pixels and first weights. All fields take the
same steps of Adam on the same number of random pixels, the rate falling by a cosine. The metric is the PSNR on the test
pixels, and so a field that only stores what it saw does not win. `--data` takes a photograph; it is averaged down to the same
size.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.nn.functional import interpolate

from neuropil import data
from neuropil.data.loaders import picture
from neuropil.errors import Refused
from neuropil.lab.expect import Metric
from neuropil.lab.race import Course, Role, Shown
from neuropil.races.spatial import GENERAL, Samples, gallery, measure, pixel_centres, split, titled


def prepare(course: Course) -> Samples:
    """The pixels of one photograph."""
    trial = course.trial
    colours = data.photographs("astronaut") if course.source is None else own(course.source)
    longest = trial.pick(smoke=24, quick=128, full=256)
    colours = shrunk(colours, longest)
    points = pixel_centres(*colours.shape[:2]).flatten(0, 1)
    parts = split(len(points), trial.generator(1))
    batch, steps = trial.pick(smoke=(256, 5), quick=(2_048, 250), full=(4_096, 2_000))
    return Samples(points[None], colours.reshape(1, -1, 3), *parts, batch, steps)


def own(source: str) -> Tensor:
    """A photograph in colour; `Refused` if it is no picture or too small."""
    found = picture(Path(source))
    if min(found.shape[:2]) < 8:
        raise Refused(f"data: {source} is {found.shape[1]} x {found.shape[0]} pixels; at least 8 x 8 are needed")
    return found[..., None].expand(-1, -1, 3) if found.ndim == 2 else found


def shrunk(colours: Tensor, longest: int) -> Tensor:
    """(h, w, 3) averaged down so that the longer side has at most `longest` pixels."""
    factor = min(1.0, longest / max(colours.shape[:2]))
    size = [max(4, round(n * factor)) for n in colours.shape[:2]]
    return interpolate(colours.permute(2, 0, 1)[None], size, mode="area")[0].permute(1, 2, 0)


def draw(samples: Samples, found: Sequence[tuple[str, float, Shown]]) -> object:
    """The photograph and each field's copy, best first."""
    width = int((samples.points[0, :, 1] == samples.points[0, 0, 1]).sum())
    pictures = [("photograph", samples.values), *(titled(*one) for one in found)]
    return gallery([(title, values.reshape(-1, width, 3)) for title, values in pictures])


ROLE = Role(
    name="image-field",
    metric=Metric("PSNR on unseen pixels", better="higher", unit="dB"),
    parameters=20_000,
    wanted="a photograph (PNG, JPEG, …) of at least 8 x 8 pixels",
    prepare=prepare,
    measure=measure,
    draw=draw,
    baselines=GENERAL,
)
