"""Sequences read one step at a time: which cell of one size answers best?

Data: scikit-learn's real 8 x 8 digits, read pixel by pixel in 64 steps; the class is asked after the last. 1,200 train, 242
choose the learning rate out of 3e-3, 1e-2 and 3e-2 (the seed draws which), the package's own 355 test; while the best rate is the
least or the largest of those tried, up to three others beyond it are tried. `--data copy` and `--data adding` are the classic
simulators instead: say 5 symbols again after 10 blanks, add the two marked ones of 40 numbers; 2,000 sequences train, 500 choose,
1,000 test. All cells have the same size (read-out included), batches and steps of Adam, gradients clipped at 1, the rate falling
by a cosine. The metric is accuracy; a sum of the adding problem counts as right within 0.1. `--data` also takes an .npz: `x`
(n, t, d), and `y` (n) integers, which are classes, or floats, or (n, t) integers; 60 % train, 20 % choose, 20 % test. Floats are
standardised by the training part and count as right within a quarter of its standard deviation (in the adding problem 0.1 is that).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.data import tasks
from neuropil.dynamics.assemblies import AbsStable, Assembly, Block, SkewCoupling, SVDStable, triangle
from neuropil.dynamics.continuous_thought import ContinuousThoughtMachine
from neuropil.dynamics.kuramoto import KuramotoLayer, Omega, Readout
from neuropil.dynamics.wave_rnn import IdentityCell, Reader, WaveCell
from neuropil.errors import Refused
from neuropil.fields.field import parameters_of
from neuropil.lab.expect import Metric
from neuropil.lab.race import Course, Role, Score, Shown
from neuropil.nn.scan import scan
from neuropil.races.own import arrays, fifths, rows
from neuropil.races.training import descend, to_budget, tuned

RATES = (3e-3, 1e-2, 3e-2)
BATCH = 32
Part = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sequences:
    """Sequences (t, n, d) with a class or number (n) after the last step, or a class at each (t, n); `outputs` of a read-out.

    Accuracy counts the last `asked` steps: in the copy task those at which symbols are to be said. Numbers are right within
    `close`.
    """

    train: Part
    validate: Part
    test: Part
    outputs: int
    asked: int
    close: float = 0.1

    @property
    def d(self) -> int:
        """Inputs a step."""
        return self.train[0].shape[-1]


def prepare(course: Course) -> Sequences:
    """Digits, a simulator, or the user's sequences."""
    trial = course.trial
    g = trial.generator(1)
    sizes = trial.pick(smoke=(64, 32, 32), quick=(2_000, 500, 1_000), full=(2_000, 500, 1_000))
    if course.source in ("copy", "adding"):
        whole: Part = (
            tasks.copy_task(sum(sizes), 10, g, length=5) if course.source == "copy" else tasks.adding_task(sum(sizes), 40, g)
        )
        return cut(whole, list(sizes), asked=5 if course.source == "copy" else 1)
    if course.source is not None:
        return own(course.source, g)
    known, test = (tasks.digit_sequences("sklearn", part) for part in ("train", "test"))
    order = torch.randperm(len(known[1]), generator=g)
    train, choose = order.tensor_split([trial.pick(smoke=64, quick=1_200, full=1_200)])
    most = trial.pick(smoke=8, quick=64, full=64)
    (a, b, c) = ((x[-most:, part], y[part]) for (x, y), part in ((known, train), (known, choose), (test, slice(None))))
    return Sequences(a, b, c, 10, 1)


def own(source: str, generator: torch.Generator) -> Sequences:
    """The user's sequences, inputs and numbers to answer standardised by the training part."""
    named = arrays(source, {"x": 3, "y": 0})
    x, y = named["x"].float().transpose(0, 1), named["y"]
    n = rows(source, named["x"], y, least=10)
    if y.ndim > 2 or (y.ndim == 2 and (y.shape[1] != len(x) or y.is_floating_point())):
        raise Refused(f"data: y of {source} must be (n), or integers (n, t) = ({n}, {len(x)}), got {tuple(y.shape)}")
    if not y.is_floating_point() and y.min() < 0:
        raise Refused(f"data: y of {source} must be classes from 0, got {int(y.min())}")
    order, sizes = torch.randperm(n, generator=generator), fifths(n)
    train = order[: sizes[0]]
    x = (x - x[:, train].mean((0, 1))) / x[:, train].std((0, 1)).clamp_min(1e-6)
    if y.is_floating_point():
        mean, std = y[train].mean(), y[train].std()
        if not 1e-6 * mean.abs() < std < math.inf:
            raise Refused(
                f"data: y of {source} never changes (mean {mean:g}, standard deviation {std:g}); nothing is to be learned"
            )
        y = (y - mean) / std
    y = y.T if y.ndim == 2 else y
    return cut((x[:, order], y[..., order]), sizes, asked=len(x) if y.ndim == 2 else 1, close=0.25)


def cut(whole: Part, sizes: list[int], asked: int, close: float = 0.1) -> Sequences:
    """Consecutive parts of these sizes."""
    x, y = whole
    a, b, c = zip(x.split(sizes, 1), y.split(sizes, -1), strict=True)
    return Sequences(a, b, c, 1 if y.is_floating_point() else int(y.max()) + 1, asked, close)


def measure(make: Callable[[int, int, int], nn.Module], seen: Sequences, course: Course) -> Score:
    """Test accuracy at the rate that is best on validation sequences."""
    trial = course.trial

    def answers(net: nn.Module, x: Tensor) -> Tensor:
        found = net(x)
        return found if seen.train[1].ndim == 2 else found[-1]

    def loss(net: nn.Module, step: int) -> Tensor:
        pick = torch.randint(len(seen.train[0][0]), (BATCH,))
        found, y = answers(net, seen.train[0][:, pick]), seen.train[1][..., pick]
        return (found[..., 0] - y).square().mean() if y.is_floating_point() else cross_entropy(found.flatten(0, -2), y.flatten())

    def accuracy(net: nn.Module, part: Part) -> float:
        x, y = part
        found = torch.cat([answers(net, rows) for rows in x.split(256, 1)], -2)
        if y.is_floating_point():
            return float(((found[..., 0] - y).abs() < seen.close).float().mean())
        right = (found.argmax(-1) == y).float()
        return float((right[-seen.asked :] if y.ndim == 2 else right).mean())

    found = tuned(
        lambda: make(seen.d, seen.outputs, course.parameters),
        descend(loss),
        lambda net: accuracy(net, seen.validate),
        course,
        trial.pick(smoke=RATES[1:2], quick=RATES, full=RATES),
        trial.pick(smoke=2, quick=300, full=1_500),
        "higher",
    )
    with torch.no_grad():
        value = accuracy(found.net, seen.test)
        x = seen.test[0][:, :256]
        course_of = torch.stack([accuracy_at(step, seen.test[1][..., :256], t, seen.close) for t, step in enumerate(found.net(x))])
    return Score(value, parameters_of(found.net), found.notes, {"over time": course_of})


def accuracy_at(found: Tensor, y: Tensor, t: int, close: float) -> Tensor:
    """Which share is right if the read-out is asked after step t already."""
    if y.is_floating_point():
        return ((found[..., 0] - y).abs() < close).float().mean()
    return (found.argmax(-1) == (y[t] if y.ndim == 2 else y)).float().mean()


def wave_cell(d: int, outputs: int, parameters: int) -> nn.Module:
    """Six rings along which inputs travel as waves (Keller et al. 2023); their length meets the budget."""

    def make(units: int) -> nn.Module:
        return Reader(WaveCell(d, units, rings=6), 6 * units, outputs)

    return to_budget(make, parameters, least=2)


def sparse_assembly(d: int, outputs: int, parameters: int) -> nn.Module:
    """Four contracting blocks with fixed sparse weights, wired by trained skew couplings (Kozachkov et al. 2022)."""
    return to_budget(
        lambda n: AssemblyReader(d, assembly(lambda: AbsStable.random(n, fan=min(4, n - 1)), n), outputs), parameters, least=3
    )


def trained_assembly(d: int, outputs: int, parameters: int) -> nn.Module:
    """Four contracting blocks that are trained as well, by their singular values."""
    return to_budget(lambda n: AssemblyReader(d, assembly(lambda: SVDStable(n), n), outputs), parameters, least=2)


def continuous_thought(d: int, outputs: int, parameters: int) -> nn.Module:
    """The Continuous Thought Machine, shown one step a tick; the number of neurons meets the budget."""
    return to_budget(lambda n: Thinker(d, outputs, 4 * n), parameters, least=3)


def kuramoto(d: int, outputs: int, parameters: int) -> nn.Module:
    """Oscillators of four numbers, all coupled, one step of AKOrN's layer for each input."""
    return to_budget(lambda c: Oscillators(d, outputs, c), parameters, least=2)


def lstm(d: int, outputs: int, parameters: int) -> nn.Module:
    """torch's LSTM."""
    return to_budget(lambda n: Torch(nn.LSTM(d, n), n, outputs), parameters)


def gru(d: int, outputs: int, parameters: int) -> nn.Module:
    """torch's GRU."""
    return to_budget(lambda n: Torch(nn.GRU(d, n), n, outputs), parameters)


def identity_rnn(d: int, outputs: int, parameters: int) -> nn.Module:
    """A ReLU net whose recurrent matrix starts as the identity (Le et al. 2015)."""
    return to_budget(lambda n: Reader(IdentityCell(d, n), n, outputs), parameters)


def assembly(block: Callable[[], Block], n: int) -> Assembly:
    """Four blocks, each pair wired both ways; Cayley steps of 0.03 τ."""
    return Assembly([block() for _ in range(4)], SkewCoupling([n] * 4, triangle(4), 4.0), 0.03, method="cayley")


class AssemblyReader(nn.Module):
    """Inputs drive the units of an assembly, whose states are read by a linear map."""

    def __init__(self, d: int, units: Assembly, outputs: int) -> None:
        super().__init__()
        self.V, self.units, self.read = nn.Linear(d, units.n), units, nn.Linear(units.n, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.units.run(self.V(x))[0])


class Torch(nn.Module):
    """A recurrent layer of torch and a linear read-out."""

    def __init__(self, layer: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.layer, self.read = layer, nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.layer(x)[0])


class Thinker(nn.Module):
    """A Continuous Thought Machine that looks at one step of the sequence a tick."""

    def __init__(self, d: int, outputs: int, neurons: int) -> None:
        super().__init__()
        pairs = max(2, neurons // 4)
        self.machine = ContinuousThoughtMachine(
            d, outputs, neurons, memory=4, d_look=16, heads=2, n_out=pairs, n_action=pairs, hidden=None
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.machine.look(x.transpose(0, 1)).unbind(1)  # t of (b, k)
        steps = torch.stack([token[:, None] for token in tokens])
        return scan(self.machine, steps, self.machine.start(x.shape[1]))[0]


class Coupling(nn.Module):
    """J as one full matrix over all oscillators."""

    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.map = nn.Linear(c * n, c * n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x.flatten(-2)).view_as(x)


class Oscillators(nn.Module):
    """C oscillators on the sphere in R⁴; the input of a step is their conditional stimulus. They start at one pole."""

    def __init__(self, d: int, outputs: int, c: int, n: int = 4) -> None:
        super().__init__()
        self.c, self.n = c, n
        self.embed = nn.Linear(d, c * n)
        self.layer = KuramotoLayer(Coupling(c, n), c, n, omega=Omega(c, n), norm=False)
        self.readout, self.read = Readout(c, n, c), nn.Linear(c * n + c, outputs)

    def forward(self, x: Tensor) -> Tensor:
        drive = self.embed(x).unflatten(-1, (self.c, self.n))

        def cell(c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            state = self.layer(state, c, 1)[0]
            return torch.cat([state.flatten(-2), self.readout(state)], -1), state

        start = x.new_zeros(x.shape[1], self.c, self.n)
        start[..., 0] = 1.0
        return self.read(scan(cell, drive, start)[0])


def draw(seen: Sequences, found: Sequence[tuple[str, float, Shown]]) -> object:
    """Which share of test sequences is right if a cell is asked after each step already."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.8))
    for i, (name, value, shown) in enumerate(found):
        over = shown["over time"]
        axes.plot(range(1, len(over) + 1), over, "-" if i < 5 else "--", label=f"{name}: {value:.3f}")
    axes.set(xlabel="asked after step", ylabel="accuracy on test sequences", ylim=(0, 1.02))
    axes.legend(frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left")
    return figure


ROLE = Role(
    name="sequence-cell",
    metric=Metric("accuracy", better="higher"),
    parameters=6_000,
    wanted="an .npz: x (n, t, d) and y, (n) or (n, t) classes or (n) floats, right within a quarter of their standard deviation",
    prepare=prepare,
    measure=measure,
    draw=draw,
    baselines=(lstm, gru, identity_rnn),
    named=("copy", "adding"),
)
