"""What Kozachkov et al. 2021 claim of assemblies of contracting nets: no feedback of their kind breaks them, and they learn."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.data import tasks
from neuropil.dynamics.assemblies import (
    AbsStable,
    Assembly,
    AssemblyNet,
    Block,
    FreeCoupling,
    SkewCoupling,
    Step,
    SVDStable,
    distance,
    triangle,
)
from neuropil.errors import Refused
from neuropil.lab import Metric, More, Outcome, Ratio, Trial, claim
from neuropil.nn.scan import scan
from neuropil.training.fit import fit, minibatches

DRAWS, DT = 20, 0.005


@functools.cache
@torch.no_grad()
def distances(seed: int, kind: str, steps: int) -> Tensor:
    """‖x − y‖_M over time (steps + 1, draws) of 20 assemblies of 5 × 16 units, one common input each; B ~ N(0, 0.3²)."""
    g = Trial(seed).generator(1)
    parts, metrics = [], []
    for _ in range(DRAWS):
        blocks = [AbsStable.random(16, fan=4, radius=0.5, generator=g) for _ in range(5)]
        coupling = {"skew": SkewCoupling, "free": FreeCoupling}[kind]([16] * 5, scale=0.3, generator=g)
        assembly = Assembly(blocks, coupling, DT).double()
        parts.append(assembly.step())
        metrics.append(assembly.matrices().P)
    together = Step(torch.stack([s.W for s in parts]), torch.stack([s.T for s in parts]), DT, "relu", "euler")
    u = torch.randn(steps, DRAWS, 1, 80, dtype=torch.float64, generator=g).expand(-1, -1, 2, -1)
    start = torch.randn(DRAWS, 2, 80, dtype=torch.float64, generator=g)
    states = torch.cat([start[None], scan(together, u, start)[0]])
    return distance(states[:, :, :1], states[:, :, 1:], torch.stack(metrics))[..., 0]


def approach(both: dict[str, Tensor]) -> object:
    """Distances over time, a line a draw."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 3.4))
    for (kind, of), colour in zip(both.items(), ("C0", "C3"), strict=True):
        time = torch.arange(len(of)) * DT
        axes.semilogy(time, of, color=colour, lw=0.7, alpha=0.6)
        axes.plot([], [], color=colour, label={"skew": "L = B − M⁻¹BᵀM", "free": "L = B"}[kind])
    axes.set(xlabel="time (τ)", ylabel="‖x − y‖ in the metric M", title="Two starts, one input: 20 assemblies of 5 × 16 units")
    axes.legend(frameon=False)
    return figure


def both_ways(trial: Trial) -> dict[str, Tensor]:
    """The distances with the paper's coupling and with the same B alone; 16 time units but for the smoke test."""
    both = {kind: distances(trial.seed, kind, trial.pick(smoke=100, quick=3200, full=3200)) for kind in ("skew", "free")}
    trial.figure("distance", lambda: approach(both))
    return both


@claim(
    "rnns-of-rnns",
    metric=Metric("share of steps at which two trajectories approach, 20 draws", better="higher"),
    expect=More(than=1.0),
    method="5 blocks of 16 units, L = B − M⁻¹BᵀM",
    baseline="the same with L = B",
    paper="a theorem: all of them",
)
def wired_blocks_forget_where_they_began(trial: Trial) -> Outcome:
    """Five random contracting nets, wired by any matrix in the paper's way, approach from two starts at every single step.

    A simulator: 20 draws of blocks (condition A, |W| of radius 0.5) and of B ~ N(0, 0.3²), one random input for both starts,
    Euler steps of 0.005 over 16 time units in double precision, the distance in the metric M. No failure is allowed.
    """
    both = both_ways(trial)
    share = {kind: float((of[1:] < of[:-1]).double().mean()) for kind, of in both.items()}
    notes = {f"{kind}, distance": [float(x) for x in (of[0].mean(), of[-1].min(), of[-1].max())] for kind, of in both.items()}
    return Outcome(share["skew"], share["free"], {**notes, "distance": "mean at the start, least and most of 20 at the end"})


@claim(
    "rnns-of-rnns",
    metric=Metric("log10 of the distance after 16 time units, median of 20 draws", better="higher"),
    expect=More(than=8.0),
    method="L = B",
    baseline="L = B − M⁻¹BᵀM",
)
def the_same_wires_alone_blow_up(trial: Trial) -> Outcome:
    """Without the answering half, the same random feedback drives the two trajectories apart by more than 10⁸."""
    far = {kind: math.log10(max(float(of[-1].median()), 1e-300)) for kind, of in both_ways(trial).items()}
    return Outcome(far["free"], far["skew"])


class Vanilla(nn.Module):
    """torch's tanh RNN, the last state read by a linear map; `start`: torch's uniform or an orthogonal recurrent matrix."""

    def __init__(self, n: int, start: str) -> None:
        super().__init__()
        self.rnn, self.read = nn.RNN(1, n), nn.Linear(n, 10)
        if start == "orthogonal":
            nn.init.orthogonal_(self.rnn.weight_hh_l0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(t, b, 1) -> (b, 10)."""
        return self.read(self.rnn(x)[0][-1])


def combo(kind: str, size: int, k: int, dt: float, scale: float, method: str) -> AssemblyNet:
    """k blocks of `size` units between one input and ten classes; "sparse", "svd", or "free": sparse blocks with L = B."""
    block: Callable[[], Block] = (lambda: SVDStable(size)) if kind == "svd" else (lambda: AbsStable.random(size, fan=4))
    blocks, sizes = [block() for _ in range(k)], [size] * k
    coupling = FreeCoupling(sizes, None, scale) if kind == "free" else SkewCoupling(sizes, triangle(k), scale)
    return AssemblyNet(1, Assembly(blocks, coupling, dt, method=method), 10)


# numbers that are trained: 2,314, 2,074, 2,122, 2,320
NETS: dict[str, Callable[[], nn.Module]] = {
    "sparse": lambda: combo("sparse", 16, 4, 0.03, 4.0, "cayley"),
    "svd": lambda: combo("svd", 12, 4, 0.03, 4.0, "cayley"),
    "free": lambda: combo("free", 16, 3, 0.03, 0.1, "euler"),
    "uniform": lambda: Vanilla(42, "uniform"),
    "orthogonal": lambda: Vanilla(42, "orthogonal"),
}
RATES = (3e-2, 1e-2, 3e-3)


@functools.cache
def split(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Digits pixel by pixel in a random order of this seed: 1,200 to learn, 242 to choose by, 355 to test; time first."""
    x, y = tasks.digit_sequences("sklearn", "train", permuted=seed)
    order = torch.randperm(len(y), generator=Trial(seed).generator(2))
    learn, choose = order[:1200], order[1200:]
    return (x[:, learn], y[learn]), (x[:, choose], y[choose]), tasks.digit_sequences("sklearn", "test", permuted=seed)


def losses_of(model: nn.Module, rate: float, steps: int, seed: int) -> list[float]:
    """Adam on batches of 64, the gradient's norm clipped at 1."""
    (x, y), _, _ = split(seed)
    batch = minibatches([x.transpose(0, 1), y], 64, seed)

    def loss(f: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(f(b[0].transpose(0, 1)), b[1])

    return fit(model, loss, batch, steps=steps, lr=rate, optimizer=torch.optim.Adam, clip=1.0, report=lambda w, f: None).losses


@functools.cache
def best(nets: tuple[str, ...], rates: tuple[float, ...], steps: int, seed: int) -> tuple[float, str, list[float]]:
    """Test accuracy, name and losses of the net and rate with the least loss on the digits to choose by."""
    found: list[tuple[float, float, str, list[float]]] = []
    for net in nets:
        for rate in rates:
            torch.manual_seed(seed)
            model = NETS[net]()
            try:
                losses = losses_of(model, rate, steps, seed)
            except Refused:  # it diverged
                continue
            with torch.no_grad():
                _, (x, y), (x_test, y_test) = split(seed)
                accuracy = float((model(x_test).argmax(-1) == y_test).float().mean())
                found.append((float(cross_entropy(model(x), y)), accuracy, f"{net} at {rate:g}", losses))
    return min(found)[1:]


def curves(named: dict[str, list[float]]) -> object:
    """Training losses, smoothed over 20 steps."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 3.2))
    for name, losses in named.items():
        window = min(20, len(losses))
        axes.semilogy(range(window, len(losses) + 1), torch.tensor(losses).unfold(0, window, 1).mean(-1), label=name)
    axes.axhline(math.log(10), color="0.5", ls="--", lw=1)
    axes.set(xlabel="training step", ylabel="cross entropy", title="Digits, one pixel a step in a random order (dashed: chance)")
    axes.legend(frameon=False)
    return figure


def against_vanilla(trial: Trial, net: str) -> Outcome:
    """A combo net against the better of two vanilla nets, each at its best rate."""
    steps, rates = trial.pick(smoke=2, quick=100, full=600), trial.pick(smoke=RATES[:1], quick=RATES[::2], full=RATES)
    sides = ((net,), ("uniform", "orthogonal"))
    ours, theirs = (best(nets, rates, steps, trial.seed) for nets in trial.track(sides, "nets"))
    trial.figure("loss", lambda: curves({ours[1]: ours[2], theirs[1]: theirs[2]}))
    return Outcome(ours[0], theirs[0], {"steps": steps, "chosen": [ours[1], theirs[1]]})


DIGITS = Metric("test accuracy", better="higher")


@claim(
    "rnns-of-rnns",
    metric=DIGITS,
    expect=More(by=0.02),
    method="4 fixed sparse blocks of 16 units, trained feedback",
    baseline="tanh RNN of as many trained numbers",
    paper="96.85 % (MNIST, 784 pixels, many epochs)",
)
def fixed_blocks_with_trained_feedback_read_permuted_digits(trial: Trial) -> Outcome:
    """On digits read pixel by pixel in a random order, trained feedback between fixed nets beats a vanilla RNN by 2 points.

    Real 8 × 8 digits (scikit-learn), 1,200 to learn, 600 steps of Adam; for each net the best of the rates 0.03, 0.01, 0.003 by the
    loss on 242 others, for the vanilla RNN also of two starts, torch's uniform and an orthogonal one. The step (0.03) and the start
    of B (scale 4) of the combo nets were chosen on seed 11 out of about twelve, the vanilla RNN there out of three starts. On
    seeds 0–4 the edge is 1.4 points, less than the 2 asked for; the paper's was seen over 784 steps and many epochs. With B
    that large Euler's steps are unstable, so they are Cayley's; Euler's of 0.1, at a B that they bear (scale 0.1), came to 59 % in
    300 steps on seed 11.
    """
    return against_vanilla(trial, "sparse")


@claim(
    "rnns-of-rnns",
    metric=DIGITS,
    expect=More(by=0.0),
    method="4 trained blocks of 12 units, trained feedback",
    baseline="tanh RNN of as many trained numbers",
)
def trained_blocks_read_permuted_digits(trial: Trial) -> Outcome:
    """The same with blocks that are trained under a proof of stability (SVD Combo): at least as accurate as a vanilla RNN."""
    return against_vanilla(trial, "svd")


LOST = 1e9  # what a loss counts as that is larger or not finite


@claim(
    "rnns-of-rnns",
    metric=Metric("last training loss at a rate of 1", better="lower"),
    expect=Ratio(at_most=0.01),
    method="fixed sparse blocks, L = B − M⁻¹BᵀM",
    baseline="the same with L = B, as many trained numbers",
)
def it_stays_bounded_at_a_rate_where_free_feedback_diverges(trial: Trial) -> Outcome:
    """At a learning rate of 1 training the free coupling diverges; the same net with the paper's coupling stays bounded.

    Digits as above; Adam for 200 steps, the mean loss of the last 20 (guessing has 2.3; above 1e9 or not finite counts as 1e9).
    1 is the least of 0.03, 0.1, 0.3 and 1 at which the free net diverged on seed 11, where ours stayed at guessing; the notes have
    all four. The plan gives no margin, the hundredth is ours. B of the free net starts at a scale of 0.1; at 4, the other's, its
    loss is not finite from the start.
    """
    rates = trial.pick(smoke=(1.0,), quick=(0.1, 1.0), full=(0.03, 0.1, 0.3, 1.0))
    steps = trial.pick(smoke=2, quick=60, full=200)
    ends: dict[str, dict[float, float]] = {"sparse": {}, "free": {}}
    for net, rate in trial.track([(net, rate) for net in ends for rate in rates], "nets and rates"):
        torch.manual_seed(trial.seed)
        try:
            losses = losses_of(NETS[net](), rate, steps, trial.seed)
            ends[net][rate] = min(sum(losses[-20:]) / len(losses[-20:]), LOST)
        except Refused:  # not finite
            ends[net][rate] = LOST
    trial.figure("rates", lambda: ending(ends))
    notes = {f"last loss, {net}": {f"{rate:g}": f"{end:.3g}" for rate, end in of.items()} for net, of in ends.items()}
    return Outcome(ends["sparse"][1.0], ends["free"][1.0], notes)


def ending(ends: dict[str, dict[float, float]]) -> object:
    """The last loss against the rate."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2))
    for of, name in zip(ends.values(), ("L = B − M⁻¹BᵀM", "L = B"), strict=True):
        axes.loglog(list(of), list(of.values()), "o-", label=name)
    axes.axhline(math.log(10), color="0.5", ls="--", lw=1)
    axes.set(xlabel="learning rate", ylabel="last training loss", title="Where training ends (dashed: guessing)")
    axes.legend(frameon=False)
    return figure
