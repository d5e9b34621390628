"""From a function to a function: which operator learns to solve a differential equation best?

Data: a SIMULATOR of Darcy flow: media of two phases in the unit square, 3 and 12, cut from Gaussian fields, and the pressure
that a unit source makes in them, on 31 x 31 inner points (finite volumes and a direct solver). 120 media train (400 at the full
budget), 40 (100) choose the learning rate out of 3e-3, 1e-2 and 3e-2, and 40 (100) test; while the best rate is the least or the
largest of those tried, up to three others beyond it are tried. All nets are of one size, and take the same steps of Adam on the
mean relative error of 8 media, gradients clipped at 1, the rate falling by a cosine. The metric is the relative L² error on test
media. Nets with even grids see the domain with zeros beyond it. `--data` takes an .npz: `x` and `y` (n, channels, h, h), one grid;
60 % train, 20 % choose, 20 % test; x is standardised channel by channel and y scaled by its deviation, both of the training part.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from neuropil.data.elliptic import darcy, two_phases
from neuropil.errors import Refused
from neuropil.fields.field import parameters_of
from neuropil.lab.expect import Metric
from neuropil.lab.race import Course, Role, Score, Shown
from neuropil.physics.fourier import FNO
from neuropil.physics.function_layers import AttentionOperator
from neuropil.physics.multigrid import MgNO
from neuropil.physics.norms import relative_l2
from neuropil.physics.unet import UNet
from neuropil.races.own import arrays, fifths, rows
from neuropil.races.training import closest, descend, to_budget, tuned

RATES = (3e-3, 1e-2, 3e-2)
POINTS, BATCH = 33, 8
Part = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Pairs:
    """Inputs and solutions (n, c, side, side) to train, to choose and to test."""

    train: Part
    validate: Part
    test: Part


@dataclass(frozen=True)
class Size:
    """What a builder is told: channels in and out, and points of an axis."""

    c_in: int
    c_out: int
    side: int


def prepare(course: Course) -> Pairs:
    """Media of two phases, or the user's pairs."""
    trial = course.trial
    g = trial.generator(1)
    if course.source is None:
        sizes = trial.pick(smoke=[8, 8, 8], quick=[120, 40, 40], full=[400, 100, 100])
        a = two_phases(sum(sizes), POINTS, g)
        x, y = ((a - 7.5) / 4.5)[..., 1:-1, 1:-1], darcy(a)[..., 1:-1, 1:-1]
    else:
        named = arrays(course.source, {"x": 4, "y": 4})
        x, y = named["x"].float(), named["y"].float()
        n = rows(course.source, x, y, least=10)
        side = x.shape[-1]
        if {x.shape[-2], *y.shape[-2:]} != {side} or side < 8:
            raise Refused(
                f"data: x and y of {course.source} need one square grid of at least 8², got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        size = y.abs().amax((1, 2, 3))
        if bool((nothing := size <= 1e-6 * size.max()).any()):
            row = int(nothing.int().argmax())
            raise Refused(f"data: y of {course.source} is zero in row {row}, of which no error can be a share; leave it out")
        order = torch.randperm(n, generator=g)
        x, y, sizes = x[order], y[order], fifths(n)
        train = x[: sizes[0]]
        x = (x - train.mean((0, 2, 3), keepdim=True)) / train.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    y = y / y[: sizes[0]].std().clamp_min(1e-12)
    return Pairs(*zip(x.split(sizes), y.split(sizes), strict=True))


def measure(make: Callable[[Size, int], nn.Module], seen: Pairs, course: Course) -> Score:
    """The error on test media at the rate that errs least on the validation media."""
    trial = course.trial
    x, y = seen.train
    size = Size(x.shape[1], y.shape[1], x.shape[-1])

    def loss(net: nn.Module, step: int) -> Tensor:
        pick = torch.randint(len(x), (min(BATCH, len(x)),))
        return relative_l2(net(x[pick]), y[pick]).mean()

    def error(net: nn.Module, part: Part) -> float:
        return float(torch.cat([relative_l2(net(a), b) for a, b in zip(part[0].split(32), part[1].split(32), strict=True)]).mean())

    found = tuned(
        lambda: make(size, course.parameters),
        descend(loss),
        lambda net: error(net, seen.validate),
        course,
        trial.pick(smoke=RATES[1:2], quick=RATES, full=RATES),
        trial.pick(smoke=2, quick=300, full=1_200),
        "lower",
    )
    with torch.no_grad():
        return Score(
            error(found.net, seen.test), parameters_of(found.net), found.notes, {"solution": found.net(seen.test[0][:1])[0, 0]}
        )


def fourier_operator(size: Size, parameters: int) -> nn.Module:
    """FNO: products with learned matrices at the lowest 4 to 8 wave numbers of each axis, three to five layers (Li et al. 2021)."""

    def make(width: int, modes: int, layers: int) -> nn.Module:
        k = min(modes, size.side // 3)
        return Padded(FNO(size.c_in, size.c_out, width, modes=(k, k), layers=layers, periodic=False), size.side, 8)

    shapes = ((7, 5), (8, 4), (6, 4), (6, 3), (5, 4), (4, 5))  # wave numbers and layers
    return closest(lambda shape: to_budget(lambda w: make(w, *shape), parameters, least=2), shapes, parameters)


def multigrid_operator(size: Size, parameters: int) -> nn.Module:
    """MgNO: a dense net of functions whose weights are multigrid V-cycles, two to four layers (He, Liu & Xu 2024)."""
    inner = (size.side + 1) & size.side == 0  # 2^k − 1 points: the inner ones of a grid that can be halved
    most = min(4, (size.side + 1).bit_length() - 2)

    def make(width: int, layers: int, levels: int) -> nn.Module:
        net = MgNO(size.c_in, size.c_out, width, layers=layers, levels=levels, grid="inner" if inner else "cells")
        return net if inner else Padded(net, size.side, 2**levels)

    shapes = ((2, most - 1), (3, most), (4, most), (2, most), (4, max(1, most - 2)))  # layers and levels
    return closest(lambda shape: to_budget(lambda w: make(w, *shape), parameters, least=2), shapes, parameters)


def u_net(size: Size, parameters: int) -> nn.Module:
    """U-Net with three levels, the coarser ones with up to four times as many channels."""
    base = _even(size.side + 1, 8)

    def make(width: int, multiples: tuple[int, ...]) -> nn.Module:
        return Padded(UNet(size.c_in, size.c_out, width, base, multiples=multiples), size.side, 8)

    shapes = ((1, 2, 2), (1, 2, 4), (2, 2, 3))  # channels of a level
    return closest(lambda shape: to_budget(lambda w: make(w, shape), parameters), shapes, parameters)


def attention_operator(size: Size, parameters: int) -> nn.Module:
    """A transformer on patches of 4 x 4 points, its attention an integral over the domain (Berner et al. 2025)."""
    return to_budget(lambda w: Patches(size, 2 * w), parameters)


def convolutions(size: Size, parameters: int) -> nn.Module:
    """Six plain convolutions of 5 x 5 points with GELUs: what knows nothing of scales."""
    return to_budget(lambda w: plain(size, w), parameters)


def mean_solution(size: Size, parameters: int) -> nn.Module:
    """One learned function, whatever the input: what knowing nothing comes to."""
    return Constant(size)


def plain(size: Size, width: int) -> nn.Module:
    """Convolutions and GELUs at one resolution."""
    widths = [size.c_in, *[width] * 5]
    layers = [m for i, o in itertools.pairwise(widths) for m in (nn.Conv2d(i, o, 5, padding=2), nn.GELU())]
    return nn.Sequential(*layers, nn.Conv2d(width, size.c_out, 5, padding=2))


class Padded(nn.Module):
    """A net on a domain with zeros beyond it, up to a multiple of some points; they are cut off in the end."""

    def __init__(self, net: nn.Module, side: int, multiple: int) -> None:
        super().__init__()
        self.net, self.more = net, _even(side + 1, multiple) - side

    def forward(self, u: Tensor) -> Tensor:
        n = u.shape[-1]
        return self.net(pad(u, (0, self.more) * 2))[..., :n, :n]


class Patches(nn.Module):
    """`AttentionOperator` whose points are patches of 4 x 4 points of the grid."""

    def __init__(self, size: Size, width: int) -> None:
        super().__init__()
        self.side = _even(size.side, 4)
        self.net = AttentionOperator(16 * size.c_in, 16 * size.c_out, 2, width, heads=2, layers=3)
        at = (torch.arange(self.side // 4) + 0.5) / (2 * self.side // 4)  # half of the torus, so that ends are not neighbours
        self.register_buffer("places", torch.cartesian_prod(at, at))
        self.c_out = size.c_out

    def forward(self, u: Tensor) -> Tensor:
        n, p = u.shape[-1], self.side // 4
        u = pad(u, (0, self.side - n) * 2).unfold(2, 4, 4).unfold(3, 4, 4)  # (b, c, p, p, 4, 4)
        v = self.net(u.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2), self.places)
        v = v.view(len(u), p, p, self.c_out, 4, 4).permute(0, 3, 1, 4, 2, 5)
        return v.reshape(len(u), self.c_out, self.side, self.side)[..., :n, :n]


class Constant(nn.Module):
    """A learned function; the factor lets Adam reach it in a hundred steps."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(size.c_out, size.side, size.side))

    def forward(self, u: Tensor) -> Tensor:
        return (30 * self.value).expand(len(u), -1, -1, -1)


def _even(side: int, multiple: int) -> int:
    """The least multiple that is not below `side`."""
    return -(-side // multiple) * multiple


def draw(seen: Pairs, found: Sequence[tuple[str, float, Shown]]) -> object:
    """A test medium, its solution, and what each net is off by, on one scale."""
    import matplotlib.pyplot as plt

    x, y = seen.test[0][0, 0], seen.test[1][0, 0]
    off = [(name, value, shown["solution"] - y) for name, value, shown in found]
    most = sorted(float(e.abs().max()) for *_, e in off)[len(off) // 2]
    columns = -(-(2 + len(off)) // 2)
    figure, axes = plt.subplots(2, columns, figsize=(3 * columns, 6.3), layout="constrained")
    cells = list(axes.flat)
    cells[0].imshow(x, cmap="gray")
    cells[0].set_title("test input", fontsize=10)
    cells[1].imshow(y, cmap="viridis")
    cells[1].set_title("solution", fontsize=10)
    for cell, (name, value, e) in zip(cells[2:], off, strict=False):
        drawn = cell.imshow(e, cmap="RdBu_r", vmin=-most, vmax=most)
        cell.set_title(f"error of {name}: {value:.1%}", fontsize=9)
    figure.colorbar(drawn, ax=list(axes[:, -1]), shrink=0.8)
    for cell in cells:
        cell.set(xticks=[], yticks=[])
    return figure


ROLE = Role(
    name="operator",
    metric=Metric("relative L² error on test media", better="lower"),
    parameters=30_000,
    wanted="an .npz: x (n, c, h, h) and y (n, o, h, h)",
    prepare=prepare,
    measure=measure,
    draw=draw,
    baselines=(convolutions, mean_solution),
)
