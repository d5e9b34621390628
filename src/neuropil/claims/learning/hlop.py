"""What Xiao et al. 2024 claim of HLOP: a net that learns task after task keeps the earlier ones, with rates or with spikes.

Data: scikit-learn's 8 × 8 digits (real), 1,442 to train and 355 to test, under five orders of pixels, one task each; classes and
head are shared. Nets 64–200–200–10, plain SGD, batches of 64, 15 epochs a task. Circuits of 12, 20 and 20 rows a task, η = 0.01.
Each way to learn has the rate of 0.05, 0.1, 0.2 and 0.4 with the best mean accuracy on a fifth of the training data that it did not
learn from, with seed 11 (`RATES`; where it is 0.4 a higher one might do better still).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from neuropil import data
from neuropil.data.streams import Task, accuracy_matrix, permuted, transfer
from neuropil.lab import Less, Metric, More, Outcome, Trial, claim
from neuropil.learning.hlop import HLOP, RateLIF, WeightedRate
from neuropil.training.fit import minibatches

ROWS, STEPS, BATCH = (12, 20, 20), 10, 64
ACCURACY, FORGOTTEN = Metric("mean accuracy after the last task", better="higher"), Metric("|backward transfer|", better="lower")
KINDS: dict[str, dict[str, Any]] = {
    "HLOP": {"rows": ROWS},
    "one after another": {"rows": 0},
    "replay": {"rows": 0},  # half of a batch from 50 kept images of each class and earlier task
    "GPM": {"rows": ROWS, "lr": 0.0},  # the rows come from an SVD after each task: the upper reference
    "random rows": {"rows": ROWS, "lr": 0.0},
}
WAYS = ("one after another", "HLOP", "GPM", "replay")
RATES = {
    ("HLOP", "backprop", False): 0.4,
    ("one after another", "backprop", False): 0.1,
    ("replay", "backprop", False): 0.4,
    ("GPM", "backprop", False): 0.4,
    ("random rows", "backprop", False): 0.05,
    ("HLOP", "backprop", True): 0.4,
    ("one after another", "backprop", True): 0.05,
    ("HLOP", "feedback alignment", False): 0.4,
    ("one after another", "feedback alignment", False): 0.1,
    ("HLOP", "sign-symmetric", False): 0.4,
    ("one after another", "sign-symmetric", False): 0.1,
}


def network(spiking: bool) -> nn.Sequential:
    """64–200–200–10, of ReLU or of spiking units."""
    units: Callable[[], nn.Module] = RateLIF if spiking else nn.ReLU
    layers = [nn.Linear(64, 200), units(), nn.Linear(200, 200), units(), nn.Linear(200, 10)]
    return nn.Sequential(*layers, *([WeightedRate()] if spiking else []))


def inputs(net: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What each weighted layer sees, in rows."""
    seen = []
    for layer in net:
        if isinstance(layer, nn.Linear):
            seen.append(x.flatten(0, -2))
        x = layer(x)
    return seen


def principal(x: Tensor, old: Tensor, k: int) -> Tensor:
    """The k directions in which x has most power outside the orthonormal rows `old` (Saha, Garg & Roy 2021, arXiv:2103.09762)."""
    return torch.linalg.svd(x - x @ old.T @ old, full_matrices=False)[2][:k]


@functools.cache
def matrix(
    kind: str, error: str, spiking: bool, tasks: int, epochs: int, seed: int, lr: float | None = None, held: bool = False
) -> Tensor:
    """The accuracy matrix of a way to learn; `held`: tested on a fifth of the training data, which is then not learned from."""
    torch.manual_seed(seed)
    train, test = data.digits("sklearn", "train"), data.digits("sklearn", "test")
    if held:
        fifth = torch.arange(len(train.labels)) % 5 == 4
        train, test = (replace(train, pixels=train.pixels[part], labels=train.labels[part]) for part in (~fifth, fifth))
    net, rule = network(spiking), HLOP(**KINDS[kind], error=error)
    optimizer = torch.optim.SGD(net.parameters(), RATES[kind, error, spiking] if lr is None else lr)
    kept: list[tuple[Tensor, Tensor]] = []

    def shown(x: Tensor) -> Tensor:
        return x.expand(STEPS, *x.shape) if spiking else x

    def learn(number: int, task: Task) -> None:
        if number:
            rule.new_task(net)
        sources = [minibatches([task.x, task.y], BATCH // 2 if kept else BATCH, seed + number)]
        if kept:
            sources.append(minibatches([torch.cat(part) for part in zip(*kept, strict=True)], BATCH // 2, seed))
        for step in range(epochs * (len(task.x) // BATCH)):
            x, y = (torch.cat(part) for part in zip(*(source(step) for source in sources), strict=True))
            rule.step(net, (shown(x), y), optimizer)
        if kind == "replay":
            first = torch.cat([(task.y == c).nonzero()[:50, 0] for c in range(10)])
            kept.append((task.x[first], task.y[first]))
        if kind == "GPM":
            with torch.no_grad():
                for circuit, x in zip(rule.memory(net).circuits, inputs(net, shown(task.x)), strict=True):
                    circuit.new = principal(x, circuit.old, len(circuit.new))  # type: ignore

    return accuracy_matrix(permuted(train, test, tasks, seed), learn, lambda x: rule.predict(net, shown(x)))


def learned(trial: Trial, kinds: Sequence[str], error: str = "backprop", spiking: bool = False) -> dict[str, Tensor]:
    """The accuracy matrices of this trial."""
    quick = (5, 6) if spiking else (5, 15)
    tasks, epochs = trial.pick(smoke=(2, 1), quick=quick, full=(5, 15))
    return {kind: matrix(kind, error, spiking, tasks, epochs, trial.seed) for kind in trial.track(kinds, "ways to learn")}


def summary(found: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Mean accuracy and backward transfer of each."""
    both = {kind: transfer(R) for kind, R in found.items()}
    return {kind: {"accuracy": round(mean, 4), "backward transfer": round(back, 4)} for kind, (mean, back) in both.items()}


def matrices(title: str, found: dict[str, Tensor]) -> object:
    """Accuracy on each task after each task: what is forgotten fades downward."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(2.7 * len(found) + 0.4, 3.3), layout="constrained")
    for cell, (kind, R) in zip(axes, found.items(), strict=True):
        count = len(R)
        image = cell.imshow(R.masked_fill(torch.ones_like(R).triu(1) > 0, torch.nan), vmin=0, vmax=1, cmap="viridis")
        for i in range(count):
            for j in range(i + 1):
                cell.text(j, i, f"{R[i, j]:.2f}", ha="center", va="center", fontsize=7, color="black" if R[i, j] > 0.6 else "white")
        ticks = range(count)
        cell.set(xlabel="tested on task", title=f"{kind}\nin the end {float(R[-1].mean()):.2f}", xticks=ticks, yticks=ticks)
        cell.set(xticklabels=[str(k + 1) for k in ticks], yticklabels=[str(k + 1) for k in ticks])
    axes[0].set_ylabel("after learning task")
    figure.colorbar(image, ax=axes, label="accuracy", shrink=0.8)
    figure.suptitle(title)
    return figure


def first_task(title: str, found: dict[str, Tensor]) -> object:
    """Accuracy on the first task while later ones are learned."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for kind, R in found.items():
        axes.plot(range(1, len(R) + 1), R[:, 0], marker="o", label=kind)
    axes.axhline(0.1, color="0.6", ls=":", lw=1)
    axes.text(1, 0.115, "chance", color="0.4", fontsize=8)
    axes.set(xlabel="tasks learned", ylabel="accuracy on task 1", ylim=(0, 1.02), xticks=range(1, len(R) + 1), title=title)
    axes.legend(frameon=False, fontsize=8)
    return figure


def kept(trial: Trial, found: dict[str, Tensor], other: str, title: str, **notes: object) -> Outcome:
    """Mean accuracy in the end, against another way to learn."""
    trial.figure("matrices", lambda: matrices(title, found))
    return Outcome(float(found["HLOP"][-1].mean()), float(found[other][-1].mean()), {**summary(found), **notes})


def forgotten(trial: Trial, found: dict[str, Tensor], title: str) -> Outcome:
    """The size of backward transfer."""
    trial.figure("first task", lambda: first_task(title, found))
    sizes = {kind: abs(transfer(R)[1]) for kind, R in found.items()}
    return Outcome(sizes["HLOP"], sizes["one after another"], summary(found))


@claim(
    "hlop",
    metric=ACCURACY,
    expect=More(by=0.15),
    method="HLOP",
    baseline="one after another",
)
def earlier_tasks_are_kept(trial: Trial) -> Outcome:
    """After five tasks a net whose later learning keeps out of the earlier inputs' subspace knows more than one that just goes on.

    The notes of the full budget have two others with the same number of steps. GPM takes as many rows from an SVD of all inputs of
    a task once it is learned; circuits can come near and hardly pass it. Replay keeps 50 images of each class and task, a third of
    the data, for half of every batch; with that much kept it forgets less than either.
    """
    found = learned(trial, trial.pick(smoke=WAYS, quick=WAYS[:2], full=WAYS))
    return kept(trial, found, "one after another", "Five orders of pixels, learned one after another")


@claim(
    "hlop",
    metric=FORGOTTEN,
    expect=Less(than=0.2),
    method="HLOP",
    baseline="one after another",
    paper="nearly zero forgetting",
)
def little_is_forgotten(trial: Trial) -> Outcome:
    """From when it is learned until the end a task loses less than 0.2 of its accuracy."""
    found = learned(trial, trial.pick(smoke=WAYS, quick=WAYS[:2], full=WAYS))
    return forgotten(trial, found, "The first task while later ones are learned")


@claim("hlop", metric=ACCURACY, expect=More(by=0.15), method="HLOP", baseline="one after another")
def spiking_nets_keep_them_too(trial: Trial) -> Outcome:
    """The same holds for leaky integrate-and-fire units that have ten steps to spike, learning by their weighted rates.

    Pixels are constant currents, the read-out is the weighted rate. Six epochs a task at the quick budget.
    """
    found = learned(trial, ("one after another", "HLOP"), spiking=True)
    return kept(trial, found, "one after another", "Spiking nets, five orders of pixels", steps_of_time=STEPS)


@claim("hlop", metric=FORGOTTEN, expect=Less(than=0.2), method="HLOP", baseline="one after another")
def spiking_nets_forget_little(trial: Trial) -> Outcome:
    """A task loses less than 0.2 of its accuracy in a spiking net, too."""
    found = learned(trial, ("one after another", "HLOP"), spiking=True)
    return forgotten(trial, found, "Spiking net: the first task while later ones are learned")


@claim("hlop", metric=ACCURACY, expect=More(by=0.15), method="HLOP", baseline="one after another")
def errors_by_random_weights_keep_the_gain(trial: Trial) -> Outcome:
    """With fixed random weights to carry the error back (feedback alignment) the gain is kept.

    The notes have the same for sign-symmetric weights at the full budget.
    """
    ways = ("one after another", "HLOP")
    found = learned(trial, ways, "feedback alignment")
    symmetric = trial.pick(smoke=False, quick=False, full=True) and learned(trial, ways, "sign-symmetric")
    notes = {"sign-symmetric": summary(symmetric)} if symmetric else {}
    return kept(trial, found, "one after another", "Feedback alignment, five orders of pixels", **notes)


@claim("hlop", metric=ACCURACY, expect=More(by=0.0), method="learned rows", baseline="random orthonormal rows")
def the_subspace_must_be_learned(trial: Trial) -> Outcome:
    """As many random orthonormal rows that never learn keep less."""
    found = learned(trial, ("random rows", "HLOP"))
    return kept(trial, found, "random rows", "What the circuits learned, and random rows in their place")
