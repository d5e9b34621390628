"""What Høier et al. 2023 claim of dual propagation: backprop's updates, accuracy and time from states, no derivative."""

import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, one_hot

from neuropil import data
from neuropil.lab import Close, Less, Metric, More, Outcome, Ratio, Trial, claim
from neuropil.learning.dual_propagation import DualPropagation
from neuropil.learning.rule import Backprop, Rule
from neuropil.nn.mlp import MLP
from neuropil.training.fit import minibatches

ACCURACY = Metric("test accuracy", better="higher")
SIZES = (784, 256, 256, 256, 10)
GAMMAS = (1e-3, 1e-2, 0.1, 0.3, 1.0, 1.5, 1.9)


@functools.cache
def digits(split: str) -> data.Images:
    """MNIST digits; reading them takes a second."""
    return data.digits("mnist", split)


def half_squared(a: Tensor, y: Tensor) -> Tensor:
    """½|a − one-hot y|², mean over the batch: the authors' loss on digits."""
    return (a - one_hot(y, a.shape[1])).square().sum() / (2 * len(a))


RULES: dict[str, Callable[[], Rule]] = {
    "backprop": lambda: Backprop(half_squared),
    "dual": lambda: DualPropagation("squared"),
    "shuffled": lambda: DualPropagation("squared", order="shuffled"),
    "parallel": lambda: DualPropagation("squared", order="parallel"),
    "both, 4 sweeps": lambda: DualPropagation("squared", sweeps=4),
    "z⁺ only, 4 sweeps": lambda: DualPropagation("squared", sweeps=4, alpha=1.0),
    "z⁻ only, 4 sweeps": lambda: DualPropagation("squared", 0.9, sweeps=4, alpha=0.0),
    "z⁺ only, 1 sweep": lambda: DualPropagation("squared", alpha=1.0),
}


def updates(rule: Rule, net: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """What the rule puts into the weights' gradients, layer by layer."""
    net.zero_grad()
    rule.gradients(net, x, y)
    return [p.grad.flatten().clone() for p in net.parameters() if p.dim() > 1 and p.grad is not None]


def random_net(activation: str, trial: Trial, dtype: torch.dtype = torch.float64) -> tuple[MLP, Tensor, Tensor]:
    """An untrained net, weights N(0, 2/n) (N(0, 1/n) if linear), with a batch of 100 digits."""
    net, g = MLP(SIZES, activation=activation).to(dtype), trial.generator()
    gain = 2.0 if activation == "relu" else 1.0
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64).to(dtype) * (
            (gain / p.shape[1]) ** 0.5 if p.dim() > 1 else 0.1
        )
    images = digits("train")
    rows = torch.randperm(len(images), generator=g)[:100]
    return net, images.pixels[rows].flatten(1).to(dtype), images.labels[rows]


def compared(activation: str, trial: Trial, gamma: float, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    """Dual propagation's updates and backprop's gradients."""
    net, x, y = random_net(activation, trial, dtype)
    return updates(DualPropagation("squared", gamma), net, x, y), updates(Backprop(half_squared), net, x, y)


@claim(
    "dual-propagation",
    metric=Metric("largest relative error of an update", better="lower"),
    expect=Less(than=1e-9),
    method="linear net",
    baseline="ReLU net",
    paper="equivalent to backprop on linear nets",
)
def linear_nets_get_backprops_updates(trial: Trial) -> Outcome:
    """On a linear net every layer's update equals the gradient times −4γ/(4 − γ²), for any γ below 2, to rounding.

    Four weighted layers on 100 MNIST digits, float64; the error is relative and the worst over layers and γ = 0.1, 0.3, 1,
    1.5, 1.9. That of a ReLU net stands beside it: there the states read more than the slope. Rounding is 1e-16 over γ⁴, the
    difference of the first layer's states, so that smaller γ, in picture and notes only, cannot show it to nine digits.
    """
    gammas = trial.pick(smoke=GAMMAS[::4], quick=GAMMAS, full=GAMMAS)
    worst, factors, notes = {"identity": 0.0, "relu": 0.0}, {}, {}
    for activation in worst:
        for gamma in trial.track(gammas, activation):
            factor, (ours, true) = 4 * gamma / (4 - gamma**2), compared(activation, trial, gamma)
            errors = [float((a - factor * b).norm() / (factor * b.norm())) for a, b in zip(ours, true, strict=True)]
            if gamma >= 0.1:
                worst[activation] = max(worst[activation], *errors)
            notes[f"worst error at γ = {gamma}, {activation}"] = max(errors)
            factors[activation, gamma] = [float(a @ b / (b @ b)) for a, b in zip(ours, true, strict=True)]

    def draw() -> object:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(5.5, 3.4))
        line = torch.logspace(-3, 0.28, 200)
        axes.loglog(line, 4 * line / (4 - line**2), color="0.6", lw=1, label="4γ/(4 − γ²)")
        for activation, style in (("identity", "o"), ("relu", "x")):
            dots = [(gamma, f) for (a, gamma), layers in factors.items() if a == activation for f in layers]
            label = {"identity": "linear net, 4 layers", "relu": "ReLU net"}[activation]
            axes.loglog(*zip(*dots, strict=True), style, ms=7, mfc="none", label=label)
        axes.set(xlabel="nudge γ", ylabel="update over gradient (least squares)", title="Dual propagation's updates")
        axes.legend(frameon=False)
        return figure

    trial.figure("factor", draw)
    return Outcome(worst["identity"], worst["relu"], notes)


@claim(
    "dual-propagation",
    metric=Metric("least cosine with the gradient", better="higher"),
    expect=More(than=0.999),
    method="γ = 0.001",
    baseline="γ = 1",
)
def relu_nets_follow_backprop_for_small_nudges(trial: Trial) -> Outcome:
    """On a random ReLU net of 4 layers at γ = 0.001, each layer's update has a cosine of at least 0.999 with the gradient.

    float64, as the states of the first layer differ by γ⁴; the notes have all γ and layers, and what float32 makes of them. By the
    plan, about 0.99 is to be expected at γ = 0.1 and 0.93 in the deepest layer at γ = 1.
    """
    gammas = trial.pick(smoke=GAMMAS[::4], quick=GAMMAS, full=GAMMAS)
    cosines: dict[str, dict[float, list[float]]] = {"float64": {}, "float32": {}}
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        for gamma in trial.track(gammas, name):
            ours, true = compared("relu", trial, gamma, dtype)
            cosines[name][gamma] = [float(cosine_similarity(a, b, 0)) for a, b in zip(ours, true, strict=True)]

    def draw() -> object:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
        for axis, (name, found) in zip(axes, cosines.items(), strict=True):
            for layer in range(len(SIZES) - 1):
                axis.semilogx(gammas, [found[g][layer] for g in gammas], "o-", ms=4, color=f"C{layer}", label=f"layer {layer + 1}")
            axis.set(xlabel="nudge γ", title=name)
        axes[0].set_ylabel("cosine with the gradient")
        axes[0].legend(frameon=False)
        return figure

    trial.figure("cosines", draw)
    notes = {f"{name}, γ = {g}": layers for name, found in cosines.items() for g, layers in found.items()}
    return Outcome(min(cosines["float64"][1e-3]), min(cosines["float64"][1.0]), notes)


@functools.cache
def trained(rule: str, steps: int, rates: tuple[float, ...], seed: int) -> tuple[float, float, list[float]]:
    """Adam on 3,200 digits, batch 100: test accuracy at the rate that is best on 800 others, that rate, the losses."""
    known, unseen = digits("train"), digits("test")
    order = torch.randperm(len(known), generator=Trial(seed).generator(1))
    choose, train = order[:800], order[800:]
    batches = minibatches([known.pixels[train].flatten(1), known.labels[train]], 100, seed)
    best: tuple[float, float, float, list[float]] = (-1.0, 0.0, 0.0, [])
    for lr in rates:
        torch.manual_seed(seed)
        net, how = MLP(SIZES, activation="relu"), RULES[rule]()
        optimizer = torch.optim.Adam(net.parameters(), lr)
        losses = [how.step(net, (batch[0], batch[1]), optimizer) for batch in map(batches, range(steps))]
        with torch.no_grad():
            scores = [
                float((net(i.pixels[rows].flatten(1)).argmax(1) == i.labels[rows]).float().mean())
                for i, rows in ((known, choose), (unseen, slice(None)))
            ]
        best = max(best, (scores[0], scores[1], lr, losses))
    return best[1:]


def curves(title: str, named: dict[str, tuple[float, float, list[float]]]) -> object:
    """Losses over training, smoothed over 20 steps; the accuracy stands in the legend."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 3.4))
    for (name, (accuracy, _, losses)), style in zip(named.items(), ("-", "--", "-.", ":"), strict=False):
        window = min(20, len(losses))
        smooth = torch.tensor(losses).clamp(max=1e3).unfold(0, window, 1).mean(-1)
        axes.semilogy(range(window, window + len(smooth)), smooth, style, label=f"{name}: {accuracy:.1%}")
    axes.set(xlabel="step", ylabel="½|a − y|² before the step", title=title)
    axes.legend(frameon=False, title="test accuracy", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def training(trial: Trial, rules: dict[str, str], title: str, steps: int) -> Outcome:
    """The first rule against the second on digits, each at its best rate; the others go into notes and picture."""
    steps = trial.pick(smoke=2, quick=200, full=steps)
    rates = trial.pick(smoke=(1e-3,), quick=(1e-3,), full=(1e-3, 3e-4))
    found = {name: trained(rule, steps, rates, trial.seed) for name, rule in trial.track(list(rules.items()), "rules")}
    trial.figure("loss", lambda: curves(title, found))
    notes = {
        "steps": steps,
        **{name: {"accuracy": f[0], "learning rate": f[1], "last loss": f[2][-1]} for name, f in found.items()},
    }
    method, baseline, *_ = (f[0] for f in found.values())
    return Outcome(method, baseline, notes)


@claim(
    "dual-propagation",
    metric=ACCURACY,
    expect=Close(within=0.01),
    method="dual propagation, γ = 1, one sweep",
    baseline="backpropagation",
    paper="equal to backprop on CIFAR-10, CIFAR-100, ImageNet32",
)
def as_accurate_as_backprop(trial: Trial) -> Outcome:
    """After the same steps on digits, dual propagation's accuracy is within one point of backpropagation's.

    MNIST digits, 3,200 to train, 800 choose each rule's learning rate of Adam from 1e-3 and 3e-4, 1,000 test; an MLP of 3 × 256
    ReLUs, squared loss as in the authors' runs, batch 100, same start and batches, 800 steps (quick: 200, one rate).
    """
    return training(trial, {"dual propagation": "dual", "backprop": "backprop"}, "Digits, 3 × 256 ReLUs", 800)


@claim(
    "dual-propagation",
    metric=ACCURACY,
    expect=More(by=-0.02),
    method="all layers in a fresh order, 4 rounds",
    baseline="from the top down, one sweep",
)
def a_shuffled_order_of_layers_trains(trial: Trial) -> Outcome:
    """With the layers of each batch updated in random order, the accuracy is no more than two points below that of the sweep.

    As in as-accurate-as-backprop. Four rounds of four layers, so that the error always reaches the first. The notes add all layers
    at once.
    """
    rules = {"shuffled": "shuffled", "from the top down": "dual", "all at once": "parallel"}
    return training(trial, rules, "Order of the layers' updates", 800)


@claim(
    "dual-propagation",
    metric=ACCURACY,
    expect=More(by=0.0),
    method="both states nudged, ±γ/2",
    baseline="z⁺ nudged by γ, z⁻ free",
    paper="symmetric nudging is needed",
)
def nudging_both_states_matters(trial: Trial) -> Outcome:
    """Near the fixed point (4 sweeps), nudging z⁺ only trains to a lower accuracy than nudging both states.

    As in as-accurate-as-backprop, 400 steps. z⁺ is then the activity, too: its nudge runs up to the outputs. Notes and picture add
    z⁻ only (γ = 0.9: at 1 its output update has a pole), and z⁺ only with one sweep, where the nudge has no time to come back.
    """
    rules = {name: name for name in ("both, 4 sweeps", "z⁺ only, 4 sweeps", "z⁻ only, 4 sweeps", "z⁺ only, 1 sweep")}
    return training(trial, rules, "Which states are nudged", 400)


@claim(
    "dual-propagation",
    metric=Metric("time of a step", better="lower", unit="ms"),
    expect=Ratio(at_most=2.0),
    method="dual propagation, one sweep",
    baseline="backpropagation",
    paper="equal run time; other contrastive rules about 100 times slower",
)
def a_step_costs_at_most_twice_backprops(trial: Trial) -> Outcome:
    """A training step takes at most twice the time of a step of backpropagation.

    The net and batches of as-accurate-as-backprop, Adam's own time included; medians over pairs of steps taken in turn, so that
    whatever else the machine does strikes both. The notes have the ratio of the gradients alone.
    """
    pairs = trial.pick(smoke=5, quick=300, full=1_000)
    images = digits("train")
    batches = minibatches([images.pixels.flatten(1), images.labels], 100, trial.seed)
    nets = {rule: MLP(SIZES, activation="relu") for rule in ("dual", "backprop")}
    optimizers = {rule: torch.optim.Adam(net.parameters(), 3e-4) for rule, net in nets.items()}
    whole: dict[str, list[float]] = {rule: [] for rule in nets}
    alone: dict[str, list[float]] = {rule: [] for rule in nets}
    for step in trial.track(range(pairs), "pairs"):
        batch = batches(step)
        for rule in ("dual", "backprop") if step % 2 else ("backprop", "dual"):
            start = time.perf_counter()
            optimizers[rule].zero_grad()
            how = RULES[rule]()
            how.gradients(nets[rule], *batch)
            alone[rule].append(1e3 * (time.perf_counter() - start))
            optimizers[rule].step()
            whole[rule].append(1e3 * (time.perf_counter() - start))
    medians = [{rule: float(torch.tensor(times).median()) for rule, times in kind.items()} for kind in (whole, alone)]

    def draw() -> object:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(5.5, 2.8))
        top = 2.5 * medians[0]["dual"]
        for rule in nets:
            axes.hist(whole[rule], bins=80, range=(0, top), alpha=0.6, label=f"{rule}: {medians[0][rule]:.2f} ms")
        axes.axvline(2 * medians[0]["backprop"], color="0.4", ls="--", lw=1, label="twice backprop")
        axes.set(xlabel="one training step, ms", ylabel="steps", title="Time of a step, MLP 784-256-256-256-10, batch 100")
        axes.legend(frameon=False)
        return figure

    trial.figure("time", draw)
    notes = {"ratio of the gradients alone": medians[1]["dual"] / medians[1]["backprop"], "pairs": pairs}
    notes["threads"] = torch.get_num_threads()
    return Outcome(medians[0]["dual"], medians[0]["backprop"], notes)
