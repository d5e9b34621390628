"""What the races of fields share: samples of a signal over [−1, 1]^d, builders by dimensions and budget, fitting, and a picture.

A builder is ``(d_in, d_out, parameters) → nn.Module`` from points (g, n, d_in) to values (g, n, d_out); the g groups of a clip
are its frames. A module with a ``loss(x, y)`` of its own is trained on that, all others on the mean squared error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neuropil.fields.field import Field, build, parameters_of
from neuropil.fields.grids import HashGrid
from neuropil.fields.modulated import ModulatedLinear, ModulatedSiren, ResidualLinear, TimeCodes
from neuropil.fields.neural_field_classifier import colour_loss, decode
from neuropil.fields.resfields import ResField
from neuropil.fields.s3im import S3IM
from neuropil.lab.race import Course, Score, Shown
from neuropil.nn.mlp import MLP
from neuropil.races.panels import panels
from neuropil.races.training import closest, descend, to_budget, tuned

RATES = (5e-4, 2e-3, 1e-2, 4e-2)
FRAMES = 16  # of a clip, and rows in time of the fields that have some
Build = Callable[[int, int, int], nn.Module]


@dataclass(frozen=True)
class Samples:
    """Points (g, n, d) and their values (g, n, c); which of the n train, validate, test; `batch` points a step, `peak` for PSNR."""

    points: Tensor
    values: Tensor
    train: Tensor
    validate: Tensor
    test: Tensor
    batch: int
    steps: int
    peak: float = 1.0
    shown: Tensor | None = None  # points at which the picture shows a field, (g, n, d)

    def rates(self, course: Course) -> tuple[float, ...]:
        """One rate for smoke, else four."""
        return course.trial.pick(smoke=RATES[1:2], quick=RATES, full=RATES)


def split(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """80 % to train, 10 % to choose the rate, 10 % to test, at random; at least 10 are needed."""
    order = torch.randperm(n, generator=generator)
    train, validate, test = order.tensor_split([n - 2 * (n // 10), n - n // 10])
    return train, validate, test


def measure(make: Build, samples: Samples, course: Course) -> Score:
    """PSNR on the test points of the field at the rate that is best on the validation points."""
    d, c = samples.points.shape[-1], samples.values.shape[-1]

    def loss(net: nn.Module, step: int) -> Tensor:
        rows = samples.train[torch.randint(len(samples.train), (samples.batch,))]
        x, y = samples.points[:, rows], samples.values[:, rows]
        own = getattr(net, "loss", None)
        return own(x, y) if own else (net(x) - y).square().mean()

    def score(net: nn.Module, rows: Tensor) -> float:
        low = samples.values.new_tensor(1.0 - samples.peak)
        found = torch.cat([net(samples.points[:, part]) for part in rows.split(1 << 15)], 1).clamp(
            low, samples.values.new_tensor(1.0)
        )
        return float(-10 * ((found - samples.values[:, rows]) / samples.peak).square().mean().log10())

    found = tuned(
        lambda: make(d, c, course.parameters),
        descend(loss, clip=None),
        lambda net: score(net, samples.validate),
        course,
        samples.rates(course),
        samples.steps,
        "higher",
    )
    with torch.no_grad():
        value = score(found.net, samples.test)
        where = samples.points if samples.shown is None else samples.shown
        shown = torch.cat([found.net(part) for part in where.split(1 << 15, 1)], 1)
    return Score(value, parameters_of(found.net), found.notes, {"values": shown})


def hash_grid(d_in: int, d_out: int, parameters: int) -> nn.Module:
    """Features in hash tables of about eight resolutions, read by one hidden layer of 32 (Müller et al. 2022; as in nerfacto)."""
    return _hash(d_in, d_out, parameters)


def bit_classifier(d_in: int, d_out: int, parameters: int) -> nn.Module:
    """The hash grid with eight outputs a channel, trained to predict the bits of each byte as a classifier."""
    return Bits(_hash(d_in, 8 * d_out, parameters))


def hash_grid_with_S3IM(d_in: int, d_out: int, parameters: int) -> nn.Module:
    """The hash grid trained by squared error plus the structural similarity of random patches of the batch."""
    return Structural(_hash(d_in, d_out, parameters))


def siren(d_in: int, d_out: int, parameters: int) -> nn.Module:
    """Three layers of sines (Sitzmann et al. 2020)."""
    return build("siren", d_in, d_out, parameters)


def fourier_features(d_in: int, d_out: int, parameters: int) -> nn.Module:
    """Sines and cosines of eight octaves and a ReLU perceptron: NeRF's positional encoding."""
    return build("fourier", d_in, d_out, parameters)


def gaussian_features(d_in: int, d_out: int, parameters: int) -> nn.Module:
    """Random Fourier features and a ReLU perceptron (Tancik et al. 2020)."""
    return build("gaussian", d_in, d_out, parameters)


def dense_grid(d_in: int, d_out: int, parameters: int) -> nn.Module:
    """Values on a grid, interpolated linearly; no net."""
    return build("dense", d_in, d_out, parameters)


def planes(d_in: int, d_out: int, parameters: int) -> nn.Module:
    """Feature planes for each pair of axes and a hidden layer of 32."""
    return build("planes", d_in, d_out, parameters)


def plain_perceptron(d_in: int, d_out: int, parameters: int) -> nn.Module:
    """Three ReLU layers on the bare coordinates: what encodings are measured against."""
    return to_budget(lambda width: MLP([d_in, width, width, width, d_out], "relu"), parameters)


def residual_field(d_in: int, d_out: int, parameters: int) -> nn.Module:
    """A SIREN whose hidden weights have residuals of rank 10 over the frames."""
    return to_budget(lambda w: OverTime(ResField([d_in, w, w, w, w, d_out], FRAMES)), parameters)


def modulated_siren(d_in: int, d_out: int, parameters: int) -> nn.Module:
    """A SIREN of space that a learned code of 16 numbers a frame scales and shifts layer by layer."""
    return to_budget(lambda w: Coded(d_in, d_out, w, lambda n, m: ModulatedLinear(n, m, code=16)), parameters)


def low_rank_siren(d_in: int, d_out: int, parameters: int) -> nn.Module:
    """A SIREN of space whose hidden weights get four matrices, mixed by a learned code a frame."""
    return to_budget(lambda w: Coded(d_in, d_out, w, lambda n, m: ResidualLinear(n, m, rank=4), code=4), parameters)


GENERAL: tuple[Build, ...] = (siren, fourier_features, gaussian_features, dense_grid, planes, plain_perceptron)


def _hash(d_in: int, d_out: int, parameters: int) -> nn.Module:
    """Tables double, and `finest` grows by eighths of an octave between; 8 levels, or 6 to 10 if that fits better."""

    def make(size: int, levels: int) -> nn.Module:
        table = 2 ** (size // 8)
        finest = max(8, int(4 * table ** (1 / d_in) * 2 ** ((size % 8) / 8)))
        grid = HashGrid(d_in, levels=levels, features=2, table=table, coarsest=4, finest=finest)
        return Field(grid, MLP([int(grid.width), 32, d_out], "relu"))

    return closest(lambda k: to_budget(lambda n: make(n, k), parameters, least=8), (8, 7, 9, 6, 10), parameters)


class Bits(nn.Module):
    """A field of 8 c logits read as c colours, with the bits' loss."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, x: Tensor) -> Tensor:
        return decode(self.field(x).sigmoid())

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Weighted cross-entropy of all bits."""
        return colour_loss(self.field(x).sigmoid(), y)


class Structural(nn.Module):
    """A field trained on squared error and S3IM over the batch laid out as a square."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, x: Tensor) -> Tensor:
        return self.field(x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """``mse + λ (1 − S3IM)``; λ = 0.01 keeps both terms of one size when the fit is good."""
        found, y = self.field(x).flatten(0, -2), y.flatten(0, -2)
        side = int(len(y) ** 0.5)
        return (found - y).square().mean() + 0.01 * S3IM(side, side, repeats=2)(found[: side**2].clamp(0, 1), y[: side**2])


class OverTime(nn.Module):
    """A field of (x, time of the group) as a field of points whose last coordinate is the time, the same in a group."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[..., :-1], x[:, 0, -1])


class Coded(nn.Module):
    """A modulated SIREN of space, its code read from a table over time."""

    def __init__(self, d_in: int, d_out: int, width: int, layer: Callable[[int, int], nn.Module], code: int = 16) -> None:
        super().__init__()
        self.codes = TimeCodes(FRAMES, code)
        self.net = ModulatedSiren([d_in - 1, width, width, width, d_out], layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[..., :-1], self.codes(x[:, 0, -1])[:, None])


def pixel_centres(*sizes: int) -> Tensor:
    """Centres (2i + 1)/n − 1 of pixels in [−1, 1], x first: (…sizes, d)."""
    axes = [(2 * torch.arange(n) + 1) / n - 1 for n in sizes]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)


def gallery(pictures: Sequence[tuple[str, Tensor]], columns: int = 4) -> object:
    """Pictures (h, w, 3) in [0, 1] with titles, in rows."""
    height, width = pictures[0][1].shape[:2]
    figure, cells = panels(len(pictures), columns, 3.0, 3.0 * height / width + 0.35)
    for cell, (title, picture) in zip(cells, pictures, strict=False):
        cell.imshow(picture.clamp(0, 1).numpy(), interpolation="nearest")
        cell.set_title(title, fontsize=10)
    return figure


def titled(name: str, value: float, shown: Shown) -> tuple[str, Tensor]:
    """A title for the gallery."""
    return f"{name}: {value:.1f} dB", shown["values"]
