"""One net, many ways to find its weights: which learning rule classifies unseen digits best after as many steps?

Data: MNIST digits of 28 x 28 pixels; 3,200 train, 800 choose the learning rate out of 3e-4, 1e-3, 1e-2 and 3e-2 (the seed draws
which), the package's 1,000 others test; while the best rate is the least or the largest of those tried, up to three others beyond
it are tried. All rules train a ReLU net of two equal hidden layers whose width meets the budget, by Adam on batches of 100, as
many steps each, the rate falling by a cosine. Forward-forward nets have no read-out: the same width rule makes them three layers.
The metric is test accuracy. `--data` takes an .npz: `x` (n, …) and `y` (n) classes; 60 % train, 20 % choose, 20 % test.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil import data
from neuropil.errors import Refused
from neuropil.fields.field import parameters_of
from neuropil.lab.expect import Metric
from neuropil.lab.race import Course, Role, Score, Shown
from neuropil.learning.dual_propagation import DualPropagation
from neuropil.learning.finite_difference import swap
from neuropil.learning.forward_forward import ForwardForward, GoodnessBackprop
from neuropil.learning.hlop import HLOP
from neuropil.learning.rule import Backprop, Rule
from neuropil.races.own import arrays, fifths, rows
from neuropil.races.panels import panels
from neuropil.races.training import to_budget, tuned

RATES = (3e-4, 1e-3, 1e-2, 3e-2)
BATCH = 100
Part = tuple[Tensor, Tensor]
Learner = tuple[Rule, nn.Module]


@dataclass(frozen=True)
class Classes:
    """Rows (n, d) with a class each."""

    train: Part
    validate: Part
    test: Part
    classes: int


def prepare(course: Course) -> Classes:
    """Digits, or the user's rows scaled to [0, 1]."""
    trial = course.trial
    g = trial.generator(1)
    if course.source is not None:
        return own(course.source, g)
    known, unseen = (digits(part) for part in ("train", "test"))
    order = torch.randperm(len(known), generator=g)
    choose, train = order.tensor_split([800])
    train = train[: trial.pick(smoke=200, quick=3_200, full=3_200)]
    x, y = known.pixels.flatten(1), known.labels
    return Classes((x[train], y[train]), (x[choose], y[choose]), (unseen.pixels.flatten(1), unseen.labels), 10)


@functools.cache
def digits(split: str) -> data.Images:
    """MNIST digits; reading them takes a second."""
    return data.digits("mnist", split)


def own(source: str, generator: torch.Generator) -> Classes:
    """The user's rows, each column scaled to [0, 1] by the training part."""
    named = arrays(source, {"x": 0, "y": 1})
    x, y = named["x"].float().flatten(1), named["y"]
    n = rows(source, x, y, least=10)
    if y.is_floating_point() or y.min() < 0 or int(y.max()) < 1:
        raise Refused(f"data: y of {source} must be classes 0, 1, …, at least two, got {y.dtype} from {y.min()} to {y.max()}")
    classes = int(y.max()) + 1
    if x.shape[1] < classes:
        raise Refused(
            f"data: x of {source} must have at least as many numbers a row as there are classes ({classes}), got {x.shape[1]}"
        )
    train, validate, test = torch.randperm(n, generator=generator).split(fifths(n))
    low, high = x[train].amin(0), x[train].amax(0)
    x = ((x - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    return Classes((x[train], y[train]), (x[validate], y[validate]), (x[test], y[test]), classes)


def measure(make: Callable[[int, int, int], Learner], seen: Classes, course: Course) -> Score:
    """Test accuracy at the rate that is best on validation digits."""
    trial = course.trial
    x, y = seen.train

    def update(learner: Learner, optimizer: Optimizer, step: int) -> float:
        pick = torch.randint(len(x), (min(BATCH, len(x)),))
        rule, net = learner
        return rule.step(net, (x[pick], y[pick]), optimizer)

    def accuracy(learner: Learner, part: Part) -> float:
        return float((predicted(learner, part[0]) == part[1]).float().mean())

    found = tuned(
        lambda: make(x.shape[1], seen.classes, course.parameters),
        update,
        lambda learner: accuracy(learner, seen.validate),
        course,
        trial.pick(smoke=RATES[1:2], quick=RATES, full=RATES),
        trial.pick(smoke=3, quick=300, full=3_000),
        "higher",
        trained=lambda learner: learner[1],
    )
    guess = predicted(found.net, seen.test[0])
    hits = torch.zeros(seen.classes, seen.classes).index_put_((seen.test[1], guess), torch.ones(len(guess)), accumulate=True)
    return Score(accuracy(found.net, seen.test), parameters_of(found.net[1]), found.notes, {"confusion": hits})


@torch.no_grad()
def predicted(learner: Learner, x: Tensor) -> Tensor:
    """The class of each row."""
    rule, net = learner
    return torch.cat([rule.predict(net, part).argmax(1) for part in x.split(1_000)])


def sized(d: int, classes: int, parameters: int, head: bool = True) -> nn.Sequential:
    """d, w, w and classes units (without a `head` d, w, w, w), w such that the budget is met."""

    def make(width: int) -> nn.Sequential:
        widths = [d, width, width] if head else [d, width, width, width]
        layers = [m for i, o in itertools.pairwise(widths) for m in (nn.Linear(i, o), nn.ReLU())]
        return nn.Sequential(*layers, *([nn.Linear(width, classes)] if head else []))

    return to_budget(make, parameters)


def dual_propagation(d: int, classes: int, parameters: int) -> Learner:
    """Contrastive Hebbian learning in one phase (Høier et al. 2023)."""
    return DualPropagation(), sized(d, classes, parameters)


def finite_difference(d: int, classes: int, parameters: int) -> Learner:
    """Backprop whose activations' slopes are finite differences along the error: dual propagation inside autograd."""
    return Backprop(), swap(sized(d, classes, parameters))


def forward_forward(d: int, classes: int, parameters: int) -> Learner:
    """Each layer raises its goodness for right labels and lowers it for wrong ones, by itself."""
    return ForwardForward(classes), sized(d, classes, parameters, head=False)


def goodness_backprop(d: int, classes: int, parameters: int) -> Learner:
    """Forward-forward's goal, trained by backprop through all layers."""
    return GoodnessBackprop(classes), sized(d, classes, parameters, head=False)


def hebbian_projection(d: int, classes: int, parameters: int) -> Learner:
    """HLOP in its first task: backprop beside lateral circuits that learn each layer's subspace for later."""
    return HLOP(rows=0.02), sized(d, classes, parameters)


def feedback_alignment(d: int, classes: int, parameters: int) -> Learner:
    """Errors travel back by fixed random weights."""
    return HLOP(rows=0, error="feedback alignment"), sized(d, classes, parameters)


def sign_symmetric(d: int, classes: int, parameters: int) -> Learner:
    """Errors travel back by the signs of the weights."""
    return HLOP(rows=0, error="sign-symmetric"), sized(d, classes, parameters)


def backprop(d: int, classes: int, parameters: int) -> Learner:
    """The gradient of the cross-entropy."""
    return Backprop(), sized(d, classes, parameters)


def read_out_only(d: int, classes: int, parameters: int) -> Learner:
    """Backprop of the last layer; the hidden ones stay random (they count among the numbers, as they are needed)."""
    net = sized(d, classes, parameters)
    return Frozen(), net


class Frozen(Backprop):
    """Backprop that leaves all layers but the last as they are."""

    def gradients(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        loss = super().gradients(net, x, y)
        for p in net[:-1].parameters():  # type: ignore[index]
            p.grad = None
        return loss


def draw(seen: Classes, found: Sequence[tuple[str, float, Shown]]) -> object:
    """What each rule takes the classes for: rows are true classes."""
    figure, cells = panels(len(found), 5, 2.5, 2.8)
    for cell, (name, value, shown) in zip(cells, found, strict=False):
        share = shown["confusion"] / shown["confusion"].sum(1, keepdim=True).clamp_min(1)
        cell.axis("on")
        cell.imshow(share, cmap="Blues", vmin=0, vmax=1)
        cell.set(xticks=[], yticks=[])
        cell.set_title(f"{name}: {value:.3f}", fontsize=10)
    cells[0].set(xlabel="answered", ylabel="true class")
    return figure


ROLE = Role(
    name="learning-rule",
    metric=Metric("test accuracy", better="higher"),
    parameters=100_000,
    wanted="an .npz: x (n, …) numbers and y (n) classes",
    prepare=prepare,
    measure=measure,
    draw=draw,
    baselines=(backprop, read_out_only),
)
