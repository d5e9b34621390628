"""What Darlow et al. 2025 claim of Continuous Thought Machines: they out-think an LSTM that has as many ticks, and can stop."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from neuropil.data.mazes import Mazes, mazes, picture, route, walk
from neuropil.data.tasks import parity_task
from neuropil.dynamics.continuous_thought import (
    ContinuousThoughtMachine,
    ThinkingLSTM,
    activity,
    certainty,
    stop,
    think,
    two_tick_loss,
)
from neuropil.lab import Less, Metric, More, Outcome, Trial, claim
from neuropil.training.fit import fit

SLUG = "continuous-thought-machine"
RIGHT = Metric("right bits", better="higher")
LATEST = 2.0  # no certainty reaches it: the most certain of all ticks answers
NETS: dict[str, Callable[[int, int], nn.Module]] = {
    "machine": lambda d_in, d_out: ContinuousThoughtMachine(d_in, d_out, choice="grid"),
    "shared": lambda d_in, d_out: ContinuousThoughtMachine(d_in, d_out, choice="grid", shared=True),
    "activity": lambda d_in, d_out: ContinuousThoughtMachine(d_in, d_out, readout="activity"),
    "lstm": lambda d_in, d_out: ThinkingLSTM(d_in, d_out, units=137),
}
RATES = {"machine": 1e-3, "shared": 1e-3, "activity": 1e-3, "lstm": 1e-3}
SIZES = {"smoke": (3, 2), "quick": (4, 150), "full": (8, 1000)}  # bits and steps at each budget
ADAM = functools.partial(torch.optim.Adam, fused=True)


class Thinker(nn.Module):
    """A trunk, a machine that looks at what it gives, and k answers of c classes at each of `ticks`."""

    def __init__(self, trunk: nn.Module, machine: nn.Module, ticks: int, questions: int) -> None:
        super().__init__()
        self.trunk, self.machine, self.ticks, self.questions = trunk, machine, ticks, questions

    def forward(self, x: Tensor) -> Tensor:
        return think(self.machine, self.trunk(x), self.ticks).unflatten(-1, (self.questions, -1))


class Places(nn.Module):
    """Tokens with a one-hot place beside their features: the linear map that follows makes of it a learned code of places."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.register_buffer("places", torch.eye(places), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.places.expand(len(x), -1, -1)], -1)  # type: ignore[operator]


def train(model: nn.Module, batches: Callable[[int], Any], steps: int, lr: float, lookahead: int | None = None) -> list[float]:
    """The losses of Adam with the gradient's norm clipped at 1; the two-tick loss for every net."""

    def loss(f: nn.Module, b: tuple[Tensor, Tensor]) -> Tensor:
        return two_tick_loss(f(b[0]), b[1], lookahead)

    return fit(model, loss, batches, steps=steps, lr=lr, optimizer=ADAM, schedule=ramps, clip=1.0, report=lambda w, f: None).losses


def ramps(x: float) -> float:
    """The factor on the rate: up over the first twentieth of training, down over the last fifth."""
    return min(20 * x, 1.0, 5 * (1 - x))


def bits_of(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The parity task batch first: (b, bits, 1) signs, (b, bits) parities so far."""
    return x.transpose(0, 1), y.T


def all_strings(bits: int) -> tuple[Tensor, Tensor]:
    """Every string of signs there is, and its parities."""
    odd = torch.arange(2**bits)[:, None] >> torch.arange(bits) & 1
    return (1 - 2 * odd)[..., None].float(), odd.cumsum(1) % 2


@functools.cache
def counter(net: str, ticks: int, bits: int, steps: int, seed: int) -> tuple[Thinker, list[float]]:
    """A net that learned the parities of strings of `bits`, and its losses."""
    torch.manual_seed(seed)
    model = Thinker(Places(bits), NETS[net](1 + bits, 2 * bits), ticks, bits)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return bits_of(*parity_task(64, bits, torch.Generator().manual_seed(seed * 100_003 + step)))

    return model, train(model, batch, steps, RATES[net])


@torch.no_grad()
def score(model: Thinker, threshold: float = LATEST) -> tuple[float, float]:
    """The share of right bits over all strings, answered at the first tick of so much certainty, and the mean number of ticks."""
    x, y = all_strings(model.questions)
    answer, tick = stop(model(x), threshold)
    ticks = tick + 1.0 if threshold < 1 else torch.full_like(tick, model.ticks).float()
    return float((answer.argmax(-1) == y).float().mean()), float(ticks.mean())


def numbers(model: nn.Module) -> int:
    """How many numbers it learns."""
    return sum(p.numel() for p in model.parameters())


@claim(
    SLUG,
    metric=RIGHT,
    expect=More(by=0.05),
    method="Continuous Thought Machine, 128 neurons (140,000 numbers)",
    baseline="LSTM of 137 units with the same look at the data, ticks and loss (140,000 numbers)",
    paper="64 bits solved with many ticks where LSTMs of equal size are not",
)
def thinking_in_synchrony_counts_further(trial: Trial) -> Outcome:
    """Asked for the parity of each prefix of 8 bits, the machine gets more right than an LSTM that thinks for as many ticks.

    A simulator: fresh random strings, 1,000 steps of batch 64; the score is over all 256 strings (each was seen in training, so
    that the question is what can be learned in that time), at the most certain of 10 ticks. Both: two-tick loss, Adam at 1e-3. Seed
    11 chose that: of 1e-3 and 3e-3 for the machine, of 1e-3, 3e-3 and 1e-2 for the LSTM (0.78, 0.72 and 0.64 right bits; its last
    tick instead of two ticks was worse). 4 bits and 150 steps at the quick budget. Pairs as in the authors' run on parity ("grid");
    with the default "pairs" seed 11 gave 0.85 and 0.91 (two schedules) where "grid" gave 1.00.
    Differs from the paper: 8 bits instead of 64, places are one-hot instead of an angle.
    """
    bits, steps = SIZES[trial.budget]
    made = {net: counter(net, 10, bits, steps, trial.seed) for net in trial.track(("machine", "lstm"), "nets")}
    trial.figure("thinking", lambda: by_tick({"Continuous Thought Machine": made["machine"][0], "LSTM": made["lstm"][0]}))
    trial.figure("traces", lambda: traces(made["machine"][0]))
    trial.figure("loss", lambda: curves({net: losses for net, (_, losses) in made.items()}))
    scores = {net: score(model)[0] for net, (model, _) in made.items()}
    notes = {"bits": bits, "steps": steps, "numbers": {net: numbers(model) for net, (model, _) in made.items()}}
    return Outcome(scores["machine"], scores["lstm"], notes)


@claim(
    SLUG,
    metric=Metric("right bits gained", better="higher"),
    expect=More(than=0.0),
    method="the smaller of the gains from 1 to 5 and from 5 to 10 ticks",
    baseline="no gain",
    paper="accuracy on parity grows with ticks",
)
def more_ticks_count_further(trial: Trial) -> Outcome:
    """Machines that think for 1, 5 and 10 ticks are right ever more often, each trained for the same number of steps.

    It fails at the upper end only: with pairs as "grid" five ticks get all of the 8 bits right already, and ten cannot gain.
    """
    bits, steps = SIZES[trial.budget]
    made = {ticks: counter("machine", ticks, bits, steps, trial.seed) for ticks in trial.track((10, 5, 1), "ticks")}
    trial.figure("loss", lambda: curves({f"{ticks} ticks": losses for ticks, (_, losses) in made.items()}))
    scores = {ticks: score(model)[0] for ticks, (model, _) in made.items()}
    return Outcome(min(scores[5] - scores[1], scores[10] - scores[5]), 0.0, {"right bits by ticks": scores})


@claim(
    SLUG,
    metric=Metric("ticks thought", better="lower"),
    expect=Less(by=1.0),
    method="stopped at a certainty of 0.8",
    baseline="all ticks, the most certain one answers",
)
def certainty_tells_when_to_stop(trial: Trial) -> Outcome:
    """A machine that answers as soon as it is 80 % certain thinks for fewer ticks and loses at most one right bit in a hundred.

    All 256 strings of 8 bits. If stopping costs more than a hundredth of the bits, all ticks are counted, so that the claim fails.
    The plan says "fewer ticks"; a margin of one tick is ours, fixed before the run. Certainty is a mean over eight questions: seven
    sure ones and a guess are 87 % certain, so that 80 % comes too early here; the notes have stricter thresholds.
    """
    bits, steps = SIZES[trial.budget]
    model, _ = counter("machine", 10, bits, steps, trial.seed)
    (early, ticks), (late, most) = score(model, 0.8), score(model)
    trial.figure("certainty", lambda: certainties(model))
    strict = {threshold: score(model, threshold) for threshold in (0.9, 0.95, 0.99)}
    notes = {
        "right bits": {"stopped": early, "all ticks": late},
        "ticks": ticks,
        "right bits and ticks at other thresholds": strict,
    }
    return Outcome(ticks if early >= late - 0.01 else most, most, notes)


@claim(
    SLUG,
    metric=RIGHT,
    expect=More(by=0.0),
    method="a net for each neuron, read by synchrony",
    baseline="the better of two machines without one of the ideas: one net for all neurons, or z read as it is",
)
def private_nets_and_synchrony_both_help(trial: Trial) -> Outcome:
    """With one net for all neurons, or with the neurons' activity read in place of their synchrony, fewer bits are right.

    The same training for all three; the plan asks that each ablation lose and gives no margin. The notes have both. Eight bits are
    few: one net for all neurons, too, gets nearly every bit right, so that there is hardly anything to lose.
    """
    bits, steps = SIZES[trial.budget]
    made = {net: counter(net, 10, bits, steps, trial.seed) for net in trial.track(("machine", "shared", "activity"), "nets")}
    names = {"machine": "whole", "shared": "one net for all neurons", "activity": "activity, no synchrony"}
    trial.figure("loss", lambda: curves({names[net]: losses for net, (_, losses) in made.items()}))
    scores = {net: score(model)[0] for net, (model, _) in made.items()}
    notes = {"right bits": scores, "numbers": {net: numbers(model) for net, (model, _) in made.items()}}
    return Outcome(scores["machine"], max(scores["shared"], scores["activity"]), notes)


SIDE, MOVES, MAZE_TICKS = 4, 8, 10


class MazeTrunk(nn.Sequential):
    """A maze's picture as one token for each cell: what lies in the 3 × 3 pixels around it, and its place."""

    def __init__(self) -> None:
        super().__init__(nn.Unfold(3, stride=2), Transpose(), Places(SIDE * SIDE))


class Transpose(nn.Module):
    """(b, e, k) to (b, k, e)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


MAZE_NETS: dict[str, Callable[[int, int], nn.Module]] = {
    "machine": lambda d_in, d_out: ContinuousThoughtMachine(d_in, d_out, choice="grid"),
    "lstm": lambda d_in, d_out: ThinkingLSTM(d_in, d_out, units=143),
}
MAZE_RATES = {"machine": 3e-3, "lstm": 3e-3}


@functools.cache
def solver(net: str, steps: int, seed: int) -> tuple[Thinker, list[float]]:
    """A net that learned to say the route through mazes, and its losses."""
    torch.manual_seed(seed)
    model = Thinker(MazeTrunk(), MAZE_NETS[net](27 + SIDE * SIDE, 5 * MOVES), MAZE_TICKS, MOVES)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        made = mazes(64, SIDE, torch.Generator().manual_seed(seed * 100_003 + step))
        return picture(made), route(made, MOVES)

    return model, train(model, batch, steps, MAZE_RATES[net], lookahead=5)


@claim(
    SLUG,
    metric=Metric("right moves", better="higher"),
    expect=More(by=0.05),
    method="Continuous Thought Machine, 128 neurons",
    baseline="LSTM of 143 units with the same trunk, ticks and loss",
    paper="large mazes solved by saying the route",
)
def thinking_in_synchrony_finds_the_way(trial: Trial) -> Outcome:
    """Shown a maze of 4 × 4 cells, the machine gets more moves to the goal right than an LSTM that thinks for as many ticks.

    A simulator: fresh mazes (random spanning trees), 64 a step, 1,000 steps; the score is over the moves up to arrival, at most 8,
    of 1,000 other mazes, answered at the most certain of 10 ticks. Both: two-tick loss with the authors' curriculum (5 moves
    beyond the first mistake), Adam at 3e-3, the better of that and 1e-3 for each on seed 11 (machine 0.55 and 0.40 right moves,
    LSTM 0.60 and 0.59). The plan gives no margin for mazes: it is that of parity. The machine learns mazes more slowly there, and
    1,000 steps are few beside the authors' million.
    Differs from the paper: 4 × 4 cells; a token for each cell and its place in place of a ResNet's features.
    """
    steps, n = trial.pick(smoke=2, quick=100, full=1000), trial.pick(smoke=16, quick=500, full=1000)
    made = mazes(n, SIDE, trial.generator(1))
    solvers = {net: solver(net, steps, trial.seed) for net in trial.track(MAZE_NETS, "nets")}
    said: dict[str, Tensor] = {}
    with torch.no_grad():
        for net, (model, _) in solvers.items():
            said[net] = stop(model(picture(made)), LATEST)[0].argmax(-1)
    truth = route(made, MOVES)
    real = truth != 4
    scores = {net: float((moves == truth)[real].float().mean()) for net, moves in said.items()}
    whole = {net: float(((moves == truth) | ~real).all(1).float().mean()) for net, moves in said.items()}
    trial.figure("routes", lambda: routes(made, {"machine": said["machine"], "LSTM": said["lstm"]}))
    trial.figure("loss", lambda: curves({net: losses for net, (_, losses) in solvers.items()}))
    notes = {"whole routes": whole, "steps": steps, "numbers": {net: numbers(model) for net, (model, _) in solvers.items()}}
    return Outcome(scores["machine"], scores["lstm"], notes)


# Pictures


def curves(named: dict[str, list[float]]) -> object:
    """Losses over training, smoothed over 20 steps."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 3.2))
    for name, losses in named.items():
        window = min(20, len(losses))
        smooth = torch.tensor(losses).unfold(0, window, 1).mean(-1)
        axes.plot(range(window, window + len(smooth)), smooth, label=name)
    axes.set(xlabel="training step", ylabel="two-tick loss on fresh data", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


@torch.no_grad()
def by_tick(named: dict[str, Thinker]) -> object:
    """How often each bit's parity is right at each tick."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(named), figsize=(3.8 * len(named), 3.2), sharey=True, layout="constrained")
    (bits,) = {model.questions for model in named.values()}
    x, y = all_strings(bits)
    for cell, (name, model) in zip(axes, named.items(), strict=True):
        right = (model(x).argmax(-1) == y).float().mean(1)
        extent = (0.5, len(right) + 0.5, 0.5, bits + 0.5)
        image = cell.imshow(right.T, vmin=0.5, vmax=1, cmap="viridis", origin="lower", aspect="auto", extent=extent)
        cell.set(xlabel="tick", title=name)
    axes[0].set_ylabel("parity of so many bits")
    figure.colorbar(image, ax=axes, label="share of strings that are right")
    return figure


def traces(model: Thinker, ticks: int = 40) -> object:
    """The activity of 48 neurons over ticks, three strings each."""
    import matplotlib.pyplot as plt

    assert isinstance(model.machine, ContinuousThoughtMachine)
    x, _ = all_strings(model.questions)
    z = activity(model.machine, model.trunk(x[[0, len(x) // 3, len(x) - 1]]), ticks)
    liveliest = z.std(0).mean(0).argsort(descending=True)[:48]
    figure, axes = plt.subplots(6, 8, figsize=(10, 5), sharex=True)
    for cell, neuron in zip(axes.flat, liveliest.tolist(), strict=True):
        cell.axvspan(0, model.ticks, color="0.93")
        for string, colour in enumerate(("tab:blue", "tab:orange", "tab:green")):
            cell.plot(range(1, ticks + 1), z[:, string, neuron], color=colour, lw=0.9)
        cell.set(xticks=[], yticks=[], xlim=(0, ticks))
        cell.set_frame_on(False)
    figure.suptitle(f"Activity of 48 neurons over {ticks} ticks for three strings (grey: the {model.ticks} ticks of training)")
    return figure


@torch.no_grad()
def certainties(model: Thinker) -> object:
    """Certainty over ticks, and when each string reaches 0.8."""
    import matplotlib.pyplot as plt

    logits = model(all_strings(model.questions)[0])
    sure, tick = certainty(logits), stop(logits, 0.8)[1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
    left.plot(range(1, len(sure) + 1), sure, color="tab:blue", alpha=0.08)
    left.plot(range(1, len(sure) + 1), sure.mean(1), color="k", label="mean")
    left.axhline(0.8, color="tab:red", ls="--", lw=1)
    left.set(xlabel="tick", ylabel="certainty", title="Every string", ylim=(0, 1))
    left.legend(frameon=False)
    right.bar(range(1, len(sure) + 1), torch.bincount(tick, minlength=len(sure)))
    right.set(xlabel="tick", ylabel="strings", title="First tick with a certainty of 0.8")
    return figure


def routes(made: Mazes, said: dict[str, Tensor], shown: int = 6) -> object:
    """Mazes with the way that each net says; a move into a wall goes nowhere."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(said), shown, figsize=(1.6 * shown, 1.75 * len(said)))
    for row, (name, moves) in zip(axes, said.items(), strict=True):
        cells = walk(made, moves)
        for cell, image, path, goal in zip(row, picture(made), cells, made.goal, strict=False):
            cell.imshow(image.permute(1, 2, 0))
            arrived = bool(path[-1] == goal)
            cell.plot(2 * (path % SIDE) + 1, 2 * (path // SIDE) + 1, color="tab:blue" if arrived else "tab:orange", lw=2.5)
            cell.set(xticks=[], yticks=[], title="arrives" if arrived else "lost")
        row[0].set_ylabel(name)
    return figure
