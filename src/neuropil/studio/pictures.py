"""Photographs and clips as fields: (x, y) or (x, y, t) in [−1, 1] to a colour in [0, 1], fitted to pixels at their centres.

x runs right, y down, t forward; the centre of pixel i of n lies at (2i + 1)/n − 1. A batch is 8,192 random pixels and the loss
their mean squared error; the score is the PSNR on 16,384 fixed ones (they are fitted, too: the field is a copy of the picture,
not a model of others).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from neuropil.data.loaders import picture
from neuropil.errors import Refused, choose
from neuropil.fields.field import NAMES, build
from neuropil.fields.metrics import psnr
from neuropil.studio.runs import Fit, Recipe, Run, fingerprint, load_into, seeded, to_bytes

BATCH, TEST = 1 << 13, 1 << 14
RATES = {"siren": 5e-4, "fourier": 2e-3, "gaussian": 2e-3, "dense": 2e-2, "planes": 1e-2, "hash": 1e-2}
PREVIEW = 512  # pixels of the longer side
CLIP_ROWS = 360  # of a clip: higher frames are averaged down, for a field of a million numbers has no use for more


def rate_of(name: str) -> float:
    """The starting rate of Adam that suits a kind of field."""
    return RATES.get(name, 1e-3)


class PixelFit(Fit):
    """A field fitted to an array of pixels: (h, w, 3) for a photograph, (t, h, w, 3) for a clip."""

    def __init__(self, recipe: Recipe, pixels: UInt8[Tensor, "*n 3"], device: torch.device) -> None:
        with seeded(0):
            model = build_field(recipe).to(device)
        super().__init__(recipe, model, torch.optim.Adam(model.parameters(), rate_of(recipe.field), eps=1e-12), device)
        self.sizes, self.colours = tuple(pixels.shape[:-1]), pixels.reshape(-1, 3)
        self.test = torch.randint(len(self.colours), (TEST,), generator=torch.Generator().manual_seed(2**40))

    def _pairs(self, index: Int[Tensor, " b"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b 3"]]:
        places = torch.stack(torch.unravel_index(index, self.sizes)[::-1], -1)
        x = (2 * places + 1) / torch.tensor(self.sizes[::-1]) - 1
        return x.to(self.device), (self.colours[index].float() / 255).to(self.device)

    def loss(self, step: int) -> Float[Tensor, ""]:
        x, y = self._pairs(torch.randint(len(self.colours), (BATCH,)))
        return (self.model(x) - y).square().mean()

    def score(self) -> float:
        x, y = self._pairs(self.test)
        return float(psnr(self.model(x).clamp(0, 1), y))

    def preview(self) -> Float[Tensor, "h w 3"]:
        height, width = fit_within(self.sizes[-2:], PREVIEW)
        if len(self.sizes) == 2:
            return draw(self.model, height, width)
        frames = [draw(self.model, height // 2, width // 2, time) for time in (-0.75, -0.25, 0.25, 0.75)]
        return torch.cat([torch.cat(frames[:2], 1), torch.cat(frames[2:], 1)])


def image_fit(source: Path, name: str, parameters: int | None, device: torch.device) -> PixelFit:
    """A photograph ready to be fitted by field `name`; `parameters` is a budget, by default one a pixel (4,096 to 1 M)."""
    choose("field", name, NAMES)
    pixels = read_image(source)
    return _pixel_fit("image", source, name, parameters or budget(pixels.shape[0] * pixels.shape[1]), pixels, device)


def video_fit(source: Path, name: str, parameters: int | None, device: torch.device) -> PixelFit:
    """A clip, at most 360 rows high, ready to be fitted; by default a twentieth of a number a pixel (4,096 to 1 M)."""
    from neuropil.data.video import read_video

    choose("field", name, NAMES)
    clip = read_video(source, height=min(CLIP_ROWS, read_video(source, frames=1).frames.shape[1]))
    if len(clip) < 2:
        raise Refused(f"video: {source} has one frame; at least 2 are needed (`neuropil fit image` fits a single picture)")
    count = parameters or budget(clip.frames[..., 0].numel() // 20)
    return _pixel_fit("video", source, name, count, clip.frames, device, rate=clip.rate)


def budget(wanted: int) -> int:
    """A default number of parameters: `wanted`, but 4,096 to 1,048,576."""
    return min(max(wanted, 1 << 12), 1 << 20)


def _pixel_fit(kind: str, source: Path, name: str, parameters: int, pixels: Tensor, device: torch.device, **more: Any) -> PixelFit:
    arguments = {"parameters": parameters, "sizes": list(pixels.shape[:-1]), **more}
    return PixelFit(Recipe(kind, name, arguments, str(source), fingerprint(pixels)), pixels, device)


def build_field(recipe: Recipe) -> nn.Module:
    """The untrained field of a recipe."""
    try:
        return build(recipe.field, len(recipe.arguments["sizes"]), 3, recipe.arguments["parameters"])
    except (LookupError, TypeError) as error:
        raise Refused(f"run: run.json lacks or garbles the field's arguments ({error})") from None


def restore(run: Run) -> nn.Module:
    """The fitted field of an image or video run."""
    return load_into(build_field(run.recipe), run)


@torch.no_grad()
def draw(field: nn.Module, height: int, width: int, time: float | None = None) -> Float[Tensor, "height width 3"]:
    """The field at any size, a clip's at `time` in [−1, 1]; values are clipped to [0, 1]. In chunks of 65,536 points."""
    device = next(field.parameters()).device
    ys, xs = ((2 * torch.arange(n) + 1) / n - 1 for n in (height, width))
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    axes = [x, y] if time is None else [x, y, torch.full_like(x, time)]
    points = torch.stack(axes, -1).reshape(-1, len(axes))
    return evaluate(field, points.to(device)).clamp(0, 1).reshape(height, width, 3)


@torch.no_grad()
def evaluate(field: nn.Module, points: Float[Tensor, "n d"], chunk: int = 1 << 16) -> Float[Tensor, "n c"]:
    """`field(points)` without a gradient, `chunk` points at a time, in one tensor."""
    return torch.cat([field(part) for part in points.split(chunk)])


def fit_within(size: Sequence[int], longest: int) -> tuple[int, int]:
    """(h, w) scaled down so that the longer side is at most `longest`; never below 2.

    >>> fit_within((1000, 500), 100)
    (100, 50)
    """
    factor = min(1.0, longest / max(size))
    height, width = (max(2, round(n * factor)) for n in size)
    return height, width


def read_image(source: Path) -> UInt8[Tensor, "h w 3"]:
    """A picture file as `neuropil.data.loaders.picture` reads it, in RGB bytes; `Refused` if that refuses it or it is below 2x2."""
    found = picture(source)
    if min(found.shape[:2]) < 2:
        raise Refused(f"image: {source} is {found.shape[1]}x{found.shape[0]} pixels; at least 2x2 are needed")
    return to_bytes(found if found.ndim == 3 else found[..., None].expand(-1, -1, 3))
