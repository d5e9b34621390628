"""What Lo & Yin 2021 claim of interaction-based convolution: windows that find interactions, and few weights behind them."""

import functools

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from neuropil.claims.interaction.iscore import (
    AUC,
    RATES,
    Part,
    Split,
    auc,
    bars,
    changed,
    digit_pair,
    evaluate,
    read_out,
    sizes,
    train,
    weights,
)
from neuropil.errors import optional
from neuropil.interaction.influence import backward_dropping
from neuropil.interaction.interaction_conv import InteractionNet
from neuropil.lab import Less, Metric, More, Outcome, Trial, claim

SIDE = 16  # of the parity images


@claim(
    "icnn",
    metric=Metric("draws in which the module is found", better="higher"),
    expect=More(than=0.9),
    method="best group of 300 starts",
    baseline="bits with the highest correlation",
)
def dropping_finds_the_parity(trial: Trial) -> Outcome:
    """Of 30 fair bits and 200 rows, backward dropping from 300 random groups of 7 finds the 2 or 3 whose parity is the label.

    Half of the draws have 2 bits, half 3. A start of 7 of 30 holds all of 3 bits with chance 0.0086: with 300 starts, 7.5 % of the
    draws with 3 bits have no start that could find them. The baseline is told how many bits to name, and names those that correlate
    most.
    """
    draws = trial.pick(smoke=2, quick=20, full=100)
    found, marginal = [], []
    for draw in trial.track(range(draws), "draws"):
        g, r = trial.generator(draw), 2 + draw % 2
        codes = torch.randint(2, (200, 30), generator=g)
        module = set(torch.randperm(30, generator=g)[:r].tolist())
        y = codes[:, sorted(module)].sum(1) % 2
        starts = torch.rand(300, 30, generator=g).topk(7).indices
        subsets, scores = backward_dropping(codes, y, starts)
        found.append(set(subsets[scores.argmax()].tolist()) - {-1} == module)
        x = codes.float()
        correlation = ((y - y.float().mean()) @ (x - x.mean(0))).abs() / x.std(0)
        marginal.append(set(correlation.topk(r).indices.tolist()) == module)
        if draw == 1:
            correlation = correlation / (199 * y.float().std())
            trial.figure("starts", functools.partial(starts_figure, scores, correlation, module, subsets))
    notes = {"2 bits": sum(found[::2]) / len(found[::2]), "3 bits": sum(found[1::2]) / len(found[1::2]), "draws": draws}
    return Outcome(sum(found) / draws, sum(marginal) / draws, notes)


def starts_figure(scores: Tensor, correlation: Tensor, module: set[int], subsets: Tensor) -> object:
    """Correlation of every bit, and the scores of what all starts came to."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3))
    left.bar(range(len(correlation)), correlation, color=["C1" if i in module else "0.7" for i in range(len(correlation))])
    left.set(xlabel="bit (the parity's in orange)", ylabel="|correlation| with the label", ylim=(0, 1), title="One by one")
    hit = torch.tensor([set(subset) - {-1} == module for subset in subsets.tolist()])
    right.hist([scores[~hit], scores[hit]], bins=40, stacked=True, color=["0.7", "C1"], label=["others", "exactly the module"])
    right.set(xlabel="influence score I", ylabel="starts", yscale="log", title="Together: where 300 starts end")
    right.legend(frameon=False)
    figure.tight_layout()
    return figure


def small_cnn(side: int) -> nn.Sequential:
    """A CNN of about as many weights as the interaction net has in its head: 306 for 289 (side 16), 815 for 817 (side 28)."""
    channels = {16: 5, 28: 9}[side]
    first, second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, channels, 3, padding=1)
    head = nn.Linear(channels * (side // 4) ** 2, 1)
    return nn.Sequential(
        nn.Unflatten(1, (1, side)), first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), head
    )


def logistic(parts: Split) -> float:
    """Test AUC of scikit-learn's logistic regression; its penalty is chosen by validation AUC."""
    model = optional("sklearn.linear_model", "memory").LogisticRegression
    scores = []
    for c in (1e-3, 1e-2, 1e-1, 1.0):
        fitted = model(C=c, max_iter=1_000).fit(parts[0].x.numpy(), parts[0].y.numpy())
        scores.append([auc(torch.from_numpy(fitted.decision_function(part.x.numpy())), part.y) for part in parts[1:]])
    return max(scores)[1]


def compare(
    parts: Split, steps: int, rates: tuple[float, ...], seed: int
) -> tuple[dict[str, float], dict[str, int], InteractionNet]:
    """Test AUC and trained weights of the interaction net and its rivals; every learning rate is chosen on validation images."""
    training, _, test = parts
    side = training.x.shape[-1]
    net = InteractionNet((side, side)).fit_layers(training.x, training.y)
    cnn = train(lambda: small_cnn(side), parts, steps, rates, 64, seed)
    found = {
        "interaction net": read_out(changed(parts, net.features), steps, seed)["auc"],
        "CNN": evaluate(cnn, test)["auc"],
        "logistic regression on pixels": logistic(changed(parts, lambda x: x.flatten(1))),
        "dense net on averages of 4 × 4": read_out(changed(parts, lambda x: avg_pool2d(x[:, None], 4).flatten(1)), steps, seed)[
            "auc"
        ],
    }
    return found, {"interaction net": weights(net), "CNN": weights(cnn), "logistic regression": side**2 + 1}, net


def parity_images(n: int, pair: Tensor, g: torch.Generator) -> Part:
    """Binary noise (n, 16, 16); the label is the parity of two pixels (a simulator)."""
    x = torch.randint(2, (n, SIDE, SIDE), generator=g)
    return Part(x.float(), (x.flatten(1)[:, pair].sum(1) % 2).float())


@functools.cache
def parity(
    seed: int, steps: int, n: int, rates: tuple[float, ...]
) -> tuple[dict[str, float], dict[str, int], InteractionNet, Tensor]:
    """What nets reach on parity images, and the two pixels: neighbours inside one of the 64 windows, drawn by seed."""
    trial = Trial(seed)
    g = trial.generator()
    window = torch.randint(SIDE // 2, (2,), generator=g) * 2
    inside = torch.combinations(torch.tensor([0, 1, SIDE, SIDE + 1]))
    pair = window[0] * SIDE + window[1] + inside[torch.randint(len(inside), (1,), generator=g)[0]]
    training, validation, test = (parity_images(size, pair, g) for size in (n, 200, 1_000))
    return *compare((training, validation, test), steps, rates, seed), pair


def parity_of(trial: Trial) -> tuple[dict[str, float], dict[str, int], InteractionNet, Tensor]:
    """The runs that two claims share."""
    return parity(trial.seed, *trial.pick(smoke=(3, 100, RATES[:1]), quick=(150, 800, RATES[1:3]), full=(400, 800, RATES)))


@claim(
    "icnn",
    metric=AUC,
    expect=More(than=0.95),
    method="interaction net (289 weights)",
    baseline="CNN (306 weights)",
    paper="99.8 % on COVID-19 chest X-rays, with far fewer weights than VGG16",
)
def windows_read_a_parity(trial: Trial) -> Outcome:
    """In noise images whose label is the parity of two neighbouring pixels, the interaction net reaches a test AUC of 0.95.

    Two layers of 2 × 2 windows and a dense net of 16 units; 800 images of 16 × 16 train, 200 choose learning rates, 1,000 test. The
    two pixels lie in one of the 64 windows, by seed. The CNN has as many trained weights. In the notes: the other rivals.
    """
    found, size, net, pair = parity_of(trial)
    trial.figure("auc", lambda: bars(found, "test AUC, parity of two pixels", 0.5))
    trial.figure("windows", lambda: window_figure(net, pair))
    return Outcome(found["interaction net"], found["CNN"], {"AUC": found, "trained weights": size})


@claim(
    "icnn",
    metric=AUC,
    expect=Less(than=0.6),
    method="logistic regression on pixels",
    baseline="interaction net",
)
def pixels_one_by_one_do_not(trial: Trial) -> Outcome:
    """On the same images logistic regression on all pixels stays below a test AUC of 0.60: no pixel alone says anything."""
    found, size, net, pair = parity_of(trial)
    trial.figure("windows", lambda: window_figure(net, pair))
    return Outcome(found["logistic regression on pixels"], found["interaction net"], {"AUC": found, "trained weights": size})


def window_figure(net: InteractionNet, pair: Tensor) -> object:
    """The two pixels, and I of each window in both layers."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(9, 3))
    image = torch.zeros(SIDE**2)
    image[pair] = 1
    axes[0].imshow(image.view(SIDE, SIDE), cmap="gray")
    axes[0].set_title("the two pixels")
    for cell, layer, name in zip(axes[1:], net.stack, ("first", "second"), strict=True):
        drawn = cell.imshow(layer.scores.view(layer.out_shape), cmap="magma")
        cell.set_title(f"I, {name} layer")
        figure.colorbar(drawn, ax=cell, shrink=0.8)
    for cell in axes:
        cell.set(xticks=[], yticks=[])
    return figure


@claim(
    "icnn",
    metric=AUC,
    expect=More(by=-0.02),
    method="interaction net (817 weights)",
    baseline="CNN (815 weights)",
    paper="99.8 % on COVID-19 chest X-rays, with far fewer weights than VGG16",
)
def windows_keep_up_with_a_cnn_on_digits(trial: Trial) -> Outcome:
    """Four or nine: the interaction net's test AUC is at most 0.02 below that of a CNN with as many trained weights.

    MNIST, 600 images train, 150 choose learning rates, 250 test, a new split for each seed. Two layers of 2 × 2 windows (28 → 14 →
    7) and a dense net of 16 units. In the notes: logistic regression on pixels, the same dense net on averages of 4 × 4 pixels.
    """
    parts = digit_pair(sizes(trial), trial.generator())
    steps, rates = trial.pick(smoke=(3, RATES[:1]), quick=(150, RATES[1:3]), full=(400, RATES))
    found, size, net = compare(parts, steps, rates, trial.seed)
    trial.figure("layers", lambda: layers_figure(net, parts[2]))
    trial.figure("auc", lambda: bars(found, "test AUC, four or nine", 0.5))
    return Outcome(found["interaction net"], found["CNN"], {"AUC": found, "trained weights": size})


@torch.no_grad()
def layers_figure(net: InteractionNet, part: Part) -> object:
    """A test image of each class, and its maps of label means."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(7.5, 4.6))
    for row, label in zip(axes, (0, 1), strict=True):
        image = part.x[part.y == label][:1]
        row[0].imshow(image[0], cmap="gray")
        for cell, layer in zip(row[1:], net.stack, strict=True):
            image = layer(image)
            drawn = cell.imshow(image[0], cmap="coolwarm", vmin=0, vmax=1)
        figure.colorbar(drawn, ax=row, shrink=0.8, label="says nine")
    for cell, title in zip(axes[0], ("image", "first layer", "second layer"), strict=True):
        cell.set_title(title)
    for cell in axes.flat:
        cell.set(xticks=[], yticks=[])
    return figure
