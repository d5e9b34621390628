"""What Ramsauer et al. 2021 claim of modern Hopfield networks: recall against the binary net, pooling of bags, small tables."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from neuropil import data
from neuropil.data import Bags
from neuropil.lab import Less, Metric, More, Outcome, Ratio, Trial, claim
from neuropil.memory.binary_hopfield import hebb, settle
from neuropil.memory.hopfield import retrieve
from neuropil.memory.hopfield_layers import HopfieldLayer, HopfieldPooling
from neuropil.nn.attention import AttentionPool, mean_pool
from neuropil.nn.mlp import MLP
from neuropil.training import fit, minibatches

ERROR = Metric("retrieval error", better="lower", floor=1e-9)
ACCURACY = Metric("test accuracy", better="higher")


def on_sphere(trial: Trial, d: int, n: int) -> Tensor:
    """`n` random patterns of norm √d (a simulator)."""
    patterns = torch.randn(n, d, generator=trial.generator(d))
    return patterns / patterns.norm(dim=1, keepdim=True) * d**0.5


def relative_error(trial: Trial, d: int, n: int) -> float:
    """Median relative error of one update at noise 0.5 a coordinate and β = 1."""
    patterns = on_sphere(trial, d, n)
    true = patterns[:256]
    read = retrieve(true + 0.5 * torch.randn(true.shape, generator=trial.generator(d + 1)), patterns)
    return float(((read - true).norm(dim=1) / true.norm(dim=1)).median())


@claim(
    "modern-hopfield",
    metric=ERROR,
    expect=Less(than=1e-6),
    method="one update, d = 64",
    baseline="one update, d = 16",
    paper="storage exponential in d (theorem 3)",
)
def one_update_recalls_random_patterns(trial: Trial) -> Outcome:
    """One update recalls any of 100,000 random patterns of 64 dimensions; 16 dimensions do not hold as many.

    Patterns of norm √d, noise 0.5 a coordinate, β = 1, float32; a simulator. 20,000 patterns at the quick budget.
    """
    n = trial.pick(smoke=500, quick=20_000, full=100_000)
    counts = [count for count in (100, 1_000, 10_000, n) if count <= n]
    curves = {d: [relative_error(trial, d, count) for count in counts] for d in (8, 16, 32, 64)}

    def draw() -> object:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(6, 3.6))
        for d, curve in curves.items():
            axes.loglog(counts, [max(e, 1e-9) for e in curve], "o-", label=f"d = {d}")
        axes.axhline(1e-6, color="0.5", ls="--", lw=1)
        axes.set(xlabel="stored patterns N", ylabel="relative error (floor 1e-9)", title="One update of the modern Hopfield net")
        axes.legend(frameon=False)
        return figure

    trial.figure("capacity", draw)
    notes = {"patterns": n, **{f"error at d={d}": dict(zip(map(str, counts), c, strict=True)) for d, c in curves.items()}}
    return Outcome(method=curves[64][-1], baseline=curves[16][-1], notes=notes)


@claim(
    "modern-hopfield",
    metric=Metric("wrong pixels", better="lower", floor=1e-6),
    expect=Ratio(at_most=0.1),
    method="one update",
    baseline="binary Hopfield net of 784 units",
)
def one_update_recalls_digits(trial: Trial) -> Outcome:
    """One update recalls a half-masked MNIST digit from 1,000 stored ones; the binary Hopfield net of the same size does not.

    Digits are binarised to ±1 so that both nets store the same patterns; the lower half of the cue is 0 (unknown) for both.
    β = 1/4; the error is the share of hidden pixels whose sign is wrong. The binary net settles for up to 10 asynchronous sweeps.
    """
    n, cues = trial.pick(smoke=50, quick=1_000, full=1_000), trial.pick(smoke=2, quick=20, full=200)
    images = data.digits("mnist").pixels
    chosen = torch.randperm(len(images), generator=trial.generator())[:n]
    patterns = (images[chosen].flatten(1) > 0.5).float() * 2 - 1
    true, half = patterns[:cues], patterns.shape[1] // 2
    cue = true.clone()
    cue[:, half:] = 0
    modern = retrieve(cue, patterns, beta=0.25)
    binary = settle(cue, hebb(patterns), sweeps=trial.pick(smoke=1, quick=10, full=10))

    def wrong(read: Tensor) -> float:
        return float((read[:, half:].sign() != true[:, half:]).float().mean())

    def draw() -> object:
        import matplotlib.pyplot as plt

        rows = {"cue": cue, "modern, one update": modern, "binary, settled": binary, "stored": true}
        shown = min(8, cues)
        figure, axes = plt.subplots(len(rows), shown, figsize=(shown, len(rows)), squeeze=False)
        for line, (name, states) in zip(axes, rows.items(), strict=True):
            for cell, state in zip(line, states, strict=False):
                cell.imshow(state.view(28, 28), cmap="gray", vmin=-1, vmax=1)
                cell.set(xticks=[], yticks=[])
            line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        return figure

    trial.figure("recall", draw)
    return Outcome(method=wrong(modern), baseline=wrong(binary), notes={"stored": n, "cues": cues})


class BagNet(nn.Module):
    """A bag's logit: ``head(pool(relu(W x)))``."""

    def __init__(self, d: int, width: int, pool: Callable[[Tensor, Tensor], Tensor], head: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(d, width), nn.ReLU())
        self.pool, self.head = pool, head

    def forward(self, members: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.pool(self.embed(members), mask)).squeeze(-1)


class MaskedHopfieldPooling(HopfieldPooling):
    """`HopfieldPooling` with the mask where the other pools have it, and the options of the authors' example."""

    def __init__(self, d: int) -> None:
        super().__init__(d, hidden=8, heads=4, steps=4, beta=0.25, dropout=0.5)

    def forward(self, bag: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(bag, mask=mask)


def bag_nets(d: int, width: int) -> dict[str, list[Callable[[], nn.Module]]]:
    """Networks by kind of pooling, with the same number of parameters within 5 %.

    The mean has no parameters of its own: its network spends them in a wider embedding or a deeper head, whichever validates better.
    """
    hopfield = lambda: BagNet(d, width, MaskedHopfieldPooling(width), nn.Linear(width, 1))  # noqa: E731
    size = sum(p.numel() for p in hopfield().parameters())
    spare = size - width * (d + 1)  # what the embedding does not use
    hidden, deep = round((spare - 1) / (width + 8)), round(((width + 2) ** 2 / 4 + spare) ** 0.5 - (width + 2) / 2)
    return {
        "hopfield": [hopfield],
        "attention": [lambda: BagNet(d, width, AttentionPool(width, hidden - 1, heads=4), nn.Linear(4 * width, 1))],
        "mean": [
            lambda: BagNet(d, round(size / (d + 2)), mean_pool, nn.Linear(round(size / (d + 2)), 1)),
            lambda: BagNet(d, width, mean_pool, MLP([width, deep, deep, 1])),
        ],
    }


def bag_accuracy(net: nn.Module, bags: Bags) -> float:
    """The share of bags on whose right side the logit lies."""
    net.eval()
    with torch.no_grad():
        return float(((net(bags.members, bags.mask) > 0) == (bags.labels == 1)).float().mean())


def pooled(trial: Trial, kinds: tuple[str, str], width: int, train: Bags, validation: Bags, test: Bags) -> Outcome:
    """Test accuracy of two kinds of pooling; network and learning rate of each are those that validate best."""
    steps = trial.pick(smoke=3, quick=300, full=2_000)
    rates = trial.pick(smoke=(3e-3,), quick=(3e-3,), full=(1e-3, 3e-3, 1e-2))
    batches = minibatches([train.members, train.mask, train.labels.float()], size=64, seed=trial.seed)
    found: dict[str, dict[str, float]] = {}
    nets = bag_nets(train.members.shape[-1], width)
    runs = [(kind, i, lr) for kind in kinds for i in range(len(nets[kind])) for lr in rates]
    for kind, i, lr in trial.track(runs, "training"):
        torch.manual_seed(trial.seed)
        net = nets[kind][i]()
        fit(net, lambda net, b: binary_cross_entropy_with_logits(net(b[0], b[1]), b[2]), batches, steps=steps, lr=lr, report=quiet)
        scores = {part: bag_accuracy(net, bags) for part, bags in {"validation": validation, "test": test}.items()}
        scores |= {"training": bag_accuracy(net, train), "learning rate": lr, "parameters": sum(p.numel() for p in net.parameters())}
        if kind not in found or scores["validation"] > found[kind]["validation"]:
            found[kind] = scores
    trial.figure("accuracy", lambda: bars({kind: {p: found[kind][p] for p in ("training", "test")} for kind in kinds}))
    return Outcome(found[kinds[0]]["test"], found[kinds[1]]["test"], notes=dict(found))
