"""What Tosato et al. (TMLR 2025) claim of forward-forward nets: sparse codes, an ensemble a class, and that the goal makes them so.

Data: scikit-learn's 8 × 8 digits (real), 1,442 to train and 355 to test. Nets: three layers of 300 ReLU units (BP: and a linear
head), Adam, 4 batches of 360 an epoch, 200 epochs. Of three rates half a decade apart each net has the one with the best mean
accuracy on a fifth of the training data over seeds 11–15: FF 0.03 (92.8 % at 0.01), BP/FF 0.0003, BP 0.003. Unlike the paper's all
learn for the same number of steps, and the layers of FF all at once. Codes are those of correctly answered test images, as in the
paper; FF and BP/FF are shown the label, too.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neuropil import data
from neuropil.lab import Less, Metric, More, Outcome, Trial, claim
from neuropil.learning.forward_forward import ForwardForward, GoodnessBackprop
from neuropil.learning.labels import neutral_label
from neuropil.learning.rule import Backprop, Rule
from neuropil.nn.sites import record
from neuropil.numerics.sparsity import class_means, ensembles, hoyer, jaccard
from neuropil.training.fit import minibatches

RATES = {
    "FF": 0.03,
    "BP/FF": 0.0003,
    "BP": 0.003,
    "BP, strip": 0.003,
}  # "strip": trained and tested with the label's pixels neutral
WIDTH, LAYERS, BATCH = 300, 3, 360
SPARSITY = Metric("Hoyer sparsity", better="higher")
Rows = tuple[Tensor, Tensor]


def digits(split: str) -> Rows:
    """Flat images and labels."""
    images = data.digits("sklearn", split)
    return images.pixels.flatten(1), images.labels


@functools.cache
def trained(kind: str, epochs: int, seed: int, unseen: int | None = None) -> tuple[Rule, nn.Sequential]:
    """A rule and the net that it trained; without the digit `unseen`, the others then being classes 0 … 8 in their order."""
    torch.manual_seed(seed)
    x, y = digits("train")
    classes = 10
    if unseen is not None:
        x, y, classes = x[y != unseen], seen(y[y != unseen], unseen), 9
    if kind == "BP, strip":
        x = neutral_label(x)
    rule: Rule = {"FF": ForwardForward, "BP/FF": GoodnessBackprop}[kind](classes) if kind in ("FF", "BP/FF") else Backprop()
    hidden = [layer for i in range(LAYERS) for layer in (nn.Linear(WIDTH if i else 64, WIDTH), nn.ReLU())]
    net = nn.Sequential(*hidden, *([nn.Linear(WIDTH, classes)] if isinstance(rule, Backprop) else []))
    optimizer = torch.optim.Adam(net.parameters(), RATES[kind])
    batch = minibatches([x, y], min(BATCH, len(x) // 4), seed)
    for step in range(4 * epochs):
        images, labels = batch(step)
        rule.step(net, (images, labels), optimizer)
    return rule, net


def seen(y: Tensor, unseen: int) -> Tensor:
    """Labels 0 … 8 of the digits other than `unseen`."""
    return y - (y > unseen).long()


def codes(rule: Rule, net: nn.Sequential, x: Tensor, y: Tensor | None) -> list[Tensor]:
    """The activity of the three layers; forward-forward nets are shown label y with x, or a neutral one."""
    if isinstance(rule, ForwardForward):
        return rule.states(net, neutral_label(x, rule.classes) if y is None else rule.labelled(x, y))
    names = [str(2 * i + 1) for i in range(LAYERS)]
    with torch.no_grad(), record(net, *names) as seen_at:
        net(x)
    return [seen_at[name][0] for name in names]


def tested(kind: str, epochs: int, seed: int, label: bool = True) -> tuple[float, list[Tensor], Tensor]:
    """Test accuracy, and the codes and the labels of the images that were answered correctly."""
    rule, net = trained(kind, epochs, seed)
    x, y = digits("test")
    x = neutral_label(x) if kind == "BP, strip" else x
    with torch.no_grad():
        right = rule.predict(net, x).argmax(1) == y
    return float(right.float().mean()), codes(rule, net, x[right], y[right] if label else None), y[right]


def sparsity(layers: Sequence[Tensor]) -> list[float]:
    """Hoyer's measure, averaged over samples, of each layer."""
    return [float(hoyer(h).nanmean()) for h in layers]


def overlaps(layers: Sequence[Tensor], y: Tensor) -> dict[str, list[float]]:
    """Of each layer: the Jaccard index of a class's ensembles from two halves of the samples, that of two classes, and sizes.

    A class with an ensemble in no half does not recur: 0. Pairs of classes without any are left out; with none left, 0.
    """
    half = torch.arange(len(y)) % 2 == 0
    a, b = torch.triu_indices(10, 10, 1)
    found: dict[str, list[float]] = {"within": [], "between": [], "size": []}
    for h in layers:
        whole, one, other = ensembles(h, y, 10), ensembles(h[half], y[half], 10), ensembles(h[~half], y[~half], 10)
        found["within"].append(float(jaccard(one, other).nan_to_num(0).mean()))
        found["between"].append(float(jaccard(whole[a], whole[b]).nanmean().nan_to_num(0)))
        found["size"].append(float(whole.float().mean()))
    return found


def mean(values: Sequence[float]) -> float:
    """Over layers or digits."""
    return sum(values) / len(values)


def walls(title: str, named: dict[str, tuple[list[Tensor], Tensor]]) -> object:
    """Mean activity of each unit for each digit, relative to the layer's highest; units in the order of the digit they prefer."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(named), LAYERS, figsize=(10, 2.1 * len(named) + 0.6), squeeze=False, layout="constrained")
    for row, (name, (layers, y)) in zip(axes, named.items(), strict=True):
        for i, (cell, h) in enumerate(zip(row, layers, strict=True)):
            table = class_means(h, y, 10)
            table = table[:, by_preference(table)]
            cell.imshow((table / table.max()).numpy(), aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
            cell.set(title=f"{name}, layer {i + 1}: sparsity {float(hoyer(h).nanmean()):.2f}", yticks=range(0, 10, 3))
    for cell in axes[-1]:
        cell.set_xlabel("unit")
    for row in axes:
        row[0].set_ylabel("digit")
    figure.suptitle(title)
    return figure


def by_preference(table: Tensor) -> Tensor:
    """The order of units in which those that prefer class 0 come first, each class's strongest first, and silent units last."""
    strength, best = table.max(0)
    best = torch.where(strength > 0.01 * strength.max(), best, len(table))
    return (best - 0.999 * strength / strength.max()).argsort()


def epochs(trial: Trial) -> int:
    """Of training; four steps each."""
    return trial.pick(smoke=2, quick=60, full=200)


@claim(
    "forward-forward",
    metric=SPARSITY,
    expect=More(by=0.3),
    method="forward-forward (FF)",
    baseline="backpropagation of the cross-entropy (BP)",
    paper="FF high in all layers, BP low",
)
def codes_are_sparse(trial: Trial) -> Outcome:
    """The codes of a forward-forward net are far sparser than those of the same layers under backprop of the cross-entropy.

    The mean over the three layers. BP sees whole images; the notes have it with a neutral label strip, too, and FF's with a neutral
    label. Sparsity hangs on the rate: BP has 0.51 at 0.01 and 0.26 at 0.001, FF 0.89 at 0.03 and 0.82 at 0.01 (means over layers
    and seeds 11–15, validation images).
    """
    kinds = ("FF", "BP", "BP, strip")
    found = {kind: tested(kind, epochs(trial), trial.seed) for kind in trial.track(kinds, "nets")}
    trial.figure("codes", lambda: walls("What each unit answers to each digit", {k: found[k][1:] for k in kinds}))
    notes = {f"{kind}: sparsity of each layer": sparsity(found[kind][1]) for kind in kinds}
    notes["FF, neutral label: sparsity of each layer"] = sparsity(tested("FF", epochs(trial), trial.seed, label=False)[1])
    return Outcome(mean(sparsity(found["FF"][1])), mean(sparsity(found["BP"][1])), notes)


@claim(
    "forward-forward",
    metric=SPARSITY,
    expect=More(by=0.2),
    method="backpropagation of the goodness (BP/FF)",
    baseline="backpropagation of the cross-entropy (BP)",
    paper="BP/FF sparse, too, in the first layer most",
)
def it_is_the_goal_that_makes_them_sparse(trial: Trial) -> Outcome:
    """Backpropagation of forward-forward's goal gives sparse codes, too, in the first layer.

    Layer 1 of either net; the notes have all layers, and BP with a neutral label strip.
    """
    kinds = ("BP/FF", "BP", "BP, strip")
    found = {kind: tested(kind, epochs(trial), trial.seed) for kind in trial.track(kinds, "nets")}
    trial.figure("codes", lambda: walls("The same backward pass, another goal", {k: found[k][1:] for k in kinds[:2]}))
    notes = {f"{kind}: sparsity of each layer": sparsity(found[kind][1]) for kind in kinds}
    return Outcome(sparsity(found["BP/FF"][1])[0], sparsity(found["BP"][1])[0], notes)


@claim(
    "forward-forward",
    metric=Metric("test accuracy", better="higher"),
    expect=More(than=0.88),
    method="forward-forward",
    baseline="backpropagation",
    paper="FF and BP/FF somewhat below BP",
)
def local_learning_reads_digits(trial: Trial) -> Outcome:
    """Three layers that each learn for themselves read at least 88 % of real digits; backpropagation reads a few per cent more."""
    found = {kind: tested(kind, epochs(trial), trial.seed)[0] for kind in trial.track(("FF", "BP/FF", "BP", "BP, strip"), "nets")}
    rule, net = trained("FF", epochs(trial), trial.seed)
    x, y = digits("test")
    trial.figure("answers", lambda: answers(rule.predict(net, x), x, y))
    return Outcome(found["FF"], found["BP"], {f"accuracy of {kind}": accuracy for kind, accuracy in found.items()})


def answers(scores: Tensor, x: Tensor, y: Tensor) -> object:
    """Scores of all labels for one image of each digit, and their mean over all images of a digit."""
    import matplotlib.pyplot as plt

    first = [int((y == c).nonzero()[0]) for c in range(10)]
    figure = plt.figure(figsize=(9, 4.2), layout="constrained")
    figure.subfigures(1, 2, width_ratios=(1, 1.3))
    left, right = figure.subfigs
    for row, i in zip(left.subplots(10, 2, width_ratios=(1, 6)), first, strict=True):
        row[0].imshow(x[i].view(8, 8).numpy(), cmap="gray_r")
        row[1].bar(range(10), scores[i].tolist(), color=["C0" if c == int(y[i]) else "0.7" for c in range(10)])
        row[1].set(ylim=(0, LAYERS), xticks=[])
        for cell in row:
            cell.set_yticks([])
            cell.set_xticks([])
    left.suptitle("Score of each label 0 … 9 (blue: the true one)", fontsize=9)
    cell = right.subplots()
    picture = cell.imshow(class_means(scores, y, 10).numpy(), cmap="Blues", vmin=0)
    cell.set(xlabel="label shown", ylabel="digit", title="Mean score", xticks=range(10), yticks=range(10))
    right.colorbar(picture)
    return figure


@claim(
    "forward-forward",
    metric=Metric("Jaccard index of ensembles", better="higher"),
    expect=More(than=0.6),
    method="forward-forward",
    baseline="backpropagation",
    paper="ensembles are robust",
)
def an_ensemble_recurs(trial: Trial) -> Outcome:
    """The units that stand out for a digit are the same ones in two halves of the test images, with an overlap of at least 0.6.

    A unit stands out where its mean activity for the digit is more than three times that of the other units (the authors' cut).
    Means over digits and layers; the baseline is the same of the BP net. The label is shown with the image: the notes have the
    overlap with a neutral one.
    """
    _, layers, y = tested("FF", epochs(trial), trial.seed)
    found = {
        "FF": overlaps(layers, y),
        "FF, neutral label": overlaps(tested("FF", epochs(trial), trial.seed, label=False)[1], y),
        "BP": overlaps(*tested("BP", epochs(trial), trial.seed)[1:]),
    }
    trial.figure("halves", lambda: halves(layers, y))
    notes = {f"{kind}: {what} of each layer": values for kind, table in found.items() for what, values in table.items()}
    return Outcome(mean(found["FF"]["within"]), mean(found["BP"]["within"]), notes)


def halves(layers: Sequence[Tensor], y: Tensor) -> object:
    """Ensembles of all digits from two halves of the images: units of both, of one only."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    half = torch.arange(len(y)) % 2 == 0
    figure, axes = plt.subplots(1, LAYERS, figsize=(10, 2.6), layout="constrained")
    for i, (cell, h) in enumerate(zip(axes, layers, strict=True)):
        order = by_preference(class_means(h, y, 10))
        one, other = (ensembles(h[part], y[part], 10)[:, order].long() for part in (half, ~half))
        used = (one + other).any(0)
        cell.imshow(
            (one + 2 * other)[:, used].numpy(), cmap=ListedColormap(["white", "C1", "C2", "C0"]), vmin=0, vmax=3, aspect="auto"
        )
        cell.set(title=f"Layer {i + 1}: {int(used.sum())} of {len(used)} units", xlabel="unit", yticks=range(0, 10, 3))
    axes[0].set_ylabel("digit")
    figure.suptitle("Ensembles found in both halves of the test images (blue), in one only (orange, green)")
    return figure


@claim(
    "forward-forward",
    metric=Metric("Jaccard index of ensembles", better="lower"),
    expect=Less(than=0.4),
    method="two digits",
    baseline="one digit in two halves of the images",
    paper="few units are shared, more of them by similar classes",
)
def ensembles_of_two_digits_differ(trial: Trial) -> Outcome:
    """The ensembles of two digits share few units: a mean overlap of at most 0.4 over all pairs of digits and layers.

    The baseline is the overlap of one digit's ensembles over two halves of the test images, in the same net.
    """
    _, layers, y = tested("FF", epochs(trial), trial.seed)
    found = overlaps(layers, y)
    masks = [ensembles(h, y, 10) for h in layers]
    trial.figure("overlap", lambda: matrices([jaccard(m[:, None], m) for m in masks]))
    return Outcome(mean(found["between"]), mean(found["within"]), {f"{what} of each layer": v for what, v in found.items()})


def matrices(layers: Sequence[Tensor]) -> object:
    """Overlaps of the ensembles of all pairs of digits."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, LAYERS, figsize=(10, 3.2), layout="constrained")
    for i, (cell, table) in enumerate(zip(axes, layers, strict=True)):
        picture = cell.imshow(table.numpy(), cmap="magma", vmin=0, vmax=1)
        cell.set(title=f"Layer {i + 1}", xlabel="digit", xticks=range(10), yticks=range(10))
    axes[0].set_ylabel("digit")
    figure.colorbar(picture, ax=axes, label="Jaccard index")
    return figure


@claim(
    "forward-forward",
    metric=Metric("largest Jaccard index with another ensemble", better="lower"),
    expect=Less(than=0.5),
    method="a digit never seen",
    baseline="digits that were learned",
    paper="unseen categories evoke ensembles of their own",
)
def a_digit_never_seen_has_its_own_ensemble(trial: Trial) -> Outcome:
    """A digit left out of training still evokes an ensemble, and it overlaps with that of no learned digit by half.

    The digit is the seed's last figure; all its images are shown, with a neutral label since it has none; the learned digits' test
    images with theirs. Of each layer the largest overlap with a learned digit, then the mean over layers; an empty ensemble counts
    as 1. The baseline is the same of a learned digit, averaged over them. The notes have the learned digits with a neutral label,
    and the mean overlap with them instead of the largest.

    Seen on seeds 11, 12, 15, 17 and 18: the ensemble is there, but it is mostly that of the digits that look alike (a 5 evokes the
    9's: 1.0 in layer 2). Largest overlaps are 0.52 to 0.86, mean ones 0.07 to 0.33. Without any label or with the best-scored one,
    with the authors' lower cut, and at rates of 0.01 and 0.003 they are much the same, above 0.5 in more than half of all layers.
    """
    unseen = trial.seed % 10
    rule, net = trained("FF", epochs(trial), trial.seed, unseen)
    x, y = digits("test")
    strange = torch.cat([images[labels == unseen] for images, labels in (digits("train"), (x, y))])
    x, y = x[y != unseen], seen(y[y != unseen], unseen)
    news = [ensembles(h, torch.zeros(len(h), dtype=torch.long), 1) for h in codes(rule, net, strange, None)]
    olds = [ensembles(h, y, 9) for h in codes(rule, net, x, y)]
    bare = [ensembles(h, y, 9) for h in codes(rule, net, x, None)]
    with_new = [overlap(new, old) for new, old in zip(news, olds, strict=True)]
    with_old = [overlap(old[:, None], old).fill_diagonal_(0) for old in olds]
    trial.figure("unseen", lambda: unseen_rows(unseen, news, olds, with_new))
    notes = {
        "digit": unseen,
        "size of each layer": [float(new.float().mean()) for new in news],
        "largest overlap of each layer": [float(row.max()) for row in with_new],
        "mean overlap of each layer": [float(row.mean()) for row in with_new],
        "with learned digits under a neutral label": [float(overlap(new, old).max()) for new, old in zip(news, bare, strict=True)],
    }
    return Outcome(mean([float(row.max()) for row in with_new]), mean([float(t.max(1).values.mean()) for t in with_old]), notes)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """The Jaccard index of the ensembles a with the ensembles b, and 1 where a is empty: no ensemble of its own."""
    return torch.where(a.any(-1), jaccard(a, b), 1.0)


def unseen_rows(unseen: int, news: Sequence[Tensor], olds: Sequence[Tensor], overlap: Sequence[Tensor]) -> object:
    """The ensembles of the learned digits and, below, that of the one never seen."""
    import matplotlib.pyplot as plt

    names = [*(str(c) for c in range(10) if c != unseen), f"{unseen} (unseen)"]
    figure, axes = plt.subplots(1, LAYERS, figsize=(10, 2.8), layout="constrained")
    for i, (cell, new, old, row) in enumerate(zip(axes, news, olds, overlap, strict=True)):
        table = torch.cat([old.int(), 2 * new.int()])
        table = table[:, table.any(0)]
        order = (table > 0).int().argmax(0).argsort(stable=True)
        cell.imshow(table[:, order].numpy(), cmap="Blues", vmin=0, vmax=2, aspect="auto", interpolation="nearest")
        cell.axhline(8.5, color="0.5", lw=1)
        cell.set(title=f"Layer {i + 1}: largest overlap {float(row.max()):.2f}", xlabel="unit", yticks=range(10))
        cell.set_yticklabels(names if i == 0 else [])
    axes[0].set_ylabel("digit")
    figure.suptitle("Ensembles of nine learned digits and of the one left out of training")
    return figure
